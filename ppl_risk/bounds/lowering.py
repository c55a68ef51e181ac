"""From a tape to a program: each operator becomes a node or several, or is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.fx.node import map_aggregate

from ppl_risk.bounds.composites import COMPOSITES
from ppl_risk.bounds.functions import CURVES
from ppl_risk.bounds.program import Program
from ppl_risk.errors import RiskError
from ppl_risk.tracing import Ref, Step, Tape

#: Affine in all their parents together; numbers that meet in a sum have weights of one sign.
AFFINE = {
    "view", "reshape", "_unsafe_view", "unflatten", "flatten", "ravel", "transpose", "t", "permute", "movedim", "swapaxes",
    "swapdims", "mT", "numpy_T", "adjoint", "unsqueeze", "squeeze", "contiguous", "clone", "alias", "detach", "select", "slice",
    "narrow", "index_select", "index", "take", "gather", "cat", "concat", "stack", "hstack", "vstack", "column_stack", "add", "sub",
    "rsub", "neg", "sum", "mean", "expand", "expand_as", "broadcast_to", "view_as", "repeat", "tile", "repeat_interleave", "roll",
    "flip", "fliplr", "flipud", "rot90", "pad", "constant_pad_nd", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "unfold", "im2col", "col2im", "cumsum", "diagonal", "diag_embed", "tril", "triu",
    "split", "split_with_sizes", "tensor_split", "chunk", "unbind", "to", "_to_copy", "lift_fresh_copy", "pixel_shuffle",
    "pixel_unshuffle", "channel_shuffle", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d",
    "upsample_bilinear2d", "index_put", "index_copy", "index_add", "scatter", "scatter_add", "select_scatter", "slice_scatter",
    "diagonal_scatter",
}  # fmt: skip
#: Affine where what depends on the input stands among the arguments once.
BILINEAR = {
    "linear", "matmul", "mm", "bmm", "mv", "dot", "outer", "addmm", "addmv", "baddbmm", "einsum", "conv1d", "conv2d", "conv3d",
    "convolution", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "bilinear",
}  # fmt: skip
#: Affine, number by number, where what depends on the input stands there once, in front.
SCALED = {"mul", "div", "batch_norm", "masked_fill"}
UNCHANGED = {
    "site", "contiguous", "clone", "alias", "detach", "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout",
}  # fmt: skip


@torch.no_grad()
def program_of(tape: Tape, device: torch.device, before: Callable[[Program], str] | None = None) -> Program:
    """Rewrite a tape.

    Args:
        tape: the steps. device: where the weights live. before: appends what leads to the tape's input, and says which node
            that is; default: the input is the root.

    Raises:
        RiskError: an operator without a rule, named with its site.

    Example:
        >>> from ppl_risk.problem import RiskProblem
        >>> from ppl_risk.tracing import trace
        >>> law = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> tape = trace(RiskProblem(lambda x: x.relu().sum(-1), law))
        >>> [node.kind for node in program_of(tape, torch.device("cpu")).nodes.values()]
        ['input', 'unary', 'affine']
    """
    program, site = Program(device=device), "the input"
    for step in tape.steps:
        if step.op == "input":
            name = before(program) if before else None
            if name is None:
                name = step.name
                program.begin(name, step.shape)
            program.names[step.name] = name
            continue
        site = f'the layer "{step.site}"' if step.site else site
        parents = tuple(program.names[p] for p in step.parents)
        try:
            if step.op in UNCHANGED and ("dropout" not in step.op or not step.argument(2, "train")):
                made = parents[0]
            elif step.op in COMPOSITES and (made := COMPOSITES[step.op](program, step, parents)):
                pass
            else:
                made = _plain(program, step, parents)
        except Exception as error:  # an operator in a form that no rule foresaw is refused like one without a rule
            refuse(step, site, f" ({(str(error) or type(error).__name__).splitlines()[0][:200]})")
        if made is None:
            refuse(step, site)
        program.names[step.name] = made
    last = program.names[tape.steps[-1].name]
    if program.output.name != last:
        program.affine((last,), lambda v: v.clone())
    return program


def refuse(step: Step, site: str, why: str = "") -> NoReturn:
    """Say which operator has no bound, where, and what to do."""
    raise RiskError(
        f'No bound is known for the operator "{step.op}" (step {step.name}, after {site}){why}. Write it with operators that have '
        "one (affine layers, ReLU-like and smooth activations, max, softmax, layer norm, attention), or use run_smc, which only "
        "runs the network."
    )


def _plain(program: Program, step: Step, parents: tuple[str, ...]) -> str | None:
    """Operators that are one node; None where there is no rule."""
    once = len(parents) == 1 and _places(step) == 1
    if step.op in AFFINE and not step.keywords.get("reduce") and _is_floating(step, program):
        return program.affine(parents, step.call)
    if step.op in BILINEAR and once:
        return program.affine(parents, step.call, _magnitude_of(step))
    if step.op in SCALED and once and isinstance(step.arguments[0], Ref) and not step.keywords:
        if step.op == "batch_norm" and step.argument(5, "training"):
            raise RiskError("in train mode: call .eval()")
        if step.op == "masked_fill" and not torch.as_tensor(step.arguments[2]).isfinite().all():
            raise RiskError("filled with an infinite value: give the mask to scaled_dot_product_attention instead")
        return program.affine(parents, step.call)
    if step.op == "mul" and once:
        return program.affine(parents, step.call)
    if step.op in CURVES and once:
        return program.unary(parents[0], CURVES[step.op](*step.arguments[1:], **step.keywords))
    return None


def _places(step: Step) -> int:
    """How often what depends on the input stands among the arguments."""
    count = 0

    def look(item: Any) -> Any:
        nonlocal count
        count += isinstance(item, Ref)
        return item

    map_aggregate((step.arguments, dict(step.keywords)), look)
    return count


def _is_floating(step: Step, program: Program) -> bool:
    zeros = [torch.zeros(program.nodes[program.names[p]].shape, device=program.device) for p in step.parents]
    return step.call(*zeros).is_floating_point()


def _magnitude_of(step: Step) -> Callable[[Tensor], Tensor]:
    """|A| of an operator that is linear in its weights: the operator with the absolute values of its weights."""
    target, told = getattr(torch.ops.aten, step.op), (step.arguments, dict(step.keywords))

    def run(radius: Tensor) -> Tensor:
        filled: Any = map_aggregate(told, partial(_positive, radius))
        return target(*filled[0], **filled[1])

    # All terms have one sign, that of a factor alpha or beta of the operator.
    return lambda radius: (run(radius) - run(torch.zeros_like(radius))).abs()


def _positive(radius: Tensor, item: Any) -> Any:
    if isinstance(item, Tensor) and item.is_floating_point():
        return item.to(radius).abs()
    return radius if isinstance(item, Ref) else item
