r"""P_0, a law of independent linear features, and the Gaussian copula that makes them fire together.

    x = b + sum_j z_j v_j + R e,   z_j = Q_j(u_j),   u_j = l_j (w + omega) + sqrt(1 - l_j^2) (e_j + eta_j),   w, e_j, e ~ N(0, 1),

Q_j piecewise linear (a sparse feature is flat at 0 up to its spike), l = 0 where features are independent. eta, omega and moved
directions V + R G are what an adversary may change; with M = E z z' under the moved law the chain rule gives, in nats,

    KL(moved || start) = |eta|^2 / 2 + omega^2 / 2 + tr(G M G') / 2

of the laws of (z, x), and no more than that of the laws of x. Features of layers: "Estimating Tail Risk in Neural Networks", ARC
2024, method 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ppl_risk.errors import RiskError
from ppl_risk.propagation.saddlepoint import LEAST, Quantiles

COACTIVATIONS, MARGINALS, RESIDUALS = ("none", "pairwise"), ("empirical", "gaussian"), ("errors", "covariance", "none")
#: Probabilities, within what is not the spike, at which a marginal gets a knot; draws that must lie beyond the outermost.
LEVELS, BEYOND = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.97, 0.995), 8
#: Share of the draws at one value from which it is a spike, and rounds of the fit of one common factor.
SPIKE, ROUNDS = 0.01, 300
#: Share of the rows' variance below which a direction of the residual is rounding.
NEGLIGIBLE = 1e-9
#: Nodes of the integral over the common factor in E z z'.
NODES = 32


@dataclass(frozen=True)
class Dictionary:
    """Directions (n, J) and how the activations z (rows, J) of rows (rows, n) are found."""

    directions: Float[Tensor, "n j"]
    encode: Callable[[Tensor], Tensor] = field(repr=False)
    name: str = "given"

    def left_unexplained(self, x: Float[Tensor, "rows n"]) -> float:
        """Share of the variance of rows that their features leave, after one constant is added.

        Example:
            >>> x = torch.eye(2, dtype=torch.float64)
            >>> Dictionary(x, lambda rows: rows).left_unexplained(x)
            0.0
        """
        left = x - self.encode(x) @ self.directions.mT
        return float(left.var(0, correction=0).sum() / x.var(0, correction=0).sum())


@dataclass(frozen=True)
class FeatureLaw:
    """P_0: bias (n,), directions (n, J), quantiles of J features, residual R (n, m), loadings l (J,), eta (J,), omega ().

    Example:
        >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> fit_features(Dictionary(torch.eye(2).double(), lambda rows: rows), x).directions.shape
        torch.Size([2, 2])
    """

    bias: Tensor
    directions: Tensor
    quantiles: Quantiles
    residual: Tensor
    loadings: Tensor
    shift: Tensor
    factor_shift: Tensor
    name: str = "given"

    @property
    def coactive(self) -> bool:
        """Whether features share a common factor."""
        return bool((self.loadings != 0).any())

    def everything(self) -> tuple[Tensor, Quantiles]:
        """Directions (n, J + m) and quantiles with every column of the residual as one more, Gaussian, feature."""
        one = torch.ones_like(self.residual[0])
        directions = torch.cat([self.directions, self.residual], 1)
        return directions, self.quantiles.joined(Quantiles.gaussian(0 * one, one))

    def normals(self, w: Float[Tensor, " batch"]) -> tuple[Float[Tensor, "batch j"], Float[Tensor, "batch j"]]:
        """Mean and standard deviation of every u_j, those of the residual last, given the common factor w."""
        own = (1 - self.loadings.square()).clamp_min(LEAST**2).sqrt()
        mean = self.loadings * w[:, None] + own * self.shift
        rest = w.new_zeros(len(w), self.residual.shape[1])
        return torch.cat([mean, rest], 1), torch.cat([own.expand_as(mean), rest + 1], 1)

    def sample(self, rows: int) -> Float[Tensor, "rows n"]:
        """Draws of x, with torch's generator."""
        directions, quantiles = self.everything()
        w = torch.randn(rows, dtype=torch.float64, device=self.bias.device) + self.factor_shift
        mean, sd = self.normals(w)
        return self.bias + quantiles.of(mean + sd * torch.randn_like(mean)) @ directions.mT

    def second_moments(self) -> tuple[Float[Tensor, " j"], Float[Tensor, "j j"]]:
        """E z and E z z'."""
        nodes, weights = (
            torch.tensor(part, device=self.bias.device) for part in np.polynomial.hermite_e.hermegauss(NODES)
        )
        if not self.coactive:
            nodes, weights = nodes[:1] * 0, weights[:1]
        weights = weights / weights.sum()
        mean, sd = (part[:, : len(self.loadings)] for part in self.normals(nodes + self.factor_shift))
        z = self.quantiles.tilted(torch.zeros_like(mean), mean, sd)
        first = weights @ z.mean
        return first, (z.mean * weights[:, None]).mT @ z.mean + torch.diag(weights @ z.variance)

    def kl(self, turn: Tensor) -> Float[Tensor, ""]:
        """KL to the law it was moved from by its shifts and by residual @ turn, (m, J), in nats."""
        moved = (turn @ self.second_moments()[1] * turn).sum()
        return 0.5 * (self.shift.square().sum() + self.factor_shift.square() + moved)


