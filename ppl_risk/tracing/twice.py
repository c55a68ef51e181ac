"""Two records of two rows side by side: the same operators with the same constants, or the network does not treat rows alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ppl_risk.errors import RiskError
from ppl_risk.tracing.memory import attribute_of

INSTEAD = "Write it with torch operators, row by row (torch.where for a branch), or use run_smc or estimate, which only run it."


def same_record(name: str, first: GraphModule, second: GraphModule) -> None:
    """Two records of two rows list the same operators with the same constants.

    Raises:
        RiskError: they differ, or one reads numbers out of tensors; the step is named.
    """
    known: dict[Node, Node] = {}
    after = "the input"
    for a, b in zip(first.graph.nodes, second.graph.nodes, strict=False):
        known[b] = a
        if a.op == "call_function" and "site" in str(a.target):
            after = f'the layer "{a.args[1]}"'
        where = f"(step {a.name!r}, after {after})"
        if a.op == "get_attr" and b.op == "get_attr":
            one, other = (attribute_of(g, n) for g, n in ((first, a), (second, b)))
            if isinstance(one, Tensor) and one is not other and not _equal(one, other):
                raise RiskError(
                    f"{name}: A number that the network computes from its input is hidden from the record {where}: NumPy, "
                    f".tolist(), torch.func or gradients inside forward. {INSTEAD}"
                )
        elif "resolve_neg" in str(a.target) and not a.users and _from_input(a):
            raise RiskError(
                f"{name}: The network hands numbers to NumPy or to a list {where}, where no record follows. {INSTEAD}"
            )
        elif a.op != b.op or a.target != b.target or not _alike(a, b, known):
            raise RiskError(
                f"{name}: The network does not do the same with every row: two rows of the input law part at {_what(a)} and "
                f"{_what(b)} {where}. A branch on a value, or a number that left torch, does this. {INSTEAD}"
            )
    if len(first.graph.nodes) != len(second.graph.nodes):
        raise RiskError(
            f"{name}: The network does not do the same with every row: two rows pass through different steps. {INSTEAD}"
        )


def _equal(a: Any, b: Any) -> bool:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return bool(a == b)
    if any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in (a, b)):  # pyright: ignore[reportAttributeAccessIssue]
        return False
    return a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a.nan_to_num(), b.nan_to_num()))


def _from_input(node: Node) -> bool:
    todo, done = [node], set[Node]()
    while todo:
        one = todo.pop()
        if one.op == "placeholder":
            return True
        done.add(one)
        todo += [n for n in one.all_input_nodes if n not in done]
    return False


def _alike(a: Node, b: Node, known: dict[Node, Node]) -> bool:
    """The same arguments and the same shape of the result."""

    def plain(item: Any, names: dict[Node, Node] | None) -> Iterator[Any]:
        if isinstance(item, Node):
            yield (item if names is None else names.get(item, item)).name
        elif isinstance(item, list | tuple):
            yield "("
            for one in item:
                yield from plain(one, names)
        elif isinstance(item, dict):
            for key, one in item.items():
                yield key
                yield from plain(one, names)
        else:
            yield item if item == item else "nan"

    shapes = [getattr(n.meta.get("val"), "shape", None) for n in (a, b)]
    pair = [list(plain([n.args, n.kwargs], names)) for n, names in ((a, None), (b, known))]
    return pair[0] == pair[1] and shapes[0] == shapes[1]


def _what(node: Node) -> str:
    name = getattr(node.target, "__name__", str(node.target)).split(".")[0]
    return f'"{name}"'
