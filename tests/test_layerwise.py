"""Forward KL on the unconditioned law: the tail that a family presumes, in closed form where the network is linear."""

import math

import pytest
import torch
from scipy.stats import norm
from torch import nn

from builders import (
    NETWORKS,
    assert_within,
    first,
    linear_gaussian,
    random_linear,
    residual_problem,
    standard,
    two_sided,
)
from ppl_risk import fit_layerwise
from ppl_risk.errors import RiskError
from ppl_risk.guides import Block, Empirical, Full, LowRank, MeanField, Network, Normal, Selected
from ppl_risk.guides.empirical import EmpiricalGuide
from ppl_risk.problem import RiskProblem
from ppl_risk.provenance import Provenance
from ppl_risk.risk_estimate import Status
from ppl_risk.selection import select

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
    estimate = fit_layerwise(known.problem, family, tail="smc", draws=DRAWS, particles=500, progress=False)
    assert estimate.status is Status.MODEL_ONLY
    assert_within(estimate.log_prob, known.log_prob, math.hypot(fitting_error(z), estimate.std_error))


@pytest.mark.parametrize("family", [Full(), Block()], ids=lambda f: f.label)
def test_correlations_inside_a_layer_are_carried_to_the_margin(family):
    known = linear_gaussian(8, 4.0)
    estimate = fit_layerwise(cut(known, "0"), family, tail="smc", draws=DRAWS, particles=500, progress=False)
    # shrinkage takes dimension / draws off every covariance: a few thousandths of the variance
    slack = 4.0**2 * 16 / DRAWS * abs(presumed_z(known) ** 2 - 16.0)
    assert_within(estimate.log_prob, known.log_prob, math.hypot(fitting_error(4.0), estimate.std_error), slack=slack)


@pytest.mark.parametrize("d", [3, 9])
def test_mean_field_gives_the_product_law(d):
    known = linear_gaussian(d, 4.0)
    z = presumed_z(known)
    estimate = fit_layerwise(cut(known, "0"), MeanField(), tail="smc", draws=DRAWS, particles=500, progress=False)
    assert abs(norm.logsf(z) - known.log_prob) > 0.5, "the presumption makes no difference here: choose another network"
    assert_within(estimate.log_prob, norm.logsf(z), math.hypot(fitting_error(z), estimate.std_error))


def test_number_is_never_believed_as_the_network_s():
    estimate = fit_layerwise(residual_problem(), tail="smc", draws=1000, particles=200, progress=False)
    assert estimate.status is Status.MODEL_ONLY
    assert "DO NOT BELIEVE" in str(estimate)
    assert estimate.method == "layerwise low-rank(8)"
    assert estimate.evidence["fitted_draws"] == 1000
    assert estimate.posterior == {}
    assert estimate.forward_calls > 1000


@pytest.mark.parametrize(
    ("family", "text"),
    [(Network(), "noise coordinates.*run_smc"), (MeanField(coordinates="noise"), "noise coordinates")],
)
def test_families_without_a_tail_of_their_own(family, text):
    with pytest.raises(RiskError, match=text):
        fit_layerwise(linear_gaussian(3, 2.0).problem, family, draws=200, progress=False)


def test_a_plain_callable_has_no_layers():
    with pytest.raises(RiskError, match=r"no layers.*nn\.Module"):
        fit_layerwise(two_sided(2.0).problem, progress=False)


def test_given_input_law_is_used():
    known = linear_gaussian(3, 3.0)
    estimate = fit_layerwise(
        known.problem, LowRank(4, input=Normal()), tail="smc", draws=DRAWS, particles=300, progress=False
    )
    assert_within(estimate.log_prob, known.log_prob, math.hypot(fitting_error(3.0), estimate.std_error))


