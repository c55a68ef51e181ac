"""The functions of one number that have bounds, each with the places where it bends and turns (`ppl_risk.bounds.curves`)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ppl_risk.bounds.curves import Curve
from ppl_risk.errors import RiskError

#: sigmoid'' changes sign at 0; silu'' at the roots of 2 + x (1 - 2 sigmoid(x)); mish'' at two places, found with 40 digits.
SILU_KNOT = 2.399357280520547
MISH_KNOTS = (-2.2563763963607931, 1.4905711794854284)
#: Where silu, mish and gelu are least.
SILU_TURN, MISH_TURN, GELU_TURN = -1.2784645427610738, -1.1924312145154952, -0.7517915246935645


def _phi(x: Tensor) -> Tensor:
    return torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)


def _gelu(approximate: str = "none") -> Curve:
    if approximate != "none":
        raise RiskError(f"gelu is bounded in its exact form, not approximate={approximate!r}. Use nn.GELU().")
    # g'' = phi (2 - x^2)
    return Curve(
        torch.nn.functional.gelu,
        lambda x: torch.special.ndtr(x) + x * _phi(x),
        (-math.sqrt(2.0), math.sqrt(2.0)),
        turns=(GELU_TURN,),
        tail=0.0,
    )


def _silu_slope(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def _elu(alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Curve:
    # Falling below 0 where alpha is negative.
    turns = () if scale * alpha * input_scale >= 0 and scale >= 0 else None
    return Curve(
        lambda x: torch.where(x > 0, scale * x, scale * alpha * torch.expm1((input_scale * x).clamp(max=0))),
        lambda x: torch.where(x > 0, scale, scale * alpha * input_scale * (input_scale * x).clamp(max=0).exp()), (0.0,),
        turns=turns,
    )  # fmt: skip


def _selu() -> Curve:
    return _elu(1.6732632423543772, 1.0507009873554805)


def _celu(alpha: float = 1.0) -> Curve:
    return _elu(alpha, 1.0, 1 / alpha)


def _mish_slope(x: Tensor) -> Tensor:
    t = torch.tanh(torch.nn.functional.softplus(x))
    return t + x * torch.sigmoid(x) * (1 - t.square())


def _hardswish_slope(x: Tensor) -> Tensor:
    return torch.where(x <= -3, 0.0, torch.where(x >= 3, 1.0, (2 * x + 3) / 6)).to(x)


def _softshrink(width: float = 0.5) -> Curve:
    return Curve(
        lambda x: torch.nn.functional.softshrink(x, width), lambda x: (x.abs() > width).to(x), (-width, width), True
    )


def _sine() -> Curve:
    # Beyond two periods either way only that it stays within -1 and 1.
    knots = tuple(k * math.pi / 2 for k in range(-8, 9))
    return Curve(torch.sin, torch.cos, knots, above=-4 * math.pi, below=4 * math.pi, range=(-1.0, 1.0))


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> Curve:
    # Beyond the threshold torch returns x itself, a step of log(1 + exp(-threshold)) / beta down: as a kink, both are candidates.
    knots = threshold / beta, math.nextafter(threshold / beta, math.inf)
    return Curve(
        lambda x: torch.nn.functional.softplus(x, beta, threshold),
        lambda x: torch.where(x * beta > threshold, 1.0, torch.sigmoid(beta * x)),
        knots, turns=knots if beta > 0 else None,
    )  # fmt: skip


def _clamp(low: float | None = None, high: float | None = None) -> Curve:
    least, most = -math.inf if low is None else float(low), math.inf if high is None else float(high)
    knots = tuple(knot for knot in (least, most) if math.isfinite(knot))
    return Curve(lambda x: x.clamp(least, most), lambda x: ((x > least) & (x < most)).to(x), knots, True)


def _leaky(slope: float = 0.01) -> Curve:
    return Curve(
        lambda x: torch.where(x > 0, x, slope * x) if slope else torch.relu(x),
        lambda x: torch.where(x > 0, 1.0, slope).to(x), (0.0,), True,
    )  # fmt: skip


#: Operator -> the curve, given what the operator is called with besides x.
CURVES: dict[str, Callable[..., Curve]] = {
    "relu": lambda: _leaky(0.0),
    "leaky_relu": _leaky,
    "hardtanh": lambda low=-1.0, high=1.0: _clamp(low, high),
    "clamp": _clamp,
    "clamp_min": lambda low: _clamp(low),
    "clamp_max": lambda high: _clamp(None, high),
    "relu6": lambda: _clamp(0.0, 6.0),
    "hardsigmoid": lambda: Curve(
        torch.nn.functional.hardsigmoid, lambda x: (x.abs() < 3).to(x) / 6, (-3.0, 3.0), True, range=(0.0, 1.0)
    ),
    "softshrink": _softshrink,
    "abs": lambda: Curve(torch.abs, torch.sign, (0.0,), True),
    "tanh": lambda: Curve(torch.tanh, lambda x: 1 - torch.tanh(x).square(), (0.0,), range=(-1.0, 1.0), turns=()),
    "sigmoid": lambda: Curve(
        torch.sigmoid, lambda x: torch.sigmoid(x) * torch.sigmoid(-x), (0.0,), range=(0.0, 1.0), turns=()
    ),
    "erf": lambda: Curve(
        torch.erf, lambda x: 2 / math.sqrt(math.pi) * torch.exp(-x.square()), (0.0,), range=(-1.0, 1.0), turns=()
    ),
    "atan": lambda: Curve(
        torch.atan, lambda x: 1 / (1 + x.square()), (0.0,), range=(-math.pi / 2, math.pi / 2), turns=()
    ),
    "sin": _sine,
    "sinh": lambda: Curve(torch.sinh, torch.cosh, (0.0,), turns=()),
    "asinh": lambda: Curve(torch.asinh, lambda x: 1 / (1 + x.square()).sqrt(), (0.0,), turns=()),
    "cosh": lambda: Curve(torch.cosh, torch.sinh, range=(1.0, math.inf), turns=(0.0,)),
    "exp": lambda: Curve(torch.exp, torch.exp, range=(0.0, math.inf), turns=()),
    "expm1": lambda: Curve(torch.expm1, torch.exp, range=(-1.0, math.inf), turns=()),
    "softplus": _softplus,
    "log_sigmoid": lambda: Curve(
        torch.nn.functional.logsigmoid, lambda x: torch.sigmoid(-x), range=(-math.inf, 0.0), turns=()
    ),
    "elu": _elu,
    "selu": _selu,
    "celu": _celu,
    "gelu": lambda approximate="none": _gelu(approximate),
    "silu": lambda: Curve(torch.nn.functional.silu, _silu_slope, (-SILU_KNOT, SILU_KNOT), turns=(SILU_TURN,), tail=0.0),
    "mish": lambda: Curve(torch.nn.functional.mish, _mish_slope, MISH_KNOTS, turns=(MISH_TURN,), tail=0.0),
    "hardswish": lambda: Curve(
        torch.nn.functional.hardswish, _hardswish_slope, (-3.0, 3.0), turns=(-3.0, -1.5), tail=0.0
    ),
    "tanhshrink": lambda: Curve(lambda x: x - torch.tanh(x), lambda x: torch.tanh(x).square(), (0.0,), turns=()),
    "square": lambda: Curve(torch.square, lambda x: 2 * x, range=(0.0, math.inf), turns=(0.0,)),
    "cube": lambda: Curve(lambda x: x**3, lambda x: 3 * x.square(), (0.0,), turns=()),
    "reciprocal": lambda: Curve(torch.reciprocal, lambda x: -1 / x.square(), (), False, 0.0, turns=()),
    "rsqrt": lambda: Curve(torch.rsqrt, lambda x: -0.5 * x.rsqrt() / x, (), False, 0.0, turns=()),
    "sqrt": lambda: Curve(torch.sqrt, lambda x: 0.5 * x.rsqrt(), (), False, 0.0, turns=()),
    "log": lambda: Curve(torch.log, torch.reciprocal, (), False, 0.0, turns=()),
    "log1p": lambda: Curve(torch.log1p, lambda x: 1 / (1 + x), (), False, -1.0, turns=()),
}
