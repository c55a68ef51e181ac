"""What preflight says about problems that are sound but unlikely to be what was meant."""

import re

import pytest
import torch
from torch import nn

from builders import first, linear_gaussian, standard
from ppl_risk import monte_carlo
from ppl_risk.inputs import Product
from ppl_risk.preflight import check
from ppl_risk.problem import RiskProblem

TOKENS = torch.distributions.Categorical(torch.ones(5))
FAULTS = torch.distributions.Independent(torch.distributions.Bernoulli(torch.full((2,), 0.1)), 1)


def embedding() -> RiskProblem:
    torch.manual_seed(0)
    return RiskProblem(nn.Embedding(5, 1).eval(), TOKENS, lambda y: y[:, 0] - 1.0)


NOTES = {
    "integers": (
        embedding,
        "input law",
        r"Categorical, 1 standard normals; 1 of 1 normals act through steps.*pCN redraws",
    ),
    "some steps": (
        lambda: RiskProblem(first, Product({"load": standard(3), "faults": FAULTS})),
        "input law",
        "5 standard normals; 2 of 5 normals act through steps",
    ),
    "no map": (
        lambda: RiskProblem(lambda x: x - 3.0, torch.distributions.VonMises(0.0, 1.0)),
        "input law",
        "No transport.*VonMises.*Plain Monte Carlo works",
    ),
    "training without effect": (
        lambda: RiskProblem(nn.Linear(2, 1), standard(2), lambda y: y[:, 0] - 2),
        "mode",
        "train mode, but no module",
    ),
    "not rare": (lambda: linear_gaussian(3, -1.0).problem, "reachable", "not rare.*sign of the margin"),
    "unreachable": (
        lambda: RiskProblem(lambda x: x[:, 0].tanh() - 2.0, standard(2)),
        "reachable",
        r"highest margin.*-1.*cannot be reached.*P < 1\.5e-03",
    ),
    "flat": (lambda: RiskProblem(lambda x: 0 * x[:, 0] - 3.0, standard(2)), "reachable", "nothing to climb on"),
}


@pytest.mark.parametrize("kind", NOTES)
def test_notes(kind):
    make, name, text = NOTES[kind]
    result = check(make(), draws=2000)
    assert result.ok
    (note,) = [f for f in result.findings if f.check == name]
    assert note.level == "note"
    assert re.search(text, note.message), note.message


@pytest.mark.parametrize(
    ("z", "text"),
    [(2.0, r"\d+ of 2000 pilot draws"), (5.0, "no catastrophe in 2000 pilot draws, but gradient ascent finds one")],
)
def test_reachable(z, text):
    finding = check(linear_gaussian(10, z).problem, draws=2000).findings[-1]
    assert finding.level == "ok"
    assert re.search(text, finding.message), finding.message


def test_integer_inputs_can_be_counted():
    problem = embedding()
    share = float((problem.network.weight[:, 0] >= 1.0).float().mean())
    assert share == pytest.approx(0.2)
    estimate = monte_carlo(problem, calls=20_000, progress=False)
    assert abs(estimate.prob - share) < 4 * (share * (1 - share) / 20_000) ** 0.5


def test_types_and_device_of_a_plain_callable():
    findings = check(RiskProblem(first, standard(2, dtype=torch.float64))).findings
    assert findings[0].message == "cpu, torch.float64; inputs follow"
    assert findings[1].message == "plain callable"
