"""Steps and tapes: what one row passes through, in PyTorch's own operators.

A step that depends on the input has parents among the steps before it. Weights stay the network's own tensors: whatever is computed
from a tape can be differentiated in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import map_aggregate

#: What marks the output of a named layer in the record; its second argument is the name of the site.
SITE = "ppl_risk::site"


@dataclass(frozen=True)
class Step:
    """One operator of a row that depends on the input.

    Attributes:
        name: unique.
        op: the operator, as "linear" or "layer_norm"; "input" for the input, "site" for a named layer's output. What is written
            in place is a step of the operator that leaves its input alone ("mul" for `mul_`); where only part of a tensor was
            written, "index_put" joins old and new numbers and "index" reads them, both at fixed places. "truncate": a number
            made an integer or a boolean.
        parents: the steps it reads.
        shape: of what it returns for a batch of one row; the 1 may stand anywhere.
        call: values of the parents, in order, on a batch of one row -> its value, in their type. Many rows: `torch.vmap` of it.
        arguments: what the operator is called with; a `Ref` for a parent.
        keywords: the same, by name.
        site: the layer's name, or "".
        output: which of several results it is, as in `max` along a dimension; None of one.
        dtype: of the value in the network itself.
        native: as `call`, in the types of the network itself.
    """

    name: str
    op: str
    parents: tuple[str, ...]
    shape: torch.Size
    call: Callable[..., Tensor] = field(compare=False)
    arguments: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)
    site: str = ""
    output: Any = None
    dtype: torch.dtype | None = None
    native: Callable[..., Tensor] | None = field(default=None, compare=False)

    @property
    def size(self) -> int:
        """Numbers in the value of one row."""
        return self.shape.numel()

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """An argument of the operator, by place or name."""
        return self.arguments[place] if place < len(self.arguments) else self.keywords.get(name, default)


@dataclass(frozen=True)
class Ref:
    """A step among arguments."""

    name: str


@dataclass(frozen=True)
class Tape:
    """Steps in order; the first is the input, the last the margin.

    Example:
        >>> from ppl_risk.problem import RiskProblem
        >>> from ppl_risk.tracing import trace
        >>> law = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> [step.op for step in trace(RiskProblem(torch.nn.Linear(2, 3), law, lambda y: y[:, 0])).steps]
        ['input', 'linear', 'site', 'select']
    """

    steps: tuple[Step, ...]

    @property
    def sites(self) -> dict[str, str]:
        """Names of sites -> names of steps."""
        return {step.site: step.name for step in self.steps if step.site}

    def __getitem__(self, name: str) -> Step:
        return self._by_name[name]

    @property
    def _by_name(self) -> dict[str, Step]:
        return {step.name: step for step in self.steps}

    def needed_after(self) -> list[set[str]]:
        """For every step, the steps up to it that a later one still reads."""
        needed = {self.steps[-1].name}
        kept: list[set[str]] = []
        for step in reversed(self.steps):
            kept.append(needed)
            needed = (needed - {step.name}) | set(step.parents)
        return kept[::-1]

    def values(self, x: Tensor, run: Callable[[Step], Callable[..., Tensor]]) -> Iterator[tuple[Step, Tensor]]:
        """Every step's value in order, from the value x of the first; `run` says how one is computed. Old values are dropped."""
        held = {self.steps[0].name: x}
        for step, keep in zip(self.steps, self.needed_after(), strict=True):
            if step.op != "input":
                held[step.name] = run(step)(*(held[p] for p in step.parents))
            yield step, held[step.name]
            held = {name: value for name, value in held.items() if name in keep}


def refs_in(*items: Any) -> tuple[str, ...]:
    """Names of the steps among arguments, each once, in order."""
    found: dict[str, None] = {}

    def look(item: Any) -> Any:
        if isinstance(item, Ref):
            found[item.name] = None
        return item

    map_aggregate(items, look)
    return tuple(found)


def make_step(
    name: str,
    op: str,
    target: Callable[..., Any],
    arguments: tuple[Any, ...],
    keywords: Mapping[str, Any],
    like: tuple[torch.Size, torch.dtype],
    *,
    output: Any = None,
    site: str = "",
) -> Step:
    """A step that calls `target`; `like`: shape and type of its value."""
    parents = refs_in(arguments, dict(keywords))

    def caller(cast: bool) -> Callable[..., Tensor]:
        def call(*values: Tensor) -> Tensor:
            if site:
                return values[0]
            known = dict(zip(parents, values, strict=True))
            # Numbers follow the type of what the row brings along; places in a table bring none.
            own = next((v.dtype for v in values if v.is_floating_point()), torch.float64)

            def fill(item: Any) -> Any:
                if isinstance(item, Ref):
                    return known[item.name]
                if cast and isinstance(item, Tensor) and item.is_floating_point():
                    return item.to(own)
                return own if cast and isinstance(item, torch.dtype) and item.is_floating_point else item

            filled: Any = map_aggregate((arguments, dict(keywords)), fill)
            result = target(*filled[0], **filled[1])
            return result if output is None else result[output]

        return call

    return Step(
        name, op, parents, like[0], caller(True), arguments, dict(keywords), site, output, like[1], caller(False)
    )
