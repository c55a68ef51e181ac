r"""Probability that jointly Gaussian numbers are all positive, or that any is, in logarithms.

One factor behind all (correlations f_i f_j): condition on it, P = int phi(w) prod_i Phi((m_i + f_i w) / sqrt(1 - f_i^2)) dw,
whose error does not grow with the number of events. Otherwise one number at a time given those before it, the least likely
first (Genz 1992, doi:10.1080/10618600.1992.10477010), at quasi-random points.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

#: Points of the sequential rule; numbers that the factor rule holds at once.
POINTS, ROOM = 512, 4_000_000
#: Points where any of many is asked for: as many integrals are added up as there are numbers.
MANY, POINTS_OF_MANY = 4, 128
#: Off-diagonal correlation that one factor may leave unexplained, and the least independent share it must leave.
UNEXPLAINED, INDEPENDENT = 1e-4, 1e-3
TINY = 1e-24
#: Rounds of the search for one factor, and laws on which it is tried first.
ROUNDS, FEW = 200, 8


def log_all_positive(
    mean: Float[Tensor, "batch k"], covariance: Float[Tensor, "batch k k"], points: int = POINTS
) -> Float[Tensor, " batch"]:
    """log Pr[x_1 > 0, ..., x_k > 0] for x ~ N(mean, covariance), nats, row by row.

    Example:
        >>> import torch
        >>> p = log_all_positive(torch.zeros(1, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)[None])
        >>> round(float(p.exp()), 6)
        0.25
    """
    sd = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(TINY).sqrt()
    m = mean / sd
    if mean.shape[-1] == 1:
        return torch.special.log_ndtr(m[:, 0])
    rho = covariance / (sd[..., None] * sd[..., None, :])
    factor = _one_factor(rho.detach())
    if factor is not None:
        rows = max(1, ROOM // (mean.shape[-1] * 400))
        return torch.cat([_given_factor(*part) for part in zip(m.split(rows), factor.split(rows), strict=True)])
    return _in_turn(m, rho, points)


def log_any_positive(mean: Float[Tensor, "batch k"], covariance: Float[Tensor, "batch k k"]) -> Float[Tensor, " batch"]:
    """log Pr[some x_i > 0] = log sum_i Pr[x_i > 0, x_j <= 0 for j < i], nats: no complement, so no loss in the tail."""
    parts = []
    points = POINTS if mean.shape[-1] <= MANY else POINTS_OF_MANY
    for last in range(mean.shape[-1]):
        sign = mean.new_ones(last + 1)
        sign[:last] = -1.0
        block = covariance[:, : last + 1, : last + 1] * sign * sign[:, None]
        parts.append(log_all_positive(mean[:, : last + 1] * sign, block, points))
    return torch.stack(parts).logsumexp(0).clamp_max(0.0)


def _one_factor(rho: Tensor) -> Tensor | None:
    """f with rho_ij = f_i f_j for i != j, (batch, k), where there is one; principal factors, round by round."""
    size = rho.shape[-1]
    off = rho - torch.diag_embed(rho.diagonal(dim1=-2, dim2=-1))
    if float(off.abs().max()) < UNEXPLAINED:
        return torch.zeros_like(rho[..., 0])
    if size == 2:
        # Two numbers always have one factor; it divides their correlation evenly.
        r = rho[:, 0, 1]
        factor = torch.stack([r.abs().sqrt(), r.sign() * r.abs().sqrt()], -1)
        return factor if bool((factor.square() < 1 - INDEPENDENT).all()) else None
    share = off.abs().amax(-1)
    if len(rho) > 2 * FEW and _one_factor(rho[:: len(rho) // FEW]) is None:
        return None
    factor = torch.zeros_like(share)
    for _ in range(ROUNDS):
        values, vectors = torch.linalg.eigh(off + torch.diag_embed(share))
        factor = vectors[..., -1] * values[..., -1:].clamp_min(0.0).sqrt()
        moved, share = share, factor.square().clamp_max(1.0)
        if float((moved - share).abs().max()) < 1e-7:
            break
    left = off - factor[..., None] * factor[..., None, :]
    left = left - torch.diag_embed(left.diagonal(dim1=-2, dim2=-1))
    fits = float(left.abs().max()) < UNEXPLAINED and bool((share < 1 - INDEPENDENT).all())
    return factor if fits else None


def _given_factor(m: Tensor, factor: Tensor) -> Tensor:
    own = (1 - factor.square()).sqrt()

    def integrand(w: Tensor) -> Tensor:
        inside = (m[..., None, :] + factor[..., None, :] * w[..., None]) / own[..., None, :]
        return torch.special.log_ndtr(inside).sum(-1) - 0.5 * w.square()

    # The narrowest of the steps Phi is as wide as its own share; four nodes on its standard deviation resolve it.
    step = min(0.1, 0.25 * float(own.min().detach()))
    nodes = 2 * math.ceil(10.0 / step) + 1
    with torch.no_grad():
        wide = torch.linspace(-40.0, 40.0, 801, dtype=m.dtype, device=m.device).expand(len(m), -1)
        peak = wide.gather(-1, integrand(wide).argmax(-1, keepdim=True))
    grid = peak + step * (torch.arange(nodes, dtype=m.dtype, device=m.device) - nodes // 2)
    return torch.logsumexp(integrand(grid), -1) + math.log(step) - 0.5 * math.log(2 * math.pi)


def _in_turn(m: Tensor, rho: Tensor, points: int) -> Tensor:
    size = m.shape[-1]
    order = m.detach().argsort(-1)
    m = m.gather(-1, order)
    rho = rho.gather(-2, order[..., None].expand_as(rho)).gather(-1, order[..., None, :].expand_as(rho))
    root = _root(rho)
    log_u = _uniforms(size, points, m.device).log()
    total = m.new_zeros(*m.shape[:-1], log_u.shape[0])
    z = m.new_zeros(*total.shape, 0)
    for i in range(size):
        own = root[..., i, i].clamp_min(1e-9)
        known = (z @ root[..., i, :i, None]).squeeze(-1) if i else torch.zeros_like(total)
        inside = torch.special.log_ndtr((m[..., i, None] + known) / own[..., None])
        total = total + inside
        # The number given that it is high enough: Phi(-z) is uniform below Phi of where it must start.
        z = torch.cat([z, -log_quantile(inside + log_u[:, i])[..., None]], -1)
    return torch.logsumexp(total, -1) - math.log(log_u.shape[0])


def _root(rho: Tensor) -> Tensor:
    """Cholesky factor; what is singular gets the least that makes it positive."""
    identity = torch.eye(rho.shape[-1], dtype=rho.dtype, device=rho.device)
    for jitter in (0.0, 1e-14, 1e-12, 1e-10, 1e-8, 1e-6):
        root, wrong = torch.linalg.cholesky_ex(rho + jitter * identity)
        if not bool(wrong.any()):
            return root
    values, vectors = torch.linalg.eigh(rho)
    repaired = (vectors * values.clamp_min(1e-6)[..., None, :]) @ vectors.mT
    return torch.linalg.cholesky(repaired)


def log_quantile(log_p: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """The standard normal quantile of exp(log_p); below 1e-260 by its asymptote.

    Example:
        >>> import torch
        >>> round(float(log_quantile(torch.tensor(0.975, dtype=torch.float64).log())), 3)
        1.96
    """
    low = log_p < -600.0
    near = torch.special.ndtri(log_p.clamp(-600.0, -1e-16).exp())
    double = -2 * log_p.clamp_max(-600.0)
    far = -(double - (double * 2 * math.pi).log()).sqrt()
    return torch.where(low, far, near)


@cache
def _uniforms(dimension: int, points: int, device: torch.device) -> Tensor:
    engine = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=0)
    return engine.draw(points, dtype=torch.float64).clamp(1e-12, 1 - 1e-12).to(device)
