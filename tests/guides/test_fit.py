"""fit() is the maximum-likelihood fit, or says how it departs from it."""

import math

import pytest
import torch

from builders import NETWORKS
from ppl_risk.activations import ActivationModel
from ppl_risk.guides import Block, Full, FullNormal, LowRank, LowRankNormal, MeanField, Mixture, Normal


def draws_of(n: int, d: int = 6, rank: int = 2, seed: int = 0):
    """Draws of N(loc, D + F F^T), with loc and covariance."""
    g = torch.Generator().manual_seed(seed)
    factor, loc = 1.5 * torch.randn(d, rank, generator=g), torch.randn(d, generator=g)
    diagonal = 0.3 + torch.rand(d, generator=g)
    x = loc + torch.randn(n, rank, generator=g) @ factor.mT + torch.randn(n, d, generator=g) * diagonal.sqrt()
    return x, loc, factor @ factor.mT + torch.diag(diagonal)


def test_normal_takes_mean_and_deviation():
    x, _, _ = draws_of(200)
    law = Normal().bind(6)
    law.fit(x)
    torch.testing.assert_close(law.distribution().mean.detach(), x.mean(0))
    torch.testing.assert_close(law.distribution().stddev.detach(), x.std(0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("n", [10, 100, 10_000])
def test_full_keeps_variances_and_shrinks_correlations(n):
    x, _, _ = draws_of(n)
    law = FullNormal().bind(6)
    law.fit(x)
    cov, sample = law.distribution().covariance_matrix.detach(), x.mT.cov(correction=0)
    torch.testing.assert_close(cov.diagonal(), sample.diagonal(), rtol=1e-4, atol=0)
    off = ~torch.eye(6, dtype=torch.bool)
    torch.testing.assert_close(cov[off], sample[off] * n / (n + 6), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rank", [2, 3])
def test_low_rank_recovers_a_planted_factor(rank):
    """Covariance within the sampling error of each entry, 5 sigmas, and likelihood at least that of the truth."""
    n = 20_000
    x, loc, cov = draws_of(n)
    law = LowRankNormal(rank).bind(6)
    law.fit(x)
    fitted = law.distribution()
    variance = cov.diagonal()
    error = ((cov.square() + variance[:, None] * variance) / n).sqrt()
    assert float(((fitted.covariance_matrix.detach() - cov).abs() / error).max()) < 5
    truth = torch.distributions.MultivariateNormal(loc, cov)
    gain = (fitted.log_prob(x) - truth.log_prob(x)).sum().item()
    # twice the gain of a maximum-likelihood fit is about chi-square in the number of parameters
    assert -0.5 < gain < 40


def test_low_rank_of_too_small_a_rank_is_a_stationary_point():
    """Factor analysis by EM: no direction in parameter space raises the likelihood any more."""
    x, _, _ = draws_of(5000, rank=3)
    law = LowRankNormal(1).bind(6)
    law.fit(x, iterations=2000)
    loss = -law.distribution().log_prob(x).mean()
    loss.backward()
    assert max(float(p.grad.abs().max()) for p in law.parameters()) < 2e-3


def test_low_rank_of_full_rank_keeps_the_covariance():
    x, _, _ = draws_of(5000)
    law = LowRankNormal(10).bind(6)
    law.fit(x)
    torch.testing.assert_close(law.distribution().covariance_matrix.detach(), x.mT.cov(), rtol=0.05, atol=0.05)


def test_mixture_finds_separate_clusters():
    g = torch.Generator().manual_seed(0)
    centres = torch.tensor([[-6.0, 0.0], [6.0, 0.0], [0.0, 8.0]])
    owner = torch.arange(3000) % 3
    x = centres[owner] + torch.tensor([0.5, 1.0]) * torch.randn(3000, 2, generator=g)
    law = Mixture(3).bind(2)
    law.fit(x)
    order = [int((law.loc.detach() - c).norm(dim=1).argmin()) for c in centres]
    assert sorted(order) == [0, 1, 2]
    assert float((law.loc.detach()[order] - centres).abs().max()) < 4.5 / math.sqrt(1000)
    torch.testing.assert_close(law.scale.detach()[order], torch.tensor([[0.5, 1.0]] * 3), rtol=0.1, atol=0)
    torch.testing.assert_close(law.logits.detach().softmax(0), torch.full((3,), 1 / 3), rtol=0.01, atol=0)


@pytest.mark.parametrize("law", [Normal(), LowRankNormal(2), FullNormal(), Mixture(2)], ids=repr)
def test_no_nearby_parameters_are_likelier(law):
    """A step of 3 % in any of 40 random directions lowers the likelihood; draws are many, so shrinkage is small."""
    x, _, _ = draws_of(20_000, d=4)
    bound = law.bind(4)
    bound.fit(x, **({"iterations": 500} if isinstance(law, Mixture | LowRankNormal) else {}))
    with torch.no_grad():
        best = float(bound.distribution().log_prob(x).mean())
    start = [p.detach().clone() for p in bound.parameters()]
    g = torch.Generator().manual_seed(1)
    for _ in range(40):
        with torch.no_grad():
            for p, s in zip(bound.parameters(), start, strict=True):
                p.copy_(s + 0.03 * torch.randn(s.shape, generator=g))
            assert float(bound.distribution().log_prob(x).mean()) < best


@pytest.mark.parametrize("law", [Normal(), LowRankNormal(2), FullNormal(), Mixture(2)], ids=repr)
def test_constant_coordinates_and_few_draws_stay_finite(law):
    x, _, _ = draws_of(5, d=8)
    x[:, 3] = 1.5
    bound = law.bind(8)
    bound.fit(x)
    assert bool(torch.isfinite(bound.distribution().log_prob(x)).all())
    assert bool(torch.isfinite(bound.distribution().sample((5,))).all())


@pytest.mark.parametrize("family", [MeanField(), Block(), Full(), LowRank(20)], ids=lambda f: f.label)
def test_guide_carries_the_correlations_that_its_name_says(family):
    """Between two layers of the residual network: kept by the joint families, dropped by the others."""
    model = ActivationModel(NETWORKS["residual"](), pilot=4000)
    guide = family.bind(model.sites)
    values = model.prior_draws(4000)
    guide.fit(values)
    torch.manual_seed(0)
    drawn = guide.sample(4000)

    def correlation(v, a, b):
        return float(torch.corrcoef(torch.stack([v[a[0]][:, a[1]], v[b[0]][:, b[1]]]))[0, 1])

    pairs = [(("inner", i), ("outer", j)) for i in range(4) for j in range(4)]
    across = max(pairs, key=lambda p: abs(correlation(values, *p)))
    inside = max(((("outer", 0), ("outer", j)) for j in range(1, 4)), key=lambda p: abs(correlation(values, *p)))
    assert abs(correlation(values, *across)) > 0.4
    assert abs(correlation(values, *inside)) > 0.2
    error = 2 / math.sqrt(4000)
    for pair, kept in ((across, isinstance(family, Full | LowRank)), (inside, not isinstance(family, MeanField))):
        expected = correlation(values, *pair) if kept else 0.0
        assert abs(correlation(drawn, *pair) - expected) < 4.5 * error
