r"""Upper bounds on Pr[margin >= 0] for u ~ N(0, I_d) from what holds on a ball |u| <= R; everything in nats.

    ball      margin < 0 on the ball:                    P <= Pr[chi_d > R]
    PROVEN    margin <= max_k a_k . u + b_k there:       P <= sum_k Phi(b_k / |a_k|) + Pr[chi_d > R]

Weng et al. 2019 (ICML), arXiv 1812.08329, who take the affine function from CROWN; R is a free choice, so the least over several
is a bound too. For an affine margin the second is exact as R grows.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from scipy import special
from torch import Tensor

#: Below this the regularised gamma function is close to underflow.
SMALLEST = 1e-280
TERMS = 300


def log_chi_tail(radius: float, dimension: int) -> float:
    """log Pr[chi_d > R], nats, without underflow: the regularised gamma function, its continued fraction in the far tail.

    Gamma(a, x) = e^-x x^a / (x + 1 - a - 1 (1 - a) / (x + 3 - a - ...)), a = d / 2, x = R^2 / 2 (DLMF 8.9.2), by Lentz.

    Example:
        >>> import scipy.stats
        >>> round(log_chi_tail(5.0, 3) - float(scipy.stats.chi(3).logsf(5.0)), 9)
        0.0
    """
    if radius <= 0:
        return 0.0
    if math.isinf(radius):
        return -math.inf
    a, x = dimension / 2, radius**2 / 2
    tail = float(special.gammaincc(a, x))
    if tail > SMALLEST:
        return math.log(tail)
    # Here x > a + 1, where the fraction converges fast.
    b, c = x + 1 - a, 1e300
    d = 1 / b
    fraction = d
    for n in range(1, TERMS):
        numerator = -n * (n - a)
        b += 2
        d = 1 / (numerator * d + b)
        c = b + numerator / c
        fraction *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    return -x + a * math.log(x) - float(special.gammaln(a)) + math.log(fraction)


def log_box_tail(radius: float, dimension: int) -> float:
    """log Pr[some |u_i| > r] = log(1 - (2 Phi(r) - 1)^d), nats; in the far tail the sum over i, which is no less.

    Example:
        >>> round(log_box_tail(40.0, 10), 1)
        -801.6
    """
    if math.isinf(radius):
        return -math.inf
    one = math.log(2) + float(special.log_ndtr(-radius))
    if one < -30:
        return min(0.0, one + math.log(dimension))
    inside = dimension * math.log1p(-math.exp(one)) if one < 0 else -math.inf
    return math.log(-math.expm1(inside))


def log_proven(
    weights: Float[Tensor, "r k d"], offset: Float[Tensor, "r k"], radii: Float[Tensor, " r"]
) -> Float[Tensor, " r"]:
    """log of PROVEN's bound for margins below the largest of k functions weights . u + offset on the ball of each radius.

    Their probabilities are added. At most 0, which is P <= 1; 0 where a number is not one.

    Example:
        >>> import torch
        >>> a, b = torch.tensor([[[3.0, 4.0]]]).double(), torch.tensor([[-10.0]]).double()
        >>> round(log_proven(a, b, torch.tensor([20.0]).double()).exp().item(), 5)
        0.02275
    """
    size = weights.norm(dim=-1)
    z = torch.where(size > 0, offset / size, torch.where(offset < 0, -math.inf, math.inf))
    tails = torch.tensor([log_chi_tail(float(r), weights.shape[-1]) for r in radii], dtype=torch.float64)
    bound = torch.logaddexp(torch.special.log_ndtr(z).logsumexp(-1).cpu(), tails).clamp(max=0.0)
    return torch.where(bound.isnan(), 0.0, bound)
