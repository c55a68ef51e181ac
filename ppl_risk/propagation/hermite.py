r"""What an activation does to jointly Gaussian numbers: Hermite coefficients of a function of one normal variable.

For x ~ N(mu, s^2) and y ~ N(mu', s'^2) with correlation rho, and c_k = E[f(mu + s z) He_k(z)], d_k likewise for g (Mehler),

    E f(x) = c_0,    E f'(x) = c_1 / s (Stein),    Cov(f(x), g(y)) = sum_{k >= 1} rho^k c_k d_k / k!.

Piecewise linear functions have closed forms (Frey and Hinton 1999 for the ReLU); others take Gauss-Hermite quadrature. Two
terms of the series and the exact variance are as good as the exact covariance but for |rho| > 0.9, where `pair_covariance` is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

#: Nodes of the quadrature over one normal variable, and over the angle that leads to a correlation.
NODES, ANGLES = 64, 20
#: Terms of the series where two variables are nearly the same.
TERMS = 12
ROOT_2PI = math.sqrt(2 * math.pi)
#: Below this variance a number is taken as known.
TINY = 1e-24


class Coefficients(NamedTuple):
    """c_0, c_1, c_2 of a function at N(mean, sd^2), elementwise, and its variance."""

    mean: Tensor
    first: Tensor
    second: Tensor
    variance: Tensor


@dataclass(frozen=True)
class PiecewiseLinear:
    """f(x) = constant + slope x + sum_k weight_k relu(x - knot_k).

    Example:
        >>> import torch
        >>> relu = PiecewiseLinear(0.0, 0.0, ((1.0, 0.0),))
        >>> round(float(relu.coefficients(torch.zeros(1), torch.ones(1)).mean), 4)
        0.3989
    """

    constant: float
    slope: float
    knots: tuple[tuple[float, float], ...]

    @property
    def increasing(self) -> bool:
        """Whether f never falls."""
        slopes = np.cumsum([self.slope] + [w for w, _ in sorted(self.knots, key=lambda k: k[1])])
        return bool((slopes >= -1e-12).all())

    def coefficients(self, mean: Float[Tensor, "*batch n"], variance: Float[Tensor, "*batch n"]) -> Coefficients:
        """Closed forms; E f^2 from E relu(x - s) relu(x - t) = E relu(x - t)^2 + (t - s) E relu(x - t) for s <= t."""
        sd = variance.clamp_min(TINY).sqrt()
        parts = [(w, t, *_relu(mean - t, sd)) for w, t in sorted(self.knots, key=lambda k: k[1])]
        zero = torch.zeros_like(mean)
        value = self.constant + self.slope * mean + sum((w * m for w, _, m, *_ in parts), zero)
        first = self.slope * sd + sum((w * sd * gate for w, _, _, gate, _, _ in parts), zero)
        second = sum((w * sd * bump for w, _, _, _, bump, _ in parts), zero)
        square = self.slope**2 * (mean.square() + sd.square()) + zero
        for place, (w, t, m, _, _, sq) in enumerate(parts):
            square = square + w * w * sq + 2 * w * self.slope * (sq + t * m)
            for other, earlier, *_ in parts[:place]:
                square = square + 2 * w * other * (sq + (t - earlier) * m)
        # The constant shifts the mean and leaves the variance.
        free = value - self.constant
        return Coefficients(value, first, second, (square - free.square()).clamp_min(0.0))

    def covariance_of_pairs(self, mean: Tensor, sd: Tensor, rho: Tensor, law: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Exact Cov(f(x_i), f(x_j)) of laws (batch, n), for pairs of places."""
        return self.pair_covariance(mean[law, i], sd[law, i], mean[law, j], sd[law, j], rho[law, i, j])

    def pair_covariance(self, mean: Tensor, sd: Tensor, other: Tensor, other_sd: Tensor, rho: Tensor) -> Tensor:
        """Exact Cov(f(x), f(y)), elementwise."""
        cross = self.slope**2 * rho * sd * other_sd
        for weight, knot in self.knots:
            a, b = (mean - knot) / sd, (other - knot) / other_sd
            gates = torch.special.ndtr(a) + torch.special.ndtr(b)
            cross = cross + weight * self.slope * rho * sd * other_sd * gates
            for weight_, knot_ in self.knots:
                b = (other - knot_) / other_sd
                cross = cross + weight * weight_ * sd * other_sd * _both_above(a, b, rho)
        return cross


