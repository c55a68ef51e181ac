r"""Tails of sums of independent features, from the exact cumulant generating functions of their marginals.

A feature is z = Q(u), u normal, Q continuous and piecewise linear: a spike at 0 is a flat piece. For u ~ N(m, s^2)

    K(t) = log E exp(t z) = log sum_i exp(t a_i + t b_i m + t^2 b_i^2 s^2 / 2) Pr[u + t b_i s^2 in piece i],

with pieces a_i + b_i u, and K', K'' are moments of truncated normals. For g = g_0 + sum_j a_j z_j + N(0, S), event "all g_i >= 0",
the law is tilted by the theta >= 0 that minimises K(theta) (its dominating point), and there taken as Gaussian N(mu, Sigma):

    log p = K(theta) - theta.mu + theta' Sigma theta / 2 + log Pr[N(mu - Sigma theta, Sigma) >= 0]       (Robinson 1982),

exact where the features are Gaussian, whatever theta; one number takes Lugannani and Rice (1980, doi:10.2307/1426607) instead.
K(theta) itself bounds log p from above (Chernoff).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ppl_risk.propagation.orthant import log_all_positive, log_any_positive, log_quantile

#: What stands for infinity among normals, and the least standard deviation of one.
FAR, LEAST = 1e3, 1e-6
#: A piece narrower than this many standard deviations is taken as uniform: its moments would be differences of equal numbers.
NARROW = 1e-3
#: Newton steps towards the dominating point, and the step lengths tried in turn.
NEWTON, LENGTHS = 40, (1.0, 0.5, 0.2, 0.05, 0.005)
#: Below this signed root of the log-likelihood ratio Lugannani and Rice subtract equal numbers.
NEAR = 0.2


class Tilted(NamedTuple):
    """K(t), K'(t) and K''(t) of every feature, (batch, J)."""

    log: Tensor
    mean: Tensor
    variance: Tensor


