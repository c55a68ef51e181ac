r"""Softmax and attention between bounds.

    softmax_i = 1 / sum_j exp(x_j - x_i)               lse = x_1 + log sum_j exp(x_j - x_1)
    attention = softmax(q k^T scale) v, its products summed number by number

The reciprocal form of softmax gives the exact interval and lets lines through (as in Shi et al. 2020, arXiv 2002.06622). Where a
mask hides j from i, its term is left out of the sum, and softmax_i is 0 at a hidden i.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_risk.bounds.functions import CURVES
from ppl_risk.bounds.program import Program
from ppl_risk.errors import RiskError
from ppl_risk.tracing import Ref, Step

Parents = tuple[str, ...]


def softmax(program: Program, x: str, dim: int, shown: Tensor | None = None) -> str:
    """Softmax along a dimension; `shown`: 1 where it counts and 0 where a mask hides it, at least one 1 along the dimension."""
    if shown is None:
        return program.unary(_sum_of_ratios(program, x, dim), CURVES["reciprocal"](), within=(0.0, 1.0))
    dim %= len(program.nodes[x].shape)
    total = _sum_of_ratios(program, x, dim, shown)
    # At a hidden place the sum may be anything: 1 is put there, and 0 after the reciprocal.
    known = program.affine((total,), lambda v: v * shown + (1 - shown))
    over = program.unary(known, CURVES["reciprocal"](), within=(0.0, 1.0))
    return program.affine((over,), lambda v: v * shown)


def _sum_of_ratios(program: Program, x: str, dim: int, shown: Tensor | None = None) -> str:
    """sum_j exp(x_j - x_i), of the shape of x; over the j that are shown."""
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
    if shown is None:
        return program.affine((terms,), lambda v: v.sum(dim + 1))
    return program.affine((terms,), lambda v: (v * shown.unsqueeze(dim)).sum(dim + 1))


def softmax_of(program: Program, step: Step, parents: Parents) -> str:
    """`softmax`."""
    return softmax(program, parents[0], step.argument(1, "dim"))


def log_softmax_of(program: Program, step: Step, parents: Parents) -> str:
    """`log_softmax`."""
    total = _sum_of_ratios(program, parents[0], step.argument(1, "dim"))
    return program.affine((program.unary(total, CURVES["log"]()),), torch.neg)


def logsumexp_of(program: Program, step: Step, parents: Parents) -> str:
    """`logsumexp` along one dimension."""
    dims = step.argument(1, "dim")
    (dim,) = [dims] if isinstance(dims, int) else dims
    keep = bool(step.argument(2, "keepdim", False))
    total = program.unary(_sum_of_ratios(program, parents[0], dim), CURVES["log"]())
    # lse = x_i + log sum_j exp(x_j - x_i), for whichever i: here the first.
    return program.affine(
        (parents[0], total), lambda v, t: (v + t).narrow(dim, 0, 1) if keep else (v + t).select(dim, 0)
    )


def matmul(program: Program, left: str, right: str) -> str:
    """left @ right, both depending on the input."""
    if min(len(program.nodes[p].shape) for p in (left, right)) < 2:
        raise RiskError("a product with a vector: give it two dimensions")
    columns = program.affine((left,), lambda v: v.unsqueeze(-1))
    rows = program.affine((right,), lambda v: v.unsqueeze(-3))
    return program.affine((program.product(columns, rows),), lambda v: v.sum(-2))


def attention_of(program: Program, step: Step, parents: Parents) -> str | None:
    """`scaled_dot_product_attention`, with a constant mask or a causal one."""
    if len(step.arguments) < 3 or not all(isinstance(a, Ref) for a in step.arguments[:3]):
        return None
    if step.argument(4, "dropout_p", 0.0) or step.argument(7, "enable_gqa", False):
        raise RiskError("with dropout or grouped heads")
    query, key, value = (program.names[a.name] for a in step.arguments[:3])
    scale = step.argument(6, "scale") or program.nodes[query].shape[-1] ** -0.5
    turned = program.affine((key,), lambda v: v.transpose(-1, -2) * scale)
    logits = matmul(program, query, turned)
    mask = step.argument(3, "attn_mask")
    if isinstance(mask, Ref):
        raise RiskError("with a mask that depends on the input")
    shape, shown = program.nodes[logits].shape, None
    if step.argument(5, "is_causal", False):
        mask = torch.ones(shape[-2:], dtype=torch.bool, device=program.device).tril()
    if mask is not None:
        seen = mask if mask.dtype is torch.bool else mask > -torch.inf
        shown = seen.to(torch.float64).expand(shape)
        if not bool(shown.any(-1).all()):
            raise RiskError("with a mask that hides every key from a query")
        if mask.dtype is not torch.bool:
            added = torch.where(seen, mask.double(), 0.0)
            logits = program.affine((logits,), lambda v: v + added)
    return matmul(program, softmax(program, logits, -1, shown), value)
