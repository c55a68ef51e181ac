r"""Moments of monomials under the uniform law on a domain, in closed form, so that a polynomial can be given variance 1 exactly.

With a = (a_1, ..., a_n), |a| = sum a_i, r the radius, and 0 where the domain is symmetric and some a_i is odd:

| domain | E prod x_i^{a_i} |
| --- | --- |
| Ball | r^{|a|} Gamma(n/2 + 1) / Gamma((n + |a|)/2 + 1) prod Gamma((a_i + 1)/2) / Gamma(1/2) |
| Cube | r^{|a|} prod 1 / (a_i + 1) |
| Simplex | r^{|a|} n! / (n + |a|)! prod a_i! |

Ball: Folland 2001, doi:10.1080/00029890.2001.11919774, integrated over the radius. Simplex: the Dirichlet law (1, ..., 1).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppl_risk.errors import RiskError
from ppl_risk.mitigation.domains import Ball, Cube, Domain, Simplex

#: Exponents held at once.
ENTRIES = 2**22


def monomial_moments(domain: Domain, exponents: Int[Tensor, "k n"]) -> Float[Tensor, " k"]:
    """E prod_i x_i^{a_i}, x uniform on the domain, for each row a of exponents; float64.

    Raises:
        RiskError: for a domain other than Ball, Cube and Simplex.

    Example:
        >>> monomial_moments(Cube(2), torch.tensor([[2, 0], [1, 0], [2, 2]]))
        tensor([0.3333, 0.0000, 0.1111], dtype=torch.float64)

    """
    total = exponents.sum(-1).double()
    n, scale = domain.n, math.log(domain.radius) * total
    power = torch.arange(int(exponents.max()) + 1, dtype=torch.float64)  # exponents are few: a table of each factor
    if isinstance(domain, Simplex):
        factors = torch.lgamma(power + 1)[exponents].sum(-1)
        return (scale + factors + math.lgamma(n + 1) - torch.lgamma(n + total + 1)).exp()
    even = (exponents % 2 == 0).all(-1).double()
    if isinstance(domain, Cube):
        return even * (scale - torch.log1p(power)[exponents].sum(-1)).exp()
    if isinstance(domain, Ball):
        factors = (torch.lgamma((power + 1) / 2) - math.lgamma(0.5))[exponents].sum(-1)
        return even * (scale + factors + math.lgamma(n / 2 + 1) - torch.lgamma((n + total) / 2 + 1)).exp()
    raise RiskError(
        f"Moments are known on Ball, Cube and Simplex, not on {type(domain).__name__}. Add its formula here."
    )


def standard_deviation(domain: Domain, exponents: Int[Tensor, "k n"], coefficients: Float[Tensor, " k"]) -> float:
    """sd of sum_k c_k x^{a_k} under the uniform law: c^T (E m m^T - E m E m^T) c under the root.

    Raises:
        RiskError: for a domain other than Ball, Cube and Simplex.

    Example:
        >>> standard_deviation(Cube(2), torch.tensor([[1, 0], [0, 0]]), torch.tensor([3.0, 7.0]).double())
        1.7320508075688772

    """
    mean = monomial_moments(domain, exponents)
    square = torch.zeros((), dtype=torch.float64)
    for rows, c in zip(*_chunks(exponents, coefficients), strict=True):
        pairs = (rows[:, None] + exponents).reshape(-1, domain.n)
        square = square + c @ monomial_moments(domain, pairs).view(len(rows), -1) @ coefficients
    return math.sqrt(max(float(square - (coefficients @ mean) ** 2), 0.0))


def _chunks(exponents: Tensor, coefficients: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    size = max(1, ENTRIES // exponents.numel())
    return exponents.split(size), coefficients.split(size)
