r"""Products of two jointly Gaussian values: elementwise, as matrices, and the logits of attention (Isserlis 1918).

For y = sum_ij B_ij p_i q_j: E y = B(mu_p, mu_q) + sum_ij B_ij Cov(p_i, q_j), E dy/dp = B(., mu_q), E dy/dq = B(mu_p, .), and

    Cov(y_a, y_b) = (gains) S (gains)^T + sum B^a_ij B^b_kl (S^pp_ik S^qq_jl + S^pq_il S^qp_jk).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ppl_risk.errors import RiskError
from ppl_risk.propagation.joint import Joint, Moments


def elementwise_product(joint: Joint, left: str, right: str) -> Moments:
    """y = p * q, of the same size; exact mean and covariance. `left` and `right` may be the same value."""
    size = joint.mean_of(left).shape[-1]
    p, q = joint.mean_of(left), joint.mean_of(right)
    spp, sqq, spq = _blocks(joint, left, right)
    first = (
        q[..., None] * spp * q[..., None, :] + p[..., None] * sqq * p[..., None, :]
        + q[..., None] * spq * p[..., None, :] + p[..., None] * spq.mT * q[..., None, :]
    )  # fmt: skip
    second = spp * sqq + spq * spq.mT
    mean = p * q + spq.diagonal(dim1=-2, dim2=-1)
    if left == right:
        return Moments(mean, first + second, {left: torch.diag_embed(2 * p)})
    if joint.mean_of(right).shape[-1] != size:
        raise RiskError("A product of two values that both depend on the input needs them of the same size.")
    return Moments(mean, first + second, {left: torch.diag_embed(q), right: torch.diag_embed(p)})


def matrix_product(
    joint: Joint, left: str, right: str, shapes: tuple[torch.Size, torch.Size], scale: float = 1.0
) -> Moments:
    """y = scale P Q for P (..., i, k) and Q (..., k, j), leading dimensions alike and independent in the second-order term.

    Returns:
        Moments of y (..., i, j), flattened.
    """
    *lead, rows, inner = shapes[0]
    columns = shapes[1][-1]
    heads = 1
    for extent in lead:
        heads *= extent
    if list(shapes[1][:-1]) != [*lead, inner]:
        raise RiskError(f"A product of matrices of shapes {tuple(shapes[0])} and {tuple(shapes[1])} is not known here.")
    laws = joint.mean.shape[0]
    p = joint.mean_of(left).reshape(laws, heads, rows, inner)
    q = joint.mean_of(right).reshape(laws, heads, inner, columns)
    spp, sqq, spq = _blocks(joint, left, right)
    head = torch.arange(heads, device=p.device)
    # Blocks of one head with itself: (laws, heads, ...).
    pp = spp.reshape(laws, heads, rows, inner, heads, rows, inner)[:, head, :, :, head].movedim(0, 1)
    qq = sqq.reshape(laws, heads, inner, columns, heads, inner, columns)[:, head, :, :, head].movedim(0, 1)
    pq = spq.reshape(laws, heads, rows, inner, heads, inner, columns)[:, head, :, :, head].movedim(0, 1)
    mean = p @ q + torch.einsum("bhikkj->bhij", pq)
    gain_p = torch.einsum("bhkj,hg,il->bhijglk", q, _eye(heads, q), _eye(rows, q))
    gain_q = torch.einsum("bhik,hg,jl->bhijgkl", p, _eye(heads, q), _eye(columns, q))
    size = heads * rows * columns
    gains = scale * gain_p.reshape(laws, size, -1), scale * gain_q.reshape(laws, size, -1)
    second = torch.einsum("bhikln,bhkjnm->bhijlm", pp, qq) + torch.einsum("bhiknm,bhlnkj->bhijlm", pq, pq)
    covariance = gains[0] @ spp @ gains[0].mT + gains[1] @ sqq @ gains[1].mT
    cross = gains[0] @ spq @ gains[1].mT
    covariance = covariance + cross + cross.mT
    spread = torch.zeros(laws, heads, rows, columns, heads, rows, columns, dtype=p.dtype, device=p.device)
    places = (torch.arange(laws, device=p.device)[:, None], head, slice(None), slice(None), head)
    spread[places] = second
    covariance = covariance + scale**2 * spread.reshape(laws, size, size)
    return Moments(scale * mean.reshape(laws, size), covariance, {left: gains[0], right: gains[1]})


def _blocks(joint: Joint, left: str, right: str) -> tuple[Tensor, Tensor, Tensor]:
    """Cov(p), Cov(q), Cov(p, q)."""
    if left == right:
        whole = joint.covariance_of([left])
        return whole, whole, whole
    size = joint.mean_of(left).shape[-1]
    both = joint.covariance_of([left, right])
    return both[:, :size, :size], both[:, size:, size:], both[:, :size, size:]


def _eye(size: int, like: Tensor) -> Float[Tensor, "n n"]:
    return torch.eye(size, dtype=like.dtype, device=like.device)
