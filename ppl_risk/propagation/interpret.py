"""Carry a law through the steps of a tape, from the input to the last one."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppl_risk.errors import RiskError
from ppl_risk.propagation.activation_steps import activation_of
from ppl_risk.propagation.attention import attend, softmax
from ppl_risk.propagation.extremes import larger
from ppl_risk.propagation.joint import Joint
from ppl_risk.propagation.linear_map import RENAMES, LinearMap, is_affine
from ppl_risk.propagation.normalisation import layer_norm
from ppl_risk.propagation.products import elementwise_product, matrix_product
from ppl_risk.tracing import Ref, Step, Tape

#: Called with the name of a site and the joint law there.
Look = Callable[[str, Joint, str], None]


def carry(tape: Tape, joint: Joint, look: Look | None = None) -> Joint:
    """The joint law after the last step; it holds only what the last step made.

    Raises:
        RiskError: a step whose effect on a law is not known; the message names it and says what to do.
    """
    shapes = {step.name: step.shape for step in tape.steps}
    for step, keep in zip(tape.steps[1:], tape.needed_after()[1:], strict=True):
        _take(step, joint, keep - {step.name}, shapes)
        if look is not None and step.site:
            look(step.site, joint, step.name)
    return joint


def _take(step: Step, joint: Joint, keep: set[str], shapes: dict[str, torch.Size]) -> None:
    """One step."""
    if step.op in RENAMES and len(step.parents) == 1:
        joint.rename(step.name, step.parents[0], keep)
    elif is_affine(step):
        joint.affine(step.name, step.parents, LinearMap(step, [shapes[p] for p in step.parents]), keep)
    elif (activation := activation_of(step)) is not None:
        joint.activate(step.name, step.parents[0], activation, keep)
    elif step.op in _CLOSURES:
        _CLOSURES[step.op](step, joint, keep, shapes)
    else:
        raise _unknown(step)


def _unknown(step: Step) -> RiskError:
    return RiskError(
        f"How a law passes through {step.op!r} (step {step.name!r}) is not known to propagate, which reads the network and does "
        "not run it. Use run_smc or fit_svi, which only run it; or write the step with operators that CONTRIBUTING.md lists."
    )


def _normalise(step: Step, joint: Joint, keep: set[str], shapes: dict[str, torch.Size]) -> None:
    (parent,), rms = step.parents, step.op == "rms_norm"
    size = torch.Size(step.argument(1, "normalized_shape")).numel()
    weight, bias = step.argument(2, "weight"), None if rms else step.argument(3, "bias")
    eps = step.argument(3, "eps", None) if rms else step.argument(4, "eps", 1e-5)
    # What torch takes where no eps is given to a root-mean-square normalisation.
    eps = torch.finfo(torch.float32).eps if eps is None else eps
    groups = shapes[parent].numel() // size
    joint.join(step.name, layer_norm(joint, parent, groups, weight, bias, eps, centre=not rms), keep)


def _softmax(step: Step, joint: Joint, keep: set[str], shapes: dict[str, torch.Size]) -> None:
    (parent,), dim = step.parents, step.argument(1, "dim")
    shape = shapes[parent]
    dim = int(dim) % len(shape)
    last, back = f"{step.name}/last", f"{step.name}/p"
    moved = _moved(last, parent, lambda x: x.movedim(dim, -1), shape)
    joint.affine(last, (parent,), LinearMap(moved, [shape]), keep | {last})
    joint.join(back, softmax(joint, last, shape.numel() // shape[dim]), keep)
    rest = moved.shape
    joint.affine(
        step.name, (back,), LinearMap(_moved(step.name, back, lambda x: x.movedim(-1, dim), rest), [rest]), keep
    )


def _attention(step: Step, joint: Joint, keep: set[str], shapes: dict[str, torch.Size]) -> None:
    names = [step.argument(i, n) for i, n in enumerate(("query", "key", "value"))]
    masked, causal = step.argument(3, "attn_mask"), step.argument(5, "is_causal", False)
    if masked is not None or step.argument(7, "enable_gqa", False) or not all(isinstance(n, Ref) for n in names):
        raise RiskError(
            f"Attention with a mask given as a tensor (step {step.name!r}) is not known to propagate; is_causal is."
        )
    query, key, value = (n.name for n in names)
    *lead, queries, width = shapes[query]
    keys, heads = shapes[key][-2], torch.Size(lead).numel()
    scale = step.argument(6, "scale") or width**-0.5
    turned, logits = f"{step.name}/k", f"{step.name}/logits"
    turn = _moved(turned, key, lambda x: x.mT, shapes[key])
    live = keep | {query, value}
    joint.affine(turned, (key,), LinearMap(turn, [shapes[key]]), live | {turned})
    made = matrix_product(joint, query, turned, (shapes[query], turn.shape), float(scale))
    if causal:
        hidden = torch.ones(queries, keys, dtype=torch.bool, device=made.mean.device).triu(1).expand(heads, -1, -1)
        # exp(-60) is 0 beside any logit that counts, and finite.
        made = made._replace(mean=torch.where(hidden.reshape(-1), made.mean - 60.0, made.mean))
    joint.join(logits, made, keep | {value})
    joint.join(step.name, attend(joint, logits, value, heads, queries, keys), keep)


def _product(step: Step, joint: Joint, keep: set[str], shapes: dict[str, torch.Size]) -> None:
    left, right = (step.parents * 2)[:2]
    if shapes[left] != shapes[right]:
        raise _unknown(step)
    joint.join(step.name, elementwise_product(joint, left, right), keep)


def _matrix_product(step: Step, joint: Joint, keep: set[str], shapes: dict[str, torch.Size]) -> None:
    left, right = (step.parents * 2)[:2]
    joint.join(step.name, matrix_product(joint, left, right, (shapes[left], shapes[right])), keep)


def _pairwise(step: Step, joint: Joint, keep: set[str], shapes: dict[str, torch.Size]) -> None:
    if len(step.parents) != 2 or shapes[step.parents[0]] != shapes[step.parents[1]]:
        raise _unknown(step)
    joint.join(step.name, larger(joint, *step.parents, sign=1.0 if step.op in {"maximum", "max"} else -1.0), keep)


def _reduce(step: Step, joint: Joint, keep: set[str], shapes: dict[str, torch.Size]) -> None:
    """The largest or smallest along dimensions, by halves."""
    if step.op in {"max", "min"} and isinstance(step.argument(1, "dim"), Ref):
        return _pairwise(step, joint, keep, shapes)
    if len(step.parents) != 1 or (step.op in {"max", "min"} and step.output not in (None, 0)):
        raise _unknown(step)
    parent, shape = step.parents[0], shapes[step.parents[0]]
    given = step.argument(1, "dim")
    wanted = [given] if isinstance(given, int) else list(given or range(len(shape)))
    dims = [d % len(shape) for d in wanted]
    rest = [d for d in range(len(shape)) if d not in dims]
    rows = torch.Size(shape[d] for d in rest).numel()
    count, sign = shape.numel() // rows, 1.0 if step.op in {"amax", "max"} else -1.0
    name = f"{step.name}/0"
    split = _moved(name, parent, lambda x: x.permute(*dims, *rest).reshape(count, rows), shape)
    joint.affine(name, (parent,), LinearMap(split, [shape]), keep | {name})
    level = 0
    while count > 1:
        level, half = level + 1, count // 2
        parts, sizes = [f"{step.name}/{level}{side}" for side in "abc"], (half, half, count - 2 * half)
        here, start = split.shape, 0
        for part, size in zip(parts, sizes, strict=True):
            cut = _moved(part, name, lambda x, at=start, n=size: x.reshape(-1, rows)[at : at + n], here)
            joint.affine(part, (name,), LinearMap(cut, [here]), keep | {name, *parts})
            start += size
        best, joined = f"{step.name}/{level}best", f"{step.name}/{level}"
        joint.join(best, larger(joint, parts[0], parts[1], sign), keep | {parts[2]})
        shapes_ = [torch.Size([half, rows]), torch.Size([sizes[2], rows])]
        made = torch.Size([half + sizes[2], rows])
        split = Step(joined, "cat", (best, parts[2]), made, lambda a, b: torch.cat([a, b]))
        joint.affine(joined, split.parents, LinearMap(split, shapes_), keep | {joined})
        name, count = joined, half + sizes[2]
    joint.rename(step.name, name, keep)


def _max_pool(step: Step, joint: Joint, keep: set[str], shapes: dict[str, torch.Size]) -> None:
    """Windows side by side, then the largest of each."""
    shape, kernel = shapes[step.parents[0]], _pair(step.argument(1, "kernel_size"))
    stride = _pair(step.argument(2, "stride") or kernel)
    padding, dilation = _pair(step.argument(3, "padding", 0)), _pair(step.argument(4, "dilation", 1))
    if padding != (0, 0) or dilation != (1, 1) or step.argument(5, "ceil_mode", False):
        return _windows_apart(step, joint, keep, shapes)
    name = f"{step.name}/windows"

    def windows(x: Tensor) -> Tensor:
        tiles = x.unfold(-2, kernel[0], stride[0]).unfold(-2, kernel[1], stride[1])
        return tiles.flatten(-2)

    laid = _moved(name, step.parents[0], windows, shape)
    joint.affine(name, step.parents, LinearMap(laid, [shape]), keep | {name})
    inner = replace(step, op="amax", parents=(name,), arguments=(Ref(name), [-1]), keywords={})
    _reduce(inner, joint, keep, {name: laid.shape})


def _windows_apart(step: Step, joint: Joint, keep: set[str], shapes: dict[str, torch.Size]) -> None:
    """Windows that stick out at the edge read fewer places: those that read as many are reduced together."""
    parent = step.parents[0]
    shape = shapes[parent]
    number = torch.arange(1, shape[-2] * shape[-1] + 1, dtype=torch.float64).reshape(1, 1, *shape[-2:])
    kernel = _pair(step.argument(1, "kernel_size"))
    stride = _pair(step.argument(2, "stride") or kernel)
    padding, dilation = _pair(step.argument(3, "padding", 0)), _pair(step.argument(4, "dilation", 1))
    rows, columns = step.shape[-2:]
    # Room for windows that end beyond the padding, too.
    wide = [2 * (s * n + k * r) for s, n, k, r in zip(stride, (rows, columns), kernel, dilation, strict=True)]
    laid = torch.nn.functional.pad(number, (padding[1], wide[1], padding[0], wide[0]))[0, 0]
    windows = []
    for i, j in itertools.product(range(kernel[0]), range(kernel[1])):
        top, left = i * dilation[0], j * dilation[1]
        windows.append(laid[top : top + rows * stride[0] : stride[0], left : left + columns * stride[1] : stride[1]])
    read = torch.stack(windows, -1).long().flatten(0, 1).sort(-1, descending=True).values - 1
    inside = (read >= 0).sum(-1)
    live, pieces, made, order = keep | {parent}, [], [], []
    for count in inside.unique().tolist():
        these = (inside == count).nonzero()[:, 0]
        name, piece = f"{step.name}/windows{count}", f"{step.name}/best{count}"
        move = _moved(name, parent, lambda x, at=read[these, :count]: x.flatten(-2)[..., at.to(x.device)], shape)
        joint.affine(name, (parent,), LinearMap(move, [shape]), live | {name, *pieces})
        inner = replace(step, name=piece, op="amax", parents=(name,), arguments=(Ref(name), [-1]), keywords={})
        _reduce(inner, joint, live | {piece, *pieces}, {name: move.shape})
        pieces.append(piece)
        made.append(move.shape[:-1])
        order.append(these)
    back = torch.cat(order).argsort()

    def together(*values: Tensor) -> Tensor:
        return torch.cat(values, -1)[..., back.to(values[0].device)].reshape(step.shape)

    joined = Step(step.name, "cat", tuple(pieces), step.shape, together)
    joint.affine(step.name, tuple(pieces), LinearMap(joined, made), keep)


def _pair(value: Any) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])


def _moved(name: str, parent: str, move: Callable[[Tensor], Tensor], shape: torch.Size) -> Step:
    """A step that only moves numbers."""
    return Step(name, "index", (parent,), move(torch.empty(shape, device="meta")).shape, move)


_CLOSURES: dict[str, Callable[[Step, Joint, set[str], dict[str, torch.Size]], None]] = {
    "layer_norm": _normalise, "rms_norm": _normalise, "softmax": _softmax, "_softmax": _softmax,
    "scaled_dot_product_attention": _attention, "mul": _product, "multiply": _product, "matmul": _matrix_product,
    "bmm": _matrix_product, "maximum": _pairwise, "minimum": _pairwise, "amax": _reduce, "amin": _reduce, "max": _reduce,
    "min": _reduce, "max_pool2d": _max_pool,
}  # fmt: skip


@torch.no_grad()
def evaluate(tape: Tape, x: Tensor) -> Tensor:
    """The last step on inputs x (rows, *event), by running the steps, (rows, size)."""
    values = {tape.steps[0].name: x.reshape(len(x), *tape.steps[0].shape).double()}
    for step, keep in zip(tape.steps[1:], tape.needed_after()[1:], strict=True):
        values[step.name] = torch.vmap(step.call)(*(values[p] for p in step.parents))
        values = {name: value for name, value in values.items() if name in keep}
    return values[tape.steps[-1].name].reshape(len(x), -1)
