"""One contract, run over every estimator: what a `RiskEstimate` must carry, whoever made it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import ppl_risk as pr
from builders import linear_gaussian
from ppl_risk.engine.run import FINGERPRINT_CALLS
from ppl_risk.preflight import PREFLIGHT_CALLS
from ppl_risk.preflight.margins import LOOK

ESTIMATORS = {
    "monte_carlo": lambda p, seed: pr.monte_carlo(p, calls=20_000, seed=seed, progress=False),
    "estimate": lambda p, seed: pr.estimate(p, max_calls=4000, posterior_draws=40, seed=seed, progress=False),
    "svi_mean_field": lambda p, seed: pr.fit_svi(
        p, pr.guides.MeanField(), steps=150, draws=1500, posterior_draws=40, seed=seed, progress=False
    ),
    "svi_network": lambda p, seed: pr.fit_svi(
        p, pr.guides.Network(), steps=100, draws=1500, posterior_draws=40, seed=seed, progress=False
    ),
    "layerwise_full": lambda p, seed: pr.fit_layerwise(
        p, pr.guides.Full(), draws=4000, particles=400, seed=seed, progress=False
    ),
    "layerwise_selected": lambda p, seed: pr.fit_layerwise(
        p, pr.guides.Selected(pr.select(p, 5, draws=1000)), draws=4000, particles=400, seed=seed, progress=False
    ),
    "propagate": lambda p, seed: pr.propagate(p, "full", posterior_draws=160, seed=seed),
    "smc_pcn": lambda p, seed: pr.run_smc(p, particles=400, moves="pcn", posterior_draws=40, seed=seed, progress=False),
    "smc_gradient": lambda p, seed: pr.run_smc(p, particles=400, posterior_draws=40, seed=seed, progress=False),
}


@pytest.fixture(scope="module")
def known():
    return linear_gaussian(5, 2.5)


@pytest.fixture(scope="module", params=ESTIMATORS)
def made(request, known):
    with known.problem.metered() as meter:
        estimate = ESTIMATORS[request.param](known.problem, 0)
    return request.param, estimate, meter


def test_the_number_is_right_within_its_own_error(made, known):
    _, estimate, _ = made
    assert abs(estimate.log_prob - known.log_prob) < 4 * estimate.std_error
    assert 0 < estimate.std_error < 0.5
    low, high = estimate.interval(0.9)
    assert low < estimate.log_prob < high <= 0
    wide = estimate.interval(0.99)
    assert wide[0] < low
    assert wide[1] > high


def test_cost_is_booked(made, known):
    name, estimate, meter = made
    # No meter sees the rows of preflight and fingerprint; only the engine, whose budget they are part of, books them.
    unseen = PREFLIGHT_CALLS + LOOK + 2 * FINGERPRINT_CALLS if name == "estimate" else 0
    meter = replace(meter, forward_calls=meter.forward_calls + unseen)
    assert estimate.forward_calls == meter.forward_calls > 0
    assert estimate.gradient_calls == meter.gradient_calls
    # Propagation multiplies matrices beside the rows it runs to check itself.
    own = estimate.evidence.get("forward_passes_worth", 0.0) * known.problem.flops_per_row
    assert estimate.flops == pytest.approx(known.problem.flops(meter) + own)
    assert estimate.seconds > 0


def test_status_and_remedy(made):
    _, estimate, _ = made
    assert estimate.status.believable or estimate.remedy
    assert estimate.status.name in str(estimate)
    assert estimate.problem == "linear(5)"
    assert estimate.seed == 0


def test_the_same_seed_gives_the_same_bits_and_another_does_not(made, known):
    name, estimate, _ = made
    # What is propagated has no seed; the passes that check it have.
    drawn = "std_error" if name == "propagate" else "log_prob"
    again = ESTIMATORS[name](known.problem, 0)
    assert again.log_prob == estimate.log_prob
    assert getattr(again, drawn) == getattr(estimate, drawn)
    assert getattr(ESTIMATORS[name](known.problem, 1), drawn) != getattr(estimate, drawn)


def test_the_callers_random_state_is_left_alone(made, known):
    name, _, _ = made
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    ESTIMATORS[name](known.problem, 2)
    assert torch.equal(torch.rand(3), expected)


def test_posterior_draws_are_catastrophes(made, known):
    name, estimate, _ = made
    if name.startswith("layerwise"):
        assert estimate.posterior == {}
        return
    x = estimate.posterior["x"]
    assert x.shape[0] == 4
    assert x.shape[2:] == (5,)
    assert {"0", "1", "margin"} <= set(estimate.posterior)
    margin = known.problem.margin(torch.as_tensor(x.reshape(-1, 5)))
    assert bool((margin >= 0).all())
    assert np.allclose(margin.detach(), estimate.posterior["margin"].reshape(-1), atol=1e-5)


def test_it_survives_the_disk(made, tmp_path):
    _, estimate, _ = made
    estimate.save(str(tmp_path / "e"))
    loaded = pr.RiskEstimate.load(str(tmp_path / "e"))
    assert loaded.log_prob == estimate.log_prob
    assert loaded.status is estimate.status
    assert loaded.interval() == estimate.interval()
    assert set(loaded.history) == set(estimate.history)
    assert {k.replace(".", "_") for k in estimate.posterior} == set(loaded.posterior)


def test_no_layers_no_problem(made):
    """A plain callable has one site, the input; only the layerwise fit, which has nothing to model, refuses."""
    name, _, _ = made
    law = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(3), 1.0), 1)
    problem = pr.RiskProblem(lambda x: x.sum(-1) - 3.0, law)
    if name.startswith("layerwise"):
        with pytest.raises(pr.RiskError, match="no layers"):
            ESTIMATORS[name](problem, 0)
        return
    estimate = ESTIMATORS[name](problem, 0)
    truth = math.log(0.5 * math.erfc(math.sqrt(3) / math.sqrt(2)))
    assert abs(estimate.log_prob - truth) < 4 * estimate.std_error
