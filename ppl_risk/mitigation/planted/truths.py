r"""Ground truths h by seed: few Fourier coefficients on {-1, +1}^n, affine or polynomial on a convex set.

Three independent parities A, B, C give, with values -1 and +1,

    Maj3(A, B, C) = (A + B + C - A B C) / 2,

four coefficients +-1/2; the product of two on six independent parities has sixteen, +-1/4. Affine and polynomial truths have
standard deviation 1 under the uniform law on their domain, by `moments`: on a ball in 200 dimensions a truth with coefficients
of size 1 would have standard deviation 0.07, and any error would look small. All of it is our own construction.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ppl_risk.errors import RiskError
from ppl_risk.mitigation.domains import Domain
from ppl_risk.mitigation.fourier_series import FourierSeries
from ppl_risk.mitigation.monomials import Polynomial, exponents_of
from ppl_risk.mitigation.planted.moments import monomial_moments, standard_deviation

#: A polynomial with more monomials than this gets so many, drawn at random.
MONOMIALS = 500


class Affine(nn.Module):
    """w.x + b, float64.

    Example:
        >>> Affine(torch.tensor([1.0, -2.0]).double(), 0.5)(torch.tensor([[1.0, 1.0]]))
        tensor([-0.5000], dtype=torch.float64)

    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Float[Tensor, " n"], bias: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight.double())
        self.register_buffer("bias", torch.as_tensor(bias, dtype=torch.float64))
        self.eval()

    def forward(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, " batch"]:
        """The values."""
        return x.double() @ self.weight + self.bias


def independent_parities(n: int, count: int, *, seed: int) -> Bool[Tensor, "count n"]:
    """Random sets whose parities are independent over GF(2), so that no product of some of them is constant.

    Raises:
        RiskError: unless 1 <= count <= n.

    Example:
        >>> independent_parities(10, 3, seed=0).shape
        torch.Size([3, 10])

    """
    if not 1 <= count <= n:
        raise RiskError(f"There are between 1 and n = {n} independent parities on {n} bits, wanted {count}.")
    generator = torch.Generator().manual_seed(seed)
    while True:
        sets = torch.rand(count, n, generator=generator) < 0.5
        if _rank(sets) == count:
            return sets


def _rank(sets: Tensor) -> int:
    rows = [int("".join(map(str, row)), 2) for row in sets.int().tolist()]
    rank = 0
    while any(rows):
        pivot = max(rows)
        rows = [min(row, row ^ pivot) for row in rows if row != pivot]
        rank += 1
    return rank


def majority_of_parities(n: int, *, seed: int) -> FourierSeries:
    """Maj3 of three random parities: values +-1, four coefficients +-1/2.

    Raises:
        RiskError: for n < 3.

    Example:
        >>> majority_of_parities(10, seed=0).coefficients.tolist()
        [0.5, 0.5, 0.5, -0.5]

    """
    return FourierSeries(*_majority(independent_parities(n, 3, seed=seed)))


def product_of_majorities(n: int, *, seed: int) -> FourierSeries:
    """The product of Maj3 of three parities and Maj3 of three others, all independent: sixteen coefficients +-1/4.

    Raises:
        RiskError: for n < 6.

    Example:
        >>> product_of_majorities(10, seed=0).coefficients.abs().unique().tolist()
        [0.25]

    """
    sets = independent_parities(n, 6, seed=seed)
    (left, c), (right, d) = _majority(sets[:3]), _majority(sets[3:])
    return FourierSeries((left[:, None] ^ right).flatten(0, 1), torch.outer(c, d).flatten())


def _majority(three: Tensor) -> tuple[Tensor, Tensor]:
    together = three[0] ^ three[1] ^ three[2]
    return torch.cat([three, together[None]]), torch.tensor([0.5, 0.5, 0.5, -0.5], dtype=torch.float64)


def random_affine(domain: Domain, *, seed: int) -> Affine:
    """Affine with a normal direction and a normal value at 0, standard deviation 1 under the uniform law.

    Raises:
        RiskError: for a domain other than Ball, Cube and Simplex.

    Example:
        >>> from ppl_risk.mitigation.domains import Ball
        >>> round(float(random_affine(Ball(14), seed=0).weight.norm()), 6)  # the variance of a coordinate is 1 / (n + 2)
        4.0

    """
    draw = torch.randn(domain.n + 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weight = draw[:-1] / standard_deviation(domain, torch.eye(domain.n, dtype=torch.long), draw[:-1])
    return Affine(weight, float(draw[-1]))


def random_polynomial(domain: Domain, degree: int, *, seed: int) -> Polynomial:
    """Polynomial of total degree at most `degree`: every monomial, or 500 at random, with equal spread; standard deviation 1.

    The coefficient of a monomial m is normal over sqrt(E m^2): otherwise the linear part, whose monomials are largest on a
    ball in many dimensions, would be all that is seen.

    Raises:
        RiskError: for degree < 1, or a domain other than Ball, Cube and Simplex.

    Example:
        >>> from ppl_risk.mitigation.domains import Ball
        >>> len(random_polynomial(Ball(20), 2, seed=0).coefficients)
        231

    """
    if degree < 1:
        raise RiskError(f"degree must be at least 1, got {degree}.")
    generator = torch.Generator().manual_seed(seed)
    index = _monomials(domain.n, degree, generator)
    draw, exponents = torch.randn(len(index), generator=generator, dtype=torch.float64), exponents_of(index, domain.n)
    draw = draw / monomial_moments(domain, 2 * exponents).sqrt()
    return Polynomial(index, draw / standard_deviation(domain, exponents, draw))


def _monomials(n: int, degree: int, generator: torch.Generator) -> Tensor:
    """Multisets of `degree` columns of (1, x): subsets of n + degree things, less 0, 1, 2, ...; the last of them stands for 1."""
    shift = torch.arange(degree)
    if math.comb(n + degree, degree) <= MONOMIALS:
        return (torch.combinations(torch.arange(n + degree), degree) - shift + 1) % (n + 1)
    rows = torch.empty(0, degree, dtype=torch.long)
    while len(rows) < MONOMIALS:
        places = torch.rand(4 * MONOMIALS, n + degree, generator=generator).argsort(-1)[:, :degree].sort(-1).values
        rows = torch.cat([rows, places - shift]).unique(dim=0)
    return (rows[torch.randperm(len(rows), generator=generator)[:MONOMIALS]] + 1) % (n + 1)
