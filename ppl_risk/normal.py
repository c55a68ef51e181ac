"""Normal(mean, sigma^2 I) over an event of any shape, with one scale: the density that every site of the model has.

`torch.distributions.Normal(...).to_event(k)` makes seven passes over the values; with a single scale the density is one dot
product. At 1024 particles that is most of an SVI step (see `benchmarks/RESULTS.md`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class SphericalNormal(TorchDistribution):
    """log p(x) = -|x - mean|^2 / (2 sigma^2) - n log sigma - (n / 2) log 2 pi, nats, over the last `event_dim` dims.

    Example:
        >>> SphericalNormal(torch.zeros(3), 1.0, 1).log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    has_rsample = True
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - the name and type are torch's
    support: Any = constraints.real

    def __init__(self, mean: Tensor, sigma: float, event_dim: int) -> None:
        self.mean_, self.sigma = mean, sigma
        split = mean.dim() - event_dim
        super().__init__(mean.shape[:split], mean.shape[split:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Mean."""
        return self.mean_

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> SphericalNormal:
        """The law with its mean expanded."""
        return SphericalNormal(self.mean_.expand(*batch_shape, *self.event_shape), self.sigma, len(self.event_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Sample with gradients."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.mean_ + self.sigma * torch.randn(shape, dtype=self.mean_.dtype, device=self.mean_.device)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, nats."""
        events = len(self.event_shape)
        gap = (value - self.mean_).flatten(-events) if events else (value - self.mean_)[..., None]
        size = gap.shape[-1]
        constant = size * (math.log(self.sigma) + 0.5 * math.log(2 * math.pi))
        return torch.linalg.vecdot(gap, gap) * (-0.5 / self.sigma**2) - constant
