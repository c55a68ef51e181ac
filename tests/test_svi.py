"""SVI with importance correction: right on problems with a known answer, and honest where it fails."""

import math

import numpy as np
import pytest
import torch

from builders import NETWORKS, assert_within, linear_gaussian, standard, two_sided
from ppl_risk import fit_svi
from ppl_risk.errors import NoTransportError, PreflightError
from ppl_risk.guides import Block, Full, FullNormal, LowRank, LowRankNormal, MeanField, Mixture, Network
from ppl_risk.problem import RiskProblem
from ppl_risk.risk_estimate import Status

FAMILIES = {
    "mean-field": MeanField(),
    "block": Block(),
    "low-rank": LowRank(4),
    "full": Full(),
    "network": Network(),
    "network, full": Network(input=FullNormal()),
    "network, low-rank": Network(input=LowRankNormal(2)),
    "mean-field, noise": MeanField(coordinates="noise"),
    "low-rank, noise": LowRank(4, coordinates="noise"),
}


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize(("d", "z"), [(2, 3.0), (20, 4.5)])
def test_every_family_finds_the_linear_answer(d, z, kind):
    known = linear_gaussian(d, z)
    estimate = fit_svi(known.problem, FAMILIES[kind], steps=200, draws=4000, progress=False)
    assert estimate.status is Status.OK, str(estimate)
    assert estimate.std_error < 0.15
    assert_within(estimate.log_prob, known.log_prob, estimate.std_error)


def test_a_mixture_finds_both_sides():
    known = two_sided(4.0)
    estimate = fit_svi(known.problem, Network(input=Mixture(4)), steps=200, draws=4000, progress=False)
    assert_within(estimate.log_prob, known.log_prob, estimate.std_error)
    x = estimate.posterior["x"][..., 0]
    assert 0.3 < (x > 0).mean() < 0.7


@pytest.mark.parametrize("kind", ["conv", "twice", "headed"])
def test_other_networks_run_through(kind):
    problem = NETWORKS[kind]()
    estimate = fit_svi(problem, LowRank(2), steps=60, draws=400, progress=False)
    assert math.isfinite(estimate.log_prob)
    assert set(estimate.posterior) == {"x", "margin", *problem.activations(problem.sample(2))[0]}


def test_what_is_kept():
    known = linear_gaussian(3, 3.0)
    estimate = fit_svi(known.problem, steps=90, draws=1001, particles=8, posterior_draws=200, progress=False)
    assert estimate.posterior["x"].shape == (4, 50, 3)
    assert estimate.posterior["margin"].min() >= 0
    assert estimate.stats["log_weight"].shape == estimate.stats["margin"].shape == (4, 250)
    outside = estimate.stats["margin"] < 0
    assert (np.isneginf(estimate.stats["log_weight"]) == outside).all()
    history = estimate.history["svi_history"]
    assert history["loss"].shape == history["grad_norm"].shape == (90,)
    assert 90 * 8 <= estimate.gradient_calls < 90 * 8 + 1000  # the rest are of the search beside the guide
    # two pilots of 512, 1001 importance draws and 200 kept rows; the rest are particles and their checks
    assert estimate.forward_calls >= 2 * 512 + 90 * 8 + 1001 + 200
    assert estimate.seed == 0
    assert estimate.settings["steps"] == 90


def test_posterior_draws_are_optional():
    estimate = fit_svi(linear_gaussian(3, 3.0).problem, steps=30, draws=200, posterior_draws=0, progress=False)
    assert estimate.posterior == {}


def test_posterior_is_the_law_given_catastrophe():
    """Mean of margin / std given margin >= 0; the effective sample size gives the standard error."""
    known = linear_gaussian(3, 4.0)
    estimate = fit_svi(known.problem, Network(input=FullNormal()), steps=200, posterior_draws=1000, progress=False)
    margin = estimate.posterior["margin"].reshape(-1) / known.std
    mills = math.exp(-8.0 - 0.5 * math.log(2 * math.pi) - known.log_prob)
    error = margin.std() / math.sqrt(min(1000, estimate.evidence["ess"]))
    assert_within(float(margin.mean()), mills - 4.0, float(error), sigmas=4.5)


@pytest.mark.filterwarnings("ignore:Encountered NaN")  # Pyro's own, once per step
def test_steps_that_are_not_a_number_are_left_out_and_told():
    """The margin breaks down exactly where the guide wants to go."""
    problem = RiskProblem(lambda x: torch.where(x[:, 0] > 4.0, torch.nan, x[:, 0] - 5.0), standard(2))
    with pytest.raises(PreflightError, match="Fitting met margins that are NaN"):
        fit_svi(problem, Network(), steps=150, draws=400, progress=False)


def test_not_a_number_among_the_pilot_draws_does_not_drop_the_event():
    """One input in 160: preflight's 64 draws miss it, the spread of the pilot's margins is not a number."""
    problem = RiskProblem(lambda x: torch.where(x[:, 0] > 2.5, torch.nan, -x[:, 0] - 4.0), standard(2))
    try:
        estimate = fit_svi(problem, Network(), steps=150, draws=2000, progress=False)
    except ValueError as error:
        assert "NaN" in str(error)  # noqa: PT017 - either outcome is right
        return
    assert_within(estimate.log_prob, -10.3601, estimate.std_error)  # log of the normal tail beyond 4


def test_a_guide_that_was_not_given_time():
    estimate = fit_svi(linear_gaussian(20, 6.0).problem, Network(), steps=2, draws=400, progress=False)
    assert estimate.status in (Status.NOT_CONVERGED, Status.NO_HITS)
    assert not estimate.status.believable


def test_double_precision():
    known = linear_gaussian(3, 3.0, dtype=torch.float64)
    estimate = fit_svi(known.problem, LowRank(2), steps=150, progress=False)
    assert_within(estimate.log_prob, known.log_prob, estimate.std_error)


def test_single_input():
    problem = RiskProblem(torch.nn.Linear(1, 1), standard(1), lambda y: y[:, 0])
    with torch.no_grad():
        problem.network.weight.fill_(2.0)
        problem.network.bias.fill_(-7.0)
    for family in (MeanField(), Full(), Network(input=Mixture(2))):
        estimate = fit_svi(problem, family, steps=100, progress=False)
        assert_within(estimate.log_prob, -8.3658, estimate.std_error)  # log of the normal tail beyond 3.5


def test_no_transport():
    law = torch.distributions.Independent(torch.distributions.VonMises(torch.zeros(2), torch.ones(2)), 1)
    with pytest.raises(NoTransportError):
        fit_svi(RiskProblem(lambda x: x[:, 0] - 9.0, law), progress=False)
