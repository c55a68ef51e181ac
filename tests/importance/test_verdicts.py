"""Guides broken on purpose: the weights themselves must say so."""

import math

import pyro.distributions as dist
import pytest
import torch

from builders import linear_gaussian, standard, two_sided
from ppl_risk.importance import importance_sample
from ppl_risk.importance.sampling import ImportanceResult, Weighted, verdict
from ppl_risk.problem import RiskProblem
from ppl_risk.risk_estimate import Status


def line(z: float, d: int = 1) -> RiskProblem:
    return RiskProblem(lambda x: x[:, 0] - z, standard(d))


def normal(mean: list[float], scale: float = 1.0):
    return dist.Normal(torch.tensor(mean), torch.full((len(mean),), scale)).to_event(1)


BROKEN = {
    "wrong side": (line(5.0), normal([-5.0]), 4000, Status.NO_HITS),
    "wrong side, narrow": (line(5.0), normal([-5.0], 1e-3), 4000, Status.NO_HITS),
    "far short": (line(8.0), normal([1.0]), 4000, Status.NO_HITS),
    "far beyond": (line(4.0), normal([9.0], 1.0), 4000, Status.LOW_ESS),
    "beside it in many directions": (line(4.0, 30), normal([4.0] + [1.0] * 29), 4000, Status.LOW_ESS),
    "few draws": (line(4.0), normal([4.0]), 60, Status.LOW_ESS),
    "beyond it, many draws": (line(4.0), normal([7.0]), 60_000, Status.KHAT_HIGH),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_guides_are_told(kind):
    problem, law, draws, status = BROKEN[kind]
    torch.manual_seed(0)
    result = importance_sample(problem, law, draws)
    found, remedy = verdict(result)
    assert found is status, (result.k_hat, result.ess)
    assert "run_smc" in remedy
    assert math.isnan(result.log_prob) == (status is Status.NO_HITS)


@pytest.mark.parametrize("law", [normal([4.0, 0.0]), normal([4.0, 0.0], 1e-3), normal([4.5, 0.3], 0.6)])
def test_good_enough_guides_pass_also_with_a_scale_far_too_narrow(law):
    torch.manual_seed(0)
    result = importance_sample(line(4.0, 2), law, 4000)
    assert verdict(result) == (Status.OK, "")
    assert result.k_hat < 0.7


def test_a_forgotten_second_catastrophe_cannot_be_seen_in_the_weights():
    """The known blind spot: half the probability is missing and only the prior's share could tell."""
    known = two_sided(5.0)
    torch.manual_seed(0)
    result = importance_sample(known.problem, normal([5.0, 0.0], 0.5), 4000)
    assert result.log_prob == pytest.approx(known.log_prob - math.log(2), abs=5 * result.std_error)


def fabricated(k_hat: float, ess: float, hits: int = 500) -> ImportanceResult:
    drawn = Weighted(torch.zeros(1000, 1), torch.zeros(1000), torch.zeros(1000))
    return ImportanceResult(-5.0, 0.1, k_hat, ess, hits, drawn)


@pytest.mark.parametrize(
    ("k_hat", "ess", "hits", "status"),
    [
        (0.69, 100.0, 500, Status.OK),
        (-math.inf, 500.0, 500, Status.OK),
        (0.70, 100.0, 500, Status.KHAT_HIGH),
        (math.nan, 500.0, 500, Status.KHAT_HIGH),
        (0.2, 99.0, 500, Status.LOW_ESS),
        (2.0, 50.0, 500, Status.LOW_ESS),
        (math.nan, 0.0, 0, Status.NO_HITS),
    ],
)
def test_thresholds(k_hat, ess, hits, status):
    assert verdict(fabricated(k_hat, ess, hits))[0] is status


def test_linear_problem_through_the_transport():
    """The law is one of u, not of x: a mean taken for an input would miss."""
    known = linear_gaussian(2, 4.0)
    _, gradient = known.problem.margin_and_gradient(torch.zeros(1, 2))
    u = 4.0 * gradient[0] / gradient[0].norm()
    torch.manual_seed(0)
    result = importance_sample(known.problem, normal(u.tolist()), 4000)
    assert abs(result.log_prob - known.log_prob) < 4 * result.std_error < 0.3
