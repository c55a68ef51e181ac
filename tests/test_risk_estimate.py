"""What an estimate says about itself: intervals, verdicts, and numbers that underflow."""

import math

import numpy as np
import pytest
import scipy.stats
from scipy.optimize import brentq

from ppl_risk.risk_estimate import LOG10, RiskEstimate, Status, clopper_pearson, decades


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
@pytest.mark.parametrize(("hits", "draws"), [(1, 50), (7, 100), (999, 1000)])
def test_clopper_pearson_inverts_the_two_binomial_tests(hits, draws, level):
    tail = (1 - level) / 2
    low = brentq(lambda p: scipy.stats.binom.sf(hits - 1, draws, p) - tail, 1e-12, 1 - 1e-12, xtol=1e-15)
    high = brentq(lambda p: scipy.stats.binom.cdf(hits, draws, p) - tail, 1e-12, 1 - 1e-12, xtol=1e-15)
    assert np.exp(clopper_pearson(hits, draws, level)) == pytest.approx([low, high], rel=1e-7)


def test_clopper_pearson_at_the_ends():
    low, high = clopper_pearson(0, 1000, 0.9)
    assert low == -math.inf
    assert math.exp(high) == pytest.approx(1 - 0.05 ** (1 / 1000))  # about 3 / n
    low, high = clopper_pearson(1000, 1000, 0.9)
    assert (math.exp(low), high) == (pytest.approx(0.05 ** (1 / 1000)), 0.0)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
def test_intervals_use_normal_or_student_quantiles(level):
    plain, student = RiskEstimate("m", -20.0, 0.3), RiskEstimate("m", -20.0, 0.3, dof=3.0)
    assert plain.interval(level) == pytest.approx(scipy.stats.norm(-20, 0.3).interval(level))
    assert student.interval(level) == pytest.approx(scipy.stats.t(3, -20, 0.3).interval(level))


def test_interval_of_a_probability_ends_at_one():
    assert RiskEstimate("m", -0.1, 1.0).interval() == (pytest.approx(-0.1 - 1.6449, abs=1e-3), 0.0)


def test_interval_without_error_bar_and_of_a_proof():
    assert all(map(math.isnan, RiskEstimate("m", -3.0).interval()))
    assert RiskEstimate("m", -3.0, status=Status.PROVED).interval() == (-3.0, -3.0)


@pytest.mark.parametrize(
    ("log10", "text"),
    [
        (math.log10(3.0) - 412, "3.0e-412"),
        (-411.49485, "3.2e-412"),
        (math.log10(9.96e-5), "1.0e-04"),
        (math.log10(9.94e-5), "9.9e-05"),
        (-3.0, "1.0e-03"),
        (0.0, "1.0e+00"),
        (-1e-12, "1.0e+00"),
        (math.log10(0.25), "2.5e-01"),
        (-12345.5, "3.2e-12346"),
        (-math.inf, "0"),
        (math.nan, "unknown"),
    ],
)
def test_decades(log10, text):
    assert decades(log10) == text


def test_numbers_below_the_smallest_double():
    estimate = RiskEstimate("m", -412.0 * LOG10 + math.log(3), 0.1)
    assert estimate.prob == 0.0
    assert estimate.log10_prob == pytest.approx(-411.523, abs=1e-3)
    assert "P(catastrophe) = 3.0e-412   (log10 -411.52)   90 % interval [2.5e-412, 3.5e-412]" in str(estimate)


@pytest.mark.parametrize("status", Status)
def test_every_status_prints_its_verdict(status):
    text = str(RiskEstimate("by hand", -10.0, 0.1, status=status, remedy="Do this.", problem="toy", elbo=-11.0))
    verdict = "BELIEVE" if status in (Status.OK, Status.PROVED) else "DO NOT BELIEVE"
    verdict = "BELIEVE THE BOUND" if status is Status.BOUNDED else verdict
    assert f"verdict   {verdict}: {status.name}, {status.value}" in text
    assert "remedy    Do this." in text
    assert "by hand on toy" in text
    assert "not: a wrong input law" in text
    assert ("90 % interval" in text) == (status is not Status.PROVED and not status.is_bound)


@pytest.mark.parametrize("status", Status)
def test_no_number_is_never_printed_as_one(status):
    text = str(RiskEstimate("m", math.nan, status=status, elbo=math.nan, evidence={"k_hat": math.nan}))
    assert text.startswith("no number")
    assert "nan" not in text.splitlines()[0]


def test_no_hits_of_counting_is_an_upper_bound():
    head, *_ = str(RiskEstimate("m", math.nan, status=Status.NO_HITS, hits=(0, 10**6))).splitlines()
    assert head == "P(catastrophe) < 3.0e-06 with 95 % confidence: an upper bound, not an estimate"


def test_proof_of_impossibility_prints():
    assert str(RiskEstimate("m", -math.inf, status=Status.PROVED)).startswith("P(catastrophe) = 0, proved")


def test_calls_count_gradients_once_more():
    assert RiskEstimate("m", -1.0, forward_calls=10, gradient_calls=4).calls == 14
