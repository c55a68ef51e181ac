r"""The geometric median: the robust mean of points in R^d.

x' = argmin over x of F(x) = sum_i r_i, r_i = norm(x_i - x). It stands any bad share below 1/2, turns with the points, and is the
median where d = 1. Weiszfeld 1937: x + sum_i u_i / sum_i 1 / r_i with u_i = (x_i - x) / r_i; Vardi and Zhang 2000, PNAS 97: on a
data point that counts eta times the pull norm(sum_i u_i) is eta less, and the point is the median where that leaves nothing.
Weiszfeld's steps are slow towards a median beside a data point; Newton's, with sum_i (I - u_i u_i') / r_i, are taken where they
come to a lower F.

Let g be the least subgradient at x. As n norm(x - x') <= F(x) + F(x') <= 2 F(x), F(x') >= (1 - 2 norm(g) / n) F(x): that is the
stopping rule, at x or at the data point nearest to it. Classical; not part of arXiv 2411.03279.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ppl_risk.errors import RiskError
from ppl_risk.mitigation.robust_mean import finite_values, median
from ppl_risk.mitigation.wanted import number, whole

#: Of the mean curvature, added to Newton's where the points lie on a line.
RIDGE = 1e-12


@torch.no_grad()
def geometric_median(
    points: Float[Tensor, "*batch n d"], *, tolerance: float = 1e-9, iterations: int = 200
) -> Float[Tensor, "*batch d"]:
    """The point of least mean distance to n points, whose mean distance is within a share `tolerance` of the least.

    Args:
        points: any leading batch dimensions; each batch is solved for by itself.
        tolerance: on 2 norm(g) / n.
        iterations: steps at most.

    Raises:
        RiskError: if the tolerance is not reached, or a point is not finite.

    Example:
        >>> geometric_median(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [0.0, 0.0]])).abs()
        tensor([0., 0.], dtype=torch.float64)

    """
    points = finite_values(points)
    number("tolerance", tolerance, 0.0)
    whole("iterations", iterations, least=1)
    if points.dim() < 2 or 0 in points.shape:
        raise RiskError(f"Wanted points (..., n, d), got shape {tuple(points.shape)}.")
    if points.shape[-1] == 1:
        return median(points.squeeze(-1)).unsqueeze(-1)
    flat = points.flatten(0, -3) if points.dim() > 2 else points.unsqueeze(0)
    found = median(flat.mT)
    open_rows = torch.arange(len(flat), device=flat.device)
    for _ in range(iterations):
        x = found[open_rows]
        slope, following = _step(flat, x)
        near = flat[torch.arange(len(flat), device=flat.device), _distances(flat, x).argmin(-1)]
        done, at_data = slope <= tolerance, _pull(flat, near)[1] <= tolerance
        found[open_rows] = torch.where(done[:, None], x, torch.where(at_data[:, None], near, following))
        going = ~(done | at_data)
        if not bool(going.all()):
            open_rows, flat = open_rows[going], flat[going]
        if not len(open_rows):
            return found.reshape(*points.shape[:-2], points.shape[-1])
    raise RiskError(
        f"{len(open_rows)} geometric medians not within {tolerance:g} after {iterations} steps. Raise `iterations` or `tolerance`."
    )


def _step(points: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """2 norm(g) / n at x, and the better of Weiszfeld's next point and Newton's; points (b, n, d), x (b, d)."""
    free, slope, inverse, apart = _pull(points, x)
    weight = inverse.sum(-1).clamp_min(1e-300)[:, None]
    across = apart * inverse.pow(1.5)[..., None]
    bend = torch.diag_embed((weight * (1 + RIDGE)).expand_as(x)) - across.mT @ across
    weiszfeld, newton = x + free / weight, x + torch.linalg.solve(bend, free)
    lower = _distances(points, newton).sum(-1) < _distances(points, weiszfeld).sum(-1)
    return slope, torch.where(lower[:, None], newton, weiszfeld)


def _pull(points: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-g, 2 norm(g) / n, 1 / r_i (0 for points on x itself, which hold it back) and x_i - x."""
    apart = points - x[:, None]
    distance = apart.norm(dim=-1)
    inverse = torch.where(distance > 0, 1 / distance, 0.0)
    force = (inverse[:, None] @ apart).squeeze(1)
    size, held = force.norm(dim=-1), (distance == 0).sum(-1)
    left = (size - held).clamp_min(0.0)
    return force * (left / size.clamp_min(1e-300))[:, None], 2 * left / points.shape[1], inverse, apart


def _distances(points: Tensor, x: Tensor) -> Tensor:
    return (points - x[:, None]).norm(dim=-1)
