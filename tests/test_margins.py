"""A margin is a margin: what is none is refused or doubted by every call, and what only looks odd is right."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

import ppl_risk as pr
from benchmarks.degenerate_margins import CALLS, LEVEL, MARGINS, finding, outcome, problem_of
from builders import standard
from ppl_risk.preflight.margins import look_at, never_negative, not_real, saturated, slope_fault

TRUTH = float(norm.logsf(LEVEL))
REFUSED = [
    "flag, bool", "flag, int 0/1", "flag, float 0/1", "label, argmax", "label, argmax.float()", "label of 5 classes, float",
    "count of failed checks", "probability, sigmoid", "probability, softmax", "constant 0", "constant 3", "relu(s - t)",
    "(s - t).clamp(0, 1)",
]  # fmt: skip
RIGHT = ["hinge, clamp(max=0)", "squared hinge", "saturated, tanh(20 (s - t))", "rounded to 0.1"]
DOUBTED = ["flag - 0.5", "constant -1", "distance, no threshold", "wrong sign", "saturated, sigmoid(4 s) - c"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_margin_is_refused_by_every_call(name):
    problem = problem_of(MARGINS[name], torch.float64 if len(name) % 2 else torch.float32)
    assert finding(problem).startswith("error")
    assert {outcome(problem, call, TRUTH) for call in CALLS.values()} == {"refused"}


@pytest.mark.parametrize("name", DOUBTED)
@pytest.mark.parametrize("call", ["estimate", "run_smc"])
def test_what_is_hardly_one_is_not_believed(name, call):
    assert outcome(problem_of(MARGINS[name]), CALLS[call], TRUTH).split()[0] in ("doubted", "refused")


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("call", ["estimate", "run_smc"])
def test_what_only_looks_odd_is_right(name, call):
    assert outcome(problem_of(MARGINS[name]), CALLS[call], TRUTH).startswith("right")


@pytest.mark.parametrize("p", [0.5, 0.95])
def test_common_events_with_a_slope_stay_believed(p):
    problem = pr.RiskProblem(lambda x: (x[:, 0] + norm.ppf(p)).tanh(), standard(2))
    for call in CALLS.values():
        found = call(problem, 0)
        assert found.status is pr.Status.OK
        assert found.prob == pytest.approx(p, abs=0.02)


def test_a_flag_on_both_sides_of_zero_can_be_counted():
    problem = pr.RiskProblem(lambda x: (x[:, 0] > 1.5).float() - 0.5, standard(2))
    assert CALLS["monte_carlo"](problem, 0).status is pr.Status.OK
    with pytest.raises(pr.RiskError, match=r"gradient.*estimate, run_smc"):
        CALLS["fit_svi"](problem, 0)


@given(
    st.sampled_from(["flag", "labels", "probabilities", "clamped"]),
    st.integers(0, 2**31),
    st.booleans(),
    st.floats(1.5, 50.0),
)
@settings(max_examples=40, deadline=None)
def test_never_negative_margins_are_named(kind, seed, double, size):
    generator = torch.Generator().manual_seed(seed)
    score = torch.randn(1000, generator=generator, dtype=torch.float64 if double else torch.float32)
    made, word = {
        "flag": ((score > 0).to(score) * size, "flag"),
        "labels": ((score.abs() * size).round() + torch.arange(1000) % 3, "whole numbers"),
        "probabilities": (score.sigmoid(), "probability"),
        "clamped": ((size * score).relu(), "exactly 0"),
    }[kind]
    assert word in never_negative(made)
    made[17] = -1e-3
    assert not never_negative(made)
    assert look_at(made)[0] != "error"


def test_the_message_on_integers_does_not_lead_into_the_trap():
    for kind in (torch.int32, torch.uint8, torch.int64):
        text = not_real("Detector", torch.zeros(3, dtype=kind))
        assert "score - threshold" in text
        assert "e.g. margin.float()" not in text
    assert not_real("Detector", torch.zeros(3)) == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_margins_without_digits_are_seen_and_others_are_not(dtype):
    s = torch.linspace(-3, 18 if dtype is torch.float32 else 40, 4000, dtype=dtype)
    top = 15.5 if dtype is torch.float32 else 35.5
    margin = s.sigmoid() - torch.tensor(top, dtype=dtype).sigmoid()
    assert saturated(margin, 1.0)
    for fine in (s - 3, (s - 3).clamp(max=0), (s - 3).round(), s.sigmoid() - 0.999, (s > 3).to(s) - 0.5):
        assert not saturated(fine, 1.0)


SLOPES = {
    "": lambda x: x[:, 0] - 3,
    "none": lambda x: (x[:, 0] - 3).detach(),
    "nan": lambda x: x[:, 0] * 0 + (x[:, 0].abs() + 1 - 0 * (0 * x[:, 0]).sqrt()) - 9,
    "flat": lambda x: (4 * x[:, 0]).floor() - 3,
}


@pytest.mark.parametrize("fault", SLOPES)
def test_gradients_are_looked_at(fault):
    assert slope_fault(pr.RiskProblem(SLOPES[fault], standard(2))) == fault


def test_a_network_that_changes_while_it_is_asked_is_refused():
    class Tired(torch.nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x[:, 0] - (3.0 if self.calls > 40 else 2.5)

    calls = {
        "estimate": lambda p: pr.estimate(p, max_calls=20_000, progress=False),
        "run_smc": lambda p: pr.run_smc(p, particles=200, progress=False),
        "fit_svi": lambda p: pr.fit_svi(p, pr.guides.Network(), steps=100, progress=False),
    }
    for call in calls.values():
        found = call(pr.RiskProblem(Tired().eval(), standard(2)))
        assert found.status is pr.Status.REFUSED
        assert math.isnan(found.prob)
        assert "keeps state" in found.remedy


def test_no_number_is_nan_everywhere(tmp_path):
    found = pr.RiskEstimate("m", math.nan, status=pr.Status.NO_HITS)
    assert math.isnan(found.prob)
    found.save(str(tmp_path / "e"))
    assert math.isnan(pr.RiskEstimate.load(str(tmp_path / "e")).prob)
    assert "inf" not in str(found).splitlines()[0]


def test_nearly_certain_is_never_believed():
    for log_prob, status in (
        (0.0, pr.Status.ALL_HITS),
        (math.log(0.9995), pr.Status.ALL_HITS),
        (math.log(0.998), pr.Status.OK),
    ):
        assert pr.RiskEstimate("m", log_prob, 0.01).status is status
    assert pr.RiskEstimate("m", 0.0, status=pr.Status.PROVED).status is pr.Status.PROVED


def test_infinite_margins_have_a_side():
    def margin(x):
        s = x[:, 0]
        return torch.where(s > 1.5, torch.inf, torch.where(s < -1, -torch.inf, s - 1.5))

    for name, call in CALLS.items():
        found = call(pr.RiskProblem(margin, standard(2)), 0)
        assert found.status is pr.Status.OK, (name, found)
        assert found.log_prob == pytest.approx(norm.logsf(1.5), abs=0.3)
