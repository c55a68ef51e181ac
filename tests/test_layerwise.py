"""Forward KL on the unconditioned law: the tail that a family presumes, in closed form where the network is linear."""

import math

import pytest
from scipy.stats import norm

from builders import assert_within, linear_gaussian, residual_problem, two_sided
from ppl_risk import fit_layerwise
from ppl_risk.errors import RiskError
from ppl_risk.estimate import Status
from ppl_risk.guides import Block, Full, LowRank, MeanField, Mixture, Network, Normal
from ppl_risk.problem import RiskProblem

DRAWS = 10_000


def fitting_error(z: float) -> float:
    """Error of log sf(z) where mean and deviation were fitted to DRAWS draws: both move z."""
    slope = math.exp(norm.logpdf(z) - norm.logsf(z))
    return slope * math.sqrt(1 + z**2 / 2) / math.sqrt(DRAWS)


def presumed_z(known) -> float:
    """Margins whose hidden units are taken for independent: variances add, covariances are dropped."""
    first, last = (layer.weight.detach().double() for layer in known.problem.network)
    variance = (last[0].square() * (first * 0.5).square().sum(1)).sum()
    return -known.mean / math.sqrt(float(variance))


def cut(known, *layers):
    problem = known.problem
    return RiskProblem(problem.network, problem.inputs, problem.detector, layers=list(layers), name="cut")


@pytest.mark.parametrize("family", [Full(), LowRank(20)], ids=lambda f: f.label)
@pytest.mark.parametrize(("d", "z"), [(3, 3.0), (3, 5.0), (8, 5.0)])
def test_joint_families_give_the_exact_tail(d, z, family):
    known = linear_gaussian(d, z)
    estimate = fit_layerwise(known.problem, family, draws=DRAWS, particles=500, progress=False)
    assert estimate.status is Status.MODEL_ONLY
    assert_within(estimate.log_prob, known.log_prob, math.hypot(fitting_error(z), estimate.std_error))


@pytest.mark.parametrize("family", [Full(), Block()], ids=lambda f: f.label)
def test_correlations_inside_a_layer_are_carried_to_the_margin(family):
    known = linear_gaussian(8, 4.0)
    estimate = fit_layerwise(cut(known, "0"), family, draws=DRAWS, particles=500, progress=False)
    # shrinkage takes dimension / draws off every covariance: a few thousandths of the variance
    slack = 4.0**2 * 16 / DRAWS * abs(presumed_z(known) ** 2 - 16.0)
    assert_within(estimate.log_prob, known.log_prob, math.hypot(fitting_error(4.0), estimate.std_error), slack=slack)


@pytest.mark.parametrize("d", [3, 9])
def test_mean_field_gives_the_product_law(d):
    known = linear_gaussian(d, 4.0)
    z = presumed_z(known)
    estimate = fit_layerwise(cut(known, "0"), MeanField(), draws=DRAWS, particles=500, progress=False)
    assert abs(norm.logsf(z) - known.log_prob) > 0.5, "the presumption makes no difference here: choose another network"
    assert_within(estimate.log_prob, norm.logsf(z), math.hypot(fitting_error(z), estimate.std_error))


def test_number_is_never_believed_as_the_network_s():
    estimate = fit_layerwise(residual_problem(), draws=1000, particles=200, progress=False)
    assert estimate.status is Status.MODEL_ONLY
    assert "DO NOT BELIEVE" in str(estimate)
    assert estimate.method == "layerwise low-rank(8)"
    assert estimate.evidence["fitted_draws"] == 1000
    assert estimate.posterior == {}
    assert estimate.forward_calls > 1000


@pytest.mark.parametrize(
    ("family", "text"),
    [(Network(), "noise coordinates.*run_smc"), (MeanField(coordinates="noise"), "noise coordinates"),
     (MeanField(input=Mixture(2)), "Gaussian input law")],
)  # fmt: skip
def test_families_without_a_tail_of_their_own(family, text):
    with pytest.raises(RiskError, match=text):
        fit_layerwise(linear_gaussian(3, 2.0).problem, family, draws=200, progress=False)


def test_a_plain_callable_has_no_layers():
    with pytest.raises(RiskError, match=r"no layers.*nn\.Module"):
        fit_layerwise(two_sided(2.0).problem, progress=False)


def test_given_input_law_is_used():
    known = linear_gaussian(3, 3.0)
    estimate = fit_layerwise(known.problem, LowRank(4, input=Normal()), draws=DRAWS, particles=300, progress=False)
    assert_within(estimate.log_prob, known.log_prob, math.hypot(fitting_error(3.0), estimate.std_error))
