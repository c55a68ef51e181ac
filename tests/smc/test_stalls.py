"""Events out of reach, plateaus, and margins without a slope: an answer that is right, or none."""

import math
import re

import pytest
import torch
from scipy.stats import norm

from builders import assert_within, linear_gaussian, standard
from ppl_risk import run_smc
from ppl_risk.problem import RiskProblem
from ppl_risk.risk_estimate import Status
from ppl_risk.smc.run import combine


def bound_in(text: str) -> float:
    found = re.search(r"P < ([\d.e+-]+\d)", text)
    assert found, text
    return float(found[1])


UNREACHABLE = {
    "asymptote": lambda x: x[:, 0].tanh() - 2.0,
    "bounded bump": lambda x: (-x.square().sum(-1)).exp() - 1.5,
    "constant": lambda x: 0 * x[:, 0] - 1.0,
    "needle": lambda x: (x[:, 0] > 50).float() - 0.5,
}


@pytest.mark.parametrize("kind", UNREACHABLE)
def test_no_hits_is_a_bound_and_no_number(kind):
    problem = RiskProblem(UNREACHABLE[kind], standard(2))
    estimate = run_smc(problem, particles=60, progress=False)
    assert estimate.status is Status.NO_HITS
    assert math.isnan(estimate.log_prob)
    assert math.isnan(estimate.std_error)
    assert bound_in(estimate.remedy) == pytest.approx(3 / 240, rel=0.05)
    assert estimate.posterior == {}
    assert str(estimate).startswith("P(catastrophe) < 1.2e-02 with 95 % confidence")
    assert math.exp(estimate.interval()[1]) == pytest.approx(3 / 240, rel=0.05)
    best = float(re.search(r"margin (-[\d.]+)", estimate.remedy)[1])
    assert best == pytest.approx(estimate.evidence["best_margin"], rel=0.01)


def test_the_bound_holds_also_where_the_first_draws_hit():
    """Given up too early, with hits among the first draws: the bound may not lie below the truth."""
    known = linear_gaussian(3, 1.5)
    estimate = run_smc(known.problem, particles=1000, max_levels=1, progress=False)
    if not estimate.status.believable and math.isnan(estimate.log_prob):
        assert bound_in(estimate.remedy) >= math.exp(known.log_prob)
    else:
        assert_within(estimate.log_prob, known.log_prob, estimate.std_error, slack=0.05)


def test_the_bound_counts_draws_of_the_prior_alone():
    """From a guide only a tenth of the first draws follow the input law; they alone bound anything."""
    from test_run import placed

    problem = RiskProblem(lambda x: x[:, 0].tanh() - 2.0, standard(2))
    estimate = run_smc(problem, guide=placed(problem, [-3.0, 0.0], 0.5), particles=500, progress=False)
    assert estimate.status is Status.NO_HITS
    assert bound_in(estimate.remedy) >= 3 / (0.1 * 500 * 4) * 0.95


STEPS = {
    "stairs": (lambda x: (4 * x[:, 0]).floor() / 4 - 3.5, norm.logsf(3.5)),
    "few stairs": (lambda x: x[:, 0].floor() - 3.0, norm.logsf(3.0)),
    "one stair, common": (lambda x: (x[:, 0] >= 1.5).float() - 0.5, norm.logsf(1.5)),
    "votes": (lambda x: (x > 0).double().sum(-1) - 12.0, math.log(sum(math.comb(14, k) for k in (12, 13, 14)) / 2**14)),
}


@pytest.mark.parametrize("kind", STEPS)
def test_plateaus(kind):
    margin, exact = STEPS[kind]
    problem = RiskProblem(margin, standard(14 if kind == "votes" else 2))
    estimate = run_smc(problem, particles=600, runs=12, seed=1, progress=False)
    assert estimate.method == "SMC pcn"
    assert estimate.status is Status.OK
    assert estimate.std_error < 0.3
    assert_within(estimate.log_prob, float(exact), estimate.std_error, slack=0.05)


def test_a_flat_start_with_a_slope_far_out():
    """Nine tenths of the particles see no gradient."""
    problem = RiskProblem(lambda x: torch.relu(x[:, 0] - 1.3) - 2.7, standard(3))
    estimate = run_smc(problem, particles=600, runs=12, seed=1, progress=False)
    assert_within(estimate.log_prob, norm.logsf(4.0), estimate.std_error, slack=0.05)


def test_combination_of_runs():
    log_prob, error = combine(torch.tensor([-10.0, -11.0, -12.0]).double().numpy())
    p = torch.tensor([-10.0, -11.0, -12.0]).double().exp()
    assert log_prob == pytest.approx(float(p.mean().log()))
    assert error == pytest.approx(max(float(p.std() / p.mean()), 1.0) / 3**0.5)
    log_prob, error = combine(torch.tensor([-10.0, -torch.inf]).double().numpy())
    assert log_prob == pytest.approx(-10 - math.log(2))
    assert error == pytest.approx(1.0)
    assert all(map(math.isnan, combine(torch.tensor([-torch.inf, -torch.inf]).double().numpy())))


@pytest.mark.parametrize("seed", range(3))
def test_runs_that_disagree_are_not_believed(seed):
    """Twenty particles with a random walk to 1e-15 cannot agree, and the answer says so."""
    estimate = run_smc(linear_gaussian(30, 8.0).problem, particles=20, moves="pcn", seed=seed, progress=False)
    assert estimate.status is Status.RUNS_DISAGREE
    assert not estimate.std_error <= 0.5
