"""`propagate`: exact where it can be, close on small networks, and honest where a law of activations is wrong."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

import ppl_risk as pr
from builders import first, linear_gaussian, random_linear, standard
from ppl_risk import load_model, load_truth
from ppl_risk.errors import RiskError
from ppl_risk.problem import RiskProblem
from ppl_risk.propagation import propagate, propagated_log_prob
from ppl_risk.propagation.hermite import PiecewiseLinear
from ppl_risk.propagation.input_law import InputLaw
from ppl_risk.propagation.linear_map import LinearMap
from ppl_risk.propagation.propagator import Propagator
from ppl_risk.risk_estimate import LOG10, Status


@pytest.mark.parametrize("p", [1e-6, 1e-30, 1e-300])
@pytest.mark.parametrize("readout", ["gaussian", "orthant", "slices"])
@pytest.mark.parametrize("family", ["full", "low_rank"])
def test_linear_networks_are_exact(family, readout, p):
    if readout == "slices" and p == 1e-300:
        p = 1e-190  # slices reach 32 standard deviations out
    known = linear_gaussian(6, float(norm.isf(p)), dtype=torch.float64)
    found = propagate(known.problem, family, readout=readout, trust=False)
    assert found.log_prob == pytest.approx(known.log_prob, abs=2e-3, rel=1e-5)
    assert found.status is Status.MODEL_ONLY


def test_the_whole_survival_curve_of_a_linear_network():
    known = linear_gaussian(6, 4.0, dtype=torch.float64)
    found = propagate(known.problem, "full")
    assert found.status is Status.OK
    thresholds, log_p = found.survival
    assert (np.diff(log_p) <= 0).all()
    np.testing.assert_allclose(log_p, norm.logsf(thresholds, known.mean, known.std), atol=2e-3)
    assert found.prob == pytest.approx(math.exp(known.log_prob), rel=2e-3)


@pytest.mark.parametrize("checks", [4, 16, 64])
def test_checks_with_a_common_cause(checks):
    """The error of the orthant does not grow with the number of checks; independence would say Phi(-4)^checks."""
    truth = load_truth("consistency_checks", checks=checks)
    problem = load_model("consistency_checks", checks=checks)
    found = propagate(problem, "full", readout="orthant", trust=False)
    assert found.prob == pytest.approx(math.exp(truth.log_prob), rel=0.01)


def test_a_catastrophe_that_correlations_exclude():
    found = propagate(load_model("excluded_catastrophe"), "full", readout="orthant", trust=False)
    assert not found.log_prob > math.log(1e-12)
    assert not found.evidence.get("log10_p_of_the_law", -math.inf) > -12


def mlp(*widths, activation=nn.ReLU, seed=0, threshold=0.0):
    generator = torch.Generator().manual_seed(seed)
    layers = [[random_linear(a, b, generator), activation()] for a, b in itertools.pairwise(widths)]
    net = nn.Sequential(*itertools.chain(*layers))[:-1].eval()
    with torch.no_grad():
        net[-1].weight.mul_(3.0)
        net[-1].bias.sub_(threshold)
    return net


def small(activation=nn.ReLU, seed=0, threshold=4.5):
    net = mlp(6, 16, 16, 1, activation=activation, seed=seed, threshold=threshold).requires_grad_(False)
    return RiskProblem(net, standard(6), first, name="small")


@pytest.mark.parametrize(("activation", "threshold"), [(nn.ReLU, 5.0), (nn.Tanh, 5.5), (nn.GELU, 4.0)])
def test_small_networks_against_draws(activation, threshold):
    problem = small(activation, threshold=threshold)
    with torch.no_grad():
        seen = (problem.margin(problem.sample(2_000_000)) >= 0).double().mean()
    error = math.sqrt(1 / (2e6 * float(seen)))
    found = propagate(problem, "full")
    assert found.status is Status.OK
    assert abs(found.log_prob - math.log(float(seen))) < 3 * math.hypot(found.std_error, error)
    assert abs(found.log10_prob - math.log10(float(seen))) < 0.3
    assert found.posterior


def difference(function, parameter, place, step=1e-4):
    moved = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter[place] += sign * step
            moved.append(float(function()))
            parameter[place] -= sign * step
    return (moved[0] - moved[1]) / (2 * step)


@pytest.mark.parametrize("readout", ["orthant", "slices"])
def test_gradients_in_the_weights_are_those_of_differences(readout):
    """Of slices, at the directions found once; found anew they turn, which moves a tanh network by some per cent."""
    net = mlp(3, 5, 1, activation=nn.Tanh, threshold=3.0).double()
    problem = RiskProblem(net, standard(3, dtype=torch.float64), first)
    gradients = torch.autograd.grad(
        propagated_log_prob(problem, readout=readout, directions=1), [net[0].weight, net[2].bias]
    )
    slices = propagate(problem, "full", trust=False, directions=1).guide.slices
    made = Propagator(slices.event, InputLaw(problem), "full", 16)

    def value():
        anew = readout == "orthant"
        return propagated_log_prob(problem, readout=readout, directions=1) if anew else slices.again(made).log_prob()

    for parameter, place, gradient in ((net[0].weight, (1, 2), gradients[0]), (net[2].bias, (0,), gradients[1])):
        assert float(gradient[place]) == pytest.approx(difference(value, parameter, place), rel=2e-3, abs=1e-5)


def test_deep_random_networks_are_refused():
    generator = torch.Generator().manual_seed(0)
    layers = [[nn.Linear(64, 64, bias=False), nn.ReLU()] for _ in range(32)]
    net = nn.Sequential(*itertools.chain(*layers))[:-1].eval().requires_grad_(False)
    for layer in net[::2]:
        layer.weight.copy_(torch.randn(64, 64, generator=generator) * math.sqrt(2 / 64))
    with torch.no_grad():
        y = net(torch.randn(50_000, 64, generator=generator))[:, 0]
    threshold = float(y.topk(5).values[-1])
    found = propagate(RiskProblem(net, standard(64), lambda y: y[:, 0] - threshold), "full")
    assert found.status is Status.REFUSED
    assert math.isnan(found.log_prob)
    assert "estimate or run_smc" in found.remedy
    assert found.evidence["depth_over_width"] > 0.1


@pytest.mark.parametrize("law", ["uniform", "exponential"])
def test_coordinates_that_are_not_normal(law):
    """Sums of 12 of them: close to normal, with a known mean and standard deviation."""
    one = torch.distributions.Uniform(-1.0, 1.0) if law == "uniform" else torch.distributions.Exponential(1.0)
    inputs = torch.distributions.Independent(one.expand((12,)), 1)
    problem = RiskProblem(lambda x: x.sum(-1) - (6.0 if law == "uniform" else 26.0), inputs)
    found = propagate(problem, "full", readout="gaussian", trust=False)
    mean, sd = (0.0, 2.0) if law == "uniform" else (12.0, math.sqrt(12.0))
    assert float(found.guide.prior[0]) == pytest.approx((mean - 6.0) if law == "uniform" else mean - 26.0, abs=0.01)
    assert float(found.guide.prior[1]) == pytest.approx(sd**2, rel=0.02)


def branch(x):
    return torch.stack([row if float(row[0]) > 0 else 2 * row for row in x])


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (lambda: RiskProblem(lambda x: torch.erfinv(x[:, 0].sin()) - 1.0, standard(2)), "'erfinv'.*not known to propagate"),
        (lambda: RiskProblem(lambda x: branch(x)[:, 0], standard(2)), "cannot be read step by step"),
        (
            lambda: RiskProblem(
                lambda x: x.sum(-1) - 1.5, torch.distributions.Independent(torch.distributions.Bernoulli(torch.rand(3)), 1)
            ),
            "discrete",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_propagated_is_said_once(problem, text):
    with pytest.raises(RiskError, match=text):
        propagate(problem())


@pytest.mark.parametrize("wrong", [{"family": "fuller"}, {"readout": "tail"}, {"rank": 0}])
def test_wrong_arguments(wrong):
    with pytest.raises(RiskError, match="family must be one of"):
        propagate(small(), **wrong)


def halved_gains(monkeypatch):
    """Every ReLU hands on half of what it should: spreads come out too small."""
    exact = PiecewiseLinear.coefficients

    def wrong(self, mean, variance):
        c = exact(self, mean, variance)
        return c._replace(first=c.first / 2, second=c.second / 2, variance=c.variance / 4)

    monkeypatch.setattr(PiecewiseLinear, "coefficients", wrong)


def doubled_maps(monkeypatch):
    exact = LinearMap.forward
    monkeypatch.setattr(LinearMap, "forward", lambda self, rows: 1.5 * exact(self, rows))


@pytest.mark.parametrize("breaks", [halved_gains, doubled_maps])
def test_a_broken_law_is_flagged(monkeypatch, breaks):
    problem = small(threshold=5.0)
    sound = propagate(problem, "full")
    assert sound.status is Status.OK
    assert 0.8 < sound.evidence["spread_ratio"] < 1.25
    breaks(monkeypatch)
    found = propagate(problem, "full")
    assert found.status is Status.REFUSED
    assert math.isnan(found.log_prob)
    assert not 0.8 < found.evidence["spread_ratio"] < 1.25


def test_correlations_that_mean_field_drops_are_flagged():
    """Ten readings of one number, summed."""
    net = nn.Sequential(nn.Linear(2, 10, bias=False), nn.ReLU(), nn.Linear(10, 1, bias=False)).requires_grad_(False)
    nn.init.ones_(net[0].weight)
    nn.init.ones_(net[2].weight)
    found = propagate(RiskProblem(net.eval(), standard(2), lambda y: y[:, 0] - 50.0), "mean_field")
    assert found.status is Status.REFUSED
    assert found.evidence["spread_ratio"] < 0.8


def test_costs_are_counted():
    found = propagate(small(), "full", trust=False)
    assert found.evidence["forward_passes_worth"] > 1
    assert found.flops > 0
    assert found.log_prob == propagate(small(), "full", trust=False, seed=5).log_prob
    assert pr.Status is Status
    assert found.log10_prob == pytest.approx(found.log_prob / LOG10)


def ramps(checks, bound, signs):
    """Reports ramp(10 (sign u + 0.15 e_i - 2.33)) of one cause u; catastrophe where their mean passes `bound`."""
    layer = nn.Linear(checks + 1, checks).requires_grad_(False)
    layer.weight.copy_(10 * torch.cat([torch.tensor(signs)[:, None] * 0.9887, 0.15 * torch.eye(checks)], 1))
    layer.bias.fill_(-23.3)
    net = nn.Sequential(layer, nn.Hardtanh(0.0, 1.0)).eval()
    return RiskProblem(net, standard(checks + 1), lambda y: y.mean(-1) - bound)


def test_a_law_that_turns_between_two_nodes_gets_more_of_them():
    """Seven nodes step over the ramp and say 1e-5; the truth, 5.32e-3, is an integral over u (benchmarks/common_cause.py)."""
    found = propagate(ramps(4, 1 - 1 / 8, [1.0] * 4), "full")
    assert found.evidence["nodes"] > 7
    assert abs(found.log10_prob - math.log10(5.32e-3)) < math.log10(1.25)


def test_plain_passes_that_fail_too_often_refuse_the_number(monkeypatch):
    monkeypatch.setattr("ppl_risk.propagation.slices.ROUGH", math.inf)
    found = propagate(ramps(4, 1 - 1 / 8, [1.0] * 4), "full")
    assert found.status is Status.REFUSED
    assert "plain passes" in found.remedy


def test_an_event_without_a_gradient_at_the_origin_is_sliced_all_the_same():
    """Two ramps that exclude each other: one Gaussian tail says 3e-4."""
    found = propagate(ramps(2, 0.75, [1.0, -1.0]), "full")
    assert found.guide.slices is not None
    assert found.evidence["log10_p_of_the_law"] < -12
