r"""Regions of a convex set with a given mass, as triggers: where a corruption of loss epsilon is placed.

A region is {score <= level}, with the k-th smallest score of N uniform draws as level, k = epsilon N. Its mass then follows
Beta(k, N + 1 - k): mean k / (N + 1), relative standard deviation sqrt((1 - epsilon) / k), 5 % with 400 draws inside. Our own
construction.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ppl_risk.errors import RiskError
from ppl_risk.mitigation.domains import Domain
from ppl_risk.mitigation.planted.backdoored import Trigger

#: Uniform draws: so many in the region, but no fewer and no more than these in all.
INSIDE, FEWEST, LARGEST = 400, 100_000, 2_000_000
#: Fewest draws in the region.
LEAST = 4
#: Numbers drawn at once.
NUMBERS = 2**22
#: Halvings of the segment along which `activate` moves a point into the region, and how far short of its edge it goes on.
HALVINGS, SHORT = 40, 1e-3


class Score(nn.Module):
    """What is small in a region: distance from a centre, minus the cosine seen from it, or minus the way along an axis.

    Args:
        kind: "nearest", "cone" or "cap".
        centre: the point it is seen from.
        axis: unit direction of the cone or the cap.

    Example:
        >>> Score("nearest", torch.zeros(2).double(), torch.zeros(2).double())(torch.tensor([[3.0, 4.0]]).double()).item()
        5.0

    """

    centre: Tensor
    axis: Tensor

    def __init__(self, kind: str, centre: Float[Tensor, " n"], axis: Float[Tensor, " n"]) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("centre", centre)
        self.register_buffer("axis", axis)

    def forward(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, " batch"]:
        """The score of each row."""
        away = x - self.centre
        if self.kind == "nearest":
            return away.norm(dim=-1)
        along = away @ self.axis
        return -along if self.kind == "cap" else -along / away.norm(dim=-1).clamp_min(1e-300)


class Region(Trigger):
    """Fires on the share epsilon of a convex set that has the smallest scores.

    Args:
        domain: the convex set.
        score: rows to numbers; its sublevel sets must be convex for `activate`.
        epsilon: share of the set.
        seed: of the draws.

    Attributes:
        level: largest score that fires.
        draws: uniform draws behind the level.
        accuracy: relative standard deviation of the true share about epsilon.

    Raises:
        RiskError: for an epsilon above 1/2, or so small that fewer than 4 of 2,000,000 draws would lie in the region.

    Example:
        >>> from ppl_risk.mitigation.domains import Cube
        >>> score = Score("cap", torch.zeros(2).double(), torch.tensor([1.0, 0.0]).double())
        >>> region = Region(Cube(2), score, 0.1, seed=0); round(-region.level, 1)  # x_0 >= 0.8
        0.8

    """

    anchor: Tensor

    def __init__(self, domain: Domain, score: nn.Module, epsilon: float, *, seed: int) -> None:
        super().__init__()
        if not LEAST / LARGEST <= epsilon <= 0.5:
            raise RiskError(
                f"epsilon must be between {LEAST / LARGEST:.0e} and 0.5 to be placed by draws, got {epsilon}."
            )
        self.draws = min(LARGEST, max(FEWEST, math.ceil(INSIDE / epsilon)))
        rank = round(epsilon * self.draws)
        self.score, self.epsilon, self.accuracy = score, epsilon, math.sqrt((1 - epsilon) / rank)
        self.level, anchor = self._place(domain, rank, torch.Generator().manual_seed(seed))
        self.register_buffer("anchor", anchor)

    def _place(self, domain: Domain, rank: int, generator: torch.Generator) -> tuple[float, Tensor]:
        """The rank-th smallest score, and the draw with the smallest."""
        lowest, anchor = torch.empty(0, dtype=torch.float64), torch.zeros(domain.n, dtype=torch.float64)
        left, least = self.draws, math.inf
        while left:
            drawn = domain.sample(min(NUMBERS // domain.n + 1, left), generator)
            left -= len(drawn)
            scores = self.score(drawn)
            if float(scores.min()) < least:
                least, anchor = float(scores.min()), drawn[scores.argmin()].clone()
            lowest = torch.cat([lowest, scores]).sort().values[:rank]
        return float(lowest[-1]), anchor

    def fires(self, x: Float[Tensor, "batch n"]) -> Bool[Tensor, " batch"]:
        """The score is at most the level."""
        return self.score(x.double()) <= self.level

    def activate(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """Each row moved into the region, straight towards the draw with the smallest score: it stays in the convex set."""
        y = x.double()
        inside, outside = y.new_zeros(len(y), 1), y.new_ones(len(y), 1)
        for _ in range(HALVINGS):
            middle = (inside + outside) / 2
            fires = self.fires(self.anchor + middle * (y - self.anchor))[:, None]
            inside, outside = torch.where(fires, middle, inside), torch.where(fires, outside, middle)
        moved = self.anchor + (1 - SHORT) * inside * (y - self.anchor)
        return torch.where(self.fires(x)[:, None], y, moved).to(x.dtype)
