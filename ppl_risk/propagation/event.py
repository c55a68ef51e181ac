r"""What the catastrophe says of the last layer whose law is taken as Gaussian.

A margin such as y_8 - max_j y_j, or sigmoid(z) - 0.9, is far from Gaussian itself; the event `margin >= t` is still a plain
statement about the Gaussian layer before it: all, or any, of its numbers pass a bound. Found by walking back from the margin
through increasing functions of one number and through one largest or smallest, and by inverting the increasing functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ppl_risk.propagation.activation_steps import activation_of
from ppl_risk.propagation.linear_map import RENAMES, LinearMap, is_affine
from ppl_risk.propagation.orthant import log_all_positive, log_any_positive
from ppl_risk.tracing import Ref, Step, Tape

#: Halvings of an interval of asinh(x).
HALVINGS = 64


@dataclass(frozen=True, eq=False)
class Event:
    """`margin >= t` as a statement about the last step of `tape`: `every` or any of its numbers x_i has sign (x_i - c_i) >= 0.

    `functions` lead from the numbers to the margins whose smallest (`every`) or largest is the margin; monotone, `sign` says how.
    """

    tape: Tape
    every: bool
    functions: tuple[Callable[[Tensor], Tensor], ...]
    sign: float

    def log_prob(
        self, mean: Float[Tensor, "batch k"], covariance: Float[Tensor, "batch k k"], threshold: float = 0.0
    ) -> Float[Tensor, " batch"]:
        """log Pr[margin >= threshold] where the layer is N(mean, covariance), nats."""
        gap = self._gap(mean, threshold)
        return (log_all_positive if self.every else log_any_positive)(gap, covariance)

    def log_bound(
        self, mean: Float[Tensor, "batch k"], covariance: Float[Tensor, "batch k k"], threshold: float = 0.0
    ) -> Float[Tensor, " batch"]:
        """At least `log_prob`, from the marginals alone."""
        sd = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(1e-24).sqrt()
        each = torch.special.log_ndtr(self._gap(mean, threshold) / sd)
        return each.amin(-1) if self.every else each.logsumexp(-1).clamp_max(0.0)

    def in_units(self, units: Float[Tensor, " k"]) -> Event:
        """The same event of the layer's numbers divided by `units`."""
        base = self.tape.steps[-1]
        shape = base.shape
        step = Step(
            f"{base.name}/scaled", "mul", (base.name,), shape,
            lambda value: value / units.to(value).reshape(shape), (Ref(base.name), 1.0 / units),
        )  # fmt: skip
        return Event(
            Tape((*self.tape.steps, step)), self.every, (lambda x: x * units.to(x), *self.functions), self.sign
        )

    @torch.no_grad()
    def happens(self, layer: Float[Tensor, "rows k"]) -> Bool[Tensor, " rows"]:
        """Whether values of the layer are catastrophes."""
        passed = self._gap(layer, 0.0) >= 0
        return passed.all(-1) if self.every else passed.any(-1)

    def _gap(self, mean: Tensor, threshold: float) -> Tensor:
        gap = self.sign * (mean - self.bounds(threshold, mean.shape[-1]).to(mean))
        # A bound that every value passes says nothing; one that none passes leaves no mass. Both act through the gap.
        return torch.where(torch.isinf(gap), torch.sign(gap) * 1e6, gap)

    @lru_cache(maxsize=256)  # noqa: B019 - an event lives as long as its estimate
    @torch.no_grad()
    def bounds(self, threshold: float, size: int) -> Float[Tensor, " k"]:
        """c (size,) with margin_i(c) = threshold; infinite where the margin stays on one side."""
        like = torch.zeros(0, dtype=torch.float64)
        if not self.functions:
            return like.new_full((size,), threshold)
        low, high = like.new_full((size,), -60.0), like.new_full((size,), 60.0)
        # asinh spreads the whole of float64 over an interval that 64 halvings exhaust.
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            above = self._margin(middle.sinh()) >= threshold
            up = above if self.sign > 0 else ~above
            low, high = torch.where(up, low, middle), torch.where(up, middle, high)
        c = high.sinh()
        return torch.where(high > 59.9, torch.inf, torch.where(high < -59.9, -torch.inf, c))

    def _margin(self, x: Tensor) -> Tensor:
        for function in self.functions:
            x = function(x)
        return x


