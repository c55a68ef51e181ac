r"""Failure sets that no half-space resembles: shells, corners, paraboloids; every answer is exact.

u ~ N(0, I_d), margin(u) - b below; the level b is set so that p is 10^log10_prob. a_1, a_2, ... are orthonormal directions,
drawn once and so aligned with no coordinate; s = a_1.u and r^2 = |u|^2 - s^2 is the rest. Q(b) = Phi(-b).

| shape | d | margin + b | p |
| --- | --- | --- | --- |
| shell | 100 | norm(u) | Pr[chi2_100 >= b^2] |
| offset_shell | 100 | norm(u + 5 a_1) | Pr[noncentral chi2_100(25) >= b^2], a Poisson mixture of central ones |
| corner2, corner5 | 20 | min of a_i.u, i <= 2 or 5 | Q(b)^2 or Q(b)^5 |
| parabola_in | 20 | s - r^2 / 10 | E Q(b + r^2 / 10), r^2 ~ chi2_19 |
| parabola_out | 20 | s + r^2 / 10 | E Q(b - r^2 / 10) |
| bowl | 2 | u_2 + (u_1 - 0.1)^2 / 2 | E Q(b - (z - 0.1)^2 / 2), z ~ N(0, 1) |

The bowl is the limit state of A. Der Kiureghian and T. Dakessian 1998 (doi:10.1016/S0167-4730(97)00026-X), where b = 5 and
p = 3.02e-3; it has two design points of unequal weight. Those of the shell, and of parabola_out where b > 5, are spheres.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import gammaln, log_ndtr, logsumexp
from scipy.stats import chi2
from torch import Tensor
from torch.distributions import Independent, Normal

from ppl_risk import RiskError, RiskProblem

#: Of the directions.
SEED = 141_421_356
CURVATURE, OFFSET, TILT = 0.2, 5.0, 0.1


class Shape(NamedTuple):
    """Dimension, margin plus b from (u, directions), log p as a function of b, and an interval of b for p in 1e-30 to 0.1."""

    dimension: int
    height: Callable[[Tensor, Tensor], Tensor]
    log_prob: Callable[[float], float]
    bracket: tuple[float, float]


def _log_shifted_shell(b: float) -> float:
    """Log Pr[noncentral chi2 >= b^2]: central ones with d + 2 j degrees of freedom, j ~ Poisson(offset^2 / 2)."""
    j, half = np.arange(400), OFFSET**2 / 2
    return float(logsumexp(j * math.log(half) - half - gammaln(j + 1) + chi2.logsf(b * b, 100 + 2 * j)))


def _log_paraboloid(b: float, sign: int) -> float:
    """Log E Q(b + sign CURVATURE r^2 / 2), r^2 ~ chi2_19: trapezoidal rule in log r, 40,001 points."""
    t, step = np.linspace(-8.0, 4.0, 40_001), 12.0 / 40_000
    square = np.exp(2 * t)
    log_density = chi2.logpdf(square, 19) + math.log(2.0) + 2 * t
    return float(logsumexp(log_density + log_ndtr(-b - sign * CURVATURE * square / 2))) + math.log(step)


def _log_bowl(b: float) -> float:
    """Log E Q(b - (z - TILT)^2 / 2), z ~ N(0, 1): trapezoidal rule, 60,001 points."""
    z, step = np.linspace(-15.0, 15.0, 60_001), 30.0 / 60_000
    log_integrand = -(z**2) / 2 + log_ndtr((z - TILT) ** 2 / 2 - b)
    return float(logsumexp(log_integrand)) + math.log(step) - math.log(2 * math.pi) / 2


def _parabola(u: Tensor, axes: Tensor, sign: int) -> Tensor:
    s = u @ axes[0]
    return s + sign * CURVATURE / 2 * (u.square().sum(-1) - s.square())


def _corner(count: int) -> Shape:
    return Shape(
        20,
        lambda u, axes: (u @ axes[:count].T).amin(-1),
        lambda b: count * float(log_ndtr(-b)),
        (-3.0, 12.0),
    )


SHAPES = {
    "shell": Shape(100, lambda u, _: u.norm(dim=-1), lambda b: float(chi2.logsf(b * b, 100)), (10.5, 25.0)),
    "offset_shell": Shape(100, lambda u, axes: (u + OFFSET * axes[0]).norm(dim=-1), _log_shifted_shell, (11.0, 30.0)),
    "corner2": _corner(2),
    "corner5": _corner(5),
    "parabola_in": Shape(20, lambda u, axes: _parabola(u, axes, -1), lambda b: _log_paraboloid(b, 1), (-2.0, 12.0)),
    "parabola_out": Shape(20, lambda u, axes: _parabola(u, axes, 1), lambda b: _log_paraboloid(b, -1), (2.0, 30.0)),
    "bowl": Shape(2, lambda u, _: u[:, 1] + (u[:, 0] - TILT).square() / 2, _log_bowl, (1.0, 40.0)),
}


def level(shape: str, log10_prob: float) -> float:
    """The b at which p is 10^log10_prob."""
    what = SHAPES[shape]
    gap = lambda b: what.log_prob(b) - log10_prob * math.log(10.0)  # noqa: E731 - a formula
    return float(brentq(gap, *what.bracket, xtol=1e-12))  # pyright: ignore[reportArgumentType]


def directions(dimension: int) -> Tensor:
    """Orthonormal rows, at most 5."""
    draw = torch.randn(dimension, min(5, dimension), generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    return torch.linalg.qr(draw).Q.T.float().contiguous()


def problem(*, shape: str = "shell", log10_prob: float = -5.0) -> RiskProblem:
    """Pr[u in a curved set].

    Args:
        shape: "shell", "offset_shell", "corner2", "corner5", "parabola_in", "parabola_out" or "bowl".
        log10_prob: the answer in decades, -20 to -1; it sets the level b.

    """
    if shape not in SHAPES or not -20 <= log10_prob <= -1:
        raise RiskError(
            f"Wanted shape one of {', '.join(map(repr, SHAPES))} and log10_prob in [-20, -1], "
            f"got {shape!r} and {log10_prob}."
        )
    what, b = SHAPES[shape], level(shape, log10_prob)
    axes = directions(what.dimension)

    def margin(u: Tensor) -> Tensor:
        return what.height(u, axes) - b

    return RiskProblem(margin, Independent(Normal(torch.zeros(what.dimension), 1.0), 1), name="curved_sets")
