r"""Bounds of the margin over inputs of every size: what proves that a catastrophe never happens, or always.

Intervals with infinite ends, node by node. An affine node is infinite upwards where an infinite end counts there at all,

    |A| (p + n) + A (p - n) > 0        p, n: 1 where a parent is infinite upwards, downwards, 0 elsewhere

and else what the finite ends give. A bounded activation (tanh, softmax, clamp) or a weight of 0 makes ends finite again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_risk.bounds.curves import SLACK, range_of
from ppl_risk.bounds.interval import within
from ppl_risk.bounds.program import Node, Program

Ends = tuple[Tensor, Tensor]


@torch.no_grad()
def bounds_everywhere(program: Program, lower: Tensor, upper: Tensor) -> tuple[float, float, bool]:
    """Least and largest margin over a box whose ends may be infinite, and whether it is a number on all of it.

    Args:
        program: the program.
        lower: least values of the root (*shape of the root).
        upper: largest values.

    Example:
        >>> from ppl_risk.bounds.lowering import program_of
        >>> from ppl_risk.problem import RiskProblem
        >>> from ppl_risk.tracing import trace
        >>> law = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> program = program_of(trace(RiskProblem(lambda x: x.tanh().sum(-1) - 3, law)), torch.device("cpu"))
        >>> infinite = torch.full((1, 2), torch.inf, dtype=torch.float64)
        >>> [round(end, 6) for end in bounds_everywhere(program, -infinite, infinite)[:2]]
        [-5.0, -1.0]
    """
    bounds: dict[str, Ends] = {program.root.name: (lower[None].double(), upper[None].double())}
    defined = True
    for node in list(program.nodes.values())[1:]:
        parents = [bounds[p] for p in node.parents]
        if node.kind == "unary":
            assert node.curve is not None
            # sin is not followed far out, and a number there all the same; log is none.
            partial = node.curve.above > -torch.inf and node.curve.range == (-torch.inf, torch.inf)
            defined = defined and not (partial and bool((parents[0][0] <= node.curve.above).any()))
        low, high = within(node, *_step(node, parents))
        bounds[node.name] = torch.where(low.isnan(), -torch.inf, low), torch.where(high.isnan(), torch.inf, high)
    low, high = bounds[program.output.name]
    return float(low.min()), float(high.max()), defined


def _step(node: Node, parents: list[Ends]) -> Ends:
    if node.kind == "affine":
        return _affine(node, parents)
    if node.kind == "unary":
        assert node.curve is not None
        return range_of(node.curve, *parents[0])
    if node.kind == "product":
        # 0 times whatever the other factor is: 0.
        corners = torch.stack([(a * b).nan_to_num(0.0, torch.inf, -torch.inf) for a in parents[0] for b in parents[1]])
        return corners.amin(0), corners.amax(0)
    return node.many(*(low for low, _ in parents)), node.many(*(high for _, high in parents))


def _affine(node: Node, parents: list[Ends]) -> Ends:
    up, down = ([end[k].isinf().double() for end in parents] for k in (1, 0))
    # An infinite end is replaced by the other one, or by 0: where it counts, the result is infinite anyway.
    low = [torch.where(lo.isfinite(), lo, torch.where(hi.isfinite(), hi, 0.0)) for lo, hi in parents]
    high = [torch.where(hi.isfinite(), hi, lo) for (_, hi), lo in zip(parents, low, strict=True)]
    centre = node.many(*((a + b) / 2 for a, b in zip(low, high, strict=True)))
    spread = node.spread(tuple((b - a) / 2 for a, b in zip(low, high, strict=True)))
    spread = spread + SLACK * (spread + centre.abs())
    if not any(bool(flag.any()) for flag in (*up, *down)):
        return centre - spread, centre + spread
    size = node.spread(tuple(p + n for p, n in zip(up, down, strict=True)))
    signed = node.many(*(p - n for p, n in zip(up, down, strict=True))) - node.offset
    # An entry of A of less than the rounding of its row would be overlooked; anything else keeps a sum above 0.
    return (
        torch.where(size - signed > 0, -torch.inf, centre - spread),
        torch.where(size + signed > 0, torch.inf, centre + spread),
    )
