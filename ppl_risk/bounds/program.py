r"""A tape rewritten in five kinds of nodes, each with a rule for intervals and one for lines.

    affine    y = A (p_1, p_2, ...) + b        any operators that are affine in what depends on the input, all parents together
    unary     y = g(p), elementwise            a curve of `ppl_risk.bounds.curves`
    product   y = p_1 p_2, elementwise         attention scores, layer norm
    maximum   y = max(p_1, p_2), elementwise   with p_3 = p_1 - p_2 as a node of its own: max(a, b) = b + relu(a - b)
    ordered   y grows with each number of p    topk, sort, max pooling

Operators that are none of these (softmax, layer norm, attention, amax, ...) are composed of them in `ppl_risk.bounds.composites`.
Everything is computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ppl_risk.bounds.curves import Curve
from ppl_risk.bounds.functions import CURVES
from ppl_risk.errors import RiskError


@dataclass
class Node:
    """One of the five kinds, or "input"; `call` evaluates it on the values of its parents, one row.

    `magnitude`: |A| applied to non-negative numbers, for an affine node. `within`: bounds known of its own value.
    """

    name: str
    kind: str
    parents: tuple[str, ...]
    shape: torch.Size
    call: Callable[..., Tensor]
    magnitude: Callable[..., Tensor] | None = None
    curve: Curve | None = None
    within: tuple[float, float] | None = None
    zeros: tuple[Tensor, ...] = ()
    rows: int = 0

    @cached_property
    def offset(self) -> Tensor:
        """b of an affine node."""
        return self.call(*self.zeros)

    @cached_property
    def flops(self) -> float:
        """FLOPs of one row (matrix products, as torch counts them); |A| and A^T take as many."""
        with FlopCounterMode(display=False) as counter:
            self.call(*self.zeros)
        return float(counter.get_total_flops())

    @cached_property
    def _transposed(self) -> Callable[[Tensor], tuple[Tensor, ...]]:
        return torch.vmap(torch.func.vjp(self.call, *self.zeros)[1])

    def many(self, *values: Tensor) -> Tensor:
        """The node on rows of values."""
        self.rows += len(values[0])
        return torch.vmap(self.call)(*values)

    def back(self, weights: Tensor) -> tuple[Tensor, ...]:
        """Rows of weights on an affine node (rows, *shape) -> on its parents: A^T."""
        self.rows += len(weights)
        return self._transposed(weights)

    def spread(self, radii: tuple[Tensor, ...]) -> Tensor:
        """|A| radii of an affine node, for rows of radii."""
        self.rows += len(radii[0])
        if self.magnitude is not None:
            return torch.vmap(self.magnitude)(*radii)
        total = torch.zeros(())
        for place, radius in enumerate(radii):
            alone = lambda r, k=place: self.call(*self.zeros[:k], r, *self.zeros[k + 1 :])  # noqa: E731
            total = total + (torch.vmap(alone)(radius) - self.offset).abs()
        return total


@dataclass
class Program:
    """Nodes in order; `names`: step of the tape -> the node that has its value."""

    nodes: dict[str, Node] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def root(self) -> Node:
        """The input."""
        return next(iter(self.nodes.values()))

    @property
    def output(self) -> Node:
        """The margin."""
        return next(reversed(self.nodes.values()))

    def begin(self, name: str, shape: torch.Size) -> None:
        """The root."""
        zero = torch.zeros(shape, dtype=torch.float64, device=self.device)
        self.nodes[name] = Node(name, "input", (), shape, lambda: zero)

    def add(self, kind: str, parents: tuple[str, ...], call: Callable[..., Tensor], name: str = "", **more: Any) -> str:
        """Append a node; its shape is that of its value at 0."""
        zeros = tuple(
            torch.zeros(self.nodes[p].shape, dtype=torch.float64, device=self.device) for p in dict.fromkeys(parents)
        )
        name = name or f"_{len(self.nodes)}"
        value = call(*zeros)
        if not value.is_floating_point():
            raise RiskError(f"{name} is of type {value.dtype}; only floating-point values have bounds.")
        node = Node(name, kind, tuple(dict.fromkeys(parents)), value.shape, call, zeros=zeros, **more)
        # What cannot be done with many rows is found here, where it is known which operator it is.
        many = node.many(*(zero[None] for zero in zeros))
        if kind == "affine":
            node.back(many)
            node.spread(tuple(zero[None] for zero in zeros))
        node.rows = 0
        self.nodes[name] = node
        return name

    def affine(self, parents: tuple[str, ...], call: Callable[..., Tensor], magnitude: Any = None) -> str:
        """Append an affine node; without `magnitude`, |A| r = sum_k |A_k r_k|, which holds where no two signs meet in a number."""
        return self.add("affine", parents, call, magnitude=magnitude)

    def unary(self, parent: str, curve: Curve, within: tuple[float, float] | None = None) -> str:
        """Append a curve."""
        return self.add("unary", (parent,), curve.call, curve=curve, within=within)

    def product(self, left: str, right: str, within: tuple[float, float] | None = None) -> str:
        """Append a product, broadcast."""
        if left == right:
            return self.unary(left, CURVES["square"](), within)
        shape = torch.broadcast_shapes(self.nodes[left].shape, self.nodes[right].shape)
        left, right = (
            p if self.nodes[p].shape == shape else self.affine((p,), lambda v: v.expand(shape)) for p in (left, right)
        )
        return self.add("product", (left, right), torch.mul, within=within)

    def maximum(self, left: str, right: str) -> str:
        """Append an elementwise maximum, broadcast."""
        if left == right:
            return left
        gap = self.affine((left, right), torch.sub)
        shape = self.nodes[gap].shape
        left, right = (
            p if self.nodes[p].shape == shape else self.affine((p,), lambda v: v.expand(shape)) for p in (left, right)
        )
        return self.add("maximum", (left, right, gap), lambda a, b, _: torch.maximum(a, b))

    @property
    def flops(self) -> float:
        """FLOPs of all that was done with the nodes so far."""
        return sum(node.rows * node.flops for node in self.nodes.values() if node.kind == "affine")

    @torch.no_grad()
    def values(self, x: Tensor) -> dict[str, Tensor]:
        """Every node on inputs (rows, *shape of the root), by running them."""
        found = {self.root.name: x.double()}
        for node in list(self.nodes.values())[1:]:
            found[node.name] = node.many(*(found[p] for p in node.parents))
        return found