@pytest.mark.parametrize("fit", ["network", "pushed"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_unrestricted_class_is_plain_monte_carlo(kind, fit):
    """Identity: laws of finite support give the share of catastrophes among the very inputs that they sit on."""
    problem = NETWORKS[kind]()
    estimate = fit_layerwise(problem, Empirical(), fit=fit, draws=4000, progress=False)
    with torch.no_grad():
        margin = problem.run(problem.from_normal(estimate.guide.support["input"]))
    hits = int((margin >= 0).sum())
    assert 0 < hits < 4000, "all or nothing: an empty test"
    assert estimate.hits == (hits, 4000)
    assert estimate.log_prob == pytest.approx(math.log(hits / 4000))
    assert estimate.status is (Status.OK if hits >= 20 else Status.LOW_ESS), "counting on the network itself"
    assert set(estimate.guide.support) == {"input", *problem.activations(problem.sample(2))[0]}


def test_law_of_finite_support_has_no_density():
    guide = Empirical().bind({})
    assert isinstance(guide, EmpiricalGuide)
    with pytest.raises(RiskError, match="no density"):
        guide.log_prob({})
    with pytest.raises(RiskError, match="proposes nothing new"):
        guide.input_law()


def test_sample_of_finite_support_keeps_rows_together():
    estimate = fit_layerwise(residual_problem(), Empirical(), draws=50, progress=False)
    torch.manual_seed(0)
    drawn = estimate.guide.sample(400)
    together = torch.cat([v.flatten(1) for v in drawn.values()], 1)
    support = torch.cat([v.flatten(1) for v in estimate.guide.support.values()], 1)
    assert ((together[:, None] == support[None]).all(-1).sum(1) == 1).all()
    assert len(together.unique(dim=0)) > 40


@pytest.mark.parametrize("z", [3.0, 5.0])
def test_joint_law_pushed_through_a_linear_network_is_exact(z):
    """Three fits, each to draws of the one before: their errors add."""
    known = linear_gaussian(3, z)
    estimate = fit_layerwise(
        known.problem, Full(), fit="pushed", tail="smc", draws=DRAWS, particles=500, progress=False
    )
    assert estimate.method == "layerwise full pushed"
    # twice a shrinkage of 7 / DRAWS, of covariances that are at most the variance
    slack = z**2 * 2 * 7 / DRAWS
    error = math.hypot(math.sqrt(3) * fitting_error(z), estimate.std_error)
    assert_within(estimate.log_prob, known.log_prob, error, slack=slack)


def three_linear(z, d=6):
    """Three layers; the deviation of the margin, and that where independence is presumed layer by layer."""
    generator = torch.Generator().manual_seed(9)
    net = nn.Sequential(*(random_linear(d, n, generator) for n in (d, d, 1))).eval()
    weights = [layer.weight.detach().double() for layer in net]
    true = float((weights[2] @ weights[1] @ weights[0]).norm())
    spread = torch.ones(d, dtype=torch.float64)
    for weight in weights:
        spread = weight.square() @ spread
    with torch.no_grad():
        net[2].bias.zero_()
        net[2].bias.copy_(-z * true - net(torch.zeros(1, d))[0])
    return RiskProblem(net, standard(d), first), true, math.sqrt(float(spread))


@pytest.mark.parametrize("fit", ["pushed", "network"])
def test_pushed_independence_adds_variances_layer_by_layer(fit):
    """Pushed, variances go through squared weights; fitted to the network, the last layer's own is right."""
    problem, true, presumed = three_linear(3.0)
    z = 3.0 * true / presumed if fit == "pushed" else 3.0
    assert abs(norm.logsf(3.0 * true / presumed) - norm.logsf(3.0)) > 1, "no difference: choose another network"
    estimate = fit_layerwise(problem, MeanField(), fit=fit, tail="smc", draws=DRAWS, particles=500, progress=False)
    error = math.hypot(fitting_error(z) * (2 if fit == "pushed" else 1), estimate.std_error)
    assert_within(estimate.log_prob, norm.logsf(z), error)


@pytest.mark.parametrize("fit", ["pushed", "network"])
def test_rank_zero_fitted_to_the_network_presumes_independence_of_the_last_read_alone(fit):
    """Pushed, every layer passes on what independence made of it; else the units that a layer reads keep their variance."""
    problem, true, presumed = three_linear(3.0)
    one, two, three = (layer.weight.detach().double() for layer in problem.network)
    last = math.sqrt(float(three[0].square() @ (two @ one).square().sum(1)))
    tails = {"pushed": 3.0 * true / presumed, "network": 3.0 * true / last}
    assert abs(norm.logsf(tails["pushed"]) - norm.logsf(tails["network"])) > 1, "no difference: choose another network"
    family = Selected(select(problem, 0, draws=200))
    estimate = fit_layerwise(problem, family, fit=fit, tail="smc", draws=DRAWS, particles=500, progress=False)
    z = tails[fit]
    error = math.hypot(fitting_error(z) * (2 if fit == "pushed" else 1), estimate.std_error)
    assert_within(estimate.log_prob, norm.logsf(z), error)


def own_tail(guide):
    """Of a guide whose margin is its last site."""
    law, group = guide.marginal("1"), guide.parts()[0]
    place = group.parts["1"]
    mean = float(group.centre[place] + group.spread[place] * law.mean.detach())
    return norm.logsf(-mean / float(group.spread[place] * law.stddev.detach()))


@pytest.mark.parametrize(("tail", "method"), [("count", "Monte Carlo"), ("importance", "SVI network"), ("smc", "SMC")])
def test_routes_to_the_tail_agree(tail, method):
    """All three see 2 in a hundred, and find what the fitted guide has in closed form."""
    known = linear_gaussian(3, 2.0)
    estimate = fit_layerwise(known.problem, Full(), tail=tail, draws=4000, particles=500, progress=False)
    assert estimate.settings["tail"].startswith(method)
    assert estimate.status is Status.MODEL_ONLY
    assert_within(estimate.log_prob, own_tail(estimate.guide), estimate.std_error)


def test_auto_counts_where_that_sees_enough_and_only_there():
    often, seldom = (
        fit_layerwise(linear_gaussian(3, z).problem, Full(), draws=4000, particles=200, progress=False)
        for z in (1.0, 5.0)
    )
    assert often.settings["tail"] == "Monte Carlo"
    assert often.hits[0] >= 100
    assert seldom.settings["tail"] != "Monte Carlo"
    assert seldom.hits is None
    assert_within(seldom.log_prob, own_tail(seldom.guide), seldom.std_error)


def test_counting_nothing_is_no_number():
    known = linear_gaussian(3, 6.0)
    estimate = fit_layerwise(known.problem, Full(), tail="count", draws=1000, progress=False)
    assert estimate.status is Status.NO_HITS
    assert math.isnan(estimate.log_prob)
    assert estimate.remedy.startswith("Inside the guide's law: No catastrophe in 1,000 draws")


@pytest.mark.parametrize("told", [{"fit": "both"}, {"tail": "exact"}])
def test_unknown_fits_and_tails_are_refused(told):
    (name,) = told
    with pytest.raises(RiskError, match=f"{name} must be one of"):
        fit_layerwise(residual_problem(), progress=False, **told)


def test_cost_is_held_against_training():
    known = linear_gaussian(3, 1.0)
    problem = RiskProblem(known.problem.network, known.problem.inputs, first, provenance=Provenance(training_flops=1e6))
    estimate = fit_layerwise(problem, MeanField(), draws=1000, tail="count", progress=False)
    assert estimate.training_flops == 1e6
    assert estimate.training_ratio == estimate.flops / 1e6 > 0
    assert f"FLOPs ({estimate.training_ratio:.2g} of training)" in str(estimate)
    unknown = fit_layerwise(known.problem, MeanField(), draws=1000, tail="count", progress=False)
    assert unknown.training_ratio is None
    assert "of training" not in str(unknown)
    assert unknown.flops == estimate.flops


@pytest.mark.parametrize("family", ["full", "selected"])
def test_gradients_inside_the_guides_law_are_booked(family):
    """Every row and every gradient of SMC is one of the network, and selecting is paid for."""
    problem = linear_gaussian(3, 3.0).problem
    family = Full() if family == "full" else Selected(select(problem, 1, draws=200))
    paid = 0 if isinstance(family, Full) else 200  # rows of the selection, each with its gradient
    counted, climbed = (
        fit_layerwise(problem, family, tail=tail, draws=500, particles=100, progress=False) for tail in ("count", "smc")
    )
    assert counted.gradient_calls == paid
    assert climbed.gradient_calls > 4 * 100 + paid  # every particle of four runs, at least once
    for estimate in (counted, climbed):
        calls = estimate.forward_calls + 2 * estimate.gradient_calls
        assert estimate.flops == pytest.approx(problem.flops_per_row * calls)
        parts = [estimate.evidence[part] for part in ("fit_flops", "selection_flops", "tail_flops")]
        assert sum(parts) == pytest.approx(estimate.flops)
        assert parts[1] == pytest.approx(3 * paid * problem.flops_per_row)
    assert climbed.evidence["fit_flops"] == counted.evidence["fit_flops"]
