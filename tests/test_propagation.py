"""Laws through whole networks: affine steps exactly, the families against each other, and the event behind a margin."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm
from torch import nn
from torch.nn import functional as F

from builders import random_linear, standard
from laws import assert_law, correlated, drawn, law_of, sampled
from ppl_risk.errors import RiskError
from ppl_risk.problem import RiskProblem
from ppl_risk.propagation import propagate
from ppl_risk.propagation.event import event_of
from ppl_risk.propagation.orthant import log_all_positive, log_any_positive
from ppl_risk.systems import all_of, any_of, at_least
from ppl_risk.tracing import trace

WEIGHT, KERNEL = drawn(5, 12).float(), drawn(2, 1, 2, 2).float()
AFFINE = {
    "linear": lambda x: F.linear(x, WEIGHT, torch.ones(5)),
    "conv2d": lambda x: F.conv2d(x.reshape(-1, 1, 3, 4), KERNEL, torch.ones(2), stride=1, padding=1),
    "avg_pool2d": lambda x: F.avg_pool2d(x.reshape(-1, 1, 3, 4), (3, 2)),
    "batch_norm": lambda x: F.batch_norm(
        x.reshape(-1, 2, 6), torch.tensor([1.0, -1]), torch.tensor([2.0, 0.5]), torch.tensor([3.0, 2]), torch.ones(2)
    ),
    "permute": lambda x: x.reshape(-1, 3, 4).permute(0, 2, 1),
    "cat, select, slice": lambda x: torch.cat([x[:, 3:7], x[:, 2:3], 2 * x[:, :2]], 1),
    "stack, transpose": lambda x: torch.stack([x[:, :6], x[:, 6:] - x[:, :6]]).transpose(0, 1),
    "matmul with a constant": lambda x: WEIGHT[:, :3] @ x.reshape(-1, 3, 4) + 1.0,
    "mean, sum, div": lambda x: x.reshape(-1, 3, 4).mean(1) - x[:, :4].sum(1, keepdim=True) / 3.0,
    "residual": lambda x: x + F.linear(F.linear(x, WEIGHT), WEIGHT.T) * 0.1 - 2.0,
    "flip, roll, cumsum": lambda x: x.flip(1).roll(2, 1).cumsum(1),
    "constants": lambda x: torch.tensor(2.0) * x + x / 4 - (-x) + (1.0 - x),
}  # fmt: skip


@pytest.mark.parametrize("rank", [None, 12])
@pytest.mark.parametrize("name", AFFINE)
def test_affine_steps_are_exact(name, rank):
    """Against the Jacobian written out by differentiation."""
    mean, covariance = correlated(12)
    jacobian = torch.func.jacrev(lambda x: AFFINE[name](x[None].float()).reshape(-1).double())(mean)
    found = law_of(AFFINE[name], (12,), mean, covariance, rank)
    expected = AFFINE[name](mean[None].float()).reshape(-1).double()
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1], jacobian @ covariance @ jacobian.T, rtol=1e-5, atol=1e-5)


def mlp(*widths, activation=nn.ReLU, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layers = [[random_linear(a, b, generator), activation()] for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*itertools.chain(*layers))[:-1].eval().requires_grad_(False)


def test_a_high_rank_keeps_what_the_full_family_keeps():
    """But for the second Hermite term, which the low-rank family leaves to the diagonal: small for tanh."""
    mean, covariance = correlated(6)
    net = mlp(6, 8, 5, activation=nn.Tanh)
    low, full = (law_of(net, (6,), mean, covariance, rank) for rank in (32, None))
    assert_law(low, full, mean=1e-9, covariance=0.03, noise=0.0)


def test_mean_field_ignores_correlations():
    """x_1 + ... + x_10 of one number read ten times: variance 100, of which mean-field keeps 10."""
    net = nn.Sequential(nn.Linear(1, 10, bias=False), nn.ReLU(), nn.Linear(10, 1, bias=False)).requires_grad_(False)
    for layer in (net[0], net[2]):
        nn.init.ones_(layer.weight)
    problem = RiskProblem(net, standard(1), lambda y: y[:, 0] - 30.0)
    kept = {
        family: float(propagate(problem, family, readout="gaussian", trust=False).guide.prior[1])
        for family in ("mean_field", "low_rank", "full")
    }
    exact = 100 * (0.5 - 1 / (2 * math.pi))
    assert kept["full"] == pytest.approx(exact, rel=1e-4)
    assert kept["low_rank"] > 0.7 * exact
    assert kept["mean_field"] == pytest.approx(0.1 * exact, rel=1e-4)


def test_a_residual_branch_is_added_to_the_stream_it_came_from():
    net = mlp(6, 12, 6)

    def block(x):
        return x + net(x)

    mean, covariance = correlated(6)
    expected = sampled(block, (6,), mean, covariance)
    assert_law(law_of(block, (6,), mean, covariance), expected, 0.01, 0.03)
    branch = law_of(net, (6,), mean, covariance)[1]
    apart = (covariance + branch).diagonal() / expected[1].diagonal()
    assert float((apart - 1).abs().max()) > 0.2


def beyond(index, z):
    return lambda y: y[:, index] - z


def likely(index, p):
    return lambda y: torch.sigmoid(y[:, index]) - p


LAYER = random_linear(6, 4, torch.Generator().manual_seed(3)).requires_grad_(False)
CENTRE, SPREAD = LAYER.bias.double(), LAYER.weight.double() @ LAYER.weight.double().T
TOP = torch.tensor([[1.0, -1, 0, 0], [1, 0, -1, 0], [1, 0, 0, -1]]).double()
ALL = torch.eye(4).double()
#: Detector, matrix and bounds of the linear events, whether every one must happen.
EVENTS = {
    "one number": (beyond(0, 2.0), ALL[:1], [2.0], True),
    "above all others": (lambda y: y[:, 0] - y[:, 1:].amax(-1) - 0.5, TOP, [0.5] * 3, True),
    "above no other": (lambda y: y[:, 1:].max(-1).values - y[:, 0] - 2.0, -TOP, [2.0] * 3, False),
    "above the least": (lambda y: y[:, 0] - y[:, 1:].amin(-1) - 2.0, TOP, [2.0] * 3, False),
    "sigmoid": (likely(0, 0.9), ALL[:1], [math.log(9)], True),
    "falling": (lambda y: 0.1 - torch.sigmoid(y[:, 0]), -ALL[:1], [math.log(9)], True),
    "falling, affine after": (lambda y: 3.0 - 2 * F.softplus(-y[:, 0]), ALL[:1], [-math.log(math.exp(1.5) - 1)], True),
    "all": (all_of(*(beyond(i, 0.5) for i in range(4))), ALL, [0.5] * 4, True),
    "any": (any_of(*(beyond(i, 1.5) for i in range(4))), ALL, [1.5] * 4, False),
    "all, in other units": (all_of(beyond(0, 0.5), beyond(1, 1.0), scales=[1e-3, 1e4]), ALL[:2], [0.5, 1.0], True),
    "all likely": (all_of(*(likely(i, 0.6) for i in range(3))), ALL[:3], [math.log(1.5)] * 3, True),
    "all likely or unlikely": (
        all_of(likely(0, 0.5), beyond(1, 0.2), lambda y: 0.6 - torch.sigmoid(2 * y[:, 2])),
        torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 0]]).double(),
        [0.0, 0.2, -math.log(1.5) / 2],
        True,
    ),
    "least of a vector": (lambda y: torch.tanh(y).amin(-1) - 0.3, ALL, [math.atanh(0.3)] * 4, True),
    "not one": (lambda y: 0.2 - torch.tanh(y).amax(-1), -ALL, [-math.atanh(0.2)] * 4, True),
}


def exact_orthant(mean, covariance):
    law = multivariate_normal(-np.asarray(mean), np.asarray(covariance), abseps=1e-13, releps=1e-5, maxpts=10**6)
    return float(law.cdf(np.zeros(len(mean))))


def inclusion_exclusion(mean, covariance):
    parts = [list(c) for k in range(1, len(mean) + 1) for c in itertools.combinations(range(len(mean)), k)]
    return sum((-1) ** (len(c) + 1) * exact_orthant(mean[c], covariance[c][:, c]) for c in parts)


@pytest.mark.parametrize("name", EVENTS)
def test_events_of_a_gaussian_layer_are_exact(name):
    detector, matrix, bounds, every = EVENTS[name]
    event = event_of(trace(RiskProblem(LAYER, standard(6), detector)))
    assert all(step.op not in ("sigmoid", "tanh", "softplus", "amax", "amin", "topk") for step in event.tape.steps)
    estimate = propagate(RiskProblem(LAYER, standard(6), detector), "full", readout="orthant", trust=False)
    mean, covariance = matrix @ CENTRE - torch.tensor(bounds).double(), matrix @ SPREAD @ matrix.T
    exact = exact_orthant(mean, covariance) if every else inclusion_exclusion(mean, covariance)
    assert estimate.prob == pytest.approx(exact, rel=2e-3)


def test_a_system_within_a_system():
    """Its inner minimum is taken as Gaussian (Clark): no more than a factor."""
    rule = any_of(all_of(beyond(0, 0.5), beyond(1, 0.5)), beyond(2, 1.5))
    problem = RiskProblem(LAYER, standard(6), rule)
    with torch.no_grad():
        exact = float((problem.margin(problem.sample(400_000)) >= 0).double().mean())
    assert propagate(problem, "full", readout="orthant", trust=False).prob == pytest.approx(exact, rel=0.6)


def test_some_of_many_is_refused():
    problem = RiskProblem(LAYER, standard(6), at_least(2, *(beyond(i, 1.0) for i in range(3))))
    with pytest.raises(RiskError, match=r"topk.*not known to propagate"):
        propagate(problem, "full", trust=False)


@pytest.mark.parametrize(("size", "shift"), [(2, 1.0), (3, 0.0), (4, 2.0)])
def test_orthants_and_their_complements(size, shift):
    mean, covariance = correlated(size, seed=7)
    mean = mean - shift
    every = log_all_positive(mean[None], covariance[None]).exp()
    anyone = log_any_positive(mean[None], covariance[None]).exp()
    # 512 quasi-random points where the numbers pull against one another, at 3e-7.
    assert float(every) == pytest.approx(exact_orthant(mean, covariance), rel=0.1 if size == 4 else 2e-3)
    assert float(anyone) == pytest.approx(inclusion_exclusion(mean, covariance), rel=2e-3)


def test_orthants_in_the_far_tail():
    """Independent numbers, and one cause behind all: log probabilities down to 1e-1700."""
    m = torch.full((1, 8), -30.0, dtype=torch.float64)
    one = torch.eye(8, dtype=torch.float64)[None]
    assert float(log_all_positive(m, one)) == pytest.approx(8 * float(norm.logsf(30.0)), rel=1e-9)
    same = log_all_positive(m, 0.5 * one + 0.5)
    z = torch.linspace(-40.0, 40.0, 80_001, dtype=torch.float64)
    inside = 8 * torch.special.log_ndtr((m[0, 0] + math.sqrt(0.5) * z) / math.sqrt(0.5)) - z.square() / 2
    exact = torch.logsumexp(inside, 0) + math.log(1e-3 / math.sqrt(2 * math.pi))
    assert float(same) == pytest.approx(float(exact), rel=1e-6)
