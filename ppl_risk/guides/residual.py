r"""What enters where a layer's input is not carried: independent noise that leaves the carried functionals alone.

A layer reads h, with mean mu and covariance C, and carries z = B^T h exactly. Its input becomes

    mu + A (z - B^T mu) + K D^{1/2} e,   A = C B (B^T C B)^{-1},   K = I - D B (B^T D B)^{-1} B^T,

A the regression of h on z, e independent with mean 0 and variance 1, D diagonal such that every unit keeps its variance. For
Gaussian e this is the law of largest entropy among those with the tracked covariances C B and the variances of C: independence
is presumed of everything that is not tracked, and of nothing that is. K matters: without it the noise leaks into z, whose
variance (and with it the tail) is then too large. Rank 0 gives independent units, full rank h itself.

Where the rest is strongly correlated there may be no D >= 0 that keeps every variance (the law of largest entropy then has
negative entries in its precision and is no conditioned independent noise); such units end up with less. On the trained
networks of the zoo that law, sampled with its dense root, moves the tail by no more than the noise of the comparison.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ppl_risk.guides.laws import inverse_softplus

#: Knots of the fitted marginals, in standard deviations of the normal that drives them; straight lines beyond.
KNOTS = torch.linspace(-4, 4, 65)


class CarriedInput(nn.Module):
    """The input of one layer: carried functionals, and the law of the rest (parameters `shift` and `scale`)."""

    functionals: Tensor
    pattern: Tensor
    centre: Tensor
    unit: Tensor
    leak: Tensor
    knots: Tensor

    def __init__(self, functionals: Float[Tensor, "width rank"], marginals: str) -> None:
        super().__init__()
        width = functionals.shape[0]
        self.marginals = marginals
        self.register_buffer("functionals", functionals)
        self.register_buffer("pattern", torch.zeros_like(functionals))
        self.register_buffer("leak", torch.zeros_like(functionals))
        self.register_buffer("centre", functionals.new_zeros(width))
        self.register_buffer("unit", functionals.new_ones(width))
        self.register_buffer("knots", KNOTS.to(functionals)[:, None].repeat(1, width))
        self.shift = nn.Parameter(functionals.new_zeros(width))
        self.free_scale = nn.Parameter(inverse_softplus(functionals.new_ones(width)))

    @property
    def scale(self) -> Float[Tensor, " width"]:
        """D^{1/2}."""
        return self.unit * nn.functional.softplus(self.free_scale)

    def carried(self, h: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        """mu + A (z - B^T mu), the noise left out."""
        return self.centre + ((h - self.centre) @ self.functionals) @ self.pattern.mT

    def noise(self, e: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        """K (shift + D^{1/2} m(e)) from standard normals e, m the fitted marginals."""
        independent = self.shift * self.unit + self.scale * (self._shaped(e) if self.marginals == "empirical" else e)
        return independent - (independent @ self.functionals) @ self.leak.mT

    def root(self) -> Float[Tensor, "width width"]:
        """K D^{1/2}: the noise is this times standard normals."""
        diagonal = torch.diag(self.scale)
        return diagonal - self.leak @ (self.functionals.mT * self.scale)

    @torch.no_grad()
    def fit(self, h: Float[Tensor, "draws width"]) -> None:
        """Maximum likelihood on draws of h: regression, variances of the rest, and its marginals."""
        h = h.double()
        functionals = self.functionals.double()
        mean, covariance = h.mean(0), h.mT.cov().reshape(h.shape[1], h.shape[1])
        moved = covariance @ functionals
        pattern = moved @ torch.linalg.pinv(functionals.mT @ moved, rtol=1e-9, hermitian=True)
        rest = (h - mean) - ((h - mean) @ functionals) @ pattern.mT
        variance = rest.var(0)
        spread = covariance.diagonal().sqrt()
        unit = torch.where(spread > 0, spread, torch.ones_like(spread))
        scaled = unit[:, None] * functionals
        # Of a unit that never moves, and of one that z determines, nothing is left to draw.
        left = (variance / unit.square()).clamp(min=1e-12)
        scales = conditioned_variances(left, scaled)
        weighted = scales[:, None] * scaled
        leak = weighted @ torch.linalg.pinv(scaled.mT @ weighted, rtol=1e-9, hermitian=True)
        self.centre.copy_(mean)
        self.unit.copy_(unit)
        self.pattern.copy_(pattern)
        self.leak.copy_(unit[:, None] * leak)
        self.shift.zero_()
        self.free_scale.copy_(inverse_softplus(scales.sqrt().clamp(min=1e-6)))
        if self.marginals == "empirical":
            self.knots.copy_(_quantiles(rest / variance.sqrt().clamp(min=1e-12)))

    def _shaped(self, e: Tensor) -> Tensor:
        place = (e - KNOTS[0]) / (KNOTS[1] - KNOTS[0])
        below = place.floor().clamp(0, len(KNOTS) - 2).long()
        low, high = self.knots.gather(0, below), self.knots.gather(0, below + 1)
        return low + (place - below) * (high - low)


def conditioned_variances(
    wanted: Float[Tensor, " width"], functionals: Float[Tensor, "width rank"], iterations: int = 200
) -> Float[Tensor, " width"]:
    """D with diag(D - D B (B^T D B)^{-1} B^T D) = wanted, by scaling each entry in turn towards it."""
    scales = wanted.clone()
    if not functionals.shape[1]:
        return scales
    span = torch.linalg.qr(functionals).Q  # conditioning asks for the span of B alone, and Q^T D Q is as sound as D
    for _ in range(iterations):
        left = scales - _taken(scales, span).square().sum(0)
        ratio = wanted / left.clamp(min=1e-3 * wanted)
        scales = (scales * ratio.clamp(0.2, 5.0)).clamp(max=1e4 * wanted)
        if float((ratio - 1).abs().max()) < 1e-4:
            break
    return scales


def _taken(scales: Float[Tensor, " width"], span: Float[Tensor, "width rank"]) -> Float[Tensor, "rank width"]:
    """L^{-1} Q^T D with L L^T = Q^T D Q; the variance that conditioning takes from a unit is its column's square."""
    weighted = scales[:, None] * span
    inner = span.mT @ weighted
    inner.diagonal().add_(1e-12 * inner.diagonal().mean())
    return torch.linalg.solve_triangular(torch.linalg.cholesky(inner), weighted.mT, upper=False)


def _quantiles(rest: Float[Tensor, "draws width"]) -> Float[Tensor, "knots width"]:
    """Values of standardised draws at the knots; beyond the outermost draws the slope is that of the normal."""
    knots = KNOTS.to(rest)
    reach = float(torch.special.ndtri(torch.tensor(1 - 5 / max(len(rest), 12), dtype=torch.float64)))
    inside = knots.clamp(-reach, reach)
    values = torch.stack([column.quantile(torch.special.ndtr(inside)) for column in rest.unbind(1)], 1)
    values = values + (knots - inside)[:, None]
    # Mean 0 and variance 1 under the normal that drives them; trapezoid weights on the knots.
    weight = torch.exp(-0.5 * knots.square())
    weight = (weight / weight.sum())[:, None]
    values = values - (weight * values).sum(0)
    spread = (weight * values.square()).sum(0).sqrt()
    return torch.where(spread > 1e-6, values / spread.clamp(min=1e-6), knots[:, None])