@dataclass(frozen=True)
class Quantiles:
    """z = Q(u) for J features: Q is `values` at the ascending `knots`, (J, K), linear between and by `left`, `right` (J,) beyond.

    Example:
        >>> one = Quantiles.gaussian(torch.zeros(1).double(), torch.full((1,), 2.0).double())
        >>> one.tilted(torch.ones(1, 1).double(), torch.zeros(1, 1).double(), torch.ones(1, 1).double()).log.item()
        2.0
    """

    knots: Float[Tensor, "j k"]
    values: Float[Tensor, "j k"]
    left: Float[Tensor, " j"]
    right: Float[Tensor, " j"]

    @staticmethod
    def gaussian(mean: Float[Tensor, " j"], sd: Float[Tensor, " j"]) -> Quantiles:
        """z = mean + sd u."""
        return Quantiles(torch.zeros_like(mean)[:, None], mean[:, None], sd, sd)

    def joined(self, other: Quantiles) -> Quantiles:
        """Features of both; the one with fewer knots gets more on its last piece."""
        most = max(self.knots.shape[1], other.knots.shape[1])
        a, b = self._widened(most), other._widened(most)
        return Quantiles(*(torch.cat(pair) for pair in zip(a, b, strict=True)))

    def _widened(self, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        more = torch.arange(1, most - self.knots.shape[1] + 1, dtype=self.knots.dtype, device=self.knots.device)
        knots = torch.cat([self.knots, self.knots[:, -1:] + more], 1)
        return (
            knots,
            torch.cat([self.values, self.values[:, -1:] + more * self.right[:, None]], 1),
            self.left,
            self.right,
        )

    def pieces(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Intercepts, slopes, lower and upper ends, (J, K + 1)."""
        inner = self.values.diff(dim=1) / self.knots.diff(dim=1)
        slope = torch.cat([self.left[:, None], inner, self.right[:, None]], 1)
        at, value = (torch.cat([x[:, :1], x], 1) for x in (self.knots, self.values))
        end = torch.full_like(self.left[:, None], FAR)
        return value - slope * at, slope, torch.cat([-end, self.knots], 1), torch.cat([self.knots, end], 1)

    def of(self, u: Float[Tensor, "*batch j"]) -> Float[Tensor, "*batch j"]:
        """Q(u)."""
        intercept, slope, *_ = self.pieces()
        place = (u[..., None] > self.knots).sum(-1, keepdim=True)
        wide = (*u.shape, intercept.shape[1])
        return intercept.expand(wide).gather(-1, place)[..., 0] + slope.expand(wide).gather(-1, place)[..., 0] * u

    def tilted(
        self, t: Float[Tensor, "batch j"], mean: Float[Tensor, "batch j"], sd: Float[Tensor, "batch j"]
    ) -> Tilted:
        """K, K' and K'' at t for u ~ N(mean, sd^2)."""
        log, at, spread, *_ = self._parts(t, mean, sd)
        whole = torch.logsumexp(log, -1)
        share = (log - whole[..., None]).exp()
        first = (share * at).sum(-1)
        return Tilted(whole, first, (share * (spread + (at - first[..., None]).square())).sum(-1))

    def sample(self, t: Tensor, mean: Tensor, sd: Tensor) -> Tensor:
        """Draws of z under the law tilted by t, (batch, J), with torch's generator."""
        log, _, _, low, high, centre = self._parts(t, mean, sd)
        shape = log.shape[:-1]
        piece = torch.multinomial(torch.softmax(log, -1).reshape(-1, log.shape[-1]), 1).reshape(*shape, 1)
        a, b, c = (x.gather(-1, piece)[..., 0] for x in (low, high, centre))
        # Inverse of Phi between the ends, on the side of 0 where it is accurate.
        flip = a > 0
        a, b = torch.where(flip, -b, a), torch.where(flip, -a, b)
        uniform = torch.rand(shape, dtype=t.dtype, device=t.device).clamp(1e-12, 1 - 1e-12)
        upper = torch.special.log_ndtr(b)
        below = torch.logaddexp(torch.special.log_ndtr(a) + torch.log1p(-uniform), upper + uniform.log())
        xi = torch.minimum(torch.maximum(log_quantile(below.clamp_max(-1e-16)), a), b)
        return self.of(c + sd * torch.where(flip, -xi, xi))

    def _parts(self, t: Tensor, mean: Tensor, sd: Tensor) -> tuple[Tensor, ...]:
        """Of every piece: log mass under the tilt, mean and variance of z there, ends and centre of the tilted normal."""
        intercept, slope, low, high = self.pieces()
        t, mean, sd = t[..., None], mean[..., None], sd[..., None]
        centre = mean + t * slope * sd.square()
        a, b = (low - centre) / sd, (high - centre) / sd
        log_mass = _log_between(a, b)
        log = t * intercept + t * slope * mean + 0.5 * (t * slope * sd).square() + log_mass
        pa, pb = ((-0.5 * x.square() - 0.5 * math.log(2 * math.pi) - log_mass).clamp_max(60.0).exp() for x in (a, b))
        # Where a piece has next to no mass its moments do not count; they are kept between its ends.
        narrow = b - a < NARROW
        xi = torch.where(narrow, (a + b) / 2, torch.minimum(torch.maximum(pa - pb, a), b))
        spread = torch.where(narrow, (b - a).square() / 12, (1 + a * pa - b * pb - xi.square()).clamp(0.0, 1.0))
        return log, intercept + slope * (centre + sd * xi), (slope * sd).square() * spread, a, b, centre


def _log_between(a: Tensor, b: Tensor) -> Tensor:
    """log Pr[a < N(0, 1) < b], without a difference of numbers near 1."""
    flip = a > 0
    low, high = torch.where(flip, -b, a), torch.where(flip, -a, b)
    upper = torch.special.log_ndtr(high)
    return upper + torch.log(-torch.expm1((torch.special.log_ndtr(low) - upper).clamp_max(-1e-15)))


class Sums(NamedTuple):
    """g = start + weights z + N(0, rest), a batch of laws, (batch, k), (batch, k, J), (batch, k, k).

    The normals behind the features are N(mean, sd^2), (batch, J).
    """

    start: Tensor
    weights: Tensor
    rest: Tensor
    mean: Tensor
    sd: Tensor

    def rows(self, rows: Tensor) -> Sums:
        """Some of the laws."""
        return Sums(*(part[rows] for part in self))

    def turned(self, sign: Tensor) -> Sums:
        """The numbers times `sign` (k,)."""
        rest = self.rest * sign[:, None] * sign
        return self._replace(start=self.start * sign, weights=self.weights * sign[:, None], rest=rest)

    def first(self, count: int) -> Sums:
        """The first `count` numbers."""
        return self._replace(
            start=self.start[:, :count], weights=self.weights[:, :count], rest=self.rest[:, :count, :count]
        )


def cumulants(quantiles: Quantiles, sums: Sums, theta: Float[Tensor, "batch k"]) -> tuple[Tensor, Tensor, Tensor]:
    """K(theta), its gradient and its Hessian, (batch,), (batch, k), (batch, k, k)."""
    z = quantiles.tilted((theta[:, None] @ sums.weights)[:, 0], sums.mean, sums.sd)
    pulled = (sums.rest @ theta[..., None])[..., 0]
    log = (theta * (sums.start + 0.5 * pulled)).sum(-1) + z.log.sum(-1)
    mean = sums.start + (sums.weights @ z.mean[..., None])[..., 0] + pulled
    return log, mean, (sums.weights * z.variance[:, None]) @ sums.weights.mT + sums.rest


@torch.no_grad()
def dominating_point(quantiles: Quantiles, sums: Sums) -> Float[Tensor, "batch k"]:
    """The theta >= 0 that minimises K, by projected Newton steps; K is convex."""
    theta = torch.zeros_like(sums.start)
    scale = _scale(cumulants(quantiles, sums, theta)[2])
    sums = _scaled(sums, scale)
    k = theta.shape[1]
    identity = torch.eye(k, dtype=theta.dtype, device=theta.device)
    value, gradient, hessian = cumulants(quantiles, sums, theta)
    for _ in range(NEWTON):
        free = (theta > 0) | (gradient < 0)
        both = (free[:, :, None] & free[:, None, :]).to(theta.dtype)
        system = hessian * both + torch.diag_embed((~free).to(theta.dtype))
        ridge = 1e-10 * system.diagonal(dim1=-2, dim2=-1).amax(-1)[:, None, None] + 1e-14
        step = -torch.linalg.solve(system + ridge * identity, torch.where(free, gradient, 0.0)[..., None])[..., 0]
        moved, left = theta.clone(), torch.arange(len(theta), device=theta.device)
        for length in LENGTHS:
            tried = (theta[left] + length * step[left]).clamp(0.0, 1e9)
            lower = cumulants(quantiles, sums.rows(left), tried)[0] <= value[left]
            moved[left[lower]] = tried[lower]
            left = left[~lower]
            if not len(left):
                break
        done = bool(((moved - theta).abs() <= 1e-9 * (1 + theta.abs())).all())
        theta = moved
        if done:
            break
        value, gradient, hessian = cumulants(quantiles, sums, theta)
    return theta / scale


def _scale(covariance: Tensor) -> Tensor:
    return covariance.diagonal(dim1=-2, dim2=-1).clamp_min(1e-24).sqrt()


def _scaled(sums: Sums, scale: Tensor) -> Sums:
    rest = sums.rest / (scale[:, :, None] * scale[:, None, :])
    return sums._replace(start=sums.start / scale, weights=sums.weights / scale[..., None], rest=rest)


def log_all_at_least(
    quantiles: Quantiles, sums: Sums, theta: Float[Tensor, "batch k"], gaussian: bool = False, every: bool = True
) -> Float[Tensor, " batch"]:
    """log Pr[all g_i >= 0] by the law tilted to theta, nats; differentiable in the sums with theta given.

    One number takes Lugannani and Rice's formula, unless `gaussian`: its gradient does not need theta to be the minimum.
    Without `every` it is the probability of any.

    Example:
        >>> one = Quantiles.gaussian(torch.zeros(1).double(), torch.ones(1).double())
        >>> ones, none = torch.ones(1, 1).double(), torch.zeros(1, 1).double()
        >>> sums = Sums(-3 * ones, ones[None], none[None], none, ones)
        >>> round(float(log_all_at_least(one, sums, dominating_point(one, sums)).exp()), 8)
        0.0013499
    """
    log, mean, covariance = cumulants(quantiles, sums, theta)
    pulled = (covariance @ theta[..., None])[..., 0]
    found = log - (theta * mean).sum(-1) + 0.5 * (theta * pulled).sum(-1)
    found = found + (log_all_positive if every else log_any_positive)(mean - pulled, covariance)
    if theta.shape[1] > 1 or gaussian:
        return found.clamp_max(0.0)
    root = (-2 * log).clamp_min(NEAR**2).sqrt()
    wald = (theta[:, 0] * covariance[:, 0, 0].clamp_min(1e-24).sqrt()).clamp_min(1e-12)
    normal = -0.5 * root.square() - 0.5 * math.log(2 * math.pi)
    mills = (torch.special.log_ndtr(-root) - normal).exp() + 1 / wald - 1 / root
    sharp = (-2 * log > NEAR**2) & (mills > 0)
    return torch.where(sharp, normal + mills.clamp_min(1e-300).log(), found).clamp_max(0.0)
