r"""Normalisations between bounds: layer norm, group norm, instance norm, root mean square.

(x - mean) rsqrt(mean (x - mean)^2 + eps) w + b over n numbers, of which none exceeds sqrt(n - 1) before w and b
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppl_risk.bounds.functions import CURVES
from ppl_risk.bounds.program import Program
from ppl_risk.errors import RiskError
from ppl_risk.tracing import Ref, Step

Parents = tuple[str, ...]


def layer_norm(program: Program, step: Step, parents: Parents) -> str | None:
    """`layer_norm`, its weights constant."""
    if len(parents) != 1 or not isinstance(step.arguments[0], Ref):
        return None
    dims = tuple(range(-len(step.arguments[1]), 0))
    normed = _centred(program, parents[0], dims, math.prod(step.arguments[1]), float(step.argument(4, "eps", 1e-5)))
    return _scaled(program, normed, step.argument(2, "weight"), step.argument(3, "bias"))


def group_norm(program: Program, step: Step, parents: Parents) -> str | None:
    """`group_norm`, and `instance_norm` on the statistics of each row; their weights constant."""
    if len(parents) != 1 or not isinstance(step.arguments[0], Ref):
        return None
    shape = program.nodes[parents[0]].shape
    if step.op == "group_norm":
        groups, weight, bias = int(step.arguments[1]), step.argument(2, "weight"), step.argument(3, "bias")
        eps = float(step.argument(4, "eps", 1e-5))
    else:
        if not step.argument(5, "use_input_stats"):
            raise RiskError("with running statistics")
        groups, weight, bias = shape[1], step.argument(1, "weight"), step.argument(2, "bias")
        eps = float(step.argument(7, "eps", 1e-5))
    size = shape[1:].numel() // groups
    laid = program.affine((parents[0],), lambda v: v.reshape(shape[0], groups, -1))
    normed = _centred(program, laid, (-1,), size, eps)
    back = program.affine((normed,), lambda v: v.reshape(shape))
    channels = [-1] + [1] * (len(shape) - 2)
    weight, bias = (t if t is None else t.reshape(channels) for t in (weight, bias))
    return _scaled(program, back, weight, bias)


def rms_norm(program: Program, step: Step, parents: Parents) -> str | None:
    """`rms_norm`, its weight constant; without an eps it is that of the network's type."""
    eps = step.argument(3, "eps")
    if len(parents) != 1 or not isinstance(step.arguments[0], Ref):
        return None
    eps = torch.finfo(step.dtype or torch.float32).eps if eps is None else float(eps)
    dims = tuple(range(-len(step.arguments[1]), 0))
    normed = _over_root_mean_square(program, parents[0], dims, eps, math.prod(step.arguments[1]))
    return _scaled(program, normed, step.argument(2, "weight"), None)


def _centred(program: Program, x: str, dims: tuple[int, ...], size: int, eps: float) -> str:
    """(x - mean) / sqrt(mean (x - mean)^2 + eps), each over `size` numbers along `dims`."""

    def spread(r: Tensor) -> Tensor:
        mean = r.mean(dims, keepdim=True)
        return r * (1 - 2 / size) + mean if size > 1 else torch.zeros_like(r)

    centred = program.affine((x,), lambda v: v - v.mean(dims, keepdim=True), spread)
    return _over_root_mean_square(program, centred, dims, eps, size - 1)


def _over_root_mean_square(program: Program, x: str, dims: tuple[int, ...], eps: float, most: int) -> str:
    """x / sqrt(mean x^2 + eps), of which no number exceeds sqrt(most)."""
    squares = program.unary(x, CURVES["square"]())
    mean = program.affine((squares,), lambda v: v.mean(dims, keepdim=True) + eps)
    # A mean of squares is at least 0, whatever the lines below it say.
    program.nodes[mean].within = (eps, math.inf)
    return program.product(x, program.unary(mean, CURVES["rsqrt"]()), within=(-math.sqrt(most), math.sqrt(most)))


def _scaled(program: Program, x: str, weight: Tensor | None, bias: Tensor | None) -> str:
    def call(v: Tensor) -> Tensor:
        v = v if weight is None else v * weight.to(v)
        return v if bias is None else v + bias.to(v)

    return program.affine((x,), call)
