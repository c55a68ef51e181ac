r"""Searches for the nearest catastrophes, many at once, by gradients that may have kinks.

u <- (1 - step) u + step (grad . u - margin) grad / |grad|^2, the iteration of Hasofer, Lind, Rackwitz and Fiessler
(doi:10.1016/0045-7949(78)90046-9): the nearest point to the origin of the linearised boundary. From each start on its own;
where it comes to lie outside the event or turns in circles (a kink, a corner) its step is halved and the best point seen stands.
Where the margin is flat in the event (clamped there, or saturated) the search halves its way back to the last point outside, and
the normal is that of the last slope it met.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ppl_risk.problem import RiskProblem

#: No search goes further out than this: probabilities there are below 1e-300.
FARTHEST = 37.0
#: How far inside the linearised boundary a step aims, and the step below which a search has come to rest.
INSIDE, STILL = 0.03, 0.02
#: Turns after which a search that has not met the event and comes no nearer is taken to circle.
PATIENCE = 2
#: Step of the search afterwards.
DAMPED = 0.3


class Found(NamedTuple):
    """Points in the event (n, d), and the unit normals of the boundary there (None where there is no gradient)."""

    u: Tensor
    normal: Tensor | None


def unit_normals(gradient: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Unit gradients; rows of zeros where the margin is flat or its gradient undefined."""
    gradient = torch.nan_to_num(gradient.double(), nan=0.0, posinf=0.0, neginf=0.0)
    length = gradient.norm(dim=-1, keepdim=True)
    return torch.where(length > 0, gradient / length.clamp(min=1e-300), 0.0)


def nearest_catastrophes(problem: RiskProblem, starts: Float[Tensor, "n d"], *, steps: int, calls: int) -> Found:
    """The nearest point of the event that each start leads to; starts that lead nowhere are left out.

    Args:
        problem: the problem. starts: where to begin. steps: of each search at most; those that stand still stop earlier.
        calls: of all together at most (each step of one search takes two).
    """
    u = starts.double()
    best, best_normal = u.clone(), torch.zeros_like(u)
    distance = torch.full((len(u),), torch.inf, dtype=torch.float64, device=u.device)
    step, highest = torch.ones_like(distance), torch.full_like(distance, -torch.inf)
    was_inside = torch.zeros_like(distance, dtype=torch.bool)
    outside, last_normal = torch.full_like(u, torch.nan), torch.zeros_like(u)
    active = torch.arange(len(u), device=u.device)
    for turn in range(steps):
        active = active[: calls // 2]
        if len(active) == 0:
            break
        calls -= 2 * len(active)
        here = u[active]
        margin, gradient = problem.margin_and_gradient(here.to(problem.dtype))
        margin, normal = margin.double(), unit_normals(gradient)
        slope = torch.nan_to_num(gradient.double()).norm(dim=-1)
        inside = margin >= 0
        sloping = slope > 0
        last_normal[active] = torch.where(sloping[:, None], normal, last_normal[active])
        outside[active] = torch.where(inside[:, None], outside[active], here)
        better = active[inside & (here.norm(dim=-1) < distance[active])]
        kept = torch.isin(active, better)
        gained = distance[active] - here.norm(dim=-1)
        distance[better], best[better], best_normal[better] = here[kept].norm(dim=-1), here[kept], last_normal[better]
        # Leaving the event again is what circling looks like.
        left = was_inside[active] & ~inside
        step[active] = torch.where(left, 0.5 * step[active], step[active])
        was_inside[active] = inside
        # Aim a little inside, so that rounding and a convex boundary do not leave the point just outside.
        height = (normal * here).sum(-1) - margin / slope.clamp(min=1e-30) + INSIDE
        target = height.clamp(-FARTHEST, FARTHEST)[:, None] * normal
        # Between two faces of a corner that turns in circles: those still outside go straight to the boundary, and no nearer.
        up = (INSIDE - margin / slope.clamp(min=1e-30)).clamp(-FARTHEST, FARTHEST)
        circling = ~inside & (margin <= highest[active]) & torch.isinf(distance[active]) & (turn >= PATIENCE)
        highest[active] = torch.maximum(highest[active], margin)
        step[active] = torch.where(circling, DAMPED, step[active])
        target = torch.where(circling[:, None], here + up[:, None] * normal, target)
        length = torch.where(circling, 1.0, step[active])
        back = (inside & ~sloping & outside[active].isfinite().all(-1))[:, None]
        step_to = torch.where(sloping[:, None], length[:, None] * (target - here), 0.0)
        u[active] = here + torch.where(back, (outside[active] - here) / 2, step_to)
        moving = (u[active] - here).norm(dim=-1) > STILL
        active = active[(sloping | back[:, 0]) & moving & ~(inside & (gained.abs() < STILL) & (turn > 0))]
    found = torch.isfinite(distance) & (best_normal.abs().sum(-1) > 0)
    return Found(best[found], best_normal[found])
