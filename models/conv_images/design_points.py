r"""Design points, and importance sampling at them: a reference for answers that have no formula. Not part of the model.

A design point is a nearest point of catastrophe. From each of `STARTS` random starts the search takes the point of the linearised
boundary that is nearest to 0 (A. M. Hasofer and N. C. Lind 1974; R. Rackwitz and B. Fiessler 1978), damped, until it stays; ends
closer than `MERGE` are one point. The proposal is the equal mixture q = mean_k N(u_k, spread^2 I), so

    p = E_q[1{margin >= 0} phi(u) / q(u)].
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parent.parent))
from truth_making import Answer  # pyright: ignore[reportMissingImports]

from ppl_risk import RiskProblem
from ppl_risk.importance.pareto import effective_sample_size, pareto_khat
from ppl_risk.importance.sampling import log_mean_and_error

STARTS, STEPS, MERGE = 64, 300, 0.3
BATCH = 1000


def design_points(hard: RiskProblem, seed: int) -> tuple[Tensor, list[str]]:
    """Design points (k, d), nearest first, and a line about each."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(STARTS, hard.transport.dimension, generator=generator)
    for step in range(STEPS):
        margin, gradient = hard.margin_and_gradient(u)
        square = gradient.square().sum(-1, keepdim=True)
        nearest = gradient * ((gradient * u).sum(-1, keepdim=True) - margin[:, None]) / square
        u = u + (0.3 if step < STEPS // 2 else 0.1) * (nearest - u)  # small steps at last: kinks
    # Onto the boundary along the ray, so that distances compare.
    low, high = torch.full((STARTS,), 0.5), torch.full((STARTS,), 2.0)
    for _ in range(40):
        middle = (low + high) / 2
        inside = hard.margin(hard.from_normal(u * middle[:, None])) >= 0
        low, high = torch.where(inside, low, middle), torch.where(inside, middle, high)
    u = u * high[:, None]
    u = u[hard.margin(hard.from_normal(u * 1.001)) >= 0]
    kept: list[int] = []
    ends: dict[int, int] = {}
    for place in u.norm(dim=-1).argsort().tolist():
        near = next((k for k in kept if (u[k] - u[place]).norm() < MERGE), place)
        ends[near] = ends.get(near, 0) + 1
        if near == place:
            kept.append(place)
    lines = [f"{float(u[k].norm()):.4f} ({ends[k]} of {STARTS} starts)" for k in kept]
    return u[kept], lines


@torch.no_grad()
def importance_at(hard: RiskProblem, points: Tensor, spread: float, draws: int, seed: int) -> Answer:
    """Importance sampling from the mixture at the points, in double precision where it sums."""
    generator, kept, dimension = torch.Generator().manual_seed(seed), [], points.shape[1]
    half = points.square().sum(-1).double() / 2
    for _ in range(draws // BATCH):
        which = torch.randint(len(points), (BATCH,), generator=generator)
        u = points[which] + spread * torch.randn(BATCH, dimension, generator=generator)
        margin = hard.run(hard.from_normal(u))
        square = u.square().sum(-1).double() / 2
        to_each = square[:, None] - (u @ points.T).double() + half
        log_q = torch.logsumexp(-to_each / spread**2, dim=1) - math.log(len(points)) - dimension * math.log(spread)
        kept.append(torch.where(margin >= 0, -square - log_q, -torch.inf))
    weights = torch.cat(kept)
    log_prob, error = log_mean_and_error(weights)
    remarks = (
        f"{len(points)} points, spread {spread}, {draws:,} draws, effective {effective_sample_size(weights):,.0f}, "
        f"k-hat {pareto_khat(weights):.2f}, seed {seed}"
    )
    return Answer(float(log_prob), float(error), "importance sampling at the design points", draws, remarks, seed)
