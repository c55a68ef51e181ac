"""Path-derivative gradients: sample with gradients, score without.

The ELBO's gradient has a term E_q[grad log q] = 0 that is pure noise. Dropping it leaves the gradient unbiased, and its noise
vanishes as the guide approaches the posterior (Roeder, Wu, Duvenaud 2017, "Sticking the landing", arXiv 1703.09194).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor


class PathGradient(TorchDistribution):
    """A law that samples from `live` (with gradients) and scores with `frozen`, the same law on detached parameters."""

    has_rsample = True
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - the name and type are torch's

    def __init__(self, live: Any, frozen: Any, batch_shape: Sequence[int] = ()) -> None:
        # Both laws stay as they are, with batch shape (): a batch of particles is so many draws, and expanding the laws would
        # multiply their matrices by the number of particles.
        self.live, self.frozen = live, frozen
        super().__init__(torch.Size(batch_shape), live.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """Support of the law."""
        return self.live.support

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> PathGradient:
        """The same law, independently for each entry of the batch."""
        return PathGradient(self.live, self.frozen, batch_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Sample with gradients."""
        return self.live.rsample(torch.Size(sample_shape) + self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, nats, whose gradient goes through the value alone."""
        return self.frozen.log_prob(value)
