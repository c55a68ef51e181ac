"""Problems on the laws, whose rare-event probability is a known tail: transport, gradients and SMC together."""

import math

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats as st
import torch
import torch.distributions as td

from builders import assert_within
from ppl_risk import run_smc
from ppl_risk.inputs import EmpiricalWithNoise, PyroModel
from ppl_risk.problem import RiskProblem


def student():
    """A normal whose precision is a Gamma: Student's law with 4 degrees of freedom."""
    precision = pyro.sample("precision", dist.Gamma(2.0, 2.0))
    return pyro.sample("x", dist.Normal(0.0, precision.rsqrt()))


def shocks():
    """A compound law: the number of shocks is Poisson, their sum a Gamma given the number."""
    number = pyro.sample("number", dist.Poisson(2.0))
    return pyro.sample("sum", dist.Gamma(number + 1.0, 1.0))


def compound_tail(bar):
    k = range(200)
    return math.log(sum(st.poisson(2.0).pmf(i) * st.gamma(i + 1).sf(bar) for i in k))


def problems():
    gammas = td.Independent(td.Gamma(torch.full((10,), 2.0), 1.0), 1)
    data = torch.tensor([-1.0, 0.0, 2.0])
    return {
        "gammas": (RiskProblem(lambda x: x.sum(-1) - 45.0, gammas), st.gamma(20).logsf(45)),
        "student": (RiskProblem(lambda x: x - 15.0, PyroModel(student)), st.t(4).logsf(15)),
        "shocks": (RiskProblem(lambda x: x - 16.0, PyroModel(shocks)), compound_tail(16)),
        "data": (
            RiskProblem(lambda x: x - 4.0, EmpiricalWithNoise(data, 0.5)),
            math.log(sum(st.norm(float(d), 0.5).sf(4) for d in data) / 3),
        ),
    }


@pytest.mark.parametrize("kind", problems())
def test_smc_finds_the_tail(kind):
    problem, exact = problems()[kind]
    estimate = run_smc(problem, particles=500, posterior_draws=0, progress=False)
    assert estimate.std_error < 0.4
    assert_within(estimate.log_prob, exact, estimate.std_error)
