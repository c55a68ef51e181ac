r"""Functions on the cube {-1, +1}^n by their Fourier coefficients.

h(x) = sum_S c_S chi_S(x), chi_S(x) = prod over i in S of x_i. Since chi_S(x) is -1 to the number of negative bits in S, all
characters of all rows are one matrix product of zeros and ones, exact in floating point; all 2^n coefficients of a table of
values are one transform.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ppl_risk.errors import RiskError
from ppl_risk.mitigation.wanted import rows_in, tensor_of


def characters(x: Float[Tensor, "batch n"], supports: Bool[Tensor, "k n"]) -> Float[Tensor, "batch k"]:
    """chi_S(x) for every row and every set, float64.

    Example:
        >>> characters(torch.tensor([[1.0, -1.0]]), torch.tensor([[True, False], [True, True], [False, False]])).tolist()
        [[1.0, -1.0, 1.0]]

    """
    negative = (x < 0).double() @ supports.double().mT
    return 1 - 2 * torch.remainder(negative, 2)


def walsh_hadamard(values: Float[Tensor, "*batch size"]) -> Float[Tensor, "*batch size"]:
    """sum over z of (-1)^{|z & S|} values(z) for every S, in place: `values` is overwritten and returned.

    Its own inverse but for the factor 2^n. n passes of 2^n additions.

    Args:
        values: (*batch, 2^n), float64, contiguous; bit k of an index is the k-th coordinate, 1 for negative.

    Raises:
        RiskError: for another type, a size that is no power of two, or memory that is not contiguous.

    Example:
        >>> walsh_hadamard(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)).tolist()
        [0.0, 0.0, 0.0, 4.0]

    """
    if not isinstance(values, Tensor) or not values.dim():
        raise RiskError(f"walsh_hadamard wants a tensor (*batch, 2^n), got {type(values).__name__}.")
    size = values.shape[-1]
    if values.dtype != torch.float64 or size < 1 or size & (size - 1) or not values.is_contiguous():
        raise RiskError(
            f"walsh_hadamard works in place on contiguous float64 of a size that is a power of two, got {values.dtype}, "
            f"{tuple(values.shape)}{'' if values.is_contiguous() else ', not contiguous'}. Give values.double().contiguous()."
        )
    half = 1
    while half < size:
        low, high = values.view(*values.shape[:-1], size // (2 * half), 2, half).unbind(-2)
        # (a, b) -> (a + b, a - b) without a third array.
        low += high
        high.mul_(-2).add_(low)
        half *= 2
    return values


class FourierSeries(nn.Module):
    """sum_S c_S chi_S, or its sign (+1 at 0).

    Args:
        supports: the sets S, one row each.
        coefficients: c_S.
        sign: answer with the sign of the sum.
        bits: refuse inputs that are not +-1; otherwise an input counts by its sign.

    Raises:
        RiskError: if there is not one coefficient a set.

    Example:
        >>> parity = FourierSeries(torch.tensor([[True, True, False]]), torch.tensor([1.0]))
        >>> parity(torch.tensor([[1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]])).tolist()
        [-1.0, 1.0]

    """

    supports: Tensor
    coefficients: Tensor

    def __init__(
        self,
        supports: Bool[Tensor, "k n"],
        coefficients: Float[Tensor, " k"],
        *,
        sign: bool = False,
        bits: bool = False,
    ) -> None:
        super().__init__()
        supports, coefficients = tensor_of("supports", supports), tensor_of("coefficients", coefficients)
        if supports.dim() != 2 or coefficients.shape != supports.shape[:1]:
            raise RiskError(
                f"Wanted sets (k, n) and coefficients (k,), got {tuple(supports.shape)} and {tuple(coefficients.shape)}."
            )
        if not bool(torch.isfinite(coefficients).all()):
            raise RiskError("Some coefficients are NaN or infinite.")
        self.register_buffer("supports", supports.bool())
        self.register_buffer("coefficients", coefficients.double())
        self.sign, self.bits = sign, bits
        self.eval()

    def forward(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, " batch"]:
        """The values, float64.

        Raises:
            RiskError: for anything but rows (batch, n) of finite numbers.

        """
        rows = rows_in(x, self.supports.shape[1], bits=self.bits)
        total = characters(rows, self.supports) @ self.coefficients
        return torch.where(total >= 0, 1.0, -1.0).double() if self.sign else total

    def extra_repr(self) -> str:
        """The largest terms."""
        order = self.coefficients.abs().argsort(descending=True)[:8].tolist()
        return ", ".join(
            f"{self.coefficients[k]:+.3f} chi{self.supports[k].nonzero().flatten().tolist()}" for k in order
        )
