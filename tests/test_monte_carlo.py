"""Plain Monte Carlo: exact counts, exact intervals."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm

from builders import assert_within, linear_gaussian, orthant, standard
from ppl_risk import monte_carlo
from ppl_risk.problem import RiskProblem
from ppl_risk.randomness import seeded
from ppl_risk.risk_estimate import Status, clopper_pearson


@pytest.mark.parametrize("calls", [64, 250, 1000])
def test_hits_are_those_of_the_seeded_draws(calls):
    problem = linear_gaussian(3, 1.0).problem
    problem.batch_size = 64
    estimate = monte_carlo(problem, calls=calls, seed=7, progress=False)
    with seeded(7), torch.no_grad():
        sizes = [64] * (calls // 64) + [calls % 64] * (calls % 64 > 0)
        x = torch.cat([problem.sample(rows) for rows in sizes])
        hit = problem.margin(x) >= 0
    hits = int(hit.sum())
    assert estimate.hits == (hits, calls)
    assert estimate.log_prob == pytest.approx(math.log(hits / calls))
    assert estimate.std_error == pytest.approx(math.sqrt((1 - hits / calls) / hits))
    assert estimate.interval() == clopper_pearson(hits, calls, 0.9)
    kept = estimate.posterior["x"].reshape(-1, 3)
    np.testing.assert_array_equal(kept, x[hit][: hits // 4 * 4].numpy())


def test_a_margin_of_zero_is_a_catastrophe():
    estimate = monte_carlo(RiskProblem(lambda x: -x[:, 0].relu(), standard(2)), calls=1000, progress=False)
    assert 430 < estimate.hits[0] < 570


@pytest.mark.parametrize("p", [1e-3, 0.02, 0.3])
def test_clopper_and_pearson_cover_by_summation(p):
    """Exact coverage: the binomial weight of all counts whose interval contains p is at least the level."""
    draws = 2000
    weight = binom(draws, p).pmf(np.arange(draws + 1))
    likely = np.flatnonzero(weight > 1e-15)
    inside = [low <= math.log(p) <= high for low, high in (clopper_pearson(int(k), draws, 0.9) for k in likely)]
    coverage = weight[likely][inside].sum()
    assert 0.9 <= coverage < 0.99  # counts are discrete: at p = 1e-3 it cannot be nearer


def test_orthants():
    for known in (orthant(3), orthant(9, 0.5)):
        estimate = monte_carlo(known.problem, calls=40_000, progress=False)
        assert estimate.status is Status.OK
        assert_within(estimate.log_prob, known.log_prob, estimate.std_error)


def test_no_hits():
    estimate = monte_carlo(linear_gaussian(3, 9.0).problem, calls=3000, progress=False)
    assert estimate.status is Status.NO_HITS
    assert math.isnan(estimate.log_prob)
    assert estimate.posterior == {}
    assert estimate.remedy.startswith(
        "No catastrophe in 3,000 draws. This is not P = 0: P < 1.0e-03 with 95 % confidence. Use ppl_risk.run_smc"
    )
    assert str(estimate).startswith("P(catastrophe) < 1.0e-03 with 95 % confidence: an upper bound")


@pytest.mark.parametrize("hits_wanted", [0, 8, 100])
def test_posterior_rows_are_limited_and_booked(hits_wanted):
    problem = linear_gaussian(3, 0.0).problem
    estimate = monte_carlo(problem, calls=1000, posterior_draws=hits_wanted, progress=False)
    assert estimate.forward_calls == 1000 + hits_wanted
    assert estimate.gradient_calls == 0
    rows = estimate.posterior["x"].shape[:2] if estimate.posterior else (4, 0)
    assert rows == (4, hits_wanted // 4)
    assert estimate.flops == problem.flops_per_row * estimate.forward_calls


def test_survival_curve_is_the_normal_one():
    """log Pr[margin > t] at 60 ranks; relative error of a tail of k draws is 1 / sqrt(k)."""
    known, calls = linear_gaussian(3, 2.0), 50_000
    thresholds, log_prob = monte_carlo(known.problem, calls=calls, progress=False).survival
    assert (np.diff(thresholds) >= 0).all()
    assert (np.diff(log_prob) < 0).all()
    assert (log_prob[-1], log_prob[0]) == (pytest.approx(-math.log(calls)), pytest.approx(0.0, abs=1e-3))
    many = log_prob > math.log(100 / calls)
    exact = norm.logsf((thresholds[many] - known.mean) / known.std)
    assert (np.abs(log_prob[many] - exact) < 5 / np.sqrt(np.exp(log_prob[many]) * calls)).all()


@pytest.mark.parametrize("calls", [0, -5])
def test_no_calls_is_an_error_of_the_caller(calls):
    with pytest.raises(ValueError, match="calls"):
        monte_carlo(linear_gaussian(3, 1.0).problem, calls=calls, progress=False)
