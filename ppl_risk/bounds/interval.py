r"""Interval bound propagation: bounds of every node from elementwise bounds of the input, each from those of its parents alone.

    affine     A c + b -+ |A| r        c, r: centre and radius of the parents
    unary      the exact range of g on [l, u]
    product    the least and largest of the four corner products
    maximum, ordered    the value at the lower ends, the value at the upper ends

Gowal et al. 2018, arXiv 1810.12715. Exact for one node; over several it forgets what they have in common. Bounds hold in exact
arithmetic; for rounding in float64 they are widened by 1e-12 of the numbers involved, which is ample and not proved to be. Not a
number or infinite: nothing is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ppl_risk.bounds.curves import SLACK, extremes
from ppl_risk.bounds.program import Node, Program

#: Node -> (lower, upper), each (boxes, *shape of the node).
Bounds = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Box:
    """|u - centre| <= radius in every coordinate; both (boxes, *shape of the root)."""

    centre: Tensor
    radius: Tensor

    @property
    def box(self) -> tuple[Tensor, Tensor]:
        """Least and largest coordinates."""
        return self.centre - self.radius, self.centre + self.radius

    def most(self, weights: Float[Tensor, "boxes specs n"]) -> Float[Tensor, "boxes specs"]:
        """Largest weights . (u - centre): the dual norm is the sum of absolute values."""
        return (weights.abs() @ self.radius.flatten(1).unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True)
class Ball:
    """|u - centre|_2 <= radius; centre (boxes, *shape of the root), radius (boxes,)."""

    centre: Tensor
    radius: Float[Tensor, " boxes"]

    @property
    def box(self) -> tuple[Tensor, Tensor]:
        """Least and largest coordinates."""
        radius = self.radius.reshape(-1, *[1] * (self.centre.dim() - 1))
        return self.centre - radius, self.centre + radius

    def most(self, weights: Float[Tensor, "boxes specs n"]) -> Float[Tensor, "boxes specs"]:
        """Largest weights . (u - centre): the dual norm is the Euclidean one."""
        return weights.norm(dim=-1) * self.radius[:, None]


Region = Box | Ball


@torch.no_grad()
def interval_bounds(program: Program, region: Region) -> Bounds:
    """Bounds of every node of a program over the box around each region (float64).

    Example:
        >>> import torch
        >>> from ppl_risk.bounds.lowering import program_of
        >>> from ppl_risk.problem import RiskProblem
        >>> from ppl_risk.tracing import trace
        >>> law = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> program = program_of(trace(RiskProblem(lambda x: 1 + x.relu().sum(-1), law)), torch.device("cpu"))
        >>> box = Box(torch.zeros(1, 1, 2).double(), torch.ones(1, 1, 2).double())
        >>> [round(end.item(), 6) for end in interval_bounds(program, box)[program.output.name]]
        [1.0, 3.0]
    """
    bounds: Bounds = {program.root.name: region.box}
    for node in list(program.nodes.values())[1:]:
        bounds[node.name] = step_bounds(node, bounds)
    return bounds


def step_bounds(node: Node, bounds: Bounds) -> tuple[Tensor, Tensor]:
    """Bounds of one node from those of its parents."""
    parents = [bounds[p] for p in node.parents]
    if node.kind == "affine":
        centre = node.many(*((low + high) / 2 for low, high in parents))
        spread = node.spread(tuple((high - low) / 2 for low, high in parents))
        spread = spread + SLACK * (spread + centre.abs())
        found = centre - spread, centre + spread
    elif node.kind == "unary":
        assert node.curve is not None
        found = extremes(node.curve, *parents[0], torch.zeros_like(parents[0][0]))
    elif node.kind == "product":
        corners = torch.stack([left * right for left in parents[0] for right in parents[1]])
        found = corners.amin(0), corners.amax(0)
    else:  # maximum, ordered: grows with each number
        found = tuple(node.many(*ends) for ends in zip(*parents, strict=True))
    return within(node, found[0], found[1])


def within(node: Node, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """With what is known of the node whatever its parents do."""
    if node.within is None:
        return lower, upper
    least, most = (torch.full_like(lower, end) for end in node.within)
    return lower.fmax(least), upper.fmin(most)