@dataclass(frozen=True)
class Smooth:
    """Any function, elementwise, by quadrature with 64 nodes."""

    function: Callable[[Tensor], Tensor]
    increasing: bool = False

    def coefficients(self, mean: Float[Tensor, "*batch n"], variance: Float[Tensor, "*batch n"]) -> Coefficients:
        """c_0, c_1, c_2 and the variance."""
        c, second = self._all(mean, variance.clamp_min(TINY).sqrt(), 2)
        return Coefficients(c[0], c[1], c[2], (second - c[0].square()).clamp_min(0.0))

    def covariance_of_pairs(self, mean: Tensor, sd: Tensor, rho: Tensor, law: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Cov(f_i(x_i), f_j(x_j)) to twelve terms: a function may differ from place to place, as quantile maps do."""
        c, _ = self._all(mean, sd, TERMS)
        powers = torch.stack([rho[law, i, j] ** k / math.factorial(k) for k in range(1, TERMS + 1)])
        return (powers * c[1:, law, i] * c[1:, law, j]).sum(0)

    def _all(self, mean: Tensor, sd: Tensor, order: int) -> tuple[Tensor, Tensor]:
        nodes, weights, polynomials = _quadrature(mean.device)
        shape = (NODES,) + (1,) * mean.dim()
        values = self.function(mean + sd * nodes.reshape(shape))
        flat = values.reshape(NODES, -1)
        c = (polynomials[: order + 1] * weights) @ flat
        return c.reshape(order + 1, *mean.shape), (weights @ flat.square()).reshape(mean.shape)


Activation = PiecewiseLinear | Smooth


def _relu(mean: Tensor, sd: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """E relu, Phi(a), phi(a) and E relu^2 of N(mean, sd^2), a = mean / sd."""
    a = mean / sd
    gate, bump = torch.special.ndtr(a), torch.exp(-0.5 * a.square()) / ROOT_2PI
    value = mean * gate + sd * bump
    return value.clamp_min(0.0), gate, bump, (mean * value + sd.square() * gate).clamp_min(0.0)


def _both_above(a: Tensor, b: Tensor, rho: Tensor) -> Tensor:
    r"""Cov of relu(a + z), relu(b + z') at correlation rho.

    Its derivative in rho is Phi_2(a, b; rho) (Price), so with r = sin t it is
    rho Phi(a) Phi(b) + (1 / 2 pi) int_0^{asin rho} (rho - sin t) exp(-(a^2 + b^2 - 2 a b sin t) / (2 cos^2 t)) dt.
    """
    nodes, weights = _legendre(a.device)
    end = torch.asin(rho.clamp(-1 + 1e-12, 1 - 1e-12))
    shape = (ANGLES,) + (1,) * a.dim()
    angle = end * nodes.reshape(shape)
    sine = torch.sin(angle)
    exponent = -(a.square() + b.square() - 2 * a * b * sine) / (2 * torch.cos(angle).square())
    inside = ((rho - sine) * torch.exp(exponent) * weights.reshape(shape)).sum(0) * end
    return rho * torch.special.ndtr(a) * torch.special.ndtr(b) + inside / (2 * math.pi)


@cache
def _quadrature(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes, weights summing to 1, and He_k at the nodes, (TERMS + 1, NODES)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    polynomials = np.polynomial.hermite_e.hermevander(nodes, TERMS).T
    made = (nodes, weights / weights.sum(), polynomials)
    one, two, three = (torch.tensor(part, dtype=torch.float64, device=device) for part in made)
    return one, two, three


@cache
def _legendre(device: torch.device) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(ANGLES)
    one, two = (torch.tensor(part, dtype=torch.float64, device=device) for part in ((nodes + 1) / 2, weights / 2))
    return one, two
