"""Mixtures drawn in proportion: counts, labels, densities."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import assert_means
from ppl_risk.importance.gated import Points, Tilted
from ppl_risk.importance.mixture import Mixture


def at(*places, d=3, scale=1.0):
    """Normals at places along the first axis."""
    axis = torch.eye(d, 1, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    return [Tilted(axis, place * one, scale * one) for place in places]


def mixture(shares, *places, **more):
    return Mixture(at(*places, **more), torch.tensor(shares, dtype=torch.float64))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6).filter(lambda s: sum(s) > 1e-3), st.integers(1, 5000))
def test_counts_follow_the_shares_and_add_up(shares, draws):
    total = torch.tensor(shares, dtype=torch.float64)
    counts = Mixture(at(*shares), total / total.sum()).counts(draws)
    assert int(counts.sum()) == draws
    assert bool((counts >= 0).all())
    assert float((counts - draws * total / total.sum()).abs().max()) <= 1.0


def test_every_draw_bears_the_name_of_its_component():
    made = mixture([0.2, 0.0, 0.5, 0.3], -100.0, 0.0, 100.0, 200.0)
    torch.manual_seed(0)
    drawn = made.sample(1001)
    assert drawn.points.u.shape == (1001, 3)
    places = torch.tensor([-100.0, 0.0, 100.0, 200.0], dtype=torch.float64)
    assert float((drawn.points.u[:, 0] - places[drawn.stratum]).abs().max()) < 10
    assert torch.bincount(drawn.stratum, minlength=4).tolist() == made.counts(1001).tolist()
    assert drawn.shares.tolist() == pytest.approx([n / 1001 for n in made.counts(1001).tolist()])
    torch.testing.assert_close(drawn.points.square, drawn.points.u.square().sum(-1))


def test_densities_are_those_of_the_components():
    made = mixture([0.5, 0.5], -1.0, 2.0, scale=0.7)
    points = Points.of(torch.randn(50, 3, dtype=torch.float64))
    tilts = made.log_tilts(points)
    assert tilts.shape == (50, 2)
    for k, law in enumerate(made.laws):
        assert torch.equal(tilts[:, k], law.log_tilt(points))


def test_the_mixture_has_mass_one_under_its_own_shares():
    made = mixture([0.3, 0.7], -0.5, 1.0, scale=1.1)
    torch.manual_seed(1)
    points = Points.of(torch.randn(50_000, 3, dtype=torch.float64))
    assert_means((made.log_tilts(points) + made.shares.log()).logsumexp(-1).exp(), 1.0)
