"""A mixture of tilted laws as a proposal, sampled in proportion: each component gives its share of the draws, not more or less."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppl_risk.importance.gated import Points, Tilted


def proportional(shares: Float[Tensor, " laws"], draws: int) -> Int[Tensor, " laws"]:
    """Whole numbers in proportion to shares (sum 1) that add up to `draws`.

    Example:
        >>> proportional(torch.tensor([0.1, 0.25, 0.65]), 10)
        tensor([1, 3, 6])
    """
    ends = (shares.cumsum(0) * draws).round().long()
    return torch.diff(ends, prepend=ends.new_zeros(1))


class Drawn(NamedTuple):
    """Draws with the component that gave each, and the share of the draws that each component really gave."""

    points: Points
    stratum: Tensor
    shares: Tensor


@dataclass(frozen=True)
class Mixture:
    """Laws and their shares, sum 1.

    Example:
        >>> none = torch.zeros(0).double()
        >>> prior = Tilted(torch.zeros(3, 0).double(), none, none)
        >>> Mixture([prior], torch.ones(1).double()).sample(4).stratum
        tensor([0, 0, 0, 0])
    """

    laws: Sequence[Tilted]
    shares: Float[Tensor, " laws"]

    def counts(self, draws: int) -> Int[Tensor, " laws"]:
        """How many of the draws each component gives."""
        return proportional(self.shares / self.shares.sum(), draws)

    def sample(self, draws: int) -> Drawn:
        """Draws of u, component after component."""
        counts = self.counts(draws)
        u = torch.cat([law.sample(n) for law, n in zip(self.laws, counts.tolist(), strict=True) if n])
        stratum = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        return Drawn(Points.of(u), stratum, counts.double() / draws)

    def log_tilts(self, points: Points) -> Float[Tensor, "n laws"]:
        """log q_k(u) - log N(u; 0, I) of each component."""
        return torch.stack([law.log_tilt(points) for law in self.laws], -1)