def fit_features(
    dictionary: Dictionary,
    x: Float[Tensor, "rows n"],
    coactivation: str = "none",
    marginals: str = "empirical",
    residual: str = "errors",
) -> FeatureLaw:
    """P_0 fitted to rows of the input or of a layer: marginals, mean, covariance of what they leave, and co-activation.

    Args:
        dictionary: directions, and how activations are found. x: draws. coactivation: "none" or "pairwise", one common factor
            behind the normal scores of the activations. marginals: "empirical", or "gaussian" by mean and standard deviation.
        residual: independent Gaussian noise beside the features, with the covariance of what they do not reconstruct ("errors"),
            or of what their sum lacks of the rows' covariance, where positive ("covariance": P_0 then has nearly the second moments
            of the rows, which hides some of what independence gets wrong), or "none".

    Raises:
        RiskError: an unknown option, fewer than 100 rows, or activations that are not finite.

    Example:
        >>> x = torch.randn(500, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> bool(fit_features(Dictionary(torch.ones(1, 1).double(), lambda rows: rows), x).coactive)
        False
    """
    if coactivation not in COACTIVATIONS or marginals not in MARGINALS or residual not in RESIDUALS:
        raise RiskError(
            f"coactivation must be one of {', '.join(COACTIVATIONS)}, marginals one of {', '.join(MARGINALS)} and residual one of "
            f"{', '.join(RESIDUALS)}; got {coactivation!r}, {marginals!r} and {residual!r}."
        )
    x = x.double()
    z = dictionary.encode(x).double()
    directions = dictionary.directions.double()
    if len(x) < 100 or z.shape != (len(x), directions.shape[1]) or not bool(torch.isfinite(z).all()):
        raise RiskError(
            f"A law of features takes at least 100 rows and one finite activation a row and direction; got {len(x)} rows, "
            f"activations {tuple(z.shape)}, directions {tuple(directions.shape)}. Draw more, or look at the dictionary."
        )
    alive = z.std(0) > 1e-12
    z, directions = z[:, alive], directions[:, alive]
    quantiles = Quantiles.gaussian(z.mean(0), z.std(0)) if marginals == "gaussian" else _empirical(z)
    # Two exact opposites are correlated by -1 in Pearson's measure; normal scores of a sparse feature have ties.
    scores = z if marginals == "gaussian" else _normal_scores(z)
    loadings = one_factor(torch.corrcoef(scores.mT).reshape(z.shape[1], -1)) if coactivation == "pairwise" else z[0] * 0
    empty = x.new_zeros(x.shape[1], 0)
    law = FeatureLaw(x.mean(0), directions, quantiles, empty, loadings, 0 * z[0], 0 * z[0, 0], dictionary.name)
    mean, second = law.second_moments()
    law = replace(law, bias=x.mean(0) - directions @ mean)
    if residual == "none":
        return law
    left = torch.cov((x - z @ directions.mT).mT).reshape(x.shape[1], -1)
    if residual == "covariance":
        left = torch.cov(x.mT).reshape(x.shape[1], -1) - directions @ (second - mean[:, None] * mean) @ directions.mT
    values, vectors = torch.linalg.eigh(left)
    kept = values > NEGLIGIBLE * float(x.var(0).mean())
    return replace(law, residual=vectors[:, kept] * values[kept].sqrt())


