r"""Transports of Gamma, Beta, Student and F laws, whose quantiles have no formula: SciPy's inverses, tabulated where laws recur.

x = F^-1(Phi(u)) is found in float64 as the inverse of the lower tail at Phi(u) below the median, of the upper tail at Phi(-u)
above it (`gammaincinv` / `gammainccinv`, `betaincinv` / its mirror image, `stdtrit` and symmetry); SciPy's are accurate to 1e-13
relative in the tail. Each family is kept on a scale g on which both of its tails are long,

    Gamma g = log x     Beta g = log x - log(1 - x)     Student g = asinh x     F x = (d2 / d1) exp(g) of Beta(d1 / 2, d2 / 2)

so that neither end is lost in rounding. With h the density of g, dg/du = phi(u) / h(g) exactly; values, slopes and curvatures at
knots make the tables of `ppl_risk.inputs.tables`, a thousand times faster than the inverse. Where each row has a law of its own
(hierarchical laws), and for |u| beyond the table, the inverse itself is taken. With respect to a parameter, which
matters where it is itself random, dx/dp is the central difference of the quantile, relative error 1e-9.

The inverses are taken by the CPU, wherever the tensors live. Chi2 is a Gamma; InverseGamma is a transform of one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributions as td
from scipy import special
from torch import Tensor
from torch.autograd.function import once_differentiable

from ppl_risk.inputs.tables import END, Family, Table, log_phi, table_of
from ppl_risk.inputs.transport import Part, part_of

STEP = 1e-5
SMALL = 1e-290


def _tail(u: np.ndarray) -> np.ndarray:
    return np.exp(special.log_ndtr(-np.abs(u)))


def _gamma(u: np.ndarray, a: np.ndarray) -> np.ndarray:
    tail = _tail(u)
    x = np.where(u < 0, special.gammaincinv(a, tail), special.gammainccinv(a, tail))
    # For a small concentration the lower quantiles underflow; there F(x) = x^a / Gamma(a + 1).
    log_lower = (special.log_ndtr(u) + special.gammaln(a + 1)) / a
    with np.errstate(divide="ignore"):
        return np.where(x > SMALL, np.log(x), log_lower)


def _gamma_density(g: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Around the mode, with a log a - a - log Gamma(a) by Stirling's series where its terms would cancel.
    off = g - np.log(a)
    with np.errstate(over="ignore"):
        series = np.log(a / (2 * np.pi)) / 2 - 1 / (12 * a) + 1 / (360 * a**3)
        height = np.where(a > 1e3, series, special.xlogy(a, a) - a - special.gammaln(a))
        return a * (off - np.expm1(off)) + height, -a * np.expm1(off)


def _log_lower(a: np.ndarray, b: np.ndarray, log_p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log x and log(1 - x) with I_x(a, b) = p.

    Where b x < 1e-6 by its series, I_x = x^a (1 + a (1 - b) / (a + 1) x + ...) / (a B(a, b)): SciPy's inverse underflows
    there, and near x = 1e-17 stops too early for some a and b (1.17: a = 1.1, b = 0.9, p = 1e-19).
    """
    log_first = (log_p + np.log(a) + special.betaln(a, b)) / a
    first = np.exp(np.minimum(log_first, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        x = special.betaincinv(a, b, np.exp(log_p))
        small = first * (1 + b) < 1e-6
        log_x = np.where(small, log_first - np.log1p((1 - b) / (a + 1) * first), np.log(x))
        return log_x, np.log1p(-np.where(small, first, x))


def _beta(u: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    low, log_p = u < 0, special.log_ndtr(-np.abs(u))
    # The distance from the nearer end: from 0 below the median, from 1 above it.
    own, other = np.where(low, a, b), np.where(low, b, a)
    log_near, log_far = _log_lower(own, other, log_p)
    g = log_near - log_far
    # A median crowded against the other end: from there.
    if (crowded := ~(log_far > np.log(1e-3))).any():
        own, other, tail = (np.broadcast_to(x, g.shape)[crowded] for x in (own, other, -np.abs(u)))
        g[crowded] = _across(own, other, tail)
    return np.where(low, g, -g)


def _across(own: np.ndarray, other: np.ndarray, u: np.ndarray) -> np.ndarray:
    """log odds of x, Pr[< x] = Phi(u), where 1 - x is the small number."""
    rest = special.betainccinv(other, own, special.ndtr(u))
    log_rest = (special.log_ndtr(-u) + np.log(other) + special.betaln(own, other)) / other
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(rest > SMALL, np.log1p(-rest) - np.log(rest), -log_rest)


def _beta_density(g: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, rest = special.expit(g), special.expit(-g)
    return a * special.log_expit(g) + b * special.log_expit(-g) - special.betaln(a, b), a * rest - b * x


def _student(u: np.ndarray, df: np.ndarray) -> np.ndarray:
    # x^2 / (df + x^2) ~ Beta(1/2, df / 2); small for many degrees of freedom, its complement small for few.
    middle, tail = special.erf(np.abs(u) / np.sqrt(2)), 2 * _tail(u)
    share = np.where(tail > 0.5, special.betaincinv(0.5, df / 2, middle), special.betainccinv(0.5, df / 2, tail))
    log_rest, log_most = _log_lower(df / 2, np.full_like(df, 0.5), special.log_ndtr(-np.abs(u)) + np.log(2))
    with np.errstate(divide="ignore", invalid="ignore"):
        odds = np.where(share < 0.5, np.log(share) - np.log1p(-share), log_most - log_rest)
        size = (odds + np.log(df)) / 2
        far = size + np.log1p(np.sqrt(1 + np.exp(-2 * np.abs(size))))
        g = np.where(size > 0, far, np.arcsinh(np.exp(np.minimum(size, 0))))
    return np.where(u < 0, -g, g)


def _student_density(g: np.ndarray, df: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    size = np.abs(g)
    log_cosh = size + np.log1p(np.exp(-2 * size)) - np.log(2)
    with np.errstate(divide="ignore"):
        log_sinh = size + np.log(-np.expm1(-2 * size)) - np.log(2)
    bend = np.logaddexp(0.0, 2 * log_sinh - np.log(df))  # log(1 + x^2 / df)
    pull = np.sign(g) * np.exp(log_sinh + log_cosh - np.log(df) - bend)  # x cosh g / (df + x^2)
    half = df / 2
    # log Gamma(half + 1/2) - log Gamma(half): for many degrees of freedom the series, where the two would cancel.
    with np.errstate(over="ignore"):
        series = np.log(half) / 2 - 1 / (8 * half) + 1 / (192 * half**3)
    ratio = np.where(half > 1e3, series, special.gammaln(half + 0.5) - special.gammaln(half))
    return ratio - np.log(df * np.pi) / 2 - (df + 1) / 2 * bend + log_cosh, np.tanh(g) - (df + 1) * pull


GAMMA = Family("gamma", _gamma, _gamma_density, torch.exp, torch.exp)
BETA = Family("beta", _beta, _beta_density, torch.sigmoid, lambda g: torch.sigmoid(g) * torch.sigmoid(-g))
ODDS = Family("beta", _beta, _beta_density, torch.exp, torch.exp)
STUDENT = Family("student", _student, _student_density, torch.sinh, torch.cosh, positive=False)


class _Quantile(torch.autograd.Function):
    """x = F^-1(Phi(u)) of a family, with implicit gradients."""

    @staticmethod
    def forward(ctx: Any, family: Family, table: Table | None, u: Tensor, *parameters: Tensor) -> Tensor:
        exact = u.detach().double()
        if table is None:
            g, slope = _inverse(family, exact, parameters)
        else:
            g, slope = table(exact, with_slope=ctx.needs_input_grad[2])
            if exact.numel() and float(exact.abs().amax()) > END:
                outside = exact.abs() > END
                own = [p.expand_as(u)[outside] for p in parameters]
                g[outside], beyond = _inverse(family, exact[outside], own)
                if slope is not None:
                    slope[outside] = beyond
        ctx.family = family
        ctx.slope = None if slope is None else _like(slope * family.slope_of_value(g), u)
        ctx.save_for_backward(u, *parameters)
        return _like(family.value(g), u, positive=family.positive)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        u, *parameters = ctx.saved_tensors
        found: list[Tensor | None] = [None, None, None if ctx.slope is None else grad * ctx.slope]
        for place, parameter in enumerate(parameters):
            if not ctx.needs_input_grad[place + 3]:
                found.append(None)
                continue
            ends = []
            for sign in (1, -1):
                moved = [p.double() for p in parameters]
                moved[place] = moved[place] * (1 + sign * STEP)
                ends.append(ctx.family.value(_inverse(ctx.family, u.double(), moved)[0]))
            difference = (ends[0] - ends[1]) / (2 * STEP * parameter.double())
            found.append(grad * _like(difference, u))
        return tuple(found)


def _inverse(family: Family, u: Tensor, parameters: Any) -> tuple[Tensor, Tensor]:
    """g and dg/du by the inverse itself."""
    arrays = [np.atleast_1d(t.detach().double().cpu().numpy()) for t in (u, *parameters)]
    g = family.inverse(*arrays)
    slope = np.exp(log_phi(arrays[0]) - family.density(g, *arrays[1:])[0])
    return tuple(torch.as_tensor(found).reshape(u.shape).to(u.device) for found in (g, slope))  # pyright: ignore[reportReturnType]


def _like(x: Tensor, u: Tensor, *, positive: bool = False) -> Tensor:
    """Float64 numbers in the type of u; what that type cannot hold becomes its largest (or smallest positive) number."""
    info = torch.finfo(u.dtype)
    return x.clamp(info.tiny if positive else info.min, info.max).to(u.dtype)


def _quantile(family: Family, law: td.Distribution, *parameters: Tensor) -> Callable[[Tensor], Tensor]:
    """The map of a batch of laws: by table where rows of u share the law, each number by the inverse where they do not."""

    def push(u: Tensor) -> Tensor:
        shared = u.dim() > len(law.batch_shape) and not any(p.requires_grad for p in parameters)
        table = table_of(family, parameters, u.dtype) if shared else None
        return _Quantile.apply(family, table, *torch.broadcast_tensors(u, *parameters))  # pyright: ignore[reportReturnType]

    return push


@part_of.register
def _(law: td.Gamma) -> Part:
    push = _quantile(GAMMA, law, law.concentration)
    return Part(law.event_shape, lambda u: push(u) / law.rate)


@part_of.register
def _(law: td.Beta) -> Part:
    return Part(law.event_shape, _quantile(BETA, law, law.concentration1, law.concentration0))


@part_of.register
def _(law: td.FisherSnedecor) -> Part:
    push = _quantile(ODDS, law, law.df1 / 2, law.df2 / 2)
    return Part(law.event_shape, lambda u: push(u) * (law.df2 / law.df1))


@part_of.register
def _(law: td.StudentT) -> Part:
    push = _quantile(STUDENT, law, law.df)
    return Part(law.event_shape, lambda u: law.loc + law.scale * push(u))
