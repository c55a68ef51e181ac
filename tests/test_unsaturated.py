"""`unsaturated`: the same rows are catastrophes, in units that keep their slope."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from builders import standard
from ppl_risk.problem import RiskProblem
from ppl_risk.saturation import unsaturated
from ppl_risk.tracing import trace

NET = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).eval().requires_grad_(False)
with torch.no_grad():
    for place, parameter in enumerate(NET.parameters()):
        parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(place)))
    NET[2].weight.mul_(10)
LOGIT = math.log(99)
#: Detector, and where the number that it is a function of must pass.
SATURATED = {
    "sigmoid": (lambda y: torch.sigmoid(y[:, 0]) - 0.99, LOGIT),
    "picked after": (lambda y: y.sigmoid()[:, 1].sub(torch.tensor(0.99)), LOGIT),
    "falling": (lambda y: 0.01 - y.sigmoid()[:, 1], -LOGIT),
    "softmax": (lambda y: F.softmax(y, dim=1)[:, 2] - 0.99, LOGIT),
    "softmax of two": (lambda y: 2 * (y[:, :2].softmax(-1)[:, 1] - 0.99), LOGIT),
    "most likely": (lambda y: y.softmax(-1).amax(-1) - 0.99, LOGIT),
    "least likely": (lambda y: (-y.sigmoid()).amin(-1) + 0.99, LOGIT),
    "log-softmax": (lambda y: y.log_softmax(-1)[:, 2] - math.log(0.99), LOGIT),
    "log of softmax": (lambda y: y.softmax(-1)[:, 2].log() - math.log(0.99), LOGIT),
    "tanh": (lambda y: 2 * torch.tanh(y[:, 0] / 3) - 1.5, math.atanh(0.75)),
    "exp": (lambda y: torch.exp(y[:, 0]) - 3e4, math.log(3e4)),
    "hinge": (lambda y: -F.relu(9.0 - y[:, 0]), 0.0),
    "clamp": (lambda y: (y[:, 0] - 9.0).clamp(max=0.0), 0.0),
    "minimum": (lambda y: torch.minimum(y[:, 0] - 9.0, torch.tensor(0.0)), 0.0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SATURATED)
def test_the_event_is_the_same_and_the_slope_is_kept(name, dtype):
    detector, bound = SATURATED[name]
    problem = RiskProblem(NET.to(dtype), standard(4, dtype=dtype), detector)
    found = unsaturated(problem)
    assert found is not None
    x = 3 * torch.randn(4000, 4, dtype=dtype, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found.margin(x) >= 0, problem.margin(x) >= 0)
    assert 0 < int((found.margin(x) >= 0).sum()) < 4000
    assert found._chain.bound == pytest.approx(bound, abs=2e-4)
    _, gradient = found.margin_and_gradient(torch.randn(50, 4, dtype=dtype, generator=torch.Generator().manual_seed(2)))
    assert bool((gradient.norm(dim=1) > 0).all())
    assert {"sigmoid", "softmax"}.isdisjoint(step.op for step in trace(found).steps if not step.site)


def test_in_the_arithmetic_of_the_network():
    """In float32, sigmoid(z) >= 1 - 1e-8 from where it rounds to 1: z = 16.6 and not 18.4."""
    problem = RiskProblem(lambda x: torch.sigmoid(x[:, 0]) - (1 - 1e-8), standard(1))
    assert 16.5 < unsaturated(problem)._chain.bound < 16.8


def subtracted_in_place(y):
    s = y[:, 0].sigmoid()
    s -= 0.9
    return s


def overwritten(y):
    h = y[:, 0].clone()
    s = h.sigmoid()
    h += 3.0
    return s - 0.9


@pytest.mark.parametrize(
    "detector",
    [
        lambda y: y[:, 0] - 1.0,
        lambda y: y[:, 0].sigmoid() - 1.5,
        lambda y: y[:, 0].sigmoid() * y[:, 1] - 3.0,
        lambda y: y.sigmoid().sum(-1) - 2.9,
        lambda y: y[:, 0].log() - 2.0,
        lambda y: y[:, 0].square() - 2.0,
        subtracted_in_place,
        overwritten,
    ],
)
def test_what_is_no_function_of_one_number_is_left_alone(detector):
    assert unsaturated(RiskProblem(NET.float(), standard(4), detector)) is None


def test_calls_and_layers_are_those_of_the_problem():
    problem = RiskProblem(NET.float(), standard(4), SATURATED["sigmoid"][0])
    found = unsaturated(problem)
    with problem.metered() as meter:
        found.margin(torch.zeros(7, 4))
    assert meter.forward_calls == 7
    assert found.cut == problem.cut
    assert list(found.activations(torch.zeros(2, 4))[0]) == list(problem.activations(torch.zeros(2, 4))[0])
