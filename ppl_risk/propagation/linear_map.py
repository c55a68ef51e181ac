"""The linear part of a step as a map of rows: forwards, backwards, and of independent numbers' variances."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ppl_risk.tracing import Ref, Step

#: Operators that hand on the same numbers in the same order.
RENAMES = {
    "site", "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous", "clone", "detach", "alias",
    "dropout", "_to_copy", "to", "lift_fresh", "ravel", "_unsafe_view", "feature_dropout", "alpha_dropout",
}  # fmt: skip
#: Operators that are affine in their parents together.
AFFINE = {
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "transpose", "permute", "t", "numpy_T",
    "select", "slice", "index", "index_select", "narrow", "cat", "concat", "stack", "add", "sub", "rsub", "neg", "mean", "sum",
    "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "pad", "constant_pad_nd", "batch_norm", "expand",
    "expand_as", "repeat", "flip", "roll", "movedim", "swapaxes", "mT", "adjoint", "split", "chunk", "unbind",
    "split_with_sizes", "tensor_split", "gather", "zero_pad2d", "cumsum", "diagonal", "repeat_interleave", "unfold",
    "upsample_nearest2d", "upsample_bilinear2d", "masked_select", "im2col", "pixel_shuffle", "subtract", "addmm",
    "index_put",
}  # fmt: skip
#: Operators that are affine only while a single factor depends on the input.
BILINEAR = {"mul", "matmul", "mm", "bmm", "mv", "dot", "einsum", "multiply"}
#: Rows that go through a generic operator at once.
CHUNK = 4096


def is_affine(step: Step) -> bool:
    """Whether the step is affine in all its parents together.

    Example:
        >>> is_affine(Step("s", "add", ("x", "y"), torch.Size([1]), torch.add))
        True
    """
    if step.op in {"div", "divide"}:
        return not isinstance(step.argument(1, "other"), Ref) and step.argument(2, "rounding_mode") is None
    if step.op == "batch_norm":
        return not step.argument(5, "training", False)
    if step.op == "index_put" and any(isinstance(a, Ref) for a in _leaves(step.argument(1, "indices"))):
        return False  # places that depend on the input
    if step.op in BILINEAR:
        return len(step.parents) == 1 and sum(isinstance(a, Ref) for a in _leaves(step.arguments)) == 1
    if step.op in {"linear", "addmm"} or step.op.startswith("conv"):
        return len(step.parents) == 1 and not any(isinstance(a, Ref) for a in step.arguments[1:])
    return step.op in AFFINE or step.op in RENAMES


def _leaves(arguments: object) -> list[object]:
    if isinstance(arguments, tuple | list):
        return [leaf for argument in arguments for leaf in _leaves(argument)]
    return [arguments]


class LinearMap:
    """y = A (x_1, ..., x_k) + b for an affine step, the parents flattened and put side by side."""

    def __init__(self, step: Step, shapes: list[torch.Size]) -> None:
        self.step, self.shapes = step, shapes
        self.sizes = [shape.numel() for shape in shapes]

    def constant(self, like: Tensor) -> Float[Tensor, " m"]:
        """b."""
        zeros = [torch.zeros(shape, dtype=like.dtype, device=like.device) for shape in self.shapes]
        return self.step.call(*zeros).reshape(-1)

    @cached_property
    def weight(self) -> Tensor | None:
        """A where the step is a fully connected layer on one vector."""
        if self.step.op == "linear" and self.shapes[0].numel() == self.shapes[0][-1]:
            return self.step.arguments[1]
        return None

    def forward(self, rows: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
        """A x for rows x."""
        if self.weight is not None:
            return rows @ self.weight.to(rows.dtype).mT
        constant = self.constant(rows)
        if rows.numel() == 0:
            return rows.new_zeros(*rows.shape[:-1], constant.shape[0])
        flat = rows.reshape(-1, rows.shape[-1])
        moved = torch.vmap(self._one, chunk_size=CHUNK)(flat) - constant
        return moved.reshape(*rows.shape[:-1], moved.shape[-1])

    def backward(self, rows: Float[Tensor, "*batch m"]) -> Float[Tensor, "*batch n"]:
        """A^T y for rows y."""
        if self.weight is not None:
            return rows @ self.weight.to(rows.dtype)
        zero = torch.zeros(sum(self.sizes), dtype=rows.dtype, device=rows.device)
        if rows.numel() == 0:
            return rows.new_zeros(*rows.shape[:-1], len(zero))
        pull: Any = torch.func.vjp(self._one, zero)[1]
        moved = torch.vmap(lambda row: pull(row)[0], chunk_size=CHUNK)(rows.reshape(-1, rows.shape[-1]))
        return moved.reshape(*rows.shape[:-1], zero.shape[0])

    def variances(self, variance: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
        """diag(A diag(variance) A^T), exactly."""
        if self.weight is not None:
            return variance @ self.weight.to(variance.dtype).square().mT
        if not bool((variance != 0).any()):
            return self.forward(variance)
        flat = variance.reshape(-1, variance.shape[-1])
        return torch.stack([self._spread(row) for row in flat]).reshape(*variance.shape[:-1], -1)

    def _spread(self, variance: Tensor) -> Tensor:
        """One row of `variances`: every number alone goes through the map, those of variance 0 not at all."""
        total: Tensor = torch.zeros((), dtype=variance.dtype, device=variance.device)
        for places in torch.nonzero(variance).squeeze(-1).split(CHUNK):
            alone = torch.zeros(len(places), len(variance), dtype=variance.dtype, device=variance.device)
            alone = alone.index_put((torch.arange(len(places), device=places.device), places), variance[places].sqrt())
            total = total + self.forward(alone).square().sum(0)
        return total

    def _one(self, row: Tensor) -> Tensor:
        values = [part.reshape(shape) for part, shape in zip(row.split(self.sizes), self.shapes, strict=True)]
        return self.step.call(*values).reshape(-1)
