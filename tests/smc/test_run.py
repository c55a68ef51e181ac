"""Runs from end to end: guides as starts, what is kept, and what is refused."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from builders import assert_within, conv_problem, linear_gaussian, orthant, standard, two_sided
from ppl_risk import fit_svi, monte_carlo, run_smc
from ppl_risk.activations import ActivationModel
from ppl_risk.errors import NoTransportError, RiskError
from ppl_risk.guides import FullNormal, LowRank, Mixture, Network
from ppl_risk.problem import RiskProblem
from ppl_risk.risk_estimate import Status


def placed(problem, mean, scale=1.0, family=None):
    """A guide of the input put at a place by hand."""
    family = family or Network()
    guide = family.bind(ActivationModel(problem, family.coordinates, resolution=family.resolution).sites)
    law = guide.groups[0].law
    with torch.no_grad():
        law.loc[..., : len(mean)] = torch.tensor(mean)
        law.set_scale(torch.full_like(law.scale, scale))
    return guide


GUIDES = {
    "good": ([4.5, 0.0], 0.7),
    "at the prior": ([0.0, 0.0], 1.0),
    "wrong side": ([-4.0, 0.0], 0.5),
    "beside it": ([0.0, 4.0], 0.5),
    "far too narrow": ([4.5, 0.0], 1e-3),
    "beyond it": ([7.0, 0.0], 0.5),
}


@pytest.mark.parametrize("kind", GUIDES)
def test_a_guide_moves_the_start_and_not_the_answer(kind):
    """24 runs of 300 particles, 4 sigmas and the bias of adaptive levels."""
    problem = RiskProblem(lambda x: x[:, 0] - 4.0, standard(2))
    estimate = run_smc(
        problem, guide=placed(problem, *GUIDES[kind]), particles=300, runs=24, posterior_draws=0, seed=3, progress=False
    )
    assert estimate.status is Status.OK
    assert "from a guide" in estimate.method
    assert estimate.std_error < 0.2
    assert_within(estimate.log_prob, norm.logsf(4.0), estimate.std_error, slack=0.03)


def test_a_fitted_guide_saves_levels():
    problem = RiskProblem(lambda x: x[:, 0] - 6.0, standard(2))
    guide = fit_svi(problem, Network(input=FullNormal()), steps=200, progress=False).guide
    plain, helped = (run_smc(problem, guide=g, particles=300, progress=False) for g in (None, guide))
    assert helped.evidence["levels"] < plain.evidence["levels"] / 4
    assert helped.std_error < plain.std_error


def test_mixture_and_joint_guides_can_start():
    known = two_sided(4.0)
    guide = placed(known.problem, [4.0, 0.0], family=Network(input=Mixture(2)))
    estimate = run_smc(known.problem, guide=guide, particles=400, runs=12, seed=1, progress=False)
    assert_within(estimate.log_prob, known.log_prob, max(estimate.std_error, 0.05), slack=0.03)
    linear = linear_gaussian(3, 3.0)
    guide = LowRank(2).bind(ActivationModel(linear.problem).sites)
    estimate = run_smc(linear.problem, guide=guide, particles=400, seed=1, progress=False)
    assert_within(estimate.log_prob, linear.log_prob, max(estimate.std_error, 0.08), slack=0.03)


@pytest.mark.parametrize("moves", [None, "pcn"])
def test_correlated_and_rare_orthants(moves):
    for known in (orthant(9, 0.5), orthant(14)):
        estimate = run_smc(known.problem, particles=500, runs=8, moves=moves, seed=0, progress=False)
        assert estimate.status is Status.OK
        assert_within(estimate.log_prob, known.log_prob, estimate.std_error, slack=0.05)


def test_convolutions_agree_with_counting():
    problem = conv_problem()
    estimate = run_smc(problem, particles=600, runs=8, progress=False)
    counted = monte_carlo(problem, calls=100_000, progress=False)
    assert counted.hits[0] > 100
    assert_within(
        estimate.log_prob, counted.log_prob, float(np.hypot(estimate.std_error, counted.std_error)), slack=0.05
    )
    assert estimate.posterior["x"].shape[2:] == (1, 6, 6)
    assert estimate.posterior["0"].shape[2:] == (2, 4, 4)


@pytest.mark.parametrize(("moves", "z"), [("pcn", 9.0), ("gradient", 9.0), ("gradient", 12.0)])
def test_far_tails(moves, z):
    """1e-19 and 1e-33; the bias of adaptive levels adds a little for each of up to 60 levels."""
    known = linear_gaussian(5, z, dtype=torch.float64)
    estimate = run_smc(known.problem, particles=200, runs=6, moves=moves, progress=False)
    assert_within(estimate.log_prob, known.log_prob, estimate.std_error, slack=0.5 * z**2 / 400)


def test_posterior_is_the_law_given_catastrophe():
    """Mean of margin / std given margin >= 0 is Mills' ratio minus z; each run counts as one draw."""
    known = linear_gaussian(3, 4.0)
    estimate = run_smc(known.problem, particles=500, runs=10, posterior_draws=2000, progress=False)
    margin = estimate.posterior["margin"] / known.std
    assert margin.shape == (10, 200)
    assert margin.min() >= 0
    assert set(estimate.posterior) == {"x", "0", "1", "margin"}
    means = margin.mean(1)
    exact = np.exp(norm.logpdf(4.0) - norm.logsf(4.0)) - 4.0
    assert_within(float(means.mean()), exact, float(means.std(ddof=1)) / 10**0.5, sigmas=5)
    np.testing.assert_allclose(estimate.posterior["margin"], estimate.posterior["1"][..., 0], rtol=1e-5)


