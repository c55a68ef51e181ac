"""What every public call does with its arguments first: right, made right (2.0 -> 2), or an error that names the argument.

Arguments are known by their names, which mean the same in every call: `problem` is a `RiskProblem`, `seed` a whole number of 0 or
more, `draws` a count. Memory that runs out anywhere in a call is said here too.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import operator
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from ppl_risk.errors import ArgumentError, RiskError
from ppl_risk.memory import is_out_of_memory

P = ParamSpec("P")
R = TypeVar("R")
Rule = Callable[[str, str, Any], Any]
#: Names of whole numbers, of real numbers, and of switches, in every public call.
WHOLE = frozenset({
    "seed", "calls", "max_calls", "draws", "steps", "particles", "runs", "pilot", "posterior_draws", "max_levels", "rank",
    "directions",
})  # fmt: skip
REAL = frozenset({"target_cv", "keep", "learning_rate", "temperature", "epsilon", "resolution"})
POSITIVE = frozenset({"keep", "learning_rate", "temperature"})
SWITCH = frozenset({"progress", "trust", "collapse"})
#: Seeds above this overflow torch's.
LARGEST_SEED = 2**63 - 1


def checked(**rules: Rule) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a call say in words what is wrong with its arguments.

    Args:
        rules: for arguments with a meaning of their own: (call, name, value) -> the value to go on with.

    Raises:
        ArgumentError: when called, for an argument that is missing, unknown or of the wrong kind.
        RiskError: when called, where memory runs out.

    Example:
        >>> checked()(lambda seed: seed)(3.0)
        3
    """

    def decorate(call: Callable[P, R]) -> Callable[P, R]:
        return _checked(call, rules)

    return decorate


def _checked(call: Callable[P, R], rules: Mapping[str, Rule]) -> Callable[P, R]:
    signature = inspect.signature(call)
    name = getattr(call, "__qualname__", "call").removesuffix(".__init__")

    @functools.wraps(call)
    def wrapped(*args: P.args, **named: P.kwargs) -> R:
        try:
            bound = signature.bind(*args, **named)
        except TypeError as error:
            takes = ", ".join(key for key in signature.parameters if key != "self")
            raise ArgumentError(f"{name}: {error}. It takes: {takes}.") from None
        for key, value in bound.arguments.items():
            if value is not signature.parameters[key].default:
                bound.arguments[key] = rules.get(key, _right)(name, key, value)
        try:
            return call(*bound.args, **bound.kwargs)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, RiskError) or not is_out_of_memory(error):
                raise
            raise RiskError(
                f"{name} ran out of memory. Free memory, use fewer draws or particles at once, or a machine that has more."
            ) from error

    return wrapped


def _right(call: str, name: str, value: Any) -> Any:
    if name == "problem":
        from ppl_risk.problem import RiskProblem  # which checks its own arguments here

        if not isinstance(value, RiskProblem):
            raise ArgumentError(
                f"{call} takes a RiskProblem, got {_kind(value)}: ppl_risk.RiskProblem(network, inputs, detector)."
            )
        return value
    if name in WHOLE:
        return whole(call, name, value)
    if name in REAL:
        found = real(call, name, value)
        if name in POSITIVE and not found > 0:
            raise ArgumentError(f"{call}: {name} must be greater than 0, got {found}.")
        return found
    if name in SWITCH and not (
        isinstance(value, bool) or type(value).__name__ == "bool"
    ):  # NumPy has a bool of its own
        raise ArgumentError(f"{call}: {name} is True or False, got {value!r}.")
    return value


def whole(call: str, name: str, value: Any) -> int:
    """A whole number of any type, as an int.

    Raises:
        ArgumentError: a fraction, a truth value, text; a seed that is negative or above 2^63 - 1.

    Example:
        >>> whole("estimate", "max_calls", 1e5)
        100000
    """
    fault = ArgumentError(f"{call}: {name} must be a whole number, got {_shown(value)}.")
    if isinstance(value, bool) or type(value).__name__ == "bool":
        raise fault
    try:
        found = operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        number = real(call, name, value, fault)
        if not math.isfinite(number) or number != int(number):
            raise fault from None
        found = int(number)
    if name in ("draws", "posterior_draws") and found < 0:
        raise ArgumentError(f"{call}: {name} must be 0 or more, got {found}.")
    if name == "seed" and not 0 <= found <= LARGEST_SEED:
        raise ArgumentError(f"{call}: seed must be a whole number from 0 to 2^63 - 1, got {found}.")
    return found


def real(call: str, name: str, value: Any, fault: ArgumentError | None = None) -> float:
    """A real number of any type, as a float.

    Raises:
        ArgumentError: anything else; nan.

    Example:
        >>> real("estimate", "target_cv", 1)
        1.0
    """
    fault = fault or ArgumentError(f"{call}: {name} must be a number, got {_shown(value)}.")
    single = getattr(value, "shape", None) == () and hasattr(value, "item")
    number = value.item() if single else value
    if isinstance(number, bool) or not isinstance(number, numbers.Real) or math.isnan(number):
        raise fault
    return float(number)


def reals(call: str, name: str, value: Any) -> list[float] | None:
    """Several real numbers; None stays.

    Raises:
        ArgumentError: anything else.

    Example:
        >>> reals("run_smc", "levels", (1, 2.5))
        [1.0, 2.5]
    """
    if value is None:
        return None
    if isinstance(value, str) or not hasattr(value, "__iter__") or getattr(value, "shape", None) == ():
        raise ArgumentError(f"{call}: {name} must be a list of numbers, got {_shown(value)}.")
    return [real(call, name, entry) for entry in value]


def names(call: str, name: str, value: Any) -> list[str] | None:
    """Several names; None stays.

    Raises:
        ArgumentError: anything else; a single name too, whose letters are no names.

    Example:
        >>> names("RiskProblem", "layers", ("fc1", "fc2"))
        ['fc1', 'fc2']
    """
    if value is None:
        return None
    if isinstance(value, str) or not hasattr(value, "__iter__") or not all(isinstance(entry, str) for entry in value):
        raise ArgumentError(f"{call}: {name} must be a list of names, as ['fc1', 'fc2'], got {_shown(value)}.")
    return list(value)


def of_type(*kinds: type, hint: str = "") -> Rule:
    """A rule: an instance of one of the types; the hint says where one comes from.

    Example:
        >>> of_type(str)("load_model", "name", "digits")
        'digits'
    """

    def rule(call: str, name: str, value: Any) -> Any:
        if isinstance(value, kinds):
            return value
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise ArgumentError(f"{call}: {name} must be {wanted}, got {_kind(value)}.{hint and ' ' + hint}")

    return rule


def _kind(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else _kind(value)
