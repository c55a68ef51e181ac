"""What the arguments of a call may be: whole numbers, numbers of an interval, seeds, rows of numbers.

A number is never taken for another kind of number: True is no count, 2.5 no dimension, NaN lies in no interval. Every message
names the argument, what is wanted and what was given.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_risk.errors import RiskError


def whole(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """A whole number of a range, both ends included.

    Raises:
        RiskError: for a bool, a float, anything else that is no whole number, or one out of range.

    Example:
        >>> whole("n", 3, least=1)
        3

    """
    low, high = -math.inf if least is None else least, math.inf if most is None else most
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral) or not low <= int(value) <= high:
        span = "" if least is None else f" >= {least}" if most is None else f" from {least} to {most}"
        raise RiskError(f"Wanted a whole number {name}{span}, got {_shown(value)}.")
    return int(value)


def number(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    with_low: bool = False,
    with_high: bool = False,
) -> float:
    """A finite number of an interval, open but where said.

    Raises:
        RiskError: for a bool, NaN, infinity, anything that is no number, or one outside the interval.

    Example:
        >>> number("delta", 0, 0.0, with_low=True)
        0.0

    """
    real = isinstance(value, Real) or (isinstance(value, Tensor | np.ndarray) and value.ndim == 0)
    found = float(value) if real and not isinstance(value, bool | np.bool_) and not _is_bool(value) else math.nan
    above = found >= low if with_low else found > low
    below = found <= high if with_high else found < high
    if not (above and below and math.isfinite(found)):
        span = f"{'[' if with_low else '('}{low:g}, {high:g}{']' if with_high else ')'}"
        where = "finite" if span == "(-inf, inf)" else f"in {span}" if math.isfinite(high) else f"in {span} and finite"
        raise RiskError(f"{name} must be a number, {where}, got {_shown(value)}.")
    return found


def coins(seed: Any) -> torch.Generator:
    """The generator that a seed stands for.

    Raises:
        RiskError: for a seed that is no whole number of at most 64 bits.

    Example:
        >>> coins(3).initial_seed()
        3

    """
    return torch.Generator().manual_seed(whole("seed", seed, -(2**63), 2**64 - 1))


def function(name: str, value: Any, takes: str) -> Any:
    """A callable.

    Raises:
        RiskError: for anything else, saying what it should take and give.

    """
    if not callable(value):
        raise RiskError(f"{name} must be a callable, {takes}, got {_shown(value)}.")
    return value


def tensor_of(what: str, values: Any) -> Tensor:
    """Real numbers as a tensor: tensors as they are, arrays and lists of numbers turned into one.

    Raises:
        RiskError: for anything else, complex numbers among it.

    """
    try:
        found = values if isinstance(values, Tensor) else torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RiskError(f"{what} must be a tensor or an array of numbers, got {_shown(values)}: {error}.") from error
    if found.is_complex():
        raise RiskError(f"{what} must be real numbers, got {found.dtype}. Give the real and imaginary parts apart.")
    return found


def rows_in(x: Any, n: int | None = None, *, bits: bool = False, what: str = "Inputs") -> Tensor:
    """Inputs as rows (batch, n) of finite numbers; any event shape where n is None.

    Args:
        x: a tensor or an array.
        n: numbers a row.
        bits: whether they must be +-1.
        what: how a message calls them.

    Raises:
        RiskError: for another shape or type, NaN or infinity, or bits that are not +-1.

    Example:
        >>> rows_in([[1.0, -1.0]], 2, bits=True).shape
        torch.Size([1, 2])

    """
    rows = tensor_of(what, x)
    if (n is None and rows.dim() < 2) or (n is not None and (rows.dim() != 2 or rows.shape[1] != n)):
        one = " For one input give x[None]." if rows.dim() == 1 and n in (None, len(rows)) else ""
        raise RiskError(f"{what} are rows (batch, {'...' if n is None else n}), got shape {tuple(rows.shape)}.{one}")
    try:
        strange = int((~torch.isfinite(rows)).flatten(1).any(-1).sum()) if len(rows) else 0
        other = int((rows.abs() != 1).any(-1).sum()) if bits and len(rows) else 0
    except RuntimeError:
        # Under vmap or a tracer there are no values to look at.
        return rows
    if strange:
        raise RiskError(f"{strange:,} of {len(rows):,} rows of {what.lower()} hold NaN or infinity. Leave them out.")
    if other:
        raise RiskError(f"{what} are rows of +-1, and {other:,} of {len(rows):,} hold other numbers. Map bits to +-1.")
    return rows


def one_each(what: str, values: Any, rows: int) -> Tensor:
    """What a caller's function returned, if it is one finite number a row: (rows,).

    Raises:
        RiskError: otherwise.

    Example:
        >>> one_each("combine", torch.ones(2), 2)
        tensor([1., 1.])

    """
    found = tensor_of(f"What {what} returns", values)
    if found.shape != (rows,) or not bool(torch.isfinite(found).all()):
        shape = tuple(found.shape)
        strange = "NaN or infinity" if shape == (rows,) else f"shape {shape}"
        raise RiskError(f"{what} must return one finite number a row: ({rows},) wanted, got {strange}.")
    return found


def one_number(what: str, value: Any) -> float:
    """What a caller's function returned, if it is one number, NaN and infinity among them.

    Raises:
        RiskError: otherwise.

    Example:
        >>> one_number("statistic", torch.tensor([2.0]))
        2.0

    """
    found = tensor_of(f"What {what} returns", value)
    if found.numel() != 1:
        raise RiskError(f"{what} must return one number, got shape {tuple(found.shape)}.")
    return float(found)


def _is_bool(value: Any) -> bool:
    return getattr(value, "dtype", None) in (torch.bool, np.dtype(bool))


def _shown(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray) and value.ndim:
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{type(value).__name__} {text[:50]}..."