def one_factor(correlation: Float[Tensor, "j j"]) -> Float[Tensor, " j"]:
    """Loadings l with l_i l_j close to the correlations off the diagonal, by principal factors.

    Example:
        >>> one_factor(torch.tensor([[1.0, -1.0], [-1.0, 1.0]])).prod().round().item()
        -1.0
    """
    correlation = torch.nan_to_num(correlation)
    off = correlation - torch.diag(correlation.diagonal())
    share = off.abs().amax(-1)
    factor = torch.zeros_like(share)
    for _ in range(ROUNDS):
        values, vectors = torch.linalg.eigh(off + torch.diag(share))
        factor = (vectors[:, -1] * values[-1].clamp_min(0.0).sqrt()).clamp(-1.0, 1.0)
        moved, share = share, factor.square()
        if float((moved - share).abs().max()) < 1e-9:
            break
    return factor


def _normal_scores(z: Tensor) -> Tensor:
    """Phi^{-1} of mid-ranks; ties share theirs."""
    ordered = z.mT.contiguous().sort(-1).values
    rows = z.mT.contiguous()
    rank = torch.searchsorted(ordered, rows) + torch.searchsorted(ordered, rows, right=True)
    return torch.special.ndtri(rank.mT.double() / (2 * len(z))).clamp(-6.0, 6.0)


def _empirical(z: Tensor) -> Quantiles:
    """Knots at quantiles of what is not the spike; where draws are few the outer ones move inwards."""
    rows = len(z)
    idle = (z <= 0).double().mean(0)
    smallest = z.amin(0)
    spike = torch.where((smallest >= 0) & (idle > SPIKE), idle.clamp_max(1 - (4 * BEYOND) / rows), 0.0)
    level = spike + (1 - spike) * torch.tensor(LEVELS, dtype=z.dtype, device=z.device)[:, None]
    level = torch.sort(level.clamp(BEYOND / rows, 1 - BEYOND / rows), 0).values
    ordered = z.sort(0).values
    values = ordered.gather(0, (level * (rows - 1)).round().long())
    knots = torch.special.ndtri(level)
    start = torch.special.ndtri(spike.clamp(1e-9, 1.0))
    # A sparse feature starts where its spike ends; a dense one has an idle knot below its first level.
    first = torch.where(spike > 0, start, knots[0] - 1.0)
    rise = (values[1] - values[0]) / (knots[1] - knots[0]).clamp_min(1e-6)
    below = torch.where(spike > 0, torch.zeros_like(rise), values[0] - rise)
    knots, values = torch.cat([first[None], knots]), torch.cat([below[None], values])
    # Levels that coincide are drawn apart by a hair, so that no piece is empty.
    knots = knots + 1e-6 * torch.arange(len(knots), dtype=z.dtype, device=z.device)[:, None]
    values = torch.cummax(values, 0).values
    right = (values[-1] - values[-3]) / (knots[-1] - knots[-3]).clamp_min(0.05)
    left = torch.where(spike > 0, torch.zeros_like(rise), rise)
    return Quantiles(knots.mT.contiguous(), values.mT.contiguous(), left, right)
