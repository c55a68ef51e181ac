"""The network and its detector as a list of steps, for methods that read the network instead of running it.

`torch.fx` records what one row passes through, in PyTorch's own operators (`linear`, `relu`, `layer_norm`, ...); a step that
depends on the input has parents among the steps before it. Weights stay the network's own tensors: whatever is computed from a
tape can be differentiated in them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_aggregate, map_arg

from ppl_risk.errors import RiskError
from ppl_risk.problem import RiskProblem
from ppl_risk.randomness import seeded

#: What marks the output of a named layer in the record; its second argument is the name of the site.
SITE = "ppl_risk::site"


@torch.library.custom_op(SITE, mutates_args=(), schema="(Tensor value, str name) -> Tensor")
def _site(value: Tensor, name: str) -> Tensor:
    """The value itself, with a name in the record."""
    return value.clone()


@_site.register_fake
def _(value: Tensor, name: str) -> Tensor:
    return torch.empty_like(value)


@dataclass(frozen=True)
class Step:
    """One operator of a row that depends on the input.

    Attributes:
        name: unique. op: the operator, as "linear" or "layer_norm"; "input" for the input, "site" for a named layer's output.
        parents: the steps it reads. shape: of what it returns for a batch of one row; the 1 may stand anywhere.
        call: values of the parents, in order, on a batch of one row -> its value. Many rows at once: `torch.vmap` of it.
        arguments, keywords: what the operator is called with; a `Ref` for a parent. site: the layer's name, or "".
        output: which of several results it is, as in `max` along a dimension; None of one.
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


def trace(problem: RiskProblem) -> Tape:
    """Record what one row passes through, from the input x to the margin.

    The record holds for every row only if the network does the same with each: no branching on values.

    Raises:
        RiskError: the network or its detector cannot be recorded, as it asks for the value of an activation.

    Example:
        >>> law = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> len(trace(RiskProblem(lambda x: x.sum(-1), law)).steps)
        2
    """
    with seeded(0, problem.device):
        x = problem.sample(1)

    def mark(name: str, value: Tensor) -> Tensor:
        return torch.ops.ppl_risk.site(value, name)

    try:
        graph = make_fx(lambda row: problem.run(row, mark), pre_dispatch=True)(x)
    except RuntimeError as error:
        first = str(error).strip().split("\n")[0][:200]
        raise RiskError(
            f"{problem.name}: the network or its detector cannot be read step by step ({first}). A branch on the value of an "
            "activation, .item() or NumPy hides what happens to other inputs: write it with torch.where, or use run_smc, which "
            "only runs the network."
        ) from error
    graph.graph.eliminate_dead_code()
    steps = tuple(_steps(graph))
    if not steps or steps[0].op != "input" or len(steps) == 1:
        raise RiskError(f"{problem.name}: the margin does not depend on the input by anything that torch computes.")
    return Tape(_only_used(steps))


def _steps(graph: torch.fx.GraphModule) -> Iterator[Step]:
    """The steps that depend on the input; the others are evaluated now, in the network's own tensors."""
    constants: dict[Node, Any] = {}
    several: dict[Node, Node] = {}
    seen: set[str] = set()
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            seen.add(node.name)
            yield Step(node.name, "input", (), _shape(node), lambda value: value)
        elif node.op == "get_attr":
            constants[node] = operator.attrgetter(str(node.target))(graph)
        elif node.op == "call_function":
            source, index = node, None
            if node.target is operator.getitem and node.args[0] in several:
                source, index = several[node.args[0]], node.args[1]
            inputs = [n.name for n in source.all_input_nodes if n.name in seen]
            if not inputs:
                read = map_arg((source.args, source.kwargs), lambda n: constants[n])
                constants[node] = source.target(*read[0], **read[1])  # pyright: ignore[reportCallIssue]
                continue
            if isinstance(node.meta.get("val"), tuple | list):
                several[node] = node
                continue
            seen.add(node.name)
            yield _step(node, source, index, tuple(dict.fromkeys(inputs)), constants)
        elif node.op == "output" and getattr(node.args[0], "name", None) not in seen:
            raise RiskError("The detector returns something that does not depend on the input.")


def _step(node: Node, source: Node, index: Any, parents: tuple[str, ...], constants: Mapping[Node, Any]) -> Step:
    arguments, keywords = map_arg(
        (source.args, source.kwargs),
        lambda n: constants[n] if n in constants else Ref(n.name),  # pyright: ignore[reportArgumentType]
    )
    schema = source.target._schema.name  # pyright: ignore[reportAttributeAccessIssue,reportFunctionMemberAccess]
    name = schema.split("::")[-1]
    target: Any = source.target
    if name.endswith("_") and schema.startswith("aten::"):
        # What happens in place is recorded as a new value; it is computed by the operator that leaves its input alone.
        name = name.removesuffix("_")
        target = getattr(torch.ops.aten, name)

    def call(*values: Tensor) -> Tensor:
        known = dict(zip(parents, values, strict=True))
        own = values[0].dtype

        def fill(item: Any) -> Any:
            if isinstance(item, Ref):
                return known[item.name]
            if isinstance(item, Tensor) and item.is_floating_point():
                return item.to(own)
            return item

        filled: Any = map_aggregate((arguments, keywords), fill)
        result = target(*filled[0], **filled[1])
        return result if index is None else result[index]

    site = str(arguments[1]) if schema == SITE else ""
    call = (lambda *values: values[0]) if site else call
    return Step(node.name, name, parents, _shape(node), call, tuple(arguments), dict(keywords), site, index)


def _shape(node: Node) -> torch.Size:
    return torch.Size(node.meta["val"].shape)


def _only_used(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    wanted: set[str] = {steps[-1].name}
    kept = []
    for step in reversed(steps):
        if step.name in wanted or step.op == "input":
            kept.append(step)
            wanted |= set(step.parents)
    return tuple(kept[::-1])
