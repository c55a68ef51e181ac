r"""Trainable laws over R^n, the parts that guides are made of: Normal, LowRank, Full, Mixture.

Every law has its parameters after `__init__`, starts from draws by moment matching (the maximum-likelihood fit: the
forward KL), and gives its distribution and the marginal of a slice of coordinates. Scales are softplus of a free
parameter and never below a floor; low-rank and full laws are over-parametrised as loc + scale * (...) so that one
learning rate serves both (as in Pyro's AutoLowRankMultivariateNormal).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Integral
from typing import Protocol, runtime_checkable

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from ppl_risk.errors import RiskError
from ppl_risk.guides.pathwise import PathGradient

FLOOR = 1e-4


def inverse_softplus(value: Tensor) -> Tensor:
    """The x with softplus(x) = value."""
    return value + torch.log(-torch.expm1(-value))


class Law(nn.Module, ABC):
    """A trainable law over R^n."""

    dimension: int

    def __init__(self, dimension: int, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.dimension = dimension
        self.loc = nn.Parameter(torch.zeros(dimension, device=device))
        self.free_scale = nn.Parameter(inverse_softplus(torch.ones(dimension, device=device)))

    @property
    def scale(self) -> Float[Tensor, "*components n"]:
        """Positive scales."""
        return nn.functional.softplus(self.free_scale) + FLOOR

    def set_scale(self, scale: Tensor) -> None:
        """Make `self.scale` the given positive values."""
        self.free_scale.copy_(inverse_softplus((scale - FLOOR).clamp(min=1e-6)))

    def distribution(self) -> Distribution:
        """The law, event shape (n,), differentiable in the parameters."""
        return self.marginal(slice(0, self.dimension))

    def log_prob(self, z: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
        """Log density, nats."""
        return self.distribution().log_prob(z)  # pyright: ignore[reportReturnType] - a Tensor, which torch does not promise

    def pathwise(self) -> Distribution:
        """The law for the ELBO: sampled with gradients, scored without (see `PathGradient`).

        Raises:
            RiskError: the law draws without gradients.
        """
        with torch.no_grad():
            frozen = self.distribution()
        if not frozen.has_rsample:
            raise RiskError(
                f"The ELBO needs draws with gradients, which a law of type {type(frozen).__name__} does not give (has_rsample is "
                "False). Implement rsample, take a law that has it, or use ppl_risk.fit_layerwise."
            )
        return PathGradient(self.distribution(), frozen)

    @abstractmethod
    def marginal(self, part: slice) -> Distribution:
        """The law of the coordinates `part`."""

    @abstractmethod
    def fit(self, draws: Float[Tensor, "draws n"]) -> None:
        """Set the parameters to the maximum-likelihood fit of the draws (forward KL)."""


@runtime_checkable
class LawFamily(Protocol):
    """Description of a law, own ones included: what guides ask of it is `bind`."""

    def bind(self, dimension: int, device: torch.device | str = "cpu") -> Law:
        """The law over R^dimension, on a device."""
        ...


class NormalLaw(Law):
    """Normal(loc, diag(scale^2)): no correlation."""

    def marginal(self, part: slice) -> Distribution:
        """The law of the coordinates `part`."""
        return dist.Normal(self.loc[part], self.scale[part]).to_event(1)

    @torch.no_grad()
    def fit(self, draws: Float[Tensor, "draws n"]) -> None:
        """Mean and standard deviation of each coordinate."""
        self.loc.copy_(draws.mean(0))
        self.set_scale(draws.std(0))


class LowRankLaw(Law):
    """Normal(loc, diag(scale) (I + F F^T) diag(scale)), F of shape (n, rank)."""

    def __init__(self, dimension: int, rank: int, device: torch.device | str = "cpu") -> None:
        super().__init__(dimension, device)
        if not isinstance(rank, Integral) or rank < 1:
            raise RiskError(f"The rank of a low-rank law is a whole number from 1 on, got {rank!r}.")
        self.rank = min(int(rank), dimension)
        # Not zero: there the gradient with respect to the factor vanishes.
        start = torch.linspace(-1, 1, dimension * self.rank, device=device).reshape(dimension, self.rank)
        self.factor = nn.Parameter(0.01 * torch.cos(7.0 * start))

    def marginal(self, part: slice) -> Distribution:
        """The law of the coordinates `part`."""
        scale = self.scale[part]
        return dist.LowRankMultivariateNormal(self.loc[part], scale[:, None] * self.factor[part], scale**2)

    @torch.no_grad()
    def fit(self, draws: Float[Tensor, "draws n"], iterations: int = 100) -> None:
        """Factor analysis by EM on standardised coordinates (Rubin and Thayer 1982, doi:10.1007/BF02293851)."""
        loc, spread = draws.mean(0), draws.std(0).clamp(min=FLOOR)
        z = (draws - loc) / spread
        cov = z.mT @ z / z.shape[0]
        values, vectors = torch.linalg.eigh(cov)
        top, rest = values[-self.rank :], values[: -self.rank]
        noise = float(rest.mean()) if rest.numel() else FLOOR
        load = vectors[:, -self.rank :] * (top - noise).clamp(min=1e-6).sqrt()
        psi = (1 - load.square().sum(1)).clamp(min=1e-3)
        eye = torch.eye(self.rank, dtype=draws.dtype, device=draws.device)
        for _ in range(iterations):
            weighted = load / psi[:, None]
            inner = torch.linalg.inv(eye + load.mT @ weighted)
            beta = inner @ weighted.mT  # E[factor | z] = beta z
            cross = cov @ beta.mT
            load = cross @ torch.linalg.inv(inner + beta @ cross)
            psi = (cov.diagonal() - (load * cross).sum(1)).clamp(min=1e-3)
        self.loc.copy_(loc)
        self.set_scale(spread * psi.sqrt())
        self.factor.copy_(load / psi.sqrt()[:, None])


class FullLaw(Law):
    """Normal(loc, (diag(scale) L)(...)^T), L lower triangular with unit diagonal."""

    def __init__(self, dimension: int, device: torch.device | str = "cpu") -> None:
        super().__init__(dimension, device)
        self.lower = nn.Parameter(torch.zeros(dimension, dimension, device=device))

    def scale_tril(self) -> Float[Tensor, "n n"]:
        """The Cholesky factor.

        `lower` holds it times sqrt(n): a row has up to n entries, and steps of the size that suits one scale would together
        make the factor singular.
        """
        unit = self.lower.tril(-1) / math.sqrt(self.dimension) + torch.eye(
            self.dimension, device=self.lower.device, dtype=self.lower.dtype
        )
        return self.scale[:, None] * unit

    def marginal(self, part: slice) -> Distribution:
        """The law of the coordinates `part`."""
        tril = self.scale_tril()[part]
        if part.start == 0:
            return dist.MultivariateNormal(self.loc[part], scale_tril=tril[:, : part.stop])
        return dist.MultivariateNormal(self.loc[part], covariance_matrix=tril @ tril.mT)

    @torch.no_grad()
    def fit(self, draws: Float[Tensor, "draws n"]) -> None:
        """Mean and covariance, shrunk towards its diagonal where draws are too few for the dimension."""
        loc = draws.mean(0)
        cov = (draws - loc).mT @ (draws - loc) / draws.shape[0]
        # OAS-like intensity: of the order of (free entries per coordinate) / draws.
        keep = 1 - min(0.9, self.dimension / (self.dimension + draws.shape[0]))
        diagonal = cov.diagonal().clamp(min=FLOOR**2)
        cov = keep * cov + torch.diag((1 - keep) * diagonal + 1e-6 * diagonal)
        tril = torch.linalg.cholesky(cov)
        scale = tril.diagonal()
        self.loc.copy_(loc)
        self.set_scale(scale)
        self.lower.copy_(math.sqrt(self.dimension) * tril / scale[:, None])


class MixtureLaw(Law):
    """sum_k w_k Normal(loc_k, diag(scale_k^2)).

    The weights are set by `fit` and not by gradients: Pyro's pathwise gradient of the weights is off by a sixth where scales
    differ (measured in `tests/guides/test_pathwise.py`), while those of loc and scale are right.
    """

    logits: Tensor

    def __init__(self, dimension: int, components: int, device: torch.device | str = "cpu") -> None:
        super().__init__(dimension, device)
        self.loc = nn.Parameter(0.1 * torch.cos(torch.arange(components * dimension, device=device) * 1.0))
        self.loc.data = self.loc.data.reshape(components, dimension)
        self.free_scale = nn.Parameter(inverse_softplus(torch.ones(components, dimension, device=device)))
        self.register_buffer("logits", torch.zeros(components, device=device))

    def marginal(self, part: slice) -> Distribution:
        """The law of the coordinates `part`."""
        return dist.MixtureOfDiagNormals(self.loc[:, part], self.scale[:, part], self.logits)

    @torch.no_grad()
    def fit(self, draws: Float[Tensor, "draws n"], iterations: int = 30) -> None:
        """EM from components placed at draws far from each other (k-means++ order without chance: farthest first)."""
        count, (rows, n) = self.logits.shape[0], draws.shape
        spread = draws.std(0).clamp(min=FLOOR)
        chosen = [0]
        for _ in range(count - 1):
            gaps = torch.cdist(draws / spread, draws[chosen] / spread).min(1).values
            chosen.append(int(gaps.argmax()))
        loc, scale = draws[chosen].clone(), spread.expand(count, n).clone()
        weight = torch.full((count,), 1.0 / count, dtype=draws.dtype, device=draws.device)
        for _ in range(iterations):
            log_part = dist.Normal(loc, scale).to_event(1).log_prob(draws[:, None]) + weight.log()
            share = log_part.softmax(1)
            mass = share.sum(0) + 1e-3
            loc = share.mT @ draws / mass[:, None]
            scale = (share.mT @ draws.square() / mass[:, None] - loc.square()).clamp(min=1e-2 * spread.square()).sqrt()
            weight = (mass / rows).clamp(min=1e-3)
        self.loc.copy_(loc)
        self.set_scale(scale)
        self.logits.copy_(weight.log() - math.log(float(weight.sum())))


@dataclass(frozen=True)
class Normal:
    """Description of a `NormalLaw`."""

    def bind(self, dimension: int, device: torch.device | str = "cpu") -> Law:
        """The law over R^dimension."""
        return NormalLaw(dimension, device)


@dataclass(frozen=True)
class LowRankNormal:
    """Description of a `LowRankLaw`."""

    rank: int = 8

    def bind(self, dimension: int, device: torch.device | str = "cpu") -> Law:
        """The law over R^dimension."""
        return LowRankLaw(dimension, self.rank, device)


@dataclass(frozen=True)
class FullNormal:
    """Description of a `FullLaw`."""

    def bind(self, dimension: int, device: torch.device | str = "cpu") -> Law:
        """The law over R^dimension."""
        return FullLaw(dimension, device)


@dataclass(frozen=True)
class Mixture:
    """Description of a `MixtureLaw`."""

    components: int = 4

    def bind(self, dimension: int, device: torch.device | str = "cpu") -> Law:
        """The law over R^dimension."""
        return MixtureLaw(dimension, self.components, device)
