r"""CROWN: the margin between two affine functions of the input, by going backwards through lines around each node.

A weight w on a node is carried to its parents: through y = A p + b as A^T w; through y = g(p) with a(-) p + b(-) <= g <= a(+) p
+ b(+) as w a(-) where w >= 0 and w a(+) where w < 0, for a lower bound. Lines hold on bounds of p, which are found the same way,
for all numbers of a node at once, before what reads it is passed; each is the better of that and the interval. In the end

    w . u + b <= f(u) for all u in the region,    min f >= w . c + b - max w . (c - u)

with the dual norm of the region: |w|_1 scaled for a box, |w|_2 for a ball. Zhang et al. 2018, arXiv 1811.00866; general graphs:
Xu et al. 2020, arXiv 2002.12920. A product x y lies within r_x r_y of c_y x + c_x y - c_x c_y (centres c, radii r).
Slopes below a ReLU are chosen from its bounds and not optimised. Bounds are widened by 1e-12 of the sizes of the terms they are
sums of, for rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ppl_risk.bounds.curves import SLACK, Lines, lines
from ppl_risk.bounds.functions import CURVES
from ppl_risk.bounds.interval import Bounds, Region, step_bounds, within
from ppl_risk.bounds.program import Node, Program

#: Numbers of one node's weights that are held at once: 128 MiB.
LARGEST = 2**24
#: A margin that grows with a maximum of more numbers than this has one plane for all.
MOST_PLANES = 1024


class Plane(NamedTuple):
    """weights . u + offset, of u flattened: (regions, specs, n) and (regions, specs); `mass`: the sum of |terms| of the offset."""

    weights: Tensor
    offset: Tensor
    mass: Tensor


@torch.no_grad()
def crown_bounds(program: Program, region: Region, *, everywhere: bool = False) -> Bounds:
    """Bounds of every node over regions (float64): CROWN where lines rest on them and at the margin, intervals between.

    `everywhere`: CROWN at every node.

    Example:
        >>> import torch
        >>> from ppl_risk.bounds.interval import Ball
        >>> from ppl_risk.bounds.lowering import program_of
        >>> from ppl_risk.problem import RiskProblem
        >>> from ppl_risk.tracing import trace
        >>> law = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> program = program_of(trace(RiskProblem(lambda x: 3 * x[:, 0] + 4 * x[:, 1], law)), torch.device("cpu"))
        >>> ball = Ball(torch.zeros(1, 1, 2).double(), torch.ones(1).double())
        >>> [round(end.item(), 6) for end in crown_bounds(program, ball)[program.output.name]]
        [-5.0, 5.0]
    """
    bounds: Bounds = {program.root.name: region.box}
    shapes: dict[str, Lines] = {}
    read = {p for node in program.nodes.values() if node.kind not in ("affine", "input") for p in node.parents}
    for node in list(program.nodes.values())[1:]:
        lower, upper = bounds[node.name] = step_bounds(node, bounds)
        last = node is program.output
        if everywhere or last or (node.name in read and not _settled(program, node, lower, upper)):
            better_low, better_high = _both_ends(program, node, region, bounds, shapes)
            # fmax and fmin pass over what is not a number: there the interval stands.
            bounds[node.name] = within(node, lower.fmax(better_low), upper.fmin(better_high))
    return bounds


@torch.no_grad()
def upper_planes(program: Program, region: Region, bounds: Bounds) -> tuple[Plane, Float[Tensor, "regions planes"]]:
    """Affine functions, one of which is above the margin wherever the input is in the region, and their largest values there.

    More than one where the margin grows with a maximum, as the best of several logits: max_i x_i + y <= max_i sup (x_i + y), so
    each has a plane of its own and no line around the maximum is needed.

    Example:
        >>> import torch
        >>> from ppl_risk.bounds.interval import Ball
        >>> from ppl_risk.bounds.lowering import program_of
        >>> from ppl_risk.problem import RiskProblem
        >>> from ppl_risk.tracing import trace
        >>> law = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> program = program_of(trace(RiskProblem(lambda x: x.amax(-1) - 9, law)), torch.device("cpu"))
        >>> ball = Ball(torch.zeros(1, 1, 2).double(), torch.ones(1).double())
        >>> upper_planes(program, ball, crown_bounds(program, ball))[0].weights.tolist()
        [[[1.0, 0.0], [0.0, 1.0]]]
    """
    spec = torch.ones(len(region.centre), 1, *program.output.shape, dtype=torch.float64, device=program.device)
    below = backwards(program, program.output, -spec, bounds, {}, apart=True)
    return Plane(0.0 - below.weights, SLACK * below.mass - below.offset, below.mass), -_least(below, region)


def margin_bounds(program: Program, region: Region, rounding: float) -> tuple[Plane, Tensor, Tensor]:
    """Planes above the margin on each region, and its bounds there (regions,), all wider by the rounding of the network.

    `rounding` is in units of the terms that the margin is a sum of: where a sigmoid has run out of digits, `sigmoid(z) - 1` is 0 in
    the network and below 0 in exact arithmetic.
    """
    bounds = crown_bounds(program, region)
    planes, largest = upper_planes(program, region, bounds)
    last = program.output
    low, high = (end.flatten() for end in bounds[last.name])
    size = torch.maximum(low.abs(), high.abs())
    if last.kind == "affine":
        parents = tuple(torch.maximum(*(end.abs() for end in bounds[p])) for p in last.parents)
        size = last.spread(parents).flatten() + last.offset.abs().flatten()
    size = torch.where(size.isfinite(), rounding * size, 0.0)
    planes = planes._replace(offset=planes.offset + rounding * planes.mass)
    return planes, low - size, (high + size).fmin((largest + rounding * planes.mass).amax(1))


def _settled(program: Program, node: Node, lower: Tensor, upper: Tensor) -> bool:
    """Whether lines around what reads the node are exact already: ReLUs that are on or off all over the region."""
    for reader in program.nodes.values():
        if node.name not in reader.parents or reader.kind in ("affine", "input"):
            continue
        curve = CURVES["relu"]() if reader.kind == "maximum" and node.name == reader.parents[-1] else reader.curve
        if reader.kind == "maximum" and node.name != reader.parents[-1]:
            continue
        if curve is None or not curve.straight or any(bool(((lower < k) & (upper > k)).any()) for k in curve.knots):
            return False
    return bool(lower.isfinite().all() & upper.isfinite().all())


def _both_ends(
    program: Program, node: Node, region: Region, bounds: Bounds, shapes: dict[str, Lines]
) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds of all numbers of a node, by CROWN."""
    regions, size = len(region.centre), node.shape.numel()
    unit = torch.eye(size, dtype=torch.float64, device=program.device)
    widest = max(n.shape.numel() for n in program.nodes.values())
    found = []
    for part in torch.cat([unit, -unit]).split(max(1, LARGEST // (regions * widest))):
        spec = part.reshape(1, -1, *node.shape).expand(regions, -1, *node.shape)
        found.append(_least(backwards(program, node, spec, bounds, shapes), region))
    lower, upper = torch.cat(found, 1).split(size, 1)
    return lower.reshape(regions, *node.shape), -upper.reshape(regions, *node.shape)


def _least(below: Plane, region: Region) -> Float[Tensor, "regions specs"]:
    centre, away = region.centre.flatten(1).unsqueeze(-1), region.most(below.weights)
    size = below.mass + away + (below.weights.abs() @ centre.abs()).squeeze(-1)
    return (below.weights @ centre).squeeze(-1) + below.offset - away - SLACK * size


def backwards(
    program: Program, top: Node, spec: Tensor, bounds: Bounds, shapes: dict[str, Lines], *, apart: bool = False
) -> Plane:
    """An affine function of the input below sum(spec * top), for specs (regions, specs, *shape of top).

    `apart`: where a maximum counts negatively there are two, one for each side; one of them is below.
    """
    regions, specs = spec.shape[:2]
    weights = {top.name: spec}
    offset = mass = torch.zeros(regions, specs, dtype=torch.float64, device=spec.device)
    for node in _down_from(program, top):
        w = weights.pop(node.name, None)
        if w is None:
            continue
        if apart and node.kind == "maximum" and (sides := _sides(w)) is not None:
            order, left, right = sides
            weights, offset, mass = {k: v[:, order] for k, v in weights.items()}, offset[:, order], mass[:, order]
            for parent, side in zip(node.parents[:2], (left, right), strict=True):
                share = w[:, order] * side.reshape(1, -1, *[1] * (w.dim() - 2))
                weights[parent] = weights[parent] + share if parent in weights else share
            continue
        for parent, share in _carry(node, w, bounds, shapes):
            if parent is None:
                terms = share.reshape(*w.shape[:2], -1)
                offset, mass = offset + terms.sum(-1), mass + terms.abs().sum(-1)
            else:
                weights[parent] = weights[parent] + share if parent in weights else share
    root = program.root
    w = weights.get(root.name)
    if w is None:
        w = torch.zeros(*offset.shape, *root.shape, dtype=torch.float64, device=spec.device)
    return Plane(w.flatten(2), offset, mass)


def _sides(w: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Which specs to repeat, and which of those go left and right; None where a maximum counts otherwise than negatively, once."""
    used = (w != 0).any(0).reshape(w.shape[1], -1)
    split = used.any(1).nonzero().flatten()
    if bool((w > 0).any()) or bool((used.sum(1) > 1).any()) or len(used) + len(split) > MOST_PLANES:
        return None
    order = torch.cat([torch.arange(len(used), device=w.device), split])
    right = (torch.arange(len(order), device=w.device) >= len(used)).to(w)
    return order, 1 - right, right


def _down_from(program: Program, top: Node) -> Iterator[Node]:
    names = list(program.nodes)
    for name in names[names.index(top.name) : 0 : -1]:
        yield program.nodes[name]


def _carry(node: Node, w: Tensor, bounds: Bounds, shapes: dict[str, Lines]) -> Iterator[tuple[str | None, Tensor]]:
    """What weights on a node become on its parents; None: terms of the constant."""
    if node.kind == "affine":
        yield None, w * node.offset
        for parent, moved in zip(node.parents, node.back(w.flatten(0, 1)), strict=True):
            yield parent, moved.reshape(w.shape[:2] + moved.shape[1:])
        return
    plus, minus = w.clamp(min=0), w.clamp(max=0)
    if node.kind == "unary":
        assert node.curve is not None
        if node.name not in shapes:
            shapes[node.name] = lines(node.curve, *bounds[node.parents[0]])
        around = Lines(*(t.unsqueeze(1) for t in shapes[node.name]))
        yield node.parents[0], plus * around.low_slope + minus * around.high_slope
        yield None, _constant(plus, around.low) + _constant(minus, around.high)
    elif node.kind == "product":
        (x, rx), (y, ry) = (((low + high) / 2, (high - low) / 2) for low, high in (bounds[p] for p in node.parents))
        finite = (rx * ry).isfinite() & (x * y).isfinite()
        slack = torch.where(finite, rx * ry, torch.inf).unsqueeze(1)
        x, y = (torch.where(finite, c, 0.0).unsqueeze(1) for c in (x, y))
        yield node.parents[0], w * y
        yield node.parents[1], w * x
        yield None, _constant(plus, -x * y - slack) + _constant(minus, -x * y + slack)
    elif node.kind == "maximum":
        left, right, gap = node.parents
        if node.name not in shapes:
            low, high = bounds[gap]
            ends = bounds[left][0] - bounds[right][1], bounds[left][1] - bounds[right][0]
            shapes[node.name] = lines(CURVES["relu"](), low.fmax(ends[0]), high.fmin(ends[1]))
        around = Lines(*(t.unsqueeze(1) for t in shapes[node.name]))
        yield right, w
        yield gap, plus * around.low_slope + minus * around.high_slope
        yield None, _constant(plus, around.low) + _constant(minus, around.high)
    else:  # ordered: no line but the constant one
        low, high = (end.unsqueeze(1) for end in bounds[node.name])
        yield None, _constant(plus, low) + _constant(minus, high)


def _constant(w: Tensor, value: Tensor) -> Tensor:
    """w * value, where a weight of 0 silences an infinite value."""
    return torch.where(w == 0, 0.0, w * value)
