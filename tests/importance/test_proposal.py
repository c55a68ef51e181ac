"""Proposals: densities that match the draws, floors, and shares that adapt."""

import pyro.distributions as dist
import pytest
import torch
import torch.distributions as td

from builders import assert_means
from ppl_risk.errors import RiskError
from ppl_risk.importance.proposal import Proposal, component_means, defensive_mixture, floored, standard_normal

G = torch.Generator().manual_seed(0)
ROOT = torch.randn(3, 3, generator=G).tril() + 2 * torch.eye(3)
LAWS = {
    "normal": dist.Normal(torch.tensor([1.0, -1.0, 0.0]), torch.tensor([0.5, 1.0, 1e-3])).to_event(1),
    "low-rank": dist.LowRankMultivariateNormal(torch.ones(3), torch.ones(3, 1), torch.tensor([0.5, 1e-8, 1.0])),
    "full": dist.MultivariateNormal(torch.ones(3), scale_tril=ROOT),
    "singular": dist.MultivariateNormal(torch.ones(3), torch.ones(3, 3) + 1e-5 * torch.eye(3)),
    "mixture": dist.MixtureOfDiagNormals(
        torch.tensor([[2.0, 0.0, 0.0], [-2.0, 0.0, 1.0]]),
        torch.tensor([[0.5, 1.0, 1e-4], [1.0, 1.0, 1.0]]),
        torch.tensor([0.0, 1.0]),
    ),
}  # fmt: skip


def covariance(law):
    return law.covariance_matrix if hasattr(law, "covariance_matrix") else torch.diag(law.variance)


@pytest.mark.parametrize("kind", ["normal", "low-rank", "full", "singular"])
def test_floor_keeps_the_mean_and_lifts_small_scales_only(kind):
    law, lifted = LAWS[kind], floored(LAWS[kind], 0.1)
    assert lifted.mean.dtype == torch.float64
    torch.testing.assert_close(lifted.mean, law.mean.double())
    before, after = covariance(law).double(), covariance(lifted)
    values = torch.linalg.eigvalsh(after)
    assert float(values.min()) > 0.01 * (1 - 1e-6)
    if kind == "full":
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    extra = torch.linalg.eigvalsh(after - before)
    assert float(extra.min()) > -1e-5
    assert float(extra.max()) < 0.01 + 1e-5


def test_floor_of_a_mixture():
    lifted = floored(LAWS["mixture"], 0.1)
    assert float(lifted.coord_scale.min()) == pytest.approx(0.1)
    torch.testing.assert_close(lifted.component_logits.float(), LAWS["mixture"].component_logits)


def test_no_floor_for_an_unknown_law():
    for law in (dist.Gamma(1.0, 1.0), dist.Gamma(torch.ones(3), 1.0).to_event(1)):
        with pytest.raises(RiskError, match=r"Gamma.*register"):
            floored(law, 0.1)


@pytest.mark.parametrize("df", [0.5, 2.1])
def test_a_heavy_tail_keeps_its_tail_under_the_floor(df):
    scale = torch.tensor([0.5, 1e-3, 2.0])
    law = dist.StudentT(df, torch.tensor([1.0, -1.0, 0.0]), scale).to_event(1)
    lifted = floored(law, 0.1)
    far = torch.tensor([[40.0, 3.0, -900.0]], dtype=torch.float64)
    expected = td.StudentT(df, law.base_dist.loc.double(), scale.double().clamp(min=0.1)).log_prob(far).sum(-1)
    torch.testing.assert_close(lifted.log_prob(far), expected)
    assert component_means(law).tolist() == [[1.0, -1.0, 0.0]], "a location, where there may be no mean"


@pytest.mark.parametrize("draws", [7, 100, 40_001])
def test_components_are_drawn_in_proportion(draws):
    """Far apart, so that each draw tells where it came from: every count within one of share * draws."""
    parts = [dist.Normal(torch.full((2,), 100.0 * i).double(), 1.0).to_event(1) for i in range(4)]
    shares = torch.tensor([0.1, 0.0, 0.55, 0.35], dtype=torch.float64)
    u, log_q = Proposal(parts, shares).sample(draws)
    counts = torch.bincount((u[:, 0] / 100).round().long(), minlength=4)
    assert float((counts - shares * draws).abs().max()) <= 1
    owner = (u[:, 0] / 100).round().long()
    expected = (
        torch.stack([p.log_prob(u) for p in parts], 1)[torch.arange(draws), owner] + (counts[owner] / draws).log()
    )
    torch.testing.assert_close(log_q, expected)


@pytest.mark.parametrize("kind", LAWS)
def test_density_fits_the_draws(kind):
    """E_q[f p / q] = E_p[f] for the standard normal p: total mass 1, and means 0."""
    proposal = defensive_mixture(LAWS[kind])
    torch.manual_seed(0)
    u, log_q = proposal.sample(40_000)
    weight = (standard_normal(3, torch.device("cpu")).log_prob(u) - log_q).exp()
    assert float(weight.max()) <= 10 * (1 + 1e-3), "the share of the prior bounds every weight"
    assert_means(torch.cat([weight[:, None], weight[:, None] * u], 1), [1.0, 0.0, 0.0, 0.0])
    # the density integrates to one where q itself is broader: against its own prior share
    assert_means((log_q - proposal.log_prob(u)).exp() + 1e-9 * torch.randn(40_000), 1.0, sigmas=50)


@pytest.mark.parametrize("kind", LAWS)
def test_defensive_parts(kind):
    proposal = defensive_mixture(LAWS[kind], defensive=0.2)
    means = component_means(LAWS[kind])
    assert len(proposal.components) == 2 + len(means)
    torch.testing.assert_close(proposal.shares[:2], torch.tensor([0.2, 0.4], dtype=torch.float64))
    assert float(proposal.shares.sum()) == pytest.approx(1.0)
    for part, mean in zip(proposal.components[2:], means, strict=True):
        torch.testing.assert_close(part.mean, mean)
        assert bool((part.stddev == 1).all())


def test_one_step_of_adaptation_is_one_step_of_expectation_and_maximisation():
    parts = [dist.Normal(torch.tensor([m]).double(), 1.0).to_event(1) for m in (0.0, 4.0)]
    proposal = Proposal(parts, torch.tensor([0.5, 0.5], dtype=torch.float64))
    u = torch.tensor([[4.0], [3.0], [0.0]], dtype=torch.float64)
    weight = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    owner = torch.stack([p.log_prob(u) for p in parts], 1).softmax(1)
    expected = 0.2 * 0.5 + 0.8 * (weight[:, None] * owner).sum(0)
    torch.testing.assert_close(proposal.adapted(u, weight.log() - 30.0, 0.2).shares, expected)
