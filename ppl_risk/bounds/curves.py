r"""Functions of one number between two straight lines: what an elementwise activation may do on an interval.

For g on [l, u] and any slope k the lines

    k x + min (g(x) - k x)  <=  g(x)  <=  k x + max (g(x) - k x)         min and max over [l, u]

are bounds, whatever k is. A curve names its knots, where it has a kink or turns from convex to concave: between two of them g - k x
is convex or concave, so its extremes lie at the ends or where g' = k, which is found by halving. k = 0 gives the exact range.
Slopes tried are that of the chord and those of g at five points; the line that is best in the middle of [l, u] is kept. For relu
that is CROWN's: the chord above, below the slope 1 or 0 by which end is further (Zhang et al. 2018, arXiv 1811.00866).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

HALVINGS = 40
#: What halving and rounding may leave, relative to the numbers involved.
SLACK = 1e-12
#: Ends beyond this stand for infinity.
FAR = 1e30


@dataclass(frozen=True)
class Curve:
    """g and g', elementwise; g' is monotone between neighbouring knots.

    Attributes:
        call: g.
        slope: g'.
        knots: kinks and places where g turns from convex to concave, ascending.
        straight: linear between knots.
        above: g is known for x above this alone, and below `below`.
        below: see `above`; elsewhere all that is known of g is `range`.
        range: what g never leaves.
        turns: where g changes from rising to falling or back, all of them; None where that is not known.
        tail: the limit of g at minus infinity, where `call` gives none.
    """

    call: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    knots: tuple[float, ...] = ()
    straight: bool = False
    above: float = -math.inf
    below: float = math.inf
    range: tuple[float, float] = (-math.inf, math.inf)
    turns: tuple[float, ...] | None = None
    tail: float | None = None


class Lines(NamedTuple):
    """low_slope x + low <= g(x) <= high_slope x + high, each of the shape of the interval."""

    low_slope: Tensor
    low: Tensor
    high_slope: Tensor
    high: Tensor


def extremes(
    curve: Curve, lower: Float[Tensor, "*n"], upper: Float[Tensor, "*n"], slope: Float[Tensor, "*m"]
) -> tuple[Float[Tensor, "*m"], Float[Tensor, "*m"]]:
    """Smallest and largest g(x) - slope x over [lower, upper], which broadcast to the slopes; infinite where g is not defined.

    Example:
        >>> import torch
        >>> square = Curve(torch.square, lambda x: 2 * x)
        >>> low, high = extremes(square, torch.tensor([-1.0]), torch.tensor([2.0]), torch.tensor([0.0]))
        >>> abs(low.item()) < 1e-9, round(high.item(), 6)
        (True, 4.0)
    """
    known = (lower > curve.above) & (upper < curve.below)
    start = torch.where(known, lower, 1.0).clamp(-FAR, FAR).expand(slope.shape)
    end = torch.where(known, upper, 1.0).clamp(-FAR, FAR).expand(slope.shape)
    edges = [start, *(torch.full_like(start, knot).maximum(start).minimum(end) for knot in curve.knots), end]
    points = torch.stack(edges)
    if not curve.straight:
        low, high = points[:-1], points[1:]
        rising = curve.slope(high) > curve.slope(low)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            right = (curve.slope(middle) < slope) == rising
            low, high = torch.where(right, middle, low), torch.where(right, high, middle)
        points = torch.cat([points, (low + high) / 2])
    values = curve.call(points) - slope * points
    slack = 0.0 if curve.straight else SLACK * (1 + curve.call(points).abs() + (slope * points).abs()).amax(0)
    least, most = values.amin(0) - slack, values.amax(0) + slack
    # Where g is not known a line is flat: `range` is what bounds it there.
    return torch.where(known, least, curve.range[0]), torch.where(known, most, curve.range[1])


def range_of(
    curve: Curve, lower: Float[Tensor, "*n"], upper: Float[Tensor, "*n"]
) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
    """Bounds of g over intervals whose ends may be infinite: at the ends and where g turns; infinite where that is not known.

    Example:
        >>> import torch
        >>> from ppl_risk.bounds.functions import CURVES
        >>> ends = range_of(CURVES["tanh"](), torch.tensor([-1.0]), torch.tensor([math.inf]))
        >>> [round(end.item(), 4) for end in ends]
        [-0.7616, 1.0]
    """
    least, most = (torch.full_like(lower, end) for end in curve.range)
    turns = curve.knots if curve.straight else curve.turns
    if turns is None:
        return least, most
    at = torch.stack([lower, upper, *(torch.full_like(lower, t).maximum(lower).minimum(upper) for t in turns)])
    values = curve.call(at)
    values = values if curve.tail is None else torch.where(at == -math.inf, curve.tail, values)
    low, high = values.amin(0), values.amax(0)
    known = ~values.isnan().any(0)
    known = known & (lower > curve.above) if curve.above > -math.inf else known
    known = known & (upper < curve.below) if curve.below < math.inf else known
    slack = [torch.where(end.isfinite(), SLACK * (1 + end.abs()), 0.0) for end in (low, high)]
    return torch.where(known, (low - slack[0]).maximum(least), least), torch.where(
        known, (high + slack[1]).minimum(most), most
    )


def lines(curve: Curve, lower: Float[Tensor, "*n"], upper: Float[Tensor, "*n"]) -> Lines:
    """Two lines around g on [lower, upper]; horizontal where an end is infinite.

    Example:
        >>> import torch
        >>> from ppl_risk.bounds.functions import CURVES
        >>> lines(CURVES["relu"](), torch.tensor([-1.0]), torch.tensor([3.0])).high_slope
        tensor([0.7500])
    """
    finite = lower.isfinite() & upper.isfinite() & (lower > curve.above) & (upper < curve.below)
    start, end = torch.where(finite, lower, 1.0), torch.where(finite, upper, 1.0)
    width, middle = end - start, (start + end) / 2
    at = [middle, start, end] if curve.straight else [middle, start, end, (start + middle) / 2, (middle + end) / 2]
    slopes = curve.slope(torch.stack(at))
    chord = torch.where(width > 1e-9, (curve.call(end) - curve.call(start)) / width.clamp(min=1e-9), slopes[0])
    slopes = torch.cat([slopes, chord[None]])
    slopes = torch.where(slopes.isfinite() & finite, slopes, 0.0)
    least, most = extremes(curve, lower, upper, slopes)
    best_low = (slopes * middle + least).argmax(0, keepdim=True)
    best_high = (slopes * middle + most).argmin(0, keepdim=True)
    return Lines(*(t.gather(0, i)[0] for t, i in (
        (slopes, best_low), (least, best_low), (slopes, best_high), (most, best_high)
    )))  # fmt: skip
