r"""Operators composed of nodes that have bounds: softmax, layer norm, attention, maxima.

    softmax_i = 1 / sum_j exp(x_j - x_i)               lse = x_1 + log sum_j exp(x_j - x_1)
    layer norm = (x - mean) rsqrt(mean (x - mean)^2 + eps) w + b, and |x - mean| rsqrt(...) <= sqrt(n - 1)
    amax: a tree of pairwise maxima, each max(a, b) = b + relu(a - b)
    attention = softmax(q k^T scale) v, its products summed number by number

The reciprocal form of softmax gives the exact interval and lets lines through (as in Shi et al. 2020, arXiv 2002.06622).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ppl_risk.bounds.curves import CURVES
from ppl_risk.bounds.program import Program
from ppl_risk.errors import RiskError
from ppl_risk.tracing import Ref, Step

Parents = tuple[str, ...]


def softmax(program: Program, x: str, dim: int) -> str:
    """Softmax along a dimension."""
    total = _sum_of_ratios(program, x, dim)
    return program.unary(total, CURVES["reciprocal"](), within=(0.0, 1.0))


def _sum_of_ratios(program: Program, x: str, dim: int) -> str:
    """sum_j exp(x_j - x_i), of the shape of x."""
    dim %= len(program.nodes[x].shape)

    def gaps(v: Tensor) -> Tensor:
        return v.unsqueeze(dim) - v.unsqueeze(dim + 1)

    def spread(r: Tensor) -> Tensor:
        own = torch.eye(r.shape[dim], dtype=r.dtype, device=r.device).reshape(
            r.shape[dim], -1, *[1] * (r.dim() - dim - 1)
        )
        return (r.unsqueeze(dim) + r.unsqueeze(dim + 1)) * (1 - own)

    # gaps[i, j] = x_j - x_i along dims (dim, dim + 1).
    terms = program.unary(program.affine((x,), gaps, spread), CURVES["exp"]())
    return program.affine((terms,), lambda v: v.sum(dim + 1))


def _softmax(program: Program, step: Step, parents: Parents) -> str:
    return softmax(program, parents[0], step.argument(1, "dim"))


def _log_softmax(program: Program, step: Step, parents: Parents) -> str:
    total = _sum_of_ratios(program, parents[0], step.argument(1, "dim"))
    return program.affine((program.unary(total, CURVES["log"]()),), torch.neg)


def _logsumexp(program: Program, step: Step, parents: Parents) -> str:
    dims = step.argument(1, "dim")
    (dim,) = [dims] if isinstance(dims, int) else dims
    keep = bool(step.argument(2, "keepdim", False))
    total = program.unary(_sum_of_ratios(program, parents[0], dim), CURVES["log"]())
    # lse = x_i + log sum_j exp(x_j - x_i), for whichever i: here the first.
    return program.affine(
        (parents[0], total), lambda v, t: (v + t).narrow(dim, 0, 1) if keep else (v + t).select(dim, 0)
    )


def _layer_norm(program: Program, step: Step, parents: Parents) -> str | None:
    x, *others = parents
    if others or not isinstance(step.arguments[0], Ref):
        return None
    dims = tuple(range(-len(step.arguments[1]), 0))
    weight, bias = step.argument(2, "weight"), step.argument(3, "bias")
    size = math.prod(step.arguments[1])

    def spread(r: Tensor) -> Tensor:
        mean = r.mean(dims, keepdim=True)
        return r * (1 - 2 / size) + mean if size > 1 else torch.zeros_like(r)

    centred = program.affine((x,), lambda v: v - v.mean(dims, keepdim=True), spread)
    normed = _over_root_mean_square(program, centred, dims, float(step.argument(4, "eps", 1e-5)), size - 1)
    return _scaled(program, normed, weight, bias)


def _rms_norm(program: Program, step: Step, parents: Parents) -> str | None:
    eps, (x, *others) = step.argument(3, "eps"), parents
    if others or eps is None:
        return None
    dims = tuple(range(-len(step.arguments[1]), 0))
    normed = _over_root_mean_square(program, x, dims, float(eps), math.prod(step.arguments[1]))
    return _scaled(program, normed, step.argument(2, "weight"), None)


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


def matmul(program: Program, left: str, right: str) -> str:
    """left @ right, both depending on the input."""
    if min(len(program.nodes[p].shape) for p in (left, right)) < 2:
        raise RiskError("a product with a vector: give it two dimensions")
    columns = program.affine((left,), lambda v: v.unsqueeze(-1))
    rows = program.affine((right,), lambda v: v.unsqueeze(-3))
    return program.affine((program.product(columns, rows),), lambda v: v.sum(-2))


def _matmul(program: Program, step: Step, parents: Parents) -> str | None:
    both = len(step.arguments) == 2 and all(isinstance(a, Ref) for a in step.arguments)
    return matmul(program, *_two(program, step)) if both else None


def _two(program: Program, step: Step) -> tuple[str, str]:
    """The nodes of the first two arguments, constants among them too."""
    first, second = (program.names[a.name] if isinstance(a, Ref) else _constant(program, a) for a in step.arguments[:2])
    return first, second


def _constant(program: Program, value: object) -> str:
    held = torch.as_tensor(value, dtype=torch.float64, device=program.device)
    root = program.root.name
    return program.affine((root,), lambda v: held + 0 * v.sum(), lambda r: torch.zeros_like(held) + 0 * r.sum())


def _attention(program: Program, step: Step, parents: Parents) -> str | None:
    if len(step.arguments) < 3 or not all(isinstance(a, Ref) for a in step.arguments[:3]):
        return None
    if (
        step.argument(3, "attn_mask") is not None
        or step.argument(4, "dropout_p", 0.0)
        or step.keywords.get("enable_gqa")
    ):
        raise RiskError("with a mask, dropout or grouped heads")
    query, key, value = (program.names[a.name] for a in step.arguments[:3])
    scale = step.keywords.get("scale") or program.nodes[query].shape[-1] ** -0.5
    if step.argument(5, "is_causal", False):
        raise RiskError("with a causal mask")
    turned = program.affine((key,), lambda v: v.transpose(-1, -2) * scale)
    return matmul(program, softmax(program, matmul(program, query, turned), -1), value)


def _mul(program: Program, step: Step, parents: Parents) -> str | None:
    refs = [a for a in step.arguments if isinstance(a, Ref)]
    return program.product(*_two(program, step)) if len(refs) == 2 else None


def _div(program: Program, step: Step, parents: Parents) -> str | None:
    if not isinstance(step.arguments[1], Ref) or step.keywords:
        return None
    over = program.unary(program.names[step.arguments[1].name], CURVES["reciprocal"]())
    top = step.arguments[0]
    if isinstance(top, Ref):
        return program.product(program.names[top.name], over)
    return program.affine((over,), lambda v: v * top)


def _pow(program: Program, step: Step, parents: Parents) -> str | None:
    curves = {2: "square", 0.5: "sqrt", -1: "reciprocal", -0.5: "rsqrt"}
    power = step.arguments[1]
    if power == 1:
        return parents[0]
    known = isinstance(step.arguments[0], Ref) and isinstance(power, int | float) and power in curves
    return program.unary(parents[0], CURVES[curves[power]]()) if known else None


def _clamp(program: Program, step: Step, parents: Parents) -> str | None:
    ends = [step.argument(1, "min"), step.argument(2, "max")]
    if any(isinstance(e, Ref | Tensor) for e in ends):
        return None
    return program.unary(parents[0], CURVES["clamp"](*ends))


def _maximum(program: Program, step: Step, parents: Parents) -> str:
    return program.maximum(*_two(program, step))


def _minimum(program: Program, step: Step, parents: Parents) -> str:
    return _negated(program, program.maximum(*(_negated(program, p) for p in _two(program, step))))


def _negated(program: Program, x: str) -> str:
    return program.affine((x,), torch.neg)


def largest(program: Program, x: str, dims: Sequence[int], keep: bool) -> str:
    """The largest number along dimensions, by a tree of pairwise maxima."""
    shape = program.nodes[x].shape
    gone = [d % len(shape) for d in dims] or list(range(len(shape)))
    rest = [d for d in range(len(shape)) if d not in gone]
    x = program.affine((x,), lambda v: v.permute(*rest, *gone).reshape(*(shape[d] for d in rest), -1))
    while (size := program.nodes[x].shape[-1]) > 1:
        half, odd = size // 2, size % 2
        left = program.affine((x,), lambda v, h=half: v[..., :h])
        right = program.affine((x,), lambda v, h=half: v[..., h : 2 * h])
        top = program.maximum(left, right)
        x = program.affine((top, x), lambda t, v: torch.cat([t, v[..., -1:]], -1)) if odd else top
    kept = [1 if d in gone else shape[d] for d in range(len(shape))]
    return program.affine((x,), lambda v: v.reshape(kept) if keep else v[..., 0])


def _amax(program: Program, step: Step, parents: Parents) -> str | None:
    if isinstance(step.argument(1, "other"), Ref | Tensor):
        return _maximum(program, step, parents)
    if not _is_value(program, step):
        return None
    dims = step.argument(1, "dim", ())
    return largest(
        program, parents[0], [dims] if isinstance(dims, int) else dims, bool(step.argument(2, "keepdim", False))
    )


def _amin(program: Program, step: Step, parents: Parents) -> str | None:
    if isinstance(step.argument(1, "other"), Ref | Tensor):
        return _minimum(program, step, parents)
    made = _amax(program, step, (_negated(program, parents[0]),))
    return made and _negated(program, made)


def _ordered(program: Program, step: Step, parents: Parents) -> str | None:
    if not _is_value(program, step):
        return None
    first = step.op == "topk" and step.arguments[1] == 1 and step.argument(3, "largest", True)
    if first:
        return largest(program, parents[0], [step.argument(2, "dim", -1)], True)
    return program.add("ordered", parents, step.call)


def _is_value(program: Program, step: Step) -> bool:
    """Not the places of the values, which are integers and jump."""
    shape = program.nodes[program.names[step.parents[0]]].shape
    return step.call(torch.zeros(shape, device=program.device)).is_floating_point()


#: Operator -> what appends its nodes and names the last; None: not this form of it.
COMPOSITES: dict[str, Callable[[Program, Step, Parents], str | None]] = {
    "softmax": _softmax, "_softmax": _softmax, "log_softmax": _log_softmax, "_log_softmax": _log_softmax,
    "logsumexp": _logsumexp, "layer_norm": _layer_norm, "rms_norm": _rms_norm, "matmul": _matmul, "bmm": _matmul, "mm": _matmul,
    "scaled_dot_product_attention": _attention, "mul": _mul, "div": _div, "pow": _pow, "clamp": _clamp, "maximum": _maximum,
    "minimum": _minimum, "amax": _amax, "max": _amax, "amin": _amin, "min": _amin, "topk": _ordered, "sort": _ordered,
    "kthvalue": _ordered, "median": _ordered, "max_pool1d": _ordered, "max_pool2d": _ordered, "max_pool3d": _ordered,
    "adaptive_max_pool2d": _ordered,
}  # fmt: skip
