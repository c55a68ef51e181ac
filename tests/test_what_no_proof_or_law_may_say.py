"""Bounds where the margin has no digits left and on large inputs; propagated laws that are a factor of 2 off."""

import math

import pytest
import torch
from torch import nn

from ppl_risk import RiskProblem, Status, certify, propagate


def standard(*shape):
    return torch.distributions.Independent(torch.distributions.Normal(torch.zeros(shape), 1.0), len(shape))


ENDS = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "softmax": lambda z: torch.stack([z, -z], 1).softmax(1)[:, 0]}


@pytest.mark.parametrize(
    ("end", "steep", "shift", "wide"),
    [
        ("sigmoid", 20.0, 10.0, False),
        ("sigmoid", 30.0, 5.0, True),
        ("tanh", 20.0, 6.0, False),
        ("softmax", 8.0, 6.0, True),
    ],
)
def test_a_bound_holds_where_the_margin_has_run_out_of_digits(end, steep, shift, wide):
    """In exact arithmetic no sigmoid is 1; the network's is, from somewhere on, and there the event begins."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).requires_grad_(False)

    def detector(y):
        return ENDS[end](steep * y[:, 0] + shift).to(torch.float64 if wide else torch.float32) - 1.0

    x = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0))
    hits = int((detector(net(x)) >= 0).sum())
    assert hits > 100
    problem = RiskProblem(net, standard(3), detector)
    found = certify(problem, radii=[0.3, 0.6, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0], inputs=0, progress=False)
    assert found.prob >= (hits - 4 * math.sqrt(hits)) / len(x)


def test_large_inputs_are_bounded_where_a_plane_says_something():
    """On large inputs the search ends early, but not before the radii from which the affine function above the margin counts."""
    d = 2100
    found = certify(RiskProblem(lambda x: x.sum(-1) / d**0.5 - 4.0, standard(d)), inputs=0, progress=False)
    assert found.status is Status.BOUNDED
    assert found.prob == pytest.approx(3.17e-5, rel=0.01)


def ridges(x):
    return torch.cos(4 * x[:, 0]) + 0.7 * x[:, 1]


def test_no_law_is_believed_that_passes_put_a_factor_of_two_away():
    """The slices say twice the probability here; few draws cannot tell that from less, more draws can."""
    torch.manual_seed(0)
    seen = ridges(torch.randn(400_000, 4)).sort().values
    threshold = float(seen[-800])
    found = propagate(RiskProblem(lambda x: ridges(x) - threshold, standard(4)), "full", posterior_draws=0)
    assert found.status is not Status.OK or abs(found.log10_prob - math.log10(2e-3)) < math.log10(2)
