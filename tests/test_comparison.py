"""Which answer to believe, and why the others differ."""

import math

import pytest

from ppl_risk import RiskError, RiskEstimate, Status, compare


def made(log_prob, std_error=0.1, status=Status.OK, **more):
    return RiskEstimate("by hand", log_prob, std_error, status, **more)


def test_the_most_precise_of_those_that_agree():
    found = compare({"a": made(-10.0, 0.3), "b": made(-10.2, 0.05), "c": made(-30.0, 0.01, Status.KHAT_HIGH)})
    assert found.best == "b"
    assert "Believe b" in repr(found)
    assert "c (8.6 decades below): KHAT_HIGH" in repr(found)


def test_contradicting_answers_leave_none_to_believe():
    found = compare({"a": made(-10.0, 0.1), "b": made(-12.0, 0.1)})
    assert found.best is None
    assert found.conflicts == [("a", "b")]
    assert "Believe none: a and b contradict" in repr(found)


def test_agreement_is_judged_in_joint_standard_errors():
    assert compare({"a": made(-10.0, 0.1), "b": made(-10.4, 0.1)}).conflicts == []  # 2.8 joint standard errors
    assert compare({"a": made(-10.0, 0.1), "b": made(-10.5, 0.1)}).conflicts == [("a", "b")]  # 3.5


def test_nothing_believable():
    found = compare({"a": made(math.nan, math.nan, Status.NO_HITS, hits=(0, 1000))})
    assert found.best is None
    assert "no estimate passes" in found.verdict()
    assert "< -2.52" in repr(found)


def test_a_proved_zero_is_believed():
    found = compare({"proof": made(-math.inf, math.nan, Status.PROVED)}, truth=-math.inf)
    assert found.best == "proof"


def test_truth_adds_a_column():
    rows = compare({"a": made(-10.0)}, truth=-10.0 - math.log(10)).rows()
    assert rows[0]["off by"] == "+1.00"
    frame = compare({"a": made(-10.0)}).to_dataframe()
    assert list(frame.index) == ["a"]


@pytest.mark.parametrize("estimates", [{}, {"a": made(-1.0, problem="p"), "b": made(-1.0, problem="q")}])
def test_what_cannot_be_compared(estimates):
    with pytest.raises(RiskError):
        compare(estimates)
