"""Which tensors of a record share memory, and what was written over them.

A record lists a write such as `y[:, :1] *= 3` as a multiplication of a view; that y changed too shows in memory alone. So the
record is run once more on one row, as it stands, and each of its tensors is known by the places in memory that it covers. No write
is done to the network's own tensors: those are copied, and share memory among the copies as they do in the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from ppl_risk.errors import RiskError
from ppl_risk.tracing.tape import SITE


def written(target: Any) -> list[tuple[int, str]]:
    """The arguments that an operator writes to, by place and name; those of a keyword have place -1."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return []
    return [
        (-1 if a.kwarg_only else place, a.name)
        for place, a in enumerate(schema.arguments)
        if a.alias_info is not None and a.alias_info.is_write
    ]


def nodes_written(node: Node) -> list[Node]:
    """The tensors that a step writes to."""
    found: list[Node] = []
    for place, name in written(node.target):
        given = node.args[place] if 0 <= place < len(node.args) else node.kwargs.get(name)
        found += [n for n in (given if isinstance(given, list | tuple) else [given]) if isinstance(n, Node)]
    return found


def functional(target: Any) -> tuple[Callable[..., Any], str] | None:
    """The operator that returns what `target` writes, and its name; None where PyTorch has none.

    Example:
        >>> functional(torch.ops.aten.mul_.Tensor)[1]
        'mul'
    """
    packet = str(target._schema.name).split("::")[-1]
    others = [(a.name, str(a.type)) for a in target._schema.arguments if not a.is_out]
    name = "__" + packet.removeprefix("__i") if packet.startswith("__i") else packet.removesuffix("_")
    made = getattr(torch.ops.aten, name, None)
    if made is None or not target._schema.name.startswith("aten::"):
        return None
    if packet == name and len(others) == len(target._schema.arguments):
        return None
    for overload in made.overloads():
        one = getattr(made, overload)
        if [(a.name, str(a.type)) for a in one._schema.arguments] == others and not written(one):
            return one, plain_name(name)
    return None


def plain_name(name: str) -> str:
    """The name of an operator as readers know it.

    Example:
        >>> plain_name("__and__")
        'bitwise_and'
    """
    return f"bitwise_{name.strip('_')}" if name in {"__and__", "__or__", "__xor__"} else name


class Write(NamedTuple):
    """A value that now lies at `places` (its shape) of one piece of memory; `value`: a `Ref` or a constant."""

    places: Tensor
    value: Any
    dtype: torch.dtype


@dataclass
class Memory:
    """The tensors of one run of a record, and the writes so far."""

    graph: GraphModule
    x: Tensor
    real: dict[Node, Any] = field(default_factory=dict)
    #: Memory -> its writes in order; node -> how many of them its value knows.
    writes: dict[int, list[Write]] = field(default_factory=dict)
    known: dict[Node, int] = field(default_factory=dict)
    copies: dict[int, Any] = field(default_factory=dict)

    @torch.no_grad()
    def run(self, node: Node) -> None:
        """Run one step of the record as it stands."""
        if node.op == "placeholder":
            self.real[node] = self.x.clone()
        elif node.op == "get_attr":
            self.real[node] = self._copy(attribute_of(self.graph, node))
        elif node.op == "call_function":
            args, kwargs = map_arg((node.args, node.kwargs), lambda n: self.real[n])
            if getattr(getattr(node.target, "_schema", None), "name", "") == SITE:
                self.real[node] = args[0]  # In the network a site is what the layer returned, not a copy.
            elif isinstance(node.target, torch._ops.OpOverload) or node.target.__name__ == "getitem":  # pyright: ignore
                self.real[node] = node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]
            else:
                self.real[node] = None
        if isinstance(self.real.get(node), Tensor):
            self.known[node] = len(self.writes.get(self._home(node), ()))

    def since(self, node: Node) -> Iterator[Write]:
        """Writes to the memory of a node that its value does not know yet; afterwards it knows them."""
        if isinstance(self.real.get(node), Tensor):
            writes = self.writes.get(self._home(node), [])
            fresh, self.known[node] = writes[self.known[node] :], len(writes)
            yield from fresh

    def write(self, node: Node, value: Any, dtype: torch.dtype) -> None:
        """`value` now lies where the tensor of a node does."""
        writes = self.writes.setdefault(self._home(node), [])
        writes.append(Write(self.places(node), value, dtype))
        self.known[node] = len(writes)

    def places(self, node: Node) -> Tensor:
        """Where each number of a node lies in its memory, of the node's shape."""
        tensor = self.real[node]
        if tensor.is_conj() or tensor.is_neg() or tensor.layout is not torch.strided:
            raise RiskError(
                f"Step {node.name!r} shares memory, in a form that is not read here, with what is written in place."
            )
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        return torch.arange(size).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def _home(self, node: Node) -> int:
        return self.real[node].untyped_storage()._cdata

    def _copy(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.layout is not torch.strided or value.is_quantized:
            return value.detach().clone()
        storage = value.untyped_storage()
        if storage._cdata not in self.copies:
            self.copies[storage._cdata] = storage.clone()
        empty = torch.empty(0, dtype=value.dtype, device=value.device)
        return empty.set_(self.copies[storage._cdata], value.storage_offset(), value.shape, value.stride())


def attribute_of(graph: GraphModule, node: Node) -> Any:
    """What a record holds under the name of a `get_attr` step."""
    found: Any = graph
    for part in str(node.target).split("."):
        found = getattr(found, part)
    return found
