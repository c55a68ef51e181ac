r"""Four failure modes far apart: the estimate is too small by the share of every mode that a method misses.

u ~ N(0, I_d). Two orthonormal directions a_1, a_2, drawn once and so aligned with no coordinate; the modes are the half-spaces
a_1.u >= b_1, -a_1.u >= b_2, a_2.u >= b_3, -a_2.u >= b_4 with b_i = b + i `step`, i = 0 to 3:

    margin = max_i (+-a.u - b_i),    p = 1 - (1 - Q(b_1) - Q(b_2)) (1 - Q(b_3) - Q(b_4)),    Q(b) = Phi(-b).

b is set so that p is 10^log10_prob. With `gradient` False the margin is rounded down to a multiple of 0.01: the event is the
same, but the margin is a staircase whose gradient is 0 wherever it exists, as in a program that torch cannot see through.
"""

from __future__ import annotations

import math

import torch
from scipy.optimize import brentq
from scipy.special import ndtr
from torch import Tensor
from torch.distributions import Independent, Normal

from ppl_risk import RiskError, RiskProblem

#: Of the directions.
SEED = 314_159_265
STAIR = 0.01


def exact_log_prob(nearest: float, step: float) -> float:
    """Log p, nats, of modes at distances `nearest` + i `step`."""
    tails = [float(ndtr(-nearest - i * step)) for i in range(4)]
    first, second = tails[0] + tails[1], tails[2] + tails[3]
    return math.log(first + second - first * second)


def nearest_distance(log10_prob: float, step: float) -> float:
    """The distance b of the nearest mode at which p is 10^log10_prob."""
    gap = lambda b: exact_log_prob(b, step) - log10_prob * math.log(10.0)  # noqa: E731 - a formula
    return float(brentq(gap, 0.1, 30.0, xtol=1e-12))  # pyright: ignore[reportArgumentType]


def directions(dimension: int) -> Tensor:
    """Two orthonormal rows (2, d)."""
    draw = torch.randn(dimension, 2, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    return torch.linalg.qr(draw).Q.T.float().contiguous()


def problem(*, dimension: int = 2, log10_prob: float = -6.0, step: float = 0.0, gradient: bool = True) -> RiskProblem:
    """Pr[u in one of four half-spaces].

    Args:
        dimension: of the input, at least 2.
        log10_prob: the answer in decades, -0.5 or less.
        step: how much farther each mode is than the one before, 0 or more.
        gradient: False for a staircase, of which nothing can be learned by differentiation.

    """
    if dimension < 2 or not -100 < log10_prob <= -0.5 or step < 0:
        raise RiskError(
            "Wanted dimension >= 2, log10_prob in (-100, -0.5] and step >= 0, "
            f"got {dimension}, {log10_prob} and {step}."
        )
    axes, nearest = directions(dimension), nearest_distance(log10_prob, step)
    distances = nearest + step * torch.arange(4.0)

    def margin(u: Tensor) -> Tensor:
        first, second = (u @ axes.T).unbind(-1)
        smooth = (torch.stack([first, -first, second, -second], dim=-1) - distances).amax(-1)
        return smooth if gradient else STAIR * torch.floor(smooth / STAIR)

    return RiskProblem(margin, Independent(Normal(torch.zeros(dimension), 1.0), 1), name="far_modes")