def event_of(tape: Tape) -> Event:
    """The event behind a tape whose last step is one margin."""
    chain = [tape.steps[-1]]
    while _monotone(tape, chain[-1]) is not None:
        chain.append(tape[chain[-1].parents[0]])
    base, every = chain[-1], True
    extreme = _extreme(tape, base)
    combined = _combined(tape, base) or _of_two(tape, base) if extreme is None else None
    if extreme is None and combined is None:
        # One number: what comes after its last bend is affine, and leaves a Gaussian one.
        while len(chain) > 1 and activation_of(chain[-2]) is None:
            chain.pop()
        base = chain[-1]
    functions, sign = [_each(tape, step) for step in chain[:-1]], _sign(tape, chain[:-1])
    if extreme is not None:
        base, largest = tape[extreme[0]], extreme[1]
        every = largest != (sign > 0)
    elif combined is not None:
        base, smallest = combined
        every = smallest == (sign > 0)
    # A vector of margins is now followed back to where it is Gaussian.
    while extreme is not None and (way := _monotone(tape, base)) is not None:
        functions.append(_whole(tape, base))
        sign, base = sign * way, tape[base.parents[0]]
    if extreme is not None and every != (sign > 0) and base.op == "abs":
        # The largest of |x| is that of x and -x.
        base, count = _both_ways(tape, base), base.size
        functions = [_halved(f, count) for f in functions]
        extreme = None
    if extreme is not None and (apart := _apart(tape, base)) is not None:
        base, function = apart
        functions.append(function)
    before = _ancestors(tape, base)
    steps = (*(s for s in tape.steps if s.name in before), base)
    return Event(Tape(steps), every, tuple(functions[::-1]), sign)


def _sign(tape: Tape, chain: list[Step]) -> float:
    """Whether a chain of monotone steps rises or falls."""
    return math.prod((_monotone(tape, step) or 1.0 for step in chain), start=1.0)


def _ancestors(tape: Tape, step: Step) -> set[str]:
    found, todo = set(), list(step.parents)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += tape[name].parents
    return found


def _monotone(tape: Tape, step: Step) -> float | None:
    """1 for a step that increases every number alone, -1 for one that decreases it, None for any other."""
    if len(step.parents) != 1 or step.size != tape[step.parents[0]].size:
        return None
    if step.op in RENAMES:
        return 1.0
    activation = activation_of(step)
    if activation is not None:
        return 1.0 if activation.increasing else None
    if step.op in {"add", "sub", "rsub", "mul", "div", "neg", "subtract", "multiply", "divide"} and is_affine(step):
        slope = LinearMap(step, [tape[step.parents[0]].shape]).forward(torch.ones(1, step.size, dtype=torch.float64))
        signs = slope.detach().sign().unique().tolist()
        return signs[0] if len(signs) == 1 and signs[0] != 0 else None
    return None


def _each(tape: Tape, step: Step) -> Callable[[Tensor], Tensor]:
    """A step on one number, for every number of a vector."""
    shape = tape[step.parents[0]].shape
    return lambda x: torch.vmap(lambda one: step.call(one.reshape(shape)).reshape(()))(x)


def _whole(tape: Tape, step: Step) -> Callable[[Tensor], Tensor]:
    """A step on a vector, number by number."""
    shape = tape[step.parents[0]].shape
    return lambda x: step.call(x.reshape(shape)).reshape(-1)


def _apart(tape: Tape, step: Step) -> tuple[Step, Callable[[Tensor], Tensor]] | None:
    """(numbers, function) for a row of numbers of which some are bent, each by an increasing or falling function of its own."""
    items = step.argument(0, "tensors")
    if step.op not in {"stack", "cat"} or not all(isinstance(a, Ref) and tape[a.name].size == 1 for a in items):
        return None
    chains: list[list[Step]] = []
    for item in items:
        chain = [tape[item.name]]
        while _monotone(tape, chain[-1]) is not None:
            chain.append(tape[chain[-1].parents[0]])
        while len(chain) > 1 and activation_of(chain[-2]) is None:
            chain.pop()
        chains.append(chain)
    if all(len(chain) == 1 for chain in chains):
        return None
    signs = [_sign(tape, chain[:-1]) for chain in chains]
    bends = [[_each(tape, one) for one in chain[-2::-1]] for chain in chains]
    ends = [chain[-1].name for chain in chains]
    parents = tuple(dict.fromkeys(ends))

    def call(*values: Tensor) -> Tensor:
        known = dict(zip(parents, values, strict=True))
        return torch.stack([s * known[name].reshape(1) for s, name in zip(signs, ends, strict=True)], -1)

    def function(x: Tensor) -> Tensor:
        numbers = []
        for number, s, bend in zip(x.reshape(-1, 1), signs, bends, strict=True):
            one = s * number
            for f in bend:
                one = f(one)
            numbers.append(one)
        return torch.cat(numbers)

    return Step(f"{step.name}/apart", "stack", parents, torch.Size([1, len(ends)]), call), function


