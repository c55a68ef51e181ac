r"""The boundary of the event as a proposal needs it: how high along one direction, how that depends on the others, how rough.

Probit regression of the outcome, Pr[hit | t, v] = Phi((t - b(v)) / s), on all points seen near the place. It uses outcomes only, so
it does not matter how the margin is scaled, saturates or steps; and it is valid however the points were come by, because it
conditions on where they are.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.optimize import minimize
from scipy.special import log_ndtr
from torch import Tensor

from ppl_risk.importance.gated import REACH, Gate

#: Roughness is kept within these; a boundary rougher than the second is not one.
SMOOTHEST, ROUGHEST = 0.03, 3.0
#: Outcomes of either kind below which there is nothing to regress on.
FEWEST = 10
#: Points this far below the lowest catastrophes say nothing about the boundary.
BELOW = 2.5
#: Precision of the prior on the dependence on v, which is in scales.
RIDGE = 0.5


def fit_boundary(
    height: Float[Tensor, " n"],
    v: Float[Tensor, "n across"],
    bulge: Float[Tensor, " n"] | None,
    hit: Bool[Tensor, " n"],
) -> Gate | None:
    """The gate that tells hits from misses, or None where there is too little to learn it from.

    Args:
        height: t. v: the other directions, standardised. bulge: |rest|^2 / others - 1, where there is a rest. hit: outcomes.
    """
    if int(hit.sum()) < FEWEST:
        return None
    centre = float(height[hit].quantile(0.1))
    # Far out along v a quadratic is a guess, and points there would bend it.
    near = (height >= centre - BELOW) & (v.abs() <= REACH).all(-1)
    hit = hit[near]
    if min(int(hit.sum()), int((~hit).sum())) < FEWEST:
        return None
    v = v[near]
    columns = [(height[near] - centre)[:, None], torch.ones_like(height[near])[:, None], v, v.square()]
    if bulge is not None:
        columns.append(bulge[near].clamp(-REACH, REACH)[:, None])
    features = torch.cat(columns, -1).cpu().numpy()
    precision = np.full(features.shape[1], RIDGE)
    precision[:2] = 1e-3
    if bulge is not None:  # its spread is small, so its coefficient may be large
        precision[-1] = RIDGE * float(features[:, -1].var())
    beta = _probit(features, np.where(hit.cpu().numpy(), 1.0, -1.0), precision)
    if not beta[0] > 1 / ROUGHEST:
        return None
    terms = torch.as_tensor(-beta[1:] / beta[0], device=height.device)
    across = v.shape[1]
    return Gate(
        centre + float(terms[0]), max(SMOOTHEST, float(1 / beta[0])), terms[1 : 1 + across],
        terms[1 + across : 1 + 2 * across], 0.0 if bulge is None else float(terms[-1]),
    )  # fmt: skip


def _probit(features: np.ndarray, sign: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Coefficients of largest posterior density."""

    def loss(beta: np.ndarray) -> tuple[float, np.ndarray]:
        z = sign * (features @ beta)
        log_cdf = log_ndtr(z)
        slope = np.exp(-z * z / 2 - 0.5 * math.log(2 * math.pi) - log_cdf)
        value = -log_cdf.sum() + (precision * beta**2).sum() / 2
        return float(value), -(features.T @ (sign * slope)) + precision * beta

    first = np.zeros(features.shape[1])
    first[0] = 1.0
    return minimize(loss, first, jac=True, method="L-BFGS-B", options={"maxiter": 300}).x


def optimal(gate: Gate) -> Gate:
    r"""The gate that a proposal should have where that of the event is rough.

    Among laws of t the least variance is at phi(t) sqrt(Pr[hit | t]) and not at phi(t) Pr[hit | t], under which the weights of
    early hits have no bound. Phi(z)^{1/2} falls off like a gate that is sqrt 2 as rough, and equals it at z = 0 when that one
    starts 0.77 s earlier.
    """
    s = gate.roughness
    return Gate(gate.start - 0.77 * s, math.sqrt(2) * s, gate.linear, gate.square, gate.bulge)
