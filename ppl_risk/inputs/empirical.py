r"""Recorded data as an input law: a data point drawn at random, with normal noise on it.

x = data_i + L z, i ~ weights, z ~ N(0, I), L L^T the noise covariance: a kernel density estimate, whose log density is

    log p(x) = log sum_i w_i N(x; data_i, L L^T).

The first normal chooses i by a step function (gradient 0), the others are z. Without noise nothing beyond the data could ever
be seen, and a probability far below 1 / (number of points) would mean nothing: how far the noise reaches is the assumption that
the estimate rests on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributions as td
from jaxtyping import Float
from torch import Tensor
from torch.distributions import constraints

from ppl_risk.errors import RiskError
from ppl_risk.inputs.tails import categories, steps
from ppl_risk.inputs.transport import Part, part_of


class EmpiricalWithNoise(td.Distribution):
    """x = data_i + noise, (*event), i uniform or weighted; batch_shape ().

    Args:
        data: recorded inputs (points, *event), floating; in their units.
        noise: standard deviation > 0 in the units of the data, one number or one per coordinate (broadcast to *event).
        covariance, scale_tril: instead of `noise`, (n, n) over the flattened event; scale_tril is lower triangular.
        weights: (points,) relative weights >= 0; default equal.

    Raises:
        RiskError: shapes that do not fit, noise not positive, not exactly one of noise, covariance and scale_tril.

    Example:
        >>> law = EmpiricalWithNoise(torch.tensor([[0.0, 0.0], [5.0, 5.0]]), 0.1)
        >>> law.sample((7,)).shape, law.log_prob(torch.zeros(2)).shape
        (torch.Size([7, 2]), torch.Size([]))
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - the name and type are torch's
    has_rsample = False

    def __init__(
        self,
        data: Tensor,
        noise: float | Tensor | None = None,
        *,
        covariance: Float[Tensor, "n n"] | None = None,
        scale_tril: Float[Tensor, "n n"] | None = None,
        weights: Tensor | None = None,
    ) -> None:
        if data.dim() < 1 or not len(data) or not data.is_floating_point() or not bool(torch.isfinite(data).all()):
            raise RiskError(
                f"data must be a finite floating tensor (points, *event), got {tuple(data.shape)} of {data.dtype}."
            )
        if sum(part is not None for part in (noise, covariance, scale_tril)) != 1:
            raise RiskError("Give exactly one of noise, covariance and scale_tril.")
        event, size = data.shape[1:], data.shape[1:].numel()
        self.data, self.weights = data, _weights(weights, data)
        self.noise = None if noise is None else _spread(noise, data)
        if covariance is not None:
            scale_tril, failed = torch.linalg.cholesky_ex(covariance)
            if int(failed):
                raise RiskError("covariance is not positive definite. Add a little to its diagonal.")
        if scale_tril is not None:
            if scale_tril.shape != (size, size) or not bool((scale_tril.diagonal() > 0).all()):
                raise RiskError(
                    f"scale_tril or covariance must be ({size}, {size}) with a positive diagonal, got {tuple(scale_tril.shape)}."
                )
            self._root = scale_tril.to(data.device, data.dtype)
        self._at = categories(self.weights)
        super().__init__(torch.Size(), event, validate_args=False)

    @property
    def support(self) -> Any:
        """All of space."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        """Weighted mean of the data."""
        return torch.einsum("p,p...->...", self.weights.to(self.data.dtype), self.data)

    def sample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "*sample_and_event"]:
        """Draw (*sample_shape, *event)."""
        shape = torch.Size(sample_shape)
        index = torch.multinomial(self.weights, shape.numel(), replacement=True).reshape(shape)
        z = torch.randn(*shape, self.event_shape.numel(), dtype=self.data.dtype, device=self.data.device)
        return self.moved(index, z)

    def moved(self, index: Tensor, z: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch_and_event"]:
        """data[index] with the noise that z ~ N(0, I) stands for."""
        if self.noise is not None:
            return self.data[index] + self.noise * z.reshape(index.shape + self.event_shape)
        return self.data[index] + (z @ self._root.mT).reshape(index.shape + self.event_shape)

    def log_prob(self, value: Float[Tensor, "*batch_and_event"]) -> Float[Tensor, "*batch"]:
        """log sum_i w_i N(value; data_i, noise), nats; points x batch numbers of memory."""
        lead, size = value.shape[: value.dim() - len(self.event_shape)], self.event_shape.numel()
        x, points = self._whitened(value.reshape(-1, size)), self._whitened(self.data.reshape(-1, size))
        # Not by a matrix product: that would lose small distances between large vectors.
        gap = torch.cdist(x, points, compute_mode="donot_use_mm_for_euclid_dist")
        scale = self.noise if self.noise is not None else self._root.diagonal()
        constant = scale.log().sum() + size / 2 * math.log(2 * math.pi)
        return ((-gap.square() / 2 + self.weights.log().to(gap.dtype)).logsumexp(-1) - constant).reshape(lead)

    def _whitened(self, rows: Tensor) -> Tensor:
        if self.noise is not None:
            return rows / self.noise.reshape(-1)
        return torch.linalg.solve_triangular(self._root, rows.mT, upper=False).mT


def _weights(weights: Tensor | None, data: Tensor) -> Tensor:
    """Normalised, float64."""
    if weights is None:
        return torch.full((len(data),), 1 / len(data), dtype=torch.float64, device=data.device)
    if weights.shape != (len(data),) or not bool((weights >= 0).all()) or not float(weights.sum()) > 0:
        raise RiskError(
            f"weights must be {len(data)} numbers >= 0, one a data point, got shape {tuple(weights.shape)}."
        )
    return weights.to(data.device, torch.float64) / weights.double().sum()


def _spread(noise: float | Tensor, data: Tensor) -> Tensor:
    """Standard deviations of the shape of one event."""
    event = data.shape[1:]
    try:
        spread = torch.as_tensor(noise, dtype=data.dtype, device=data.device).expand(event)
    except RuntimeError as error:
        raise RiskError(
            f"noise is one number or fits one input of shape {tuple(event)}; for a matrix use covariance= or scale_tril=."
        ) from error
    if not bool((spread > 0).all()):
        raise RiskError("noise must be > 0 everywhere; give a coordinate without noise a very small one.")
    return spread


@part_of.register
def _(law: EmpiricalWithNoise) -> Part:
    size = law.event_shape.numel()
    marks = torch.arange(1 + size) == 0
    return Part(torch.Size([1 + size]), lambda u: law.moved(steps(u[..., 0], law._at), u[..., 1:]), marks)
