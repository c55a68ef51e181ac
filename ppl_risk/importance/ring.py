r"""A law of u whose length across few directions starts at the boundary: for events like |u - c| >= R, which have no nearest point.

As `Gated`, with the length rho of the rest (chi with `others` degrees of freedom) in place of one direction. Given v, a step
e_j of the boundary is chosen with probability w_j, and rho is drawn from its law beyond b(v) + e_j:

    q(rho | v) = sum_j w_j f(rho) 1{rho >= b(v) + e_j} / Pr[chi >= b(v) + e_j].

The staircase stands for a rough boundary and keeps density and inversion exact. (Radial importance sampling, Harbitz 1986,
doi:10.1016/0266-8920(86)90011-9, with a boundary that moves; ours.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.special import gammaincc, gammainccinv
from torch import Tensor

from ppl_risk.importance.gated import Gate, Points, Tilted

#: Steps of the boundary in units of its roughness, and how often each is taken.
STEPS = (-3.0, -2.0, -1.0, -0.3, 0.4)
CHANCES = (0.05, 0.1, 0.2, 0.3, 0.35)


@dataclass(frozen=True)
class Ring(Tilted):
    """A `Tilted` law along the basis, across it beyond the radius that the gate gives; `outside` is unused.

    Example:
        >>> none = torch.zeros(0).double()
        >>> law = Ring(torch.zeros(9, 0).double(), none, none, gate=Gate(6.0, 0.01, none, none))
        >>> bool((law.sample(100).norm(dim=-1) > 5.9).all())
        True
    """

    gate: Gate = None  # pyright: ignore[reportAssignmentType]

    def _bounds(self, along: Tensor) -> Float[Tensor, "n steps"]:
        start = self.gate.boundary((along - self.mean) / self.scale, along.new_zeros(len(along)))
        steps = torch.tensor(STEPS, dtype=along.dtype, device=along.device)
        return (start[:, None] + self.gate.roughness * steps).clamp(min=0.0)

    def _beyond(self, bound: Tensor) -> Tensor:
        """Pr[chi >= bound]."""
        tail = gammaincc(self.others / 2, bound.square().cpu().numpy() / 2)
        return torch.as_tensor(tail, dtype=bound.dtype, device=bound.device).clamp(min=1e-300)

    def sample(self, draws: int) -> Float[Tensor, "draws d"]:
        """Draws of u."""
        noise = torch.randn(draws, len(self.basis), dtype=self.basis.dtype, device=self.basis.device)
        along = noise @ self.basis
        rest = noise - along @ self.basis.mT
        along = self.mean + self.scale * along
        chances = torch.tensor(CHANCES, dtype=torch.float64, device=noise.device)
        step = torch.multinomial(chances, draws, replacement=True)
        bound = self._bounds(along).gather(1, step[:, None])[:, 0]
        tail = self._beyond(bound) * torch.rand_like(bound).clamp(min=1e-300)
        radius = (2 * torch.as_tensor(gammainccinv(self.others / 2, tail.cpu().numpy())).to(bound)).sqrt()
        return along @ self.basis.mT + rest * (radius / rest.norm(dim=-1))[:, None]

    def log_tilt(self, points: Points) -> Float[Tensor, " n"]:
        """log q(u) - log N(u; 0, I)."""
        along, rest = self.coordinates(points)
        bound = self._bounds(along)
        chances = torch.tensor(CHANCES, dtype=along.dtype, device=along.device)
        # An inverted radius is right to a few units in the last place only: the edge gives way by so much.
        inside = rest.sqrt()[:, None] >= bound * (1 - 1e-9)
        gate = (torch.where(inside, chances / self._beyond(bound), 0.0)).sum(-1).log()
        return self._tilt_along(along, 0) + gate