def test_history_is_padded():
    known = linear_gaussian(3, 5.0)
    history = run_smc(known.problem, particles=60, runs=8, seed=5, progress=False).history["smc_history"]
    assert {"threshold", "log_ratio", "ess", "acceptance", "step_size", "n_unique"} <= set(history)
    threshold = history["threshold"]
    lengths = np.isfinite(threshold).sum(1)
    assert threshold.shape == (8, lengths.max())
    assert len(set(lengths)) > 1, "choose a seed at which runs differ in length"
    for row, length in zip(threshold, lengths, strict=True):
        assert (np.diff(row[:length]) > 0).all()
        assert row[length - 1] == 0.0
        assert np.isnan(row[length:]).all()


@pytest.mark.parametrize("guided", [False, True])
def test_survival_curve_is_the_normal_one(guided):
    """At every threshold within 5 times the error of the end, where it is largest; also where the first draws are weighted."""
    known = linear_gaussian(3, 5.0)
    guide = fit_svi(known.problem, Network(), steps=60, draws=100, progress=False).guide if guided else None
    estimate = run_smc(known.problem, particles=500, runs=10, guide=guide, progress=False)
    thresholds, log_prob = estimate.survival
    assert (np.diff(thresholds) > 0).all()
    inside = thresholds <= 0
    assert inside.sum() > 20
    exact = norm.logsf((thresholds[inside] - known.mean) / known.std)
    # With a guide the bulk is seen by the tenth of the draws that follow the prior: 250 above the median, 4 sigmas.
    slack = 4 / np.sqrt(250) if guided else 0.05
    assert np.abs(log_prob[inside] - exact).max() < 5 * estimate.std_error + slack
    assert exact.min() < -12


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"moves": "jump"}, "moves must be one of"),
        ({"runs": 1}, "At least 2 runs"),
        ({"particles": 19}, "20 particles"),
    ],
)
def test_refusals(arguments, text):
    with pytest.raises(RiskError, match=text):
        run_smc(linear_gaussian(2, 2.0).problem, progress=False, **arguments)


def test_no_transport_is_refused_with_the_way_out():
    law = torch.distributions.Independent(torch.distributions.VonMises(torch.zeros(2), torch.ones(2)), 1)
    with pytest.raises(NoTransportError, match="monte_carlo"):
        run_smc(RiskProblem(lambda x: x[:, 0] - 9, law), progress=False)


def test_cost_is_booked():
    known = linear_gaussian(3, 3.0)
    estimate = run_smc(known.problem, particles=100, runs=2, progress=False)
    assert estimate.forward_calls > estimate.gradient_calls > 200
    row = known.problem.flops_per_row
    assert estimate.flops == row * (estimate.forward_calls + 2 * estimate.gradient_calls)
    assert estimate.dof == 1.0
