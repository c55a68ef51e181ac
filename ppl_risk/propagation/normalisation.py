r"""Layer normalisation of a Gaussian: exact moments of the mean square, second order in its fluctuation.

With h = x - mean(x) ~ N(m, S), q = |h|^2 / n + eps and M = S + m m^T (quadratic forms of a Gaussian; Mathai and Provost 1992),

    E q = (m'm + tr S) / n + eps,   Var q = (2 tr S^2 + 4 m'Sm) / n^2,   Cov(h, q) = 2 S m / n,
    Cov(hh', q) = 2 (S^2 + m (Sm)' + (Sm) m') / n,
    E y = m (Eq^-1/2 + 3/8 Eq^-5/2 Vq) - 1/2 Eq^-3/2 Cov(h, q),   E yy' = M / Eq - Cov(hh', q) / Eq^2 + M Vq / Eq^3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_risk.propagation.joint import Joint, Moments


def layer_norm(
    joint: Joint, parent: str, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, centre: bool = True
) -> Moments:
    """y = weight h / sqrt(q) + bias in `groups` groups of n numbers each; without `centre`, root-mean-square normalisation.

    Covariances between groups follow from the gains E dy/dx alone.
    """
    laws, total = joint.mean_of(parent).shape
    n = total // groups
    whole = joint.covariance_of([parent])
    identity = torch.eye(n, dtype=whole.dtype, device=whole.device)
    centring = identity - 1 / n if centre else identity
    place = torch.arange(groups, device=whole.device)
    inside = whole.reshape(laws, groups, n, groups, n)[:, place, :, place].movedim(0, 1)
    s = centring @ inside @ centring
    m = joint.mean_of(parent).reshape(laws, groups, n) @ centring
    sm = (s @ m[..., None]).squeeze(-1)
    s2 = s @ s
    second = s + m[..., None] * m[..., None, :]
    eq = ((m.square().sum(-1) + _trace(s)) / n + eps)[..., None]
    vq = ((2 * _trace(s2) + 4 * (m * sm).sum(-1)) / n**2)[..., None]
    cross = 2 * (s2 + m[..., None] * sm[..., None, :] + sm[..., None] * m[..., None, :]) / n
    root = eq**-0.5 + 0.375 * eq**-2.5 * vq
    mean = m * root - 0.5 * eq**-1.5 * 2 * sm / n
    eq_, vq_ = eq[..., None], vq[..., None]
    square = second / eq_ - cross / eq_**2 + second * vq_ / eq_**3
    own = square - mean[..., None] * mean[..., None, :]
    # E dy/dh = E q^-1/2 I - E[q^-3/2 hh'] / n, both to second order.
    bent = second * (eq_**-1.5 + 1.875 * eq_**-3.5 * vq_) - 1.5 * eq_**-2.5 * cross
    gain = (root[..., None] * identity - bent / n) @ centring
    if weight is not None:
        w = weight.to(whole.dtype).reshape(-1)
        mean, gain = mean * w, w[:, None] * gain
        own = w[:, None] * own * w
    if bias is not None:
        mean = mean + bias.to(whole.dtype).reshape(-1)
    gains = in_blocks(gain)
    covariance = replaced_blocks(gains @ whole @ gains.mT, own)
    return Moments(mean.reshape(laws, total), covariance, {parent: gains})


def in_blocks(blocks: Tensor) -> Tensor:
    """(laws, groups, m, n) on the diagonal of (laws, groups m, groups n)."""
    laws, groups, m, n = blocks.shape
    wide = torch.zeros(laws, groups, m, groups, n, dtype=blocks.dtype, device=blocks.device)
    places = (torch.arange(laws, device=blocks.device)[:, None], torch.arange(groups, device=blocks.device))
    wide = wide.movedim(3, 2).index_put((*places, places[1]), blocks).movedim(2, 3)
    return wide.reshape(laws, groups * m, groups * n)


def replaced_blocks(whole: Tensor, blocks: Tensor) -> Tensor:
    """A matrix with the blocks on its diagonal replaced, (laws, groups, n, n); never less than positive semidefinite."""
    laws, groups, n, _ = blocks.shape
    place = torch.arange(groups, device=whole.device)
    old = whole.reshape(laws, groups, n, groups, n)[:, place, :, place].movedim(0, 1)
    # What the gains explain may be more than the block: then the block would make the whole indefinite.
    values, vectors = torch.linalg.eigh((blocks - old + (blocks - old).mT) / 2)
    added = (vectors * values.clamp_min(0.0)[..., None, :]) @ vectors.mT
    return whole + in_blocks(added)


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
