"""Which steps of a tape act on every number alone, and by which function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ppl_risk.propagation.hermite import Activation, PiecewiseLinear, Smooth
from ppl_risk.tracing import Ref, Step

#: Operators of one argument that act elementwise and have no closed form here; whether they increase.
SMOOTH = {
    "gelu": False, "silu": False, "mish": False, "tanh": True, "sigmoid": True, "softplus": True, "elu": True, "celu": True,
    "selu": True, "exp": True, "erf": True, "atan": True, "arctan": True, "sinh": True, "asinh": True, "log_sigmoid": True,
    "sin": False, "cos": False, "square": False, "softsign": True, "expm1": True, "hardsigmoid": True, "hardswish": False,
    "special_ndtr": True, "special_erf": True, "special_log_ndtr": True, "cosh": False, "log1p": True, "sqrt": True,
}  # fmt: skip


def activation_of(step: Step) -> Activation | None:
    """The function of an elementwise step; None where it is no such step.

    Example:
        >>> import torch
        >>> relu = Step("r", "relu", ("x",), torch.Size([1, 3]), torch.relu)
        >>> activation_of(relu).increasing
        True
    """
    made = _PIECEWISE.get(step.op)
    if made is not None:
        return made(step)
    if step.op in SMOOTH and len(step.parents) == 1:
        return Smooth(_rows(step), SMOOTH[step.op])
    if step.op in {"maximum", "minimum", "max", "min"} and len(step.parents) == 1 and len(step.arguments) == 2:
        return _against_constant(step)
    if step.op == "pow" and isinstance(step.argument(1, "exponent"), int | float):
        return Smooth(_rows(step))
    return None


def _rows(step: Step) -> Callable[[Tensor], Tensor]:
    """The step on a tensor of any shape: it does the same to every number."""
    return lambda x: step.call(x)


def _relu(_step: Step) -> PiecewiseLinear:
    return PiecewiseLinear(0.0, 0.0, ((1.0, 0.0),))


def _leaky(step: Step) -> PiecewiseLinear:
    slope = float(step.argument(1, "negative_slope", 0.01))
    return PiecewiseLinear(0.0, slope, ((1.0 - slope, 0.0),))


def _absolute(_step: Step) -> PiecewiseLinear:
    return PiecewiseLinear(0.0, -1.0, ((2.0, 0.0),))


def _between(low: float | None, high: float | None) -> PiecewiseLinear:
    if low is None:
        # min(x, high) = x - relu(x - high)
        return PiecewiseLinear(0.0, 1.0, () if high is None else ((-1.0, high),))
    return PiecewiseLinear(low, 0.0, ((1.0, low),) + (() if high is None else ((-1.0, high),)))


def _clamp(step: Step) -> PiecewiseLinear | None:
    low, high = step.argument(1, "min"), step.argument(2, "max")
    if any(isinstance(bound, Tensor | Ref) for bound in (low, high)):
        return None
    return _between(*(None if bound is None else float(bound) for bound in (low, high)))


def _against_constant(step: Step) -> PiecewiseLinear | None:
    """max(x, c) or min(x, c) of one constant."""
    constants = [a for a in step.arguments if isinstance(a, Tensor)]
    if len(constants) != 1 or constants[0].numel() != 1:
        return None
    bound = float(constants[0])
    return _between(bound, None) if step.op in {"maximum", "max"} else _between(None, bound)


def _threshold(step: Step) -> PiecewiseLinear | None:
    knot, value = float(step.argument(1, "threshold")), float(step.argument(2, "value"))
    return PiecewiseLinear(knot, 0.0, ((1.0, knot),)) if knot == value else None


_PIECEWISE: dict[str, Callable[[Step], Any]] = {
    "relu": _relu, "leaky_relu": _leaky, "abs": _absolute, "clamp": _clamp, "threshold": _threshold,
    "clamp_min": lambda step: _between(float(step.argument(1, "min")), None),
    "clamp_max": lambda step: _between(None, float(step.argument(1, "max"))),
    "hardtanh": lambda step: _between(float(step.argument(1, "min_val", -1.0)), float(step.argument(2, "max_val", 1.0))),
    "relu6": lambda _step: _between(0.0, 6.0),
}  # fmt: skip
