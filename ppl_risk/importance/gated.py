r"""Laws of u that differ from N(0, I) along few directions only, and gates that start them at the boundary of the event.

A law is given by its tilt, log q(u) - log N(u; 0, I), a function of the coordinates along the columns of S (d, r) and of the
squared length of the rest; so the weights neither degenerate nor lose digits as d grows.

`Tilted`: u = S y + rest, y ~ N(mean, diag scale^2), rest ~ N(0, outside^2).

`Gated`: as above, but the first direction is drawn given the others, from the standard normal t conditioned on a noisy
boundary, t >= b(v) + s e, e ~ N(0, 1):

    q(t | v) = phi(t) Phi((t - b(v)) / s) / Phi(-b(v) / sqrt(1 + s^2)),

b a quadratic in the other directions v (an extended skew normal, Azzalini 1985, doi:10.2307/4615982). Where the boundary
really is b(v) and s -> 0 every weight is the same: for a flat boundary the estimate has no variance at all. It is line sampling
(Koutsourelakis et al. 2004, doi:10.1016/j.probengmech.2003.10.001) whose lines are drawn instead of searched. Ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from scipy.special import ndtri_exp
from torch import Tensor

#: A fitted quadratic is not followed further out than this many scales.
REACH = 4.0


class Points(NamedTuple):
    """Rows u (n, d) in the normal space, and their squared lengths, which every law of a mixture needs."""

    u: Tensor
    square: Tensor

    @staticmethod
    def of(u: Float[Tensor, "n d"]) -> Points:
        """Points with their squared lengths."""
        return Points(u, u.square().sum(-1))


@dataclass(frozen=True)
class Tilted:
    """N(mean, scale^2) along the columns of `basis` (d, r), N(0, outside^2) across them; double precision.

    Example:
        >>> law = Tilted(torch.eye(5, 2).double(), torch.ones(2).double(), torch.ones(2).double())
        >>> law.sample(3).shape, float(law.log_tilt(Points.of(torch.zeros(1, 5).double())))
        (torch.Size([3, 5]), -1.0)
    """

    basis: Float[Tensor, "d r"]
    mean: Float[Tensor, " r"]
    scale: Float[Tensor, " r"]
    outside: float = 1.0

    @property
    def others(self) -> int:
        """Dimensions across the basis."""
        return self.basis.shape[0] - self.basis.shape[1]

    def coordinates(self, points: Points) -> tuple[Float[Tensor, "n r"], Float[Tensor, " n"]]:
        """Coordinates along the basis, and the squared length of what is left."""
        along = points.u @ self.basis
        return along, (points.square - along.square().sum(-1)).clamp(min=0.0)

    def sample(self, draws: int) -> Float[Tensor, "draws d"]:
        """Draws of u."""
        noise = torch.randn(draws, len(self.basis), dtype=self.basis.dtype, device=self.basis.device)
        along = noise @ self.basis
        rest = (noise.square().sum(-1) - along.square().sum(-1)).clamp(min=0.0) * self.outside**2
        inside = self._finish(self.mean + self.scale * along, rest)
        # u = S inside + outside (noise - S along), with one product and no copy of the noise.
        return noise.mul_(self.outside).add_((inside - self.outside * along) @ self.basis.mT)

    def _finish(self, along: Tensor, rest: Tensor) -> Tensor:
        """The coordinates along the basis, once those that depend on the others are drawn."""
        return along

    def log_tilt(self, points: Points) -> Float[Tensor, " n"]:
        """log q(u) - log N(u; 0, I)."""
        along, rest = self.coordinates(points)
        return self._tilt_along(along, 0) + self._tilt_outside(rest)

    def _tilt_along(self, along: Tensor, first: int) -> Tensor:
        y, mean, scale = along[:, first:], self.mean[first:], self.scale[first:]
        return (y.square() / 2 - ((y - mean) / scale).square() / 2 - scale.log()).sum(-1)

    def _tilt_outside(self, rest: Tensor) -> Tensor:
        return rest * (1 - self.outside**-2) / 2 - self.others * math.log(self.outside)


@dataclass(frozen=True)
class Gate:
    """The boundary b = start + linear . v + square . v^2 + bulge (|rest|^2 / others - 1), v in scales from its mean; and s."""

    start: float
    roughness: float
    linear: Float[Tensor, " across"]
    square: Float[Tensor, " across"]
    bulge: float = 0.0

    def boundary(self, v: Float[Tensor, "n across"], rest: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """b at standardised v and at |rest|^2 / others - 1."""
        v = v.clamp(-REACH, REACH)
        return self.start + v @ self.linear + v.square() @ self.square + self.bulge * rest.clamp(-REACH, REACH)


@dataclass(frozen=True)
class Gated(Tilted):
    """A `Tilted` law whose first direction is a standard normal beyond a noisy boundary; its own mean and scale are unused.

    Example:
        >>> flat, one = torch.zeros(0).double(), torch.ones(1).double()
        >>> law = Gated(torch.eye(3, 1).double(), one, one, gate=Gate(4.0, 1e-3, flat, flat))
        >>> bool((law.sample(100)[:, 0] > 3.99).all())
        True
    """

    gate: Gate = None  # pyright: ignore[reportAssignmentType]

    def standardised(self, along: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """What the boundary is a function of: the other directions in scales from their mean, |rest|^2 / others - 1."""
        return (along[:, 1:] - self.mean[1:]) / self.scale[1:], rest / max(1, self.others) - 1

    def _finish(self, along: Tensor, rest: Tensor) -> Tensor:
        bound = self.gate.boundary(*self.standardised(along, rest))
        return torch.cat([gated_heights(bound, self.gate.roughness)[:, None], along[:, 1:]], -1)

    def log_tilt(self, points: Points) -> Float[Tensor, " n"]:
        """log q(u) - log N(u; 0, I)."""
        along, rest = self.coordinates(points)
        bound, s = self.gate.boundary(*self.standardised(along, rest)), self.gate.roughness
        gate = torch.special.log_ndtr((along[:, 0] - bound) / s) - torch.special.log_ndtr(-bound / math.sqrt(1 + s * s))
        return self._tilt_along(along, 1) + self._tilt_outside(rest) + gate

    def widened(self, roughness: float) -> Gated:
        """The same place with a rougher boundary and no scale below the prior's: what catches the fit's own errors."""
        gate = replace(self.gate, roughness=roughness)
        return replace(self, scale=self.scale.clamp(min=1.0), outside=max(1.0, self.outside), gate=gate)


def gated_heights(bound: Float[Tensor, " n"], roughness: float) -> Float[Tensor, " n"]:
    """t ~ N(0, 1) given t - roughness e >= bound: the difference from its tail, by inversion in log space; then t given it."""
    spread = math.sqrt(1 + roughness**2)
    tail = torch.special.log_ndtr(-bound / spread) + torch.rand_like(bound).clamp(min=1e-300).log()
    difference = -spread * torch.as_tensor(ndtri_exp(tail.cpu().numpy()), dtype=bound.dtype, device=bound.device)
    return difference / spread**2 + roughness / spread * torch.randn_like(bound)
