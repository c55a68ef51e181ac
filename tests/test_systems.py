"""Composed detectors: the sign is that of the composed event, the names of their layers stay, wrong ones are named."""

import copy
import itertools
import math

import pytest
import torch
from scipy.stats import binom, norm
from torch import nn

from builders import Head, assert_within, standard
from ppl_risk import monte_carlo, run_smc
from ppl_risk.errors import RiskError
from ppl_risk.preflight import check
from ppl_risk.problem import RiskProblem
from ppl_risk.systems import all_of, any_of, at_least


def beyond(index, z):
    return lambda y: y[:, index] - z


def test_signs_over_all_combinations():
    """Each of the 8 combinations of three events, in different units: the composed event happens iff its rule says so."""
    rows = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3))) * torch.tensor([1e-3, 1.0, 1e4])
    parts = [beyond(i, 0.0) for i in range(3)]
    happened = (rows >= 0).sum(1)
    for scales in (None, [1e-3, 1.0, 1e4]):
        assert torch.equal(any_of(*parts, scales=scales)(rows) >= 0, happened >= 1)
        assert torch.equal(all_of(*parts, scales=scales)(rows) >= 0, happened == 3)
        assert torch.equal(at_least(2, *parts, scales=scales)(rows) >= 0, happened >= 2)
    assert at_least(2, *parts, scales=[1e-3, 1.0, 1e4])(rows).abs().tolist() == pytest.approx([1.0] * 8)


def test_nested_systems():
    rule = any_of(all_of(beyond(0, 0.0), beyond(1, 0.0)), beyond(2, 0.0))
    rows = torch.tensor([[1.0, -1.0, -1.0], [1.0, 2.0, -1.0], [-1.0, -1.0, 3.0]])
    assert rule(rows).tolist() == [-1.0, 1.0, 3.0]


@pytest.mark.parametrize(("needed", "z"), [(1, 3.5), (2, 2.5), (3, 1.5)])
def test_smc_finds_the_binomial_probability(needed, z):
    """Three independent events of probability Phi(-z)."""
    problem = RiskProblem(lambda x: x, standard(3), at_least(needed, *(beyond(i, z) for i in range(3))))
    estimate = run_smc(problem, particles=1000, posterior_draws=0, progress=False)
    assert_within(estimate.log_prob, float(binom(3, norm.sf(z)).logsf(needed - 1)), estimate.std_error)


def test_modules_keep_their_names_and_gradients():
    torch.manual_seed(0)
    rule = all_of(Head().eval(), beyond(0, 0.5), any_of(Head().eval()))
    problem = RiskProblem(nn.Linear(2, 3).eval(), standard(2), rule.eval())
    assert list(problem.activations(problem.sample(4))[0]) == ["network", "detector.0.score", "detector.2.0.score"]
    assert sum(p.numel() for p in problem.parameters()) == 9 + 4 + 4
    margin, gradient = problem.margin_and_gradient(torch.randn(8, 2))
    assert bool((gradient != 0).any())
    assert margin.shape == (8,)
    assert check(problem).ok


def test_a_copy_holds_copies():
    rule = any_of(Head())
    other = copy.deepcopy(rule)
    with torch.no_grad():
        other.get_submodule("0.score").bias.add_(5.0)
    y = torch.randn(3, 3)
    torch.testing.assert_close(other(y), rule(y) + 5.0)


def whole_batch(y):
    return y.max()


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (whole_batch, r'Detector 1 of 2, "whole_batch", returned shape \(\); wanted one margin per row, \(3,\)'),
        (lambda y: y, r"Detector 1 of 2.*shape \(3, 2\)"),
        (lambda y: 1.0, r"Detector 1 of 2.*returned float"),
        (lambda y: y[:, 0] > 0, r"Detector 1 of 2.*torch\.bool"),
        (lambda y: y[:2, 0], r"Detector 1 of 2.*shape \(2,\)"),
    ],
)
def test_a_wrong_detector_is_named(wrong, text):
    rule = any_of(beyond(0, 1.0), wrong)
    with pytest.raises(RiskError, match=text):
        rule(torch.zeros(3, 2))
    finding = check(RiskProblem(lambda x: x, standard(2), rule)).findings[-1]
    assert finding.level == "error"
    assert "Detector 1 of 2" in finding.message


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: any_of(), "one detector or more"),
        (lambda: at_least(3, beyond(0, 1.0), beyond(1, 1.0)), r"At least 3 of 2.*1\.\.2"),
        (lambda: at_least(0, beyond(0, 1.0)), "At least 0 of 1"),
        (lambda: all_of(beyond(0, 1.0), scales=[1.0, 2.0]), "scales must be 1"),
        (lambda: all_of(beyond(0, 1.0), scales=[0.0]), "numbers > 0"),
        (lambda: all_of(beyond(0, 1.0), scales=[math.nan]), "numbers > 0"),
    ],
)
def test_refusals(make, text):
    with pytest.raises(RiskError, match=text):
        make()


def test_outputs_that_are_no_tensor():
    rule = all_of(lambda y: y["a"], lambda y: y["b"])
    assert rule({"a": torch.ones(4), "b": -torch.ones(4)}).tolist() == [-1.0] * 4
    problem = RiskProblem(lambda x: {"a": x[:, 0] - 1, "b": x[:, 1] - 1}, standard(2), rule)
    estimate = monte_carlo(problem, calls=20_000, progress=False)
    assert_within(estimate.log_prob, 2 * float(norm.logsf(1)), estimate.std_error)
