r"""Softmax and attention of Gaussian logits, by quasi-Monte Carlo over one row of logits at a time.

For o = sum_j p_j v_j with p = softmax(l) and (l, v) jointly Gaussian, v = mu_v + K (l - mu_l) + r with r independent of l,
so that, all expectations over l alone,

    E o = E[p (mu_v + K (l - mu_l))],   E do/dv_j = E p_j,   E do/dl = E[(diag p - p p') (mu_v + K (l - mu_l))],
    Cov o = E[p p'] R + Cov_l(p (mu_v + K (l - mu_l))),   R = Cov(v | l).

The row has as many logits as there are keys; the points are scrambled Sobol numbers, the same in every call (Owen 1997).
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ppl_risk.propagation.joint import Joint, Moments
from ppl_risk.propagation.normalisation import in_blocks, replaced_blocks

#: Points of the quasi-Monte Carlo rule; with each, its mirror image.
POINTS = 512


def softmax(joint: Joint, parent: str, groups: int) -> Moments:
    """Moments of the softmax in `groups` groups of n logits each; covariances between groups by the gains."""
    laws, total = joint.mean_of(parent).shape
    n = total // groups
    whole = joint.covariance_of([parent])
    p, _, _ = _points(joint.mean_of(parent).reshape(laws, groups, n), _inside(whole, groups))
    mean = p.mean(-2)
    square = p.mT @ p / p.shape[-2]
    own = square - mean[..., None] * mean[..., None, :]
    gains = in_blocks(torch.diag_embed(mean) - square)
    covariance = replaced_blocks(gains @ whole @ gains.mT, own)
    return Moments(mean.reshape(laws, total), covariance, {parent: gains})


def attend(joint: Joint, logits: str, values: str, heads: int, queries: int, keys: int) -> Moments:
    """o = softmax(l) v for logits (heads, queries, keys) and values (heads, keys, width)."""
    laws = joint.mean.shape[0]
    width = joint.mean_of(values).shape[-1] // (heads * keys)
    whole = joint.covariance_of([logits, values])
    split = heads * queries * keys
    mu_l = joint.mean_of(logits).reshape(laws, heads, queries, keys)
    mu_v = joint.mean_of(values).reshape(laws, heads, 1, keys, width).expand(-1, -1, queries, -1, -1)
    s_ll = _inside(whole[:, :split, :split], heads * queries).reshape(laws, heads, queries, keys, keys)
    at = torch.arange(heads, device=whole.device)
    s_lv = whole[:, :split, split:].reshape(laws, heads, queries, keys, heads, keys * width)
    s_lv = s_lv[:, at, :, :, at].movedim(0, 1)
    s_vv = _inside(whole[:, split:, split:], heads)[:, :, None]
    p, shift, inverse = _points(mu_l, s_ll)
    k = inverse @ s_lv
    rest = (s_vv - s_lv.mT @ k).reshape(laws, heads, queries, keys, width, keys, width)
    count = p.shape[-2]
    seen = mu_v[..., None, :, :] + (shift @ k).reshape(*shift.shape[:-1], keys, width)
    o = torch.einsum("...mj,...mjw->...mw", p, seen)
    mean = o.mean(-2)
    spread = o - mean[..., None, :]
    square = p.mT @ p / count
    own = spread.mT @ spread / count + torch.einsum("...jk,...jwkv->...wv", square, rest)
    # do/dl_j = p_j (v_j - o)
    gain_l = torch.einsum("...mj,...mjw->...wj", p, seen) / count - torch.einsum("...mj,...mw->...wj", p, o) / count
    gain_v = p.mean(-2)
    eye_h = torch.eye(heads, dtype=p.dtype, device=p.device)
    eye_w = torch.eye(width, dtype=p.dtype, device=p.device)
    size = heads * queries * width
    gains_l = in_blocks(gain_l.reshape(laws, heads * queries, width, keys))
    gains_v = torch.einsum("bhqj,hg,wv->bhqwgjv", gain_v, eye_h, eye_w).reshape(laws, size, heads * keys * width)
    both = torch.cat([gains_l, gains_v], -1)
    covariance = replaced_blocks(both @ whole @ both.mT, own.reshape(laws, heads * queries, width, width))
    return Moments(mean.reshape(laws, size), covariance, {logits: gains_l, values: gains_v})


def _inside(whole: Tensor, groups: int) -> Tensor:
    """Blocks on the diagonal, (laws, groups, n, n)."""
    laws, total, _ = whole.shape
    place = torch.arange(groups, device=whole.device)
    n = total // groups
    return whole.reshape(laws, groups, n, groups, n)[:, place, :, place].movedim(0, 1)


def _points(mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """softmax at the points (..., points, n), the points less their mean, and the pseudo-inverse of the covariance."""
    values, vectors = torch.linalg.eigh((covariance + covariance.mT) / 2)
    values = values.clamp_min(0.0)
    known = values > 1e-12 * values.amax(-1, keepdim=True).clamp_min(1e-300)
    # The widest directions take the first coordinates of the points, which are spread best.
    order = values.argsort(-1, descending=True)
    root = (vectors * values.sqrt()[..., None, :]).gather(-1, order[..., None, :].expand_as(vectors))
    z = _normal_points(mean.shape[-1], mean.device)
    shift = z @ root.mT
    inverse = torch.where(known, 1 / values.clamp_min(1e-300), torch.zeros_like(values))
    pseudo = (vectors * inverse[..., None, :]) @ vectors.mT
    return torch.softmax(mean[..., None, :] + shift, -1), shift, pseudo


@cache
def _normal_points(dimension: int, device: torch.device) -> Tensor:
    """Points of N(0, I) and their mirror images, scaled to unit variance, (2 POINTS, dimension)."""
    engine = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=0)
    uniform = engine.draw(POINTS, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
    z = torch.special.ndtri(uniform)
    z = torch.cat([z, -z])
    return (z / z.square().mean(0).sqrt()).to(device)
