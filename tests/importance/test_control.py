"""Control variates from the mixture itself: unbiased, not worse beyond noise, exact where they can be, their errors right."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from builders import assert_means
from ppl_risk.importance.control import controlled_mean
from ppl_risk.importance.gated import Tilted
from ppl_risk.importance.mixture import Mixture

BOUND = 2.5


def mixture():
    """The prior, a normal near the event, and a wide one, on a line."""
    axis = torch.eye(1, dtype=torch.float64)

    def law(mean, scale):
        return Tilted(axis, torch.tensor([mean]).double(), torch.tensor([scale]).double())

    return Mixture([law(0.0, 1.0), law(2.8, 0.6), law(1.0, 1.3)], torch.tensor([0.3, 0.4, 0.3]).double())


def drawn(seed, draws):
    made = mixture()
    torch.manual_seed(seed)
    sample = made.sample(draws)
    tilts = made.log_tilts(sample.points)
    log_q = (tilts + sample.shares.log()).logsumexp(-1)
    log_weight = torch.where(sample.points.u[:, 0] >= BOUND, -log_q, -torch.inf)
    return log_weight, tilts - log_q[:, None], sample.stratum


@pytest.fixture(scope="module")
def many():
    made = [(controlled_mean(*parts), parts[0].exp().mean()) for parts in (drawn(seed, 2000) for seed in range(400))]
    return (
        np.array([m.log_prob for m, _ in made]),
        np.array([m.std_error for m, _ in made]),
        np.array([p for _, p in made]),
    )


def test_unbiased_over_seeds(many):
    assert_means(np.exp(many[0] - norm.logsf(BOUND)), 1.0)


def test_controls_save_variance(many):
    """Against the plain mean of the same stratified draws."""
    assert_means(many[2] / norm.sf(BOUND), 1.0)
    assert np.exp(many[0]).std() < 0.9 * many[2].std()


def test_the_error_is_the_spread_over_seeds(many):
    assert many[1].mean() == pytest.approx(many[0].std(), rel=0.25)
    z = (many[0] - norm.logsf(BOUND)) / many[1]
    assert 0.8 < math.sqrt((z**2).mean()) < 1.25


def test_a_target_that_is_a_component_is_met_exactly():
    _, log_ratio, stratum = drawn(0, 500)
    for k in range(3):
        found = controlled_mean(log_ratio[:, k] - 700.0, log_ratio, stratum)
        assert found.log_prob == pytest.approx(-700.0, abs=1e-9)
        assert found.std_error < 1e-9


def test_a_component_that_misses_costs_its_share_and_no_more():
    """Strata are exact: where each stratum's weights are constant there is no error, however far apart the constants."""
    stratum = torch.arange(4).repeat_interleave(25)
    log_weight = torch.tensor([0.0, -1.0, -torch.inf, -4.0]).double()[stratum]
    found = controlled_mean(log_weight, torch.zeros(100, 1).double(), stratum)
    assert found.log_prob == pytest.approx(math.log((1 + math.exp(-1) + math.exp(-4)) / 4))
    assert found.std_error == pytest.approx(0.0, abs=1e-12)


def test_the_stratified_error_by_hand():
    """Strata (1, 3) and (2, 2, 8): variances 2 and 12, so 2 * 2 + 3 * 12 over 25 for the variance of the mean."""
    weight = torch.tensor([1.0, 3.0, 2.0, 2.0, 8.0]).double()
    found = controlled_mean(weight.log() - 40, torch.zeros(5, 1).double(), torch.tensor([0, 0, 1, 1, 1]))
    assert found.log_prob == pytest.approx(math.log(3.2) - 40)
    assert found.std_error == pytest.approx(math.sqrt(40) / 5 / 3.2)


def test_a_stratum_of_one_is_measured_against_all():
    weight = torch.tensor([1.0, 1.0, 1.0, 5.0]).double()
    found = controlled_mean(weight.log(), torch.zeros(4, 1).double(), torch.tensor([0, 0, 0, 1]))
    assert found.std_error == pytest.approx(3 / 4 / 2)


def test_a_regression_that_leaves_nothing_is_dropped():
    """One hit and controls whose means are far from 0: the regression alone would say p < 0."""
    log_weight = torch.tensor([-torch.inf, -torch.inf, 0.0]).double()
    log_ratio = torch.tensor([4.0, 4.0, 11.0]).double().log()[:, None]
    assert controlled_mean(log_weight, log_ratio, torch.zeros(3).long()).log_prob == pytest.approx(-math.log(3))


def test_no_hit_is_no_number():
    found = controlled_mean(torch.full((5,), -torch.inf), torch.zeros(5, 2), torch.zeros(5).long())
    assert found.log_prob == -math.inf
    assert math.isnan(found.std_error)


def test_replicates_that_disagree_are_believed():
    """Parts whose means differ more than their draws allow: the error is that of the parts."""
    parts = [torch.full((100,), math.log(level), dtype=torch.float64) for level in (1.0, 2.0, 1.0, 2.0, 1.0, 2.0)]
    log_weight, one = torch.cat(parts), torch.zeros(600, 1, dtype=torch.float64)
    stratum = torch.zeros(600, dtype=torch.long)
    alone = controlled_mean(log_weight, one, stratum)
    together = controlled_mean(log_weight, one, stratum, replicates=[100] * 6)
    assert together.log_prob == alone.log_prob
    assert together.std_error == pytest.approx(math.sqrt(0.3 / 6) / 1.5, rel=1e-6)
    assert alone.std_error < together.std_error / 5
