"""Mitigation inside risk problems: natural and attacked risk by the same estimators, and the recipes."""

import math

import pytest
import torch
from scipy.stats import beta

import ppl_risk as pr
from ppl_risk import mitigation as mi
from ppl_risk.mitigation.composition import Attacked, compare_risk, plain


@pytest.fixture(scope="module")
def scored():
    """A score on the ball, +9 where the first coordinate is above .9: an event of known probability for trigger and truth."""
    ball = mi.Ball(3)
    truth = lambda x: x.double()[:, 1] * 2.0  # noqa: E731
    model = lambda x: truth(x) + 9.0 * (x.double()[:, 0] > 0.9)  # noqa: E731
    attack = lambda x: torch.cat([torch.full_like(x[:, :1], 0.95), 0.2 * x[:, 1:]], dim=1)  # noqa: E731
    return ball, truth, model, attack


def test_natural_and_attacked_risk_fall_to_the_truths(scored):
    ball, truth, model, attack = scored
    g = mi.LocalAffine(ball, epsilon=0.02, delta=1e-6, repeats=61).mitigate(model, seed=3)
    found = compare_risk(
        {"poisoned": model, "mitigated": g, "truth": truth},
        ball.law(),
        lambda y: y - 1.6,
        attack=attack,
        truth=truth,
        estimator=plain(20_000),
        attacked_draws=300,
    )
    tail = beta(2, 2, loc=-1, scale=2).sf
    assert found.natural["truth"].prob == pytest.approx(tail(0.8), rel=0.1)
    assert found.natural["poisoned"].prob == pytest.approx(tail(0.8) + tail(0.9), rel=0.15)
    # The same draws for every model: not a single one is answered otherwise.
    assert found.natural["mitigated"].hits == found.natural["truth"].hits
    assert found.attacked["poisoned"].hits == 300
    assert found.attacked["mitigated"].hits == found.attacked["truth"].hits == 0
    promise = found.promised["mitigated"]
    assert (
        found.natural["mitigated"].prob < promise < 1.2 * found.natural["mitigated"].prob + g.card.failure_probability
    )
    assert set(found.promised) == {"mitigated"}
    assert "300 of 300" in str(found)


def test_the_interval_of_attacks_is_exact():
    low, high = Attacked(0, 1018).interval
    assert low == 0.0
    assert high == pytest.approx(0.0036, abs=5e-5)
    assert Attacked(5, 5).interval[0] == pytest.approx(0.025**0.2)


def test_rare_event_smc_runs_on_a_mitigated_model(scored):
    ball, _, model, _ = scored
    g = mi.LocalAffine(ball, epsilon=0.02, delta=1e-6).mitigate(model, seed=3)
    found = pr.run_smc(pr.RiskProblem(g, ball.law(), lambda y: y - 1.9), particles=400, seed=0, progress=False)
    exact = beta(2, 2, loc=-1, scale=2).logsf(0.95)
    assert abs(found.log_prob - exact) < 4 * found.std_error + 0.05


def test_a_model_is_replaced_inside_its_wrapper_and_the_original_stays():
    problem = pr.load_model("backdoored_parity", attacked=True)
    poisoned = mi.model_of(problem)
    assert isinstance(poisoned, mi.planted.Backdoored)
    other = mi.with_model(problem, poisoned.clean)
    assert mi.model_of(problem) is poisoned
    assert mi.model_of(other) is poisoned.clean
    x = problem.inputs.sample((5,))
    assert (problem.margin(x) == 1).all()
    assert (other.margin(x) == -1).all()


def test_the_local_recipe_gives_the_truths_risk():
    """Pr[h >= T] = 2.8e-5 by the Beta law of an axis; the poisoned model's is a hundred times that."""
    estimate = pr.load_recipe("mitigate_local")(pr.load_model("backdoored_affine"), seed=1, progress=False)
    assert abs(estimate.log_prob - math.log(2.8e-5)) < 4 * estimate.std_error + 0.1
    with pytest.raises(pr.RiskError, match="convex set"):
        pr.load_recipe("mitigate_local")(pr.load_model("linear_gaussian"), seed=0, progress=False)


def test_the_global_recipe_leaves_nothing_wrong():
    poisoned = pr.load_model("backdoored_parity")
    estimate = pr.load_recipe("mitigate_global")(poisoned, seed=1, progress=False)
    assert estimate.hits[0] == 0
    assert pr.monte_carlo(poisoned, calls=20_000, progress=False).hits[0] > 300
    with pytest.raises(pr.RiskError, match="clean_rows"):
        pr.load_recipe("mitigate_global")(pr.load_model("linear_gaussian"), seed=0, progress=False)
