"""The second route: planned within its budget, stopped at it, and right where it finishes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from builders import assert_means, linear_gaussian, standard
from ppl_risk.engine.climbs import (
    EFFORT,
    FEWEST_LEVELS,
    FEWEST_PARTICLES,
    OVERRUN,
    RUNS,
    climb,
    gather,
    plan,
    prior_error,
)
from ppl_risk.parallel import Unit, plan_units, run_units
from ppl_risk.problem import RiskProblem


def units(count=4, particles=100, calls=10_000, seed=0):
    return plan_units("a problem", "climb", [{"particles": particles, "calls": calls}] * count, seed=seed)


BUDGETS, GUESSES = st.integers(100, 10**6), st.floats(-700.0, -0.1)


@given(BUDGETS, BUDGETS, GUESSES, GUESSES)
def test_plans_are_monotone(one, other, guess, likelier):
    (less, more), (rare, common) = sorted([one, other]), sorted([guess, likelier])
    assert plan(less, guess)["particles"] <= plan(more, guess)["particles"]
    assert plan(less, guess)["calls"] <= plan(more, guess)["calls"]
    assert plan(one, rare)["particles"] <= plan(one, common)["particles"]


@given(BUDGETS, GUESSES)
def test_plans_fit_their_budget(budget, guess):
    told = plan(budget, guess)
    assert told["particles"] >= FEWEST_PARTICLES
    assert RUNS * told["calls"] <= OVERRUN * budget
    if told["particles"] > FEWEST_PARTICLES:
        assert RUNS * told["particles"] * (1 + EFFORT * FEWEST_LEVELS) <= budget


@pytest.mark.parametrize("calls", [50, 120, 400, 700])
def test_a_stopped_run_gives_no_number_and_spends_no_more(calls):
    problem = linear_gaussian(4, 5.0).problem
    with problem.metered() as meter:
        results = run_units(units(2, calls=calls), climb, problem, progress=False)
    assert meter.calls <= 2 * calls
    assert all(math.isnan(r["log_prob"]) for r in results)
    climbs = gather(results, problem.device)
    assert math.isnan(climbs.log_prob)
    assert (climbs.finished, climbs.planned) == (0, 2)
    assert (len(climbs.seen) > 0) == (calls >= 400)


def test_finished_runs_are_right_and_show_what_they_saw():
    known = linear_gaussian(4, 3.5)
    with known.problem.metered() as meter:
        results = run_units(units(8, particles=200), climb, known.problem, progress=False)
    climbs = gather(results, known.problem.device)
    assert climbs.finished == climbs.planned == 8
    assert abs(climbs.log_prob - known.log_prob) < 4 * climbs.std_error
    assert 8 * 200 < meter.calls < 8 * 200 * 20
    assert climbs.seen.dtype == climbs.final.dtype == torch.float64
    assert torch.equal(known.problem.margin_of_normal(climbs.seen.float()) >= 0, climbs.hit)
    assert 0 < int(climbs.hit.sum()) < len(climbs.hit)
    assert bool((known.problem.margin_of_normal(climbs.final.float()) >= 0).all())
    heights = known.problem.margin_of_normal(climbs.trail.float()).detach()
    assert float(heights.min()) < -2 * known.std < 0 < float(heights.max())  # from the first levels to the last


def test_particles_in_the_event_follow_the_law_given_it():
    known = linear_gaussian(3, 2.5, dtype=torch.float64)
    results = run_units(units(18, particles=100), climb, known.problem, progress=False)
    # One mean of each run: its particles resemble each other.
    excess = torch.stack([(known.problem.margin_of_normal(r["final"]).detach() / known.std).mean() for r in results])
    phi, p = math.exp(-(2.5**2) / 2) / math.sqrt(2 * math.pi), math.exp(known.log_prob)
    assert_means(excess, phi / p - 2.5)


def test_the_expected_error_is_about_that_of_real_runs():
    known = linear_gaussian(6, 2.8)
    results = run_units(units(24, particles=100, seed=1), climb, known.problem, progress=False)
    ratios = np.exp(np.array([r["log_prob"] for r in results]) - known.log_prob)
    assert_means(ratios, 1.0)
    expected = math.sqrt(RUNS) * prior_error(known.log_prob, 100)
    assert 0.5 < np.log(ratios).std() / expected < 1.5
    assert prior_error(-20.0, 100) > prior_error(-10.0, 100) > prior_error(-10.0, 200)


def test_a_run_that_cannot_reach_the_event_is_finished_and_has_no_number():
    problem = RiskProblem(lambda x: x[:, 0].tanh() - 2, standard(2))
    results = run_units(units(3, particles=50), climb, problem, progress=False)
    assert [r["log_prob"] for r in results] == [-math.inf] * 3
    climbs = gather(results, problem.device)
    assert climbs.finished == 3
    assert math.isnan(climbs.log_prob)
    assert climbs.final.shape == (0, 2)


def test_one_run_alone_gives_no_error_and_so_no_number():
    found = {"seen": torch.zeros(1, 2), "hit": torch.ones(1, dtype=torch.bool), "final": torch.zeros(1, 2)}
    results = [found | {"trail": torch.zeros(1, 2), "values": torch.zeros(1), "log_prob": p} for p in (-5.0, math.nan, math.nan)]
    climbs = gather(results, torch.device("cpu"))
    assert math.isnan(climbs.log_prob)
    assert climbs.finished == 1
    two = gather([*results, results[0] | {"log_prob": -5.2}], torch.device("cpu"))
    assert two.log_prob == pytest.approx(math.log((math.exp(-5) + math.exp(-5.2)) / 2))
    assert two.finished == 2


def test_undefined_margins_are_the_users_mistake():
    problem = RiskProblem(lambda x: torch.where(x[:, 0] > 2.5, torch.nan, x[:, 0] - 3), standard(2))
    with pytest.raises(ValueError, match="NaN"), problem.metered():
        climb(problem, Unit("k", 0, 0, "climb", {"particles": 200, "calls": 10_000}))
