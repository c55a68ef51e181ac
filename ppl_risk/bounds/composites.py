r"""Operators composed of nodes that have bounds: maxima, products, quotients; and the table of all that are composed.

amax: a tree of pairwise maxima, each max(a, b) = b + relu(a - b)
prelu = x + (1 - w) relu(-x)        glu = a sigmoid(b)        cos x = sin(x + pi / 2)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ppl_risk.bounds.attention import attention_of, log_softmax_of, logsumexp_of, matmul, softmax_of
from ppl_risk.bounds.functions import CURVES
from ppl_risk.bounds.norms import group_norm, layer_norm, rms_norm
from ppl_risk.bounds.program import Program
from ppl_risk.errors import RiskError
from ppl_risk.tracing import Ref, Step

Parents = tuple[str, ...]


def _matmul(program: Program, step: Step, parents: Parents) -> str | None:
    both = len(step.arguments) == 2 and all(isinstance(a, Ref) for a in step.arguments)
    return matmul(program, *_two(program, step)) if both else None


def _two(program: Program, step: Step) -> tuple[str, str]:
    """The nodes of the first two arguments, constants among them too."""
    second = step.argument(1, "other", step.argument(1, "mat2"))
    return _node(program, step.arguments[0]), _node(program, second)


def _node(program: Program, value: object) -> str:
    """The node of an argument, a constant among them."""
    return program.names[value.name] if isinstance(value, Ref) else _constant(program, value)


def _constant(program: Program, value: object) -> str:
    held = torch.as_tensor(value, dtype=torch.float64, device=program.device)
    root = program.root.name
    if not held.isfinite().all():
        raise RiskError("with an infinite constant")
    # Nothing of the root counts, not even where it is infinite.
    return program.affine((root,), lambda v: held + 0 * v.sum(), lambda r: torch.zeros_like(held) + 0 * r.isnan().sum())


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
    curves = {2: "square", 3: "cube", 0.5: "sqrt", -1: "reciprocal", -0.5: "rsqrt"}
    power = step.arguments[1]
    if power == 1:
        return parents[0]
    known = isinstance(step.arguments[0], Ref) and isinstance(power, int | float) and power in curves
    return program.unary(parents[0], CURVES[curves[power]]()) if known else None


def _clamp(program: Program, step: Step, parents: Parents) -> str | None:
    ends = [step.argument(1, "min"), step.argument(2, "max")]
    if step.op in ("clamp_min", "clamp_max"):
        ends = [ends[0], None] if step.op == "clamp_min" else [None, step.argument(1, "max")]
    if isinstance(step.arguments[0], Ref) and not any(isinstance(e, Ref | Tensor) for e in ends):
        return program.unary(program.names[step.arguments[0].name], CURVES["clamp"](*ends))
    # As torch has it: the lower end first, then the upper one, which wins where they cross.
    value, (low, high) = _node(program, step.arguments[0]), ends
    if low is not None:
        value = program.maximum(value, _node(program, low))
    return value if high is None else _least(program, value, _node(program, high))


def _maximum(program: Program, step: Step, parents: Parents) -> str:
    return program.maximum(*_two(program, step))


def _minimum(program: Program, step: Step, parents: Parents) -> str:
    return _least(program, *_two(program, step))


def _least(program: Program, left: str, right: str) -> str:
    return _negated(program, program.maximum(_negated(program, left), _negated(program, right)))


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


def _prelu(program: Program, step: Step, parents: Parents) -> str | None:
    weight = step.argument(1, "weight")
    if not isinstance(weight, Tensor) or not isinstance(step.arguments[0], Ref):
        return None
    x, shape = parents[0], program.nodes[parents[0]].shape
    # One slope for all, or one for each channel.
    slope = (weight if weight.numel() == 1 else weight.reshape(-1, *[1] * (len(shape) - 2))).double()
    below = program.unary(_negated(program, x), CURVES["relu"]())
    return program.affine((x, below), lambda v, b: v + (1 - slope) * b)


def _glu(program: Program, step: Step, parents: Parents) -> str:
    dim, (x,) = int(step.argument(1, "dim", -1)), parents
    first, second = (program.affine((x,), lambda v, k=k: v.chunk(2, dim)[k]) for k in (0, 1))
    return program.product(first, program.unary(second, CURVES["sigmoid"]()))


def _cosine(program: Program, step: Step, parents: Parents) -> str:
    return program.unary(program.affine(parents, lambda v: v + math.pi / 2), CURVES["sin"]())


def _where(program: Program, step: Step, parents: Parents) -> str | None:
    condition, *values = step.arguments
    if not isinstance(condition, Tensor) or len(values) != 2:
        return None
    left, right = (_node(program, v) for v in values)
    if left == right:
        return None
    return program.affine((left, right), lambda a, b: torch.where(condition, a, b))


#: Operator -> what appends its nodes and names the last; None: not this form of it.
COMPOSITES: dict[str, Callable[[Program, Step, Parents], str | None]] = {
    "softmax": softmax_of, "_softmax": softmax_of, "log_softmax": log_softmax_of, "_log_softmax": log_softmax_of,
    "logsumexp": logsumexp_of, "layer_norm": layer_norm, "rms_norm": rms_norm, "group_norm": group_norm,
    "instance_norm": group_norm, "matmul": _matmul, "bmm": _matmul, "mm": _matmul,
    "scaled_dot_product_attention": attention_of, "mul": _mul, "div": _div, "pow": _pow, "clamp": _clamp, "clamp_min": _clamp,
    "clamp_max": _clamp, "maximum": _maximum, "minimum": _minimum, "amax": _amax, "max": _amax, "amin": _amin, "min": _amin,
    "topk": _ordered, "sort": _ordered, "kthvalue": _ordered, "median": _ordered, "max_pool1d": _ordered,
    "max_pool2d": _ordered, "max_pool3d": _ordered, "max_pool2d_with_indices": _ordered, "adaptive_max_pool1d": _ordered,
    "adaptive_max_pool2d": _ordered, "prelu": _prelu, "glu": _glu, "cos": _cosine, "where": _where,
}  # fmt: skip
