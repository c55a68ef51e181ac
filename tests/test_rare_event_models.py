"""The zoo's classes of rare events: closed forms against plain Monte Carlo at an easier level, and which gradients there are."""

import json
import math

import pytest
import torch

import ppl_risk as pr
from ppl_risk.zoo import load_file, load_model, load_truth, shelf

CURVED = ("shell", "offset_shell", "corner2", "corner5", "parabola_in", "parabola_out", "bowl")
NAMES = ("conv_images", "curved_sets", "digits_weights", "far_modes", "four_branches")
ENTRIES = [
    (name, entry["parameters"])
    for name in NAMES
    for entry in json.loads((shelf("models") / name / "truth.json").read_text())["entries"]
]


def module_of(name):
    return load_file(shelf("models") / name / "problem.py")


def assert_counts_agree(problem, log_prob, draws):
    """Within 4 standard errors of the binomial count."""
    p = math.exp(log_prob)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        seen = float((problem.margin(problem.sample(draws)) >= 0).double().mean())
    assert abs(seen - p) < 4 * math.sqrt(p * (1 - p) / draws)


@pytest.mark.parametrize(("name", "parameters"), ENTRIES, ids=str)
def test_loads_with_a_truth_a_finite_margin_and_a_gradient(name, parameters):
    problem = load_model(name, **parameters)
    truth = load_truth(name, **parameters)
    assert truth is not None
    assert math.log(1e-7) < truth.log_prob < math.log(1e-2)
    assert truth.std_error < 0.01
    u = torch.randn(8, problem.transport.dimension, generator=torch.Generator().manual_seed(0))
    margin, gradient = problem.margin_and_gradient(u)
    assert margin.isfinite().all()
    assert gradient.isfinite().all()
    assert bool((gradient.norm(dim=-1) > 0).all()) == parameters.get("gradient", True)


@pytest.mark.parametrize("shape", CURVED)
def test_curved_sets_at_one_percent(shape):
    assert_counts_agree(load_model("curved_sets", shape=shape, log10_prob=-2.0), -2.0 * math.log(10.0), 100_000)


def test_the_bowl_is_the_one_in_the_literature():
    assert math.exp(module_of("curved_sets").SHAPES["bowl"].log_prob(5.0)) == pytest.approx(3.02e-3, rel=2e-3)


@pytest.mark.parametrize(("dimension", "step"), [(2, 0.0), (2, 0.4), (20, 0.2)])
def test_far_modes_at_one_percent(dimension, step):
    problem = load_model("far_modes", dimension=dimension, step=step, log10_prob=-2.0)
    assert_counts_agree(problem, -2.0 * math.log(10.0), 200_000)


def test_far_modes_without_a_gradient_is_the_same_event():
    smooth, stairs = (load_model("far_modes", dimension=5, log10_prob=-1.0, gradient=g) for g in (True, False))
    u = smooth.sample(50_000)
    assert torch.equal(smooth.margin(u) >= 0, stairs.margin(u) >= 0)
    assert stairs.margin(u).unique().numel() < 1000


@pytest.mark.parametrize("k", [5.0, 7.0])
def test_four_branches(k):
    problem = load_model("four_branches", k=k)
    assert_counts_agree(problem, module_of("four_branches").exact_log_prob(k), 1_000_000)
    # The limit states as they are printed, at a few points.
    u = 4 * torch.randn(100, 2, generator=torch.Generator().manual_seed(1))
    a, b = u.unbind(-1)
    bent = 3 + 0.1 * (a - b) ** 2
    limits = [bent - (a + b) / 2**0.5, bent + (a + b) / 2**0.5, a - b + k / 2**0.5, b - a + k / 2**0.5]
    assert torch.allclose(problem.margin(u), -torch.stack(limits).amin(0), atol=1e-5)


def test_uncertain_last_layer_at_a_larger_sigma():
    log_prob = module_of("digits_weights").exact_log_prob(0.6)
    assert 0.005 < math.exp(log_prob) < 0.1
    assert_counts_agree(load_model("digits_weights", sigma=0.6), log_prob, 40_000)


@pytest.mark.parametrize("layers", ["last", "all"])
def test_uncertain_weights_are_the_weights_of_the_digit_reader(layers):
    """The network at u against the digit reader with the same disturbed weights, one row at a time."""
    problem, digits = load_model("digits_weights", layers=layers, sigma=0.1), load_model("digits")
    u = torch.randn(3, problem.transport.dimension, generator=torch.Generator().manual_seed(2))
    trained = dict(digits.network.state_dict())
    names = [name for name in trained if layers == "all" or name.startswith("logits")]
    for row, margin in zip(u, problem.margin(u), strict=True):
        parts = row.split([trained[name].numel() for name in names])
        disturbed = {
            name: trained[name] + 0.1 * part.view_as(trained[name]) for name, part in zip(names, parts, strict=True)
        }
        logits = torch.func.functional_call(digits.network, trained | disturbed, (digits.inputs.mean[None],))
        assert float(margin) == pytest.approx(float(digits.detector(logits)), abs=1e-3)


def test_bad_parameters_are_refused():
    for name, parameters in (
        ("four_branches", {"k": 0.0}), ("far_modes", {"dimension": 1}), ("curved_sets", {"shape": "ring"}),
        ("digits_weights", {"layers": "first"}), ("conv_images", {"sigma": 0.0}),
    ):  # fmt: skip
        with pytest.raises(pr.RiskError):
            load_model(name, **parameters)
