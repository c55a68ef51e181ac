r"""Transports of continuous laws whose quantile function is a formula: Laplace, Exponential, Uniform, Gumbel, Logistic, ...

x = F^-1(Phi(u)), written with log Phi(u) below the median and log Phi(-u) above it, so that nothing saturates: at u = 12 the
upper tail is 2e-33. With l = log F and s = log(1 - F):

    Exponential  -s / rate             Gumbel    loc - scale log(-l)         Laplace  loc +- scale (log 2 + l or s)
    Cauchy       loc +- scale / tan(pi tail)    Logistic  loc + scale (l - s)    Pareto (generalised)  loc + scale expm1(-c s) / c

Weibull, Pareto, LogNormal and others are transforms of these in torch. Folded laws (HalfNormal, HalfCauchy) are |x| in torch,
which is not monotone; here they have their quantile function, so that one tail of u is one tail of x.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
import torch.distributions as td
from torch import Tensor
from torch.special import log_ndtr

from ppl_risk.inputs.tails import ndtr
from ppl_risk.inputs.transport import Part, part_of

SCALAR = torch.Size()


@part_of.register
def _(law: td.Laplace) -> Part:
    two = math.log(2.0)
    return Part(SCALAR, lambda u: law.loc + law.scale * torch.where(u < 0, log_ndtr(u) + two, -log_ndtr(-u) - two))


@part_of.register
def _(law: td.Exponential) -> Part:
    return Part(SCALAR, lambda u: -log_ndtr(-u) / law.rate)


@part_of.register
def _(law: td.Uniform) -> Part:
    def push(u: Tensor) -> Tensor:
        width = law.high - law.low
        return torch.where(u < 0, law.low + width * ndtr(u.clamp(max=0)), law.high - width * ndtr(-u.clamp(min=0)))

    return Part(SCALAR, push)


@part_of.register
def _(law: td.Gumbel) -> Part:
    return Part(SCALAR, lambda u: law.loc - law.scale * (-log_ndtr(u)).log())


@part_of.register
def _(law: dist.Logistic) -> Part:
    return Part(SCALAR, lambda u: law.loc + law.scale * (log_ndtr(u) - log_ndtr(-u)))


@part_of.register
def _(law: td.GeneralizedPareto) -> Part:
    def push(u: Tensor) -> Tensor:
        c, s = law.concentration, log_ndtr(-u)
        flat = c == 0
        safe = torch.where(flat, 1.0, c)
        return law.loc + law.scale * torch.where(flat, -s, torch.expm1(-safe * s) / safe)

    return Part(SCALAR, push)


def _cotangent(log_p: Tensor) -> Tensor:
    """1 / tan(pi p) from log p; below 1e-4 by its series, since the derivative of 1 / tan would overflow."""
    p = log_p.exp()
    series = (-log_p).exp() / math.pi - math.pi / 3 * p
    return torch.where(p < 1e-4, series, 1 / torch.tan(math.pi * p.clamp(min=1e-4)))


def _cauchy(u: Tensor) -> Tensor:
    """Quantile of the standard Cauchy law: tan near the centre, 1 / tan of the tail beyond it."""
    centre = torch.tan(math.pi / 2 * torch.erf(u.clamp(-1, 1) / math.sqrt(2)))
    far = torch.where(u < 0, -1.0, 1.0) * _cotangent(log_ndtr(-u.abs().clamp(min=1)))
    return torch.where(u.abs() > 1, far, centre)


@part_of.register
def _(law: td.Cauchy) -> Part:
    return Part(SCALAR, lambda u: law.loc + law.scale * _cauchy(u))


@part_of.register
def _(law: td.HalfCauchy) -> Part:
    def push(u: Tensor) -> Tensor:
        lower = torch.tan(math.pi / 2 * ndtr(u.clamp(max=0)))
        return law.scale * torch.where(u < 0, lower, _cotangent(log_ndtr(-u.clamp(min=0)) - math.log(2.0)))

    return Part(SCALAR, push)


@part_of.register
def _(law: td.HalfNormal) -> Part:
    def push(u: Tensor) -> Tensor:
        lower = math.sqrt(2.0) * torch.erfinv(ndtr(u.clamp(max=0)))
        upper = -torch.special.ndtri(ndtr(-u.clamp(min=0)) / 2)
        return law.scale * torch.where(u < 0, lower, upper)

    return Part(SCALAR, push)
