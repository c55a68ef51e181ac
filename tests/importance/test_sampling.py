"""Importance sampling with the hard event: unbiased whatever the proposal, with intervals that cover."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import binom, norm

from builders import assert_means, assert_within, linear_gaussian, two_sided
from ppl_risk.importance import importance_sample
from ppl_risk.importance.proposal import defensive_mixture
from ppl_risk.importance.sampling import Weighted, log_mean_and_error, resample, weigh


def towards(problem, z, scale=1.0, law="normal"):
    """A law of u around the likeliest catastrophe of a linear problem."""
    u = torch.zeros(1, problem.transport.dimension)
    _, gradient = problem.margin_and_gradient(u)
    normal = gradient[0] / gradient[0].norm()
    spread = torch.full((u.shape[1],), float(scale))
    if law == "normal":
        return dist.Normal(z * normal, spread).to_event(1)
    narrow = torch.eye(u.shape[1]) - (1 - 1 / z**2) * normal[:, None] * normal
    return dist.MultivariateNormal((z + 1 / z) * normal, narrow)


PROPOSALS = {
    "good": lambda p: towards(p, 3.5),
    "the law itself": lambda p: towards(p, 3.5, law="full"),
    "overshoots": lambda p: towards(p, 4.5, 0.7),
    "falls short": lambda p: towards(p, 2.0),
    "narrow": lambda p: towards(p, 3.5, 1e-3),
    "beside it": lambda p: dist.Normal(torch.tensor([1.0, 1.0, 1.0]), torch.ones(3)).to_event(1),
}


@pytest.mark.parametrize("kind", PROPOSALS)
def test_unbiased_over_seeds(kind):
    """Mean of exp(log_prob) over 150 seeds, 4.5 sigmas; a seed without a hit counts as zero."""
    known = linear_gaussian(3, 3.5)
    law = PROPOSALS[kind](known.problem)
    ratios = []
    for seed in range(150):
        torch.manual_seed(seed)
        log_prob = importance_sample(known.problem, law, 400).log_prob
        ratios.append(0.0 if math.isnan(log_prob) else math.exp(log_prob - known.log_prob))
    assert_means(np.array(ratios), 1.0)
    if kind in ("good", "the law itself"):
        assert np.std(ratios) < 0.3


def test_intervals_cover():
    """Of 200 intervals of 90 % as many cover as a binomial allows at 1 in 1000 on either side."""
    known = linear_gaussian(3, 3.5)
    law = towards(known.problem, 3.5)
    covered = 0
    for seed in range(200):
        torch.manual_seed(1000 + seed)
        result = importance_sample(known.problem, law, 400)
        covered += abs(result.log_prob - known.log_prob) <= norm.isf(0.05) * result.std_error
    # the stratified components make the intervals conservative, never short
    assert covered >= binom(200, 0.9).ppf(0.001)


def test_two_catastrophes_and_a_guide_that_knows_both():
    known = two_sided(4.0)
    means = torch.tensor([[4.0, 0.0], [-4.0, 0.0]])
    law = dist.MixtureOfDiagNormals(means, torch.full((2, 2), 0.5), torch.zeros(2))
    torch.manual_seed(0)
    result = importance_sample(known.problem, law, 4000)
    assert result.std_error < 0.05
    assert_within(result.log_prob, known.log_prob, result.std_error)


def test_a_probability_far_below_the_smallest_double():
    known = linear_gaussian(3, 40.0, dtype=torch.float64)
    assert known.log_prob < -800
    torch.manual_seed(0)
    result = importance_sample(known.problem, towards(known.problem, 40.0, law="full"), 4000)
    assert result.std_error < 0.1
    assert_within(result.log_prob, known.log_prob, result.std_error)


def test_weights_are_prior_over_proposal_and_nothing_outside():
    known = linear_gaussian(3, 3.5)
    proposal = defensive_mixture(towards(known.problem, 3.5))
    torch.manual_seed(0)
    draws = weigh(known.problem, proposal, 400)
    inside = draws.margin >= 0
    assert 0 < int(inside.sum()) < 400
    assert bool((draws.log_weight[~inside] == -torch.inf).all())
    expected = norm.logpdf(draws.u.numpy()).sum(1) - proposal.log_prob(draws.u).numpy()
    # each component's share was met exactly: 40, 180 and 180 of 400
    np.testing.assert_allclose(draws.log_weight[inside].numpy(), expected[inside.numpy()], rtol=1e-9)


@pytest.mark.parametrize("draws", [8, 10, 101, 1000])
def test_every_draw_is_spent_and_booked(draws):
    known = linear_gaussian(3, 2.0)
    law = towards(known.problem, 2.0)
    with known.problem.metered() as meter:
        result = importance_sample(known.problem, law, draws)
    assert len(result.draws.u) == meter.forward_calls == draws


def test_mean_and_error_by_hand():
    weight = torch.tensor([1.0, 3.0, 0.0, 4.0], dtype=torch.float64)
    log_mean, error = log_mean_and_error(weight.log() - 500.0)
    assert log_mean == pytest.approx(math.log(2.0) - 500.0)
    assert error == pytest.approx(float(weight.std()) / 2.0 / 2.0)
    assert str(log_mean_and_error(torch.full((3,), -torch.inf))) == "(-inf, nan)"


def test_resampled_rows_follow_the_weights():
    u = torch.arange(5.0)[:, None]
    weight = torch.tensor([0.1, 0.0, 0.4, 0.25, 0.25], dtype=torch.float64)
    drawn = Weighted(u, torch.ones(5), weight.log())
    torch.manual_seed(0)
    rows = torch.stack([resample(drawn, 10)[:, 0] for _ in range(400)])
    counts = torch.stack([torch.bincount(r.long(), minlength=5) for r in rows]).double()
    assert float((counts - 10 * weight).abs().max()) < 1
    for column in (3, 4):
        assert_means(counts[:, column], 2.5)
    order = rows[:, 0]
    assert_means(order, float((weight * u[:, 0]).sum()))
