"""The last calls before the margin, watched while a network runs: a chain that can be walked back to where it bends."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.overrides import TorchFunctionMode

from ppl_risk.errors import RiskError

#: Functions of one number that never turn, by the name that torch calls them in Python. Whether they do is looked at, too.
BENT = {
    "sigmoid", "tanh", "exp", "expm1", "log", "log2", "log10", "log1p", "sqrt", "logit", "atan", "arctan", "erf", "erfc",
    "softplus", "elu", "celu", "selu", "relu", "leaky_relu", "relu6", "hardtanh", "hardsigmoid", "softsign", "logsigmoid",
    "log_sigmoid", "clamp", "clip", "clamp_min", "clamp_max", "maximum", "minimum", "expit", "special_expit", "exp2", "ndtr",
    "special_ndtr", "log_ndtr", "special_log_ndtr", "sinh", "asinh", "threshold", "log_expit", "special_erf", "special_exp2",
}  # fmt: skip
#: Arithmetic, of which one factor may be a constant.
STRAIGHT = {
    "add", "sub", "mul", "div", "neg", "rsub", "subtract", "multiply", "divide", "true_divide", "float", "double", "to",
    "radd", "rmul", "truediv", "negative", "type",
}  # fmt: skip
#: What changes places with any such function.
PICKS = {
    "getitem", "select", "squeeze", "unsqueeze", "view", "reshape", "flatten", "narrow", "clone", "contiguous", "detach",
    "ravel", "permute", "transpose", "unflatten", "index_select",
}  # fmt: skip
#: What does so if the function rises, and what takes its place if it falls.
EXTREMES = {"amax": torch.amin, "amin": torch.amax}
SOFTMAX = {"softmax", "log_softmax"}
#: Steps before the margin that are looked at.
LAST = 64


@dataclass(frozen=True)
class Call:
    """One call of the network's: f(arguments) = made, `version` of what it read."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    made: Tensor
    place: int
    version: int

    @property
    def read(self) -> Tensor:
        """What the function is of."""
        return self.arguments[self.place]

    def again(self, value: Tensor) -> Tensor:
        """The call on another value."""
        arguments = [*self.arguments]
        arguments[self.place] = value
        return self.function(*arguments, **self.keywords)


class Watch(TorchFunctionMode):
    """Keeps the last calls that could be undone."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: deque[Call] = deque(maxlen=LAST)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")
        place = _place(name, args, kwargs)
        if place is not None and args[place].is_inference():
            place = None  # nothing counts what is written to it
        version = args[place]._version if place is not None else 0
        made = func(*args, **kwargs)
        if place is not None and isinstance(made, Tensor) and made is not args[place]:
            self.calls.append(Call(name, func, tuple(args), kwargs, made, place, version))
        return made

    def before(self, value: Tensor) -> Call | None:
        """The call that made a value; None where it cannot be undone or what it read was overwritten since."""
        made = next((call for call in reversed(self.calls) if call.made is value), None)
        return made if made is not None and made.read._version == made.version else None


def _place(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """Which argument the function is of; None where it is none of those that are known."""
    if (name not in BENT | STRAIGHT | PICKS | SOFTMAX and name not in EXTREMES) or "out" in kwargs:
        return None
    tensors = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.dim() > 0]
    others = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.dim() > 0]
    return tensors[0] if len(tensors) == 1 and len(others) == 1 else None


@dataclass(frozen=True)
class Chain:
    """Calls from the margin back to w; g rises (`sign` 1) or falls (-1) through 0 at `bound`; `rises` says it of each call."""

    calls: tuple[Call, ...]
    sign: float = 0.0
    bound: float = 0.0
    rises: tuple[float, ...] = ()

    def names(self) -> tuple[str, ...]:
        """Of the calls, from the margin back."""
        return tuple(call.name for call in self.calls)

    def on_number(self, w: Tensor) -> Tensor:
        """g(w), number by number."""
        for call in reversed(self.calls):
            w = _bend(call, w)
        return w

    def before(self) -> Float[Tensor, " batch"]:
        """w of every row: the picks of the chain on what its first function read."""
        first = self.calls[-1]
        value = _logits(first) if first.name in SOFTMAX else first.read
        rises = self.rises[-1]
        for call, own in zip(reversed(self.calls[:-1]), reversed(self.rises[:-1]), strict=True):
            if call.name in PICKS:
                value = call.again(value)
            elif call.name in EXTREMES:
                swapped = call.function if rises > 0 else EXTREMES[call.name]
                value = swapped(value, *call.arguments[1:], **call.keywords)
            else:
                rises *= own
        return value


def _bend(call: Call, w: Tensor) -> Tensor:
    if call.name in SOFTMAX:
        return torch.sigmoid(w) if call.name == "softmax" else logsigmoid(w)
    return w if call.name in PICKS or call.name in EXTREMES else call.again(w)


def rises(call: Call) -> float:
    """Whether the function of a call rises: 1 or -1."""
    value = _bend(call, torch.linspace(-8.0, 8.0, 257, dtype=torch.float64, device=call.made.device))
    return -1.0 if bool((value.diff() < 0).any()) else 1.0


def _logits(call: Call) -> Tensor:
    """h_k - log sum_{j != k} exp h_j: without loss where one of them rules, and with finite slopes."""
    h = call.read
    dim = call.arguments[1] if len(call.arguments) > 1 else call.keywords["dim"]
    top = torch.zeros_like(h, dtype=torch.bool).scatter(
        dim, h.argmax(dim, keepdim=True), torch.ones_like(h, dtype=torch.bool)
    )
    whole = torch.logsumexp(h, dim, keepdim=True)
    share = torch.where(top, -1.0, h - whole)
    return h - torch.where(
        top, torch.logsumexp(h.masked_fill(top, -torch.inf), dim, keepdim=True), whole + torch.log1p(-share.exp())
    )


def chain_of(watch: Watch, margin: Tensor, kept: tuple[str, ...] | None = None) -> tuple[Call, ...]:
    """Calls from the margin back to the first function that is bent; `kept` is how they must read."""
    calls: list[Call] = []
    while (call := watch.before(margin if not calls else calls[-1].read)) is not None and len(calls) < LAST:
        if kept is not None and len(calls) == len(kept):
            break
        calls.append(call)
        if call.name in SOFTMAX:
            break
    bent = [i for i, call in enumerate(calls) if call.name in BENT or call.name in SOFTMAX]
    found = tuple(calls[: bent[-1] + 1]) if bent else ()
    if kept is not None and tuple(call.name for call in found) != kept:
        raise RiskError(
            "The last steps before the margin are not the same on every batch, so they cannot be undone. Return the margin "
            "before the last sigmoid, tanh or softmax."
        )
    return found


def lightened(call: Call) -> Call:
    """Only the name is read again: what a batch held is let go."""
    none = torch.zeros(0)
    return Call(call.name, _nothing, (none,), {}, none, 0, 0)


def _nothing(*_args: Any, **_keywords: Any) -> Tensor:
    return torch.zeros(0)
