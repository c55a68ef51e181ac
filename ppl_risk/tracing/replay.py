"""From a record to a tape: constants are evaluated in the network's own tensors, and what is written in place becomes new values.

Reading a tensor after something else was written to its memory gives its old numbers with the new ones laid over, place by place:
`index_put(old, places, index(new, places))`. Where nothing is written in place the tape has the record's operators one by one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from ppl_risk.errors import RiskError
from ppl_risk.tracing.memory import Memory, Write, attribute_of, functional, nodes_written, plain_name, written
from ppl_risk.tracing.tape import SITE, Ref, Step, Tape, make_step, refs_in

#: Their value follows from the shape of what they read, not from its numbers.
LIKE = {"zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty"}
#: What they return is not defined before it is written.
EMPTY = {"empty", "empty_like", "new_empty", "empty_strided", "empty_permuted", "new_empty_strided"}
#: Operators that change the type of numbers and nothing else.
CASTS = {"to", "_to_copy", "type_as", "copy"}


class _Several(NamedTuple):
    """An operator with several results, before one of them is taken."""

    target: Callable[..., Any]
    op: str
    args: Any
    kwargs: Any


class Replay:
    """The steps of a record.

    Args:
        graph: what `make_fx` recorded.
        x: the row it was recorded on (1, *event).
    """

    def __init__(self, graph: GraphModule, x: Tensor) -> None:
        self.graph, self.steps, self.value = graph, list[Step](), dict[Node, Any]()
        writes = any(written(n.target) for n in graph.graph.nodes if n.op == "call_function")
        self.memory = Memory(graph, x) if writes else None

    def tape(self) -> Tape | None:
        """The tape; None where the margin does not depend on the input.

        Raises:
            RiskError: an operator that cannot be read; memory that is written as numbers of two types.
        """
        result: Any = None
        # A record sets and restores the gradient mode as the network does; what happens between may raise.
        with torch.set_grad_enabled(torch.is_grad_enabled()):
            for node in self.graph.graph.nodes:
                if node.op == "output":
                    result = self._read(node.args[0]) if isinstance(node.args[0], Node) else None
                else:
                    self._take(node)
        return Tape(_only_used(self.steps, result.name)) if isinstance(result, Ref) else None

    def _take(self, node: Node) -> None:
        if node.op == "placeholder":
            like = _like(node)
            self.steps.append(Step(node.name, "input", (), like[0], lambda v: v, dtype=like[1], native=lambda v: v))
            self.value[node] = Ref(node.name)
        elif node.op == "get_attr":
            self.value[node] = attribute_of(self.graph, node)
        elif node.target is operator.getitem:
            self.value[node] = self._item(node)
        elif isinstance(node.target, torch._ops.OpOverload):
            args, kwargs = map_arg((node.args, node.kwargs), self._read)
            if written(node.target):
                self._write(node, args, kwargs)
                return
            self.value[node] = self._plain(node, args, kwargs)
        else:
            self.value[node] = self._other(node)
        if self.memory is not None:
            self.memory.run(node)

    def _plain(self, node: Node, args: Any, kwargs: Any) -> Any:
        """An operator that writes nothing."""
        schema = node.target._schema.name  # pyright: ignore
        name, target = plain_name(schema.split("::")[-1]), node.target
        if name in LIKE:
            shape, dtype = _like(node.args[0])
            args = (torch.zeros(shape, dtype=dtype, device=_value(node.args[0]).device), *args[1:])
        if name in EMPTY:
            made = target(*args, **kwargs)  # pyright: ignore[reportCallIssue]
            return made.zero_()
        if schema == SITE:
            return self._emit(node.name, "site", target, args, kwargs, _like(node), site=str(args[1]))
        if refs_in(args, kwargs) and isinstance(_value(node), tuple | list):
            return _Several(target, name, args, kwargs)  # pyright: ignore[reportArgumentType]
        if refs_in(args, kwargs) and not isinstance(_value(node), Tensor):
            return None
        return self._emit(node.name, name, target, args, kwargs, _like(node) if refs_in(args, kwargs) else None)

    def _emit(
        self, name: str, op: str, target: Any, args: Any, kwargs: Any, like: Any, output: Any = None, site: str = ""
    ) -> Any:
        """A step where the input counts; otherwise its value, now."""
        parents = refs_in(args, kwargs)
        if not parents:
            made = target(*args, **kwargs)
            return made if output is None else made[output]
        if op in CASTS and not like[1].is_floating_point and any(self._dtype(p).is_floating_point for p in parents):
            op = "truncate"
        self.steps.append(make_step(name, op, target, tuple(args), dict(kwargs), like, output=output, site=site))
        return Ref(name)

    def _dtype(self, name: str) -> torch.dtype:
        return next(s.dtype for s in reversed(self.steps) if s.name == name) or torch.float64

    def _item(self, node: Node) -> Any:
        source: Any = self.value[node.args[0]]  # pyright: ignore[reportArgumentType]
        index = node.args[1]
        if isinstance(source, _Several):
            return self._emit(node.name, source.op, source.target, source.args, source.kwargs, _like(node), index)
        return source[index]

    def _other(self, node: Node) -> Any:
        """What is no operator of PyTorch's: switches of gradients and types, and operators on functions."""
        name = getattr(node.target, "__name__", str(node.target))
        if "autocast" in name:
            raise RiskError("it computes under torch.autocast, in a type whose rounding is not part of what is read")
        if any(isinstance(self.value[n], Ref | _Several) for n in node.all_input_nodes):
            raise RiskError(f"its step {node.name!r} is no operator of PyTorch's but {name}")
        if callable(node.target):
            return node.target(*map_arg(node.args, self._read), **map_arg(node.kwargs, self._read))
        return None

    def _read(self, node: Node) -> Any:
        """The value of a node as its memory is now."""
        value = self.value[node]
        if self.memory is not None:
            for number, write in enumerate(self.memory.since(node)):
                value = self._over(f"{node.name}_then{len(self.steps)}_{number}", node, value, write)
            self.value[node] = value
        return value

    def _over(self, name: str, node: Node, old: Any, write: Write) -> Any:
        """The old value of a node with what was written over it."""
        assert self.memory is not None
        places, (shape, dtype) = self.memory.places(node), _like(node)
        if dtype != write.dtype:
            raise RiskError(f"memory is written as {write.dtype} and read as {dtype} (step {node.name!r})")
        size = int(max(places.max(), write.places.max())) + 1 if places.numel() and write.places.numel() else 0
        where = torch.full((size,), -1)
        where[write.places.flatten()] = torch.arange(write.places.numel())
        at = where[places.flatten()] if size else places.flatten()
        hit = at >= 0
        if not size or not bool(hit.any()):
            return old
        if places.shape == write.places.shape and bool((at == torch.arange(len(at))).all()):
            return write.value
        device = _value(node).device
        whole = bool(hit.all())
        made = self._taken(f"{name}_new", write, at.reshape(places.shape) if whole else at[hit], dtype, device)
        if whole:
            return made
        # Some of the node's numbers were written and others not: it has a dimension.
        laid = list(torch.unravel_index(hit.nonzero().flatten().to(device), places.shape))
        put = torch.ops.aten.index_put.default
        return self._emit(name, "index_put", put, (old, laid, made), {}, (shape, dtype))

    def _taken(self, name: str, write: Write, at: Tensor, dtype: torch.dtype, device: torch.device) -> Any:
        """The numbers `at` of what was written, counted in order; of the shape of `at`."""
        value, of = write.value, write.places.shape
        if at.numel() == write.places.numel() and bool((at.flatten() == torch.arange(at.numel())).all()):
            reshape = torch.ops.aten.reshape.default
            given = (value, list(at.shape))
            return value if at.shape == of else self._emit(name, "reshape", reshape, given, {}, (at.shape, dtype))
        # More than one number is taken in another order, or less than all: there is a dimension.
        places = list(torch.unravel_index(at.to(device), of))
        return self._emit(name, "index", torch.ops.aten.index.Tensor, (value, places), {}, (at.shape, dtype))

    def _write(self, node: Node, args: Any, kwargs: Any) -> None:
        """An operator that writes: what it leaves in each tensor that it writes to."""
        assert self.memory is not None
        target: Any = node.target
        name = plain_name(target._schema.name.split("::")[-1])
        targets, found = nodes_written(node), functional(target)
        listed = any(
            isinstance(a, list | tuple) and set(targets) & set(a) for a in node.args if isinstance(a, list | tuple)
        )
        moved = torch.Tag.inplace_view in target.tags
        before = {n: _like_of(self.memory.real[n]) for n in targets}
        after: list[Any]
        if name in {"copy_", "fill_", "zero_"}:
            after = [self._filled(node, name, args, before[targets[0]])]
        elif found is not None and len(targets) == 1 and not listed:
            given = {k: v for k, v in kwargs.items() if k not in {a for _, a in written(target)} or not _is_out(target)}
            with torch.no_grad():
                real, told = map_arg((node.args, node.kwargs), lambda n: self.memory.real[n])  # pyright: ignore
                would = found[0](*real, **{k: v for k, v in told.items() if k in given})
            like = _like_of(would) if moved or _is_out(target) else (before[targets[0]][0], would.dtype)
            made = self._emit(node.name, found[1], found[0], args, given, like)
            after = [self._kept(node, made, would.dtype, like[0], before[targets[0]][1])]
        else:
            after = self._by_copies(node, name, args, kwargs, targets, before)
        self.memory.run(node)
        for one, value in zip(targets, after, strict=True):
            if not moved:
                self.memory.write(one, value, self.memory.real[one].dtype)
                self.value[one] = value
                continue
            # The same tensor under every name it has, seen in another shape from now on.
            for other, real in list(self.memory.real.items()):
                if real is self.memory.real[one]:
                    self.value[other] = value
        # What the operator returns is what it wrote to.
        self.value[node] = after[0] if isinstance(self.memory.real[node], Tensor) else after
        if isinstance(self.memory.real[node], Tensor):
            self.memory.known[node] = len(self.memory.writes.get(self.memory._home(node), ()))

    def _kept(self, node: Node, made: Any, dtype: torch.dtype, shape: torch.Size, own: torch.dtype) -> Any:
        """A result in the type of the tensor it is written to, unless both are floating, where types only round."""
        if dtype == own or (dtype.is_floating_point and own.is_floating_point):
            return made
        return self._emit(f"{node.name}_cast", "to", torch.ops.aten.to.dtype, (made, own), {}, (shape, own))

    def _filled(self, node: Node, name: str, args: Any, like: tuple[torch.Size, torch.dtype]) -> Any:
        """What copy_, fill_ and zero_ leave: nothing of what was there."""
        source = 0 if name == "zero_" else args[1]
        if not isinstance(source, Ref | Tensor):
            return torch.full(like[0], source, dtype=like[1], device=_value(node).device)
        assert self.memory is not None
        real = self.memory.real[node.args[1]]  # pyright: ignore[reportArgumentType]
        source = self._kept(node, source, real.dtype, real.shape, like[1])
        if real.shape == like[0]:
            return source
        expand = torch.ops.aten.expand.default
        return self._emit(node.name, "expand", expand, (source, list(like[0])), {}, like)

    def _by_copies(
        self, node: Node, name: str, args: Any, kwargs: Any, targets: list[Node], before: dict[Node, Any]
    ) -> list[Any]:
        """An operator without a twin that leaves its input alone: run on copies of what it writes to."""
        target: Any = node.target
        places = written(target)

        def run(*given: Any, **told: Any) -> list[Tensor]:
            held, named, copies = list(given), dict(told), list[Tensor]()
            for place, key in places:
                old = held[place] if 0 <= place < len(held) else named[key]
                new: Any = [t.clone() for t in old] if isinstance(old, list | tuple) else old.clone()
                copies += new if isinstance(new, list) else [new]
                if 0 <= place < len(held):
                    held[place] = new
                else:
                    named[key] = new
            target(*held, **named)
            return copies

        plain = name.removesuffix("_")
        return [
            self._emit(f"{node.name}_{k}", plain, run, args, kwargs, before[one], k) for k, one in enumerate(targets)
        ]


def _is_out(target: Any) -> bool:
    return any(a.is_out for a in target._schema.arguments)


def _value(node: Any) -> Any:
    return node.meta.get("val") if isinstance(node, Node) else node


def _like(node: Any) -> tuple[torch.Size, torch.dtype]:
    return _like_of(_value(node))


def _like_of(value: Tensor) -> tuple[torch.Size, torch.dtype]:
    return torch.Size(value.shape), value.dtype


def _only_used(steps: list[Step], last: str) -> tuple[Step, ...]:
    wanted: set[str] = {last}
    kept = []
    for step in reversed(steps):
        if step.name in wanted or step.op == "input":
            kept.append(step)
            wanted |= set(step.parents)
    # What follows the margin in the record does not lead to it; the margin is the last.
    return tuple(kept[::-1])
