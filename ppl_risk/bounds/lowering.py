"""From a tape to a program: each operator becomes a node or several, or is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.fx.node import map_aggregate

from ppl_risk.bounds.composites import COMPOSITES
from ppl_risk.bounds.curves import CURVES
from ppl_risk.bounds.program import Program
from ppl_risk.errors import RiskError
from ppl_risk.tracing import Ref, Step, Tape

#: Affine in all their parents together.
AFFINE = {
    "view", "reshape", "_unsafe_view", "unflatten", "flatten", "transpose", "t", "permute", "movedim", "unsqueeze", "squeeze",
    "contiguous", "clone", "alias", "detach", "select", "slice", "narrow", "index_select", "index", "gather", "cat", "concat",
    "stack", "add", "sub", "rsub", "neg", "sum", "mean", "expand", "expand_as", "view_as", "repeat", "roll", "flip", "pad",
    "constant_pad_nd", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "unfold", "im2col",
    "cumsum", "diagonal", "tril", "triu", "split", "chunk", "unbind", "to", "_to_copy",
}  # fmt: skip
#: Affine where what depends on the input stands among the arguments once.
BILINEAR = {"linear", "matmul", "mm", "bmm", "addmm", "einsum", "conv1d", "conv2d", "conv3d", "convolution"}
#: Affine, number by number, where what depends on the input stands there once, in front.
SCALED = {"mul", "div", "batch_norm", "masked_fill"}
UNCHANGED = {"site", "contiguous", "clone", "alias", "detach", "dropout", "feature_dropout"}


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
            if step.op in UNCHANGED and (
                step.op not in ("dropout", "feature_dropout") or not step.argument(2, "train")
            ):
                made = parents[0]
            elif step.op in COMPOSITES and (made := COMPOSITES[step.op](program, step, parents)):
                pass
            else:
                made = _plain(program, step, parents)
        except (RiskError, TypeError) as error:
            refuse(step, site, f" ({error})")
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
    if step.op in AFFINE and _is_floating(step, program):
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

    return lambda radius: run(radius) - run(torch.zeros_like(radius))


def _positive(radius: Tensor, item: Any) -> Any:
    if isinstance(item, Tensor) and item.is_floating_point():
        return item.to(radius).abs()
    return radius if isinstance(item, Ref) else item
