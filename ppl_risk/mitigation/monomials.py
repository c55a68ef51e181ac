r"""Polynomials by their monomials: sum_j w_j x^{a_j} over all a_j of total degree at most d, in float64.

A monomial of total degree at most d in n inputs is a product of d columns of (1, x_1, ..., x_n) with repetition, so that an index
(p, d) with p = C(n + d, d) rows holds them all, and their values are d gathers and d - 1 products.
"""

from __future__ import annotations

import math
from itertools import chain, combinations_with_replacement

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ppl_risk.errors import RiskError
from ppl_risk.mitigation.wanted import rows_in

#: Most monomial values in one batch of an answer.
BATCH = 2**24


def monomials(x: Float[Tensor, "batch n"], index: Int[Tensor, "p d"]) -> Float[Tensor, "batch p"]:
    """Products of the columns of (1, x) that each row of `index` names; column 0 is the constant.

    Example:
        >>> monomials(torch.tensor([[2.0, 3.0]]), monomial_index(2, 2)).tolist()
        [[1.0, 2.0, 3.0, 4.0, 6.0, 9.0]]

    """
    columns = torch.cat([torch.ones_like(x[:, :1]), x], dim=-1)
    out = columns[:, index[:, 0]]
    for k in range(1, index.shape[1]):
        out = out * columns[:, index[:, k]]
    return out


def monomial_index(n: int, degree: int) -> Int[Tensor, "p d"]:
    """All multisets of `degree` columns out of n + 1: every monomial of total degree at most `degree`, the constant first.

    Example:
        >>> len(monomial_index(20, 3))
        1771

    """
    flat = chain.from_iterable(combinations_with_replacement(range(n + 1), degree))
    count = math.comb(n + degree, degree)
    return torch.from_numpy(np.fromiter(flat, dtype=np.int64, count=count * degree)).reshape(count, degree)


def exponents_of(index: Int[Tensor, "p d"], n: int) -> Int[Tensor, "p n"]:
    """The power of each coordinate in each monomial.

    Example:
        >>> exponents_of(monomial_index(2, 2), 2).tolist()
        [[0, 0], [1, 0], [0, 1], [2, 0], [1, 1], [0, 2]]

    """
    return nn.functional.one_hot(index, n + 1).sum(1)[:, 1:]


class Polynomial(nn.Module):
    """sum_j w_j x^{a_j}, float64, by batches of rows.

    Args:
        index: (p, d), as of `monomial_index`.
        coefficients: (p,).
        n: numbers a row, where other widths are to be refused.

    Raises:
        RiskError: if there is not one coefficient a monomial.

    Example:
        >>> Polynomial(monomial_index(2, 1), torch.tensor([1.0, 2.0, 3.0]))(torch.tensor([[1.0, 1.0]])).tolist()
        [6.0]

    """

    index: Tensor
    coefficients: Tensor

    def __init__(
        self, index: Int[Tensor, "p d"], coefficients: Float[Tensor, " monomials"], n: int | None = None
    ) -> None:
        super().__init__()
        if coefficients.shape != index.shape[:1]:
            raise RiskError(f"Wanted one coefficient a monomial, got {tuple(coefficients.shape)} for {len(index)}.")
        self.n = n
        self.register_buffer("index", index)
        self.register_buffer("coefficients", coefficients.double())
        self.eval()

    def forward(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, " batch"]:
        """The values.

        Raises:
            RiskError: for anything but rows (batch, n) of finite numbers.

        """
        rows = max(1, BATCH // len(self.coefficients))
        inputs = rows_in(x, self.n).double()
        return torch.cat([monomials(part, self.index) @ self.coefficients for part in inputs.split(rows)])
