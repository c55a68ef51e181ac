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

from ppl_risk.errors import RiskError

HALVINGS = 40
#: What halving and rounding may leave, relative to the numbers involved.
SLACK = 1e-12
#: Ends beyond this stand for infinity.
FAR = 1e30


@dataclass(frozen=True)
class Curve:
    """g and g', elementwise; g' is monotone between neighbouring knots. `straight`: linear there. Defined for x > `above`."""

    call: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    knots: tuple[float, ...] = ()
    straight: bool = False
    above: float = -math.inf


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
    known = lower > curve.above
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
    return torch.where(known, least, -math.inf), torch.where(known, most, math.inf)


def lines(curve: Curve, lower: Float[Tensor, "*n"], upper: Float[Tensor, "*n"]) -> Lines:
    """Two lines around g on [lower, upper]; horizontal where an end is infinite.

    Example:
        >>> import torch
        >>> lines(CURVES["relu"](), torch.tensor([-1.0]), torch.tensor([3.0])).high_slope
        tensor([0.7500])
    """
    finite = lower.isfinite() & upper.isfinite() & (lower > curve.above)
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


def _phi(x: Tensor) -> Tensor:
    return torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)


def _gelu(approximate: str = "none") -> Curve:
    if approximate != "none":
        raise RiskError(f"gelu is bounded in its exact form, not approximate={approximate!r}. Use nn.GELU().")
    # g'' = phi (2 - x^2)
    return Curve(
        torch.nn.functional.gelu, lambda x: torch.special.ndtr(x) + x * _phi(x), (-math.sqrt(2.0), math.sqrt(2.0))
    )


def _silu_slope(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def _elu(alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Curve:
    if (scale, input_scale) != (1.0, 1.0):
        raise RiskError("elu is bounded with scale 1 only, so selu and its like are not. Use nn.ELU().")
    return Curve(
        lambda x: torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0))),
        lambda x: torch.where(x > 0, 1.0, alpha * x.clamp(max=0).exp()), (0.0,),
    )  # fmt: skip


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> Curve:
    # Beyond the threshold torch returns x itself, a step of log(1 + exp(-threshold)) / beta down: as a kink, both are candidates.
    return Curve(
        lambda x: torch.nn.functional.softplus(x, beta, threshold),
        lambda x: torch.where(x * beta > threshold, 1.0, torch.sigmoid(beta * x)),
        (threshold / beta, math.nextafter(threshold / beta, math.inf)),
    )  # fmt: skip


def _clamp(low: float | None = None, high: float | None = None) -> Curve:
    least, most = -math.inf if low is None else float(low), math.inf if high is None else float(high)
    knots = tuple(knot for knot in (least, most) if math.isfinite(knot))
    return Curve(lambda x: x.clamp(least, most), lambda x: ((x > least) & (x < most)).to(x), knots, True)


def _leaky(slope: float = 0.01) -> Curve:
    return Curve(
        lambda x: torch.where(x > 0, x, slope * x), lambda x: torch.where(x > 0, 1.0, slope).to(x), (0.0,), True
    )


#: sigmoid'' changes sign at 0; silu'' at the roots of 2 + x (1 - 2 sigmoid(x)).
SILU_KNOT = 2.399357280520547

#: Operator -> the curve, given what the operator is called with besides x.
CURVES: dict[str, Callable[..., Curve]] = {
    "relu": lambda: _leaky(0.0),
    "leaky_relu": _leaky,
    "hardtanh": lambda low=-1.0, high=1.0: _clamp(low, high),
    "clamp": _clamp,
    "clamp_min": lambda low: _clamp(low),
    "clamp_max": lambda high: _clamp(None, high),
    "relu6": lambda: _clamp(0.0, 6.0),
    "abs": lambda: Curve(torch.abs, torch.sign, (0.0,), True),
    "tanh": lambda: Curve(torch.tanh, lambda x: 1 - torch.tanh(x).square(), (0.0,)),
    "sigmoid": lambda: Curve(torch.sigmoid, lambda x: torch.sigmoid(x) * torch.sigmoid(-x), (0.0,)),
    "erf": lambda: Curve(torch.erf, lambda x: 2 / math.sqrt(math.pi) * torch.exp(-x.square()), (0.0,)),
    "exp": lambda: Curve(torch.exp, torch.exp),
    "softplus": _softplus,
    "log_sigmoid": lambda: Curve(torch.nn.functional.logsigmoid, lambda x: torch.sigmoid(-x)),
    "elu": _elu,
    "gelu": lambda approximate="none": _gelu(approximate),
    "silu": lambda: Curve(torch.nn.functional.silu, _silu_slope, (-SILU_KNOT, SILU_KNOT)),
    "square": lambda: Curve(torch.square, lambda x: 2 * x),
    "reciprocal": lambda: Curve(torch.reciprocal, lambda x: -1 / x.square(), (), False, 0.0),
    "rsqrt": lambda: Curve(torch.rsqrt, lambda x: -0.5 * x.rsqrt() / x, (), False, 0.0),
    "sqrt": lambda: Curve(torch.sqrt, lambda x: 0.5 * x.rsqrt(), (), False, 0.0),
    "log": lambda: Curve(torch.log, torch.reciprocal, (), False, 0.0),
}