def _extreme(tape: Tape, step: Step) -> tuple[str, bool] | None:
    """(name of the vector, whether the largest) for a step that is the largest or smallest of all numbers of another."""
    if step.size != 1 or len(step.parents) != 1:
        return None
    parent = tape[step.parents[0]]
    if step.op in {"amax", "amin"} or (step.op in {"max", "min"} and step.output in (None, 0)):
        return parent.name, step.op in {"amax", "max"}
    if step.op == "topk" and step.output == 0 and int(step.argument(1, "k")) == 1:
        return (parent.name, True) if step.argument(3, "largest", True) else (parent.name, False)
    if step.op == "select" and parent.op == "topk" and parent.output == 0 and parent.argument(3, "largest", True):
        count, of = int(parent.argument(1, "k")), tape[parent.parents[0]]
        place = int(step.argument(2, "index")) % count
        if parent.size == count and place == 0:
            return of.name, True
        if parent.size == count and place == of.size - 1:
            return of.name, False
    return None


def _combined(tape: Tape, step: Step) -> tuple[Step, bool] | None:
    """(vector, whether the step is its smallest) for a number plus or minus the largest or smallest of others."""
    if step.op not in {"add", "sub"} or len(step.parents) != 2 or step.argument(2, "alpha", 1) != 1 or step.size != 1:
        return None
    first, second = (a.name if isinstance(a, Ref) else None for a in step.arguments[:2])
    if first is None or second is None:
        return None
    slope = 1.0 if step.op == "add" else -1.0
    for one, other, own, others in ((first, second, 1.0, slope), (second, first, slope, 1.0)):
        found = _extreme(tape, tape[other])
        if found is not None and tape[one].size == 1:
            vector, largest = found
            return _joined(step, one, tape[vector], own, others), largest == (others < 0)
    return None


def _of_two(tape: Tape, step: Step) -> tuple[Step, bool] | None:
    """(vector, whether the step is its smallest) for max(a, b), min(a, b) or |a| of one number."""
    if step.size != 1:
        return None
    if step.op == "abs":
        return _both_ways(tape, step), False
    if step.op not in {"maximum", "minimum", "max", "min"} or len(step.parents) != 2 or len(step.arguments) != 2:
        return None

    def call(*values: Tensor) -> Tensor:
        return torch.cat([value.reshape(1, 1) for value in values], -1)

    return _row(f"{step.name}/both", step.parents, 2, call), step.op in {"minimum", "min"}


def _both_ways(tape: Tape, step: Step) -> Step:
    """x and -x for |x|."""
    size = tape[step.parents[0]].size

    def call(value: Tensor) -> Tensor:
        return torch.cat([value.reshape(1, -1), -value.reshape(1, -1)], -1)

    return _row(f"{step.name}/ways", step.parents, 2 * size, call)


def _row(name: str, parents: tuple[str, ...], size: int, call: Callable[..., Tensor]) -> Step:
    return Step(name, "stack", parents, torch.Size([1, size]), call)


def _halved(function: Callable[[Tensor], Tensor], size: int) -> Callable[[Tensor], Tensor]:
    """A function of `size` numbers on twice as many."""
    return lambda x: torch.cat([function(half) for half in x.split(size)])


def _joined(step: Step, one: str, vector: Step, own: float, others: float) -> Step:
    """own * one + others * every number of the vector."""

    def call(single: Tensor, several: Tensor) -> Tensor:
        return own * single.reshape(1, 1) + others * several.reshape(1, -1)

    made: Any = replace(
        step, name=f"{step.name}/each", op="stack", parents=(one, vector.name), shape=torch.Size([1, vector.size]), call=call,
        arguments=(), keywords={}, site="", output=None,
    )  # fmt: skip
    return made
