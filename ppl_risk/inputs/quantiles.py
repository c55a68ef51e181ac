r"""Transports of Gamma, Beta and Student laws, whose quantiles have no formula: SciPy's inverses, from the smaller tail.

x = F^-1(Phi(u)) is found in float64 as the inverse of the lower tail at Phi(u) below the median, of the upper tail at Phi(-u)
above it (`gammaincinv` / `gammainccinv`, `betaincinv` / its mirror image, `stdtrit` and symmetry); SciPy's are accurate to 1e-13
relative in the tail. Gradients are implicit: F(x; p) = Phi(u) gives dx/du = phi(u) / f(x). With respect to a parameter, which
matters where it is itself random (a hierarchical law), dx/dp is the central difference of the quantile, relative error 1e-9.

The work is done by the CPU, wherever the tensors live. Chi2 is a Gamma; InverseGamma is a transform of one.
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

from ppl_risk.inputs.transport import Part, part_of

#: (u, *parameters) -> (x, log density at x), all float64 arrays of one shape.
Family = Callable[..., tuple[np.ndarray, np.ndarray]]
STEP = 1e-5
TINY, HUGE = np.finfo(np.float64).tiny, np.finfo(np.float64).max


def _tail(u: np.ndarray) -> np.ndarray:
    return np.exp(special.log_ndtr(-np.abs(u)))


def _gamma(u: np.ndarray, a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    tail = _tail(u)
    x = np.where(u < 0, special.gammaincinv(a, tail), special.gammainccinv(a, tail))
    x = np.maximum(x, TINY)  # for a small concentration the lower quantiles underflow; x > 0 is the support
    return x, special.xlogy(a - 1, x) - x - special.gammaln(a)


def _beta(u: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    tail, low = _tail(u), u < 0
    # The distance from the nearer end: from 0 below the median, from 1 above it.
    near = np.maximum(special.betaincinv(np.where(low, a, b), np.where(low, b, a), tail), TINY)
    far = np.maximum(1 - near, TINY)
    x, rest = np.where(low, near, far), np.where(low, far, near)
    return x, special.xlogy(a - 1, x) + special.xlogy(b - 1, rest) - special.betaln(a, b)


def _student(u: np.ndarray, df: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    size = np.minimum(-special.stdtrit(df, _tail(u)), HUGE)
    with np.errstate(divide="ignore"):
        bend = np.logaddexp(0.0, 2 * np.log(np.abs(size)) - np.log(df))
    constant = special.gammaln((df + 1) / 2) - special.gammaln(df / 2) - np.log(df * np.pi) / 2
    return np.where(u < 0, -size, size), constant - (df + 1) / 2 * bend


class _Quantile(torch.autograd.Function):
    """x = F^-1(Phi(u)) of a family, with implicit gradients."""

    @staticmethod
    def forward(ctx: Any, family: Family, u: Tensor, *parameters: Tensor) -> Tensor:
        arrays = [np.atleast_1d(t.detach().double().cpu().numpy()) for t in (u, *parameters)]
        x, log_density = family(*arrays)
        ctx.family, ctx.arrays, ctx.like = family, arrays, u
        log_phi = -np.square(arrays[0]) / 2 - np.log(2 * np.pi) / 2
        ctx.slope = np.exp(log_phi - log_density)
        return _like(x, u)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        found: list[Tensor | None] = [None, grad * _like(ctx.slope, ctx.like)]
        for place in range(1, len(ctx.arrays)):
            if not ctx.needs_input_grad[place + 1]:
                found.append(None)
                continue
            ends = []
            for sign in (1, -1):
                moved = list(ctx.arrays)
                moved[place] = moved[place] * (1 + sign * STEP)
                ends.append(ctx.family(*moved)[0])
            difference = (ends[0] - ends[1]) / (2 * STEP * ctx.arrays[place])
            found.append(grad * _like(difference, ctx.like))
        return tuple(found)


def _like(x: np.ndarray, u: Tensor) -> Tensor:
    """A float64 array as a tensor like u; what that type cannot hold becomes its largest (or smallest positive) number."""
    info = torch.finfo(u.dtype)
    x = np.where(x > 0, np.maximum(x, info.tiny), x)
    return torch.as_tensor(np.clip(x, info.min, info.max)).reshape(u.shape).to(u.device, u.dtype)


def _quantile(family: Family, u: Tensor, *parameters: Tensor) -> Tensor:
    return _Quantile.apply(family, *torch.broadcast_tensors(u, *parameters))  # pyright: ignore[reportReturnType]


@part_of.register
def _(law: td.Gamma) -> Part:
    return Part(law.event_shape, lambda u: _quantile(_gamma, u, law.concentration) / law.rate)


@part_of.register
def _(law: td.Beta) -> Part:
    return Part(law.event_shape, lambda u: _quantile(_beta, u, law.concentration1, law.concentration0))


@part_of.register
def _(law: td.StudentT) -> Part:
    return Part(law.event_shape, lambda u: law.loc + law.scale * _quantile(_student, u, law.df))
