"""Proposals for importance sampling in the normal space: a defensive mixture around a guide's input law.

Three kinds of components: the prior N(0, I) (keeps every weight bounded by 1 / its share); the guide's law with its scales
floored (an underfitted narrow scale wrecks the weights); and the guide's means with unit scale, the classical mean shift, which
is right where the guide found the place but not the shape. A mixture is never worse than its best component by more
than that component's share (Hesterberg 1995, doi:10.1080/00401706.1995.10484303).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch

import pyro.distributions as dist
import torch
import torch.distributions as td
from jaxtyping import Float
from torch import Tensor

from ppl_risk.errors import RiskError
from ppl_risk.importance.mixture import proportional


class Proposal:
    """A mixture sampled in proportion: component k gives round(share_k n) draws, weighted against the whole mixture."""

    def __init__(self, components: Sequence[td.Distribution], shares: Float[Tensor, " components"]) -> None:
        self.components = list(components)
        self.shares = shares / shares.sum()

    def sample(self, draws: int) -> tuple[Float[Tensor, "draws d"], Float[Tensor, " draws"]]:
        """Draws and their log density under the mixture in the proportions really drawn."""
        counts = proportional(self.shares, draws)
        u = torch.cat([c.sample((n,)) for c, n in zip(self.components, counts.tolist(), strict=True) if n])
        return u, self.log_prob(u, counts.to(u.device, torch.float64) / draws)

    def log_parts(self, u: Float[Tensor, "draws d"]) -> Float[Tensor, "draws components"]:
        """Log density of each component."""
        return torch.stack([c.log_prob(u) for c in self.components], -1)

    def log_prob(
        self, u: Float[Tensor, "draws d"], shares: Float[Tensor, " components"] | None = None
    ) -> Float[Tensor, " draws"]:
        """Log density of the mixture."""
        return (self.log_parts(u) + (self.shares if shares is None else shares).log()).logsumexp(-1)

    def adapted(self, u: Float[Tensor, "draws d"], log_weights: Float[Tensor, " draws"], keep: float) -> Proposal:
        """Shares moved to the responsibilities of the weighted hits (one EM step); each component keeps `keep` of its own."""
        owner = (self.log_parts(u) + self.shares.log()).softmax(-1)
        new = (log_weights.softmax(0)[:, None] * owner).sum(0)
        return Proposal(self.components, keep * self.shares + (1 - keep) * new)


def standard_normal(dimension: int, device: torch.device) -> td.Distribution:
    """N(0, I) in double precision: weights are ratios of densities that nearly cancel."""
    return dist.Normal(torch.zeros(dimension, dtype=torch.float64, device=device), 1.0).to_event(1)


def defensive_mixture(law: td.Distribution, *, defensive: float = 0.1, floor: float = 0.1) -> Proposal:
    """The three-part proposal around a guide's input law.

    Args:
        law: law of u, event shape (d,). defensive: share of the prior. floor: smallest scale of the guide's component
            in units of the prior's.
    """
    means = component_means(law)
    prior = standard_normal(means.shape[-1], means.device)
    shifted = [dist.Normal(mean, 1.0).to_event(1) for mean in means]
    rest = 1 - defensive
    shares = [defensive, rest / 2] + [rest / 2 / len(shifted)] * len(shifted)
    return Proposal(
        [prior, floored(law, floor), *shifted], torch.tensor(shares, dtype=torch.float64, device=means.device)
    )


def component_means(law: td.Distribution) -> Float[Tensor, "components d"]:
    """Where a law's components lie, (1, d) where it has but one: means, or locations (a heavy tail may have no mean).

    Raises:
        RiskError: the law has neither.
    """
    if isinstance(law, dist.MixtureOfDiagNormals):
        return law.locs.double()
    if isinstance(law, td.MixtureSameFamily):
        return component_means(law.component_distribution)
    base = law.base_dist if isinstance(law, td.Independent) else law
    try:
        means = base.loc if _has_scale(base) else law.mean
    except NotImplementedError:
        means = torch.tensor(float("nan"))
    if not bool(means.isfinite().all()) or means.shape[-1:] != law.event_shape:
        raise RiskError(f"A guide's law of type {type(law).__name__} has no finite mean: give it a property `mean`.")
    return means.double().reshape(-1, means.shape[-1])


def _has_scale(law: td.Distribution) -> bool:
    """Whether a law is loc + scale times a law of fixed shape, made of just its parameters."""
    return {"loc", "scale"} <= set(law.arg_constraints) and law.support is td.constraints.real


@singledispatch
def floored(law: td.Distribution, minimum: float) -> td.Distribution:
    """The law in double precision with no scale below `minimum`: the same law where its scales are above.

    Raises:
        RiskError: nobody said how a law of this type is floored; it is never replaced by one of another shape.
    """
    raise RiskError(
        f"No scale floor is known for a guide's law of type {type(law).__name__}, so it cannot propose draws for importance "
        "sampling. Say how: @ppl_risk.importance.proposal.floored.register on a function (law, minimum) that returns the law in "
        "double precision with no scale below the minimum."
    )


@floored.register
def _(law: td.Independent, minimum: float) -> td.Distribution:
    base = law.base_dist
    if not _has_scale(base):
        return floored.dispatch(td.Distribution)(base, minimum)
    told = {name: torch.as_tensor(getattr(base, name)).double() for name in base.arg_constraints}
    told["scale"] = told["scale"].clamp(min=minimum)
    return td.Independent(type(base)(**told), law.reinterpreted_batch_ndims)


@floored.register
def _(law: td.LowRankMultivariateNormal, minimum: float) -> td.Distribution:
    diagonal = law.cov_diag.double().clamp(min=minimum**2)
    return dist.LowRankMultivariateNormal(law.loc.double(), law.cov_factor.double(), diagonal)


@floored.register
def _(law: td.MultivariateNormal, minimum: float) -> td.Distribution:
    values, vectors = torch.linalg.eigh(law.covariance_matrix.double())
    root = vectors * values.clamp(min=minimum**2).sqrt()
    # R of root^T = QR is the Cholesky factor up to signs, and never fails on a near-singular matrix.
    tril = torch.linalg.qr(root.mT).R.mT
    tril = tril * tril.diagonal().sign()
    return dist.MultivariateNormal(law.loc.double(), scale_tril=tril)


@floored.register
def _(law: dist.MixtureOfDiagNormals, minimum: float) -> td.Distribution:
    scale = law.coord_scale.double().clamp(min=minimum)
    return dist.MixtureOfDiagNormals(law.locs.double(), scale, law.component_logits.double())
