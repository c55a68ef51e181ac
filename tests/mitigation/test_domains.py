"""Convex sets: uniform draws, chords, depth, and the law that estimators take."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, kstest

import ppl_risk as pr
from ppl_risk import mitigation as mi

SETS = [mi.Ball(4), mi.Cube(3, 2.0), mi.Simplex(5), mi.Ball(2, 3.0), mi.Simplex(1)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def marginal(domain):
    """Distribution function of the first coordinate: half-line chords of the set, in closed form."""
    n, r = domain.n, domain.radius
    if isinstance(domain, mi.Cube):
        return lambda x: (x + r) / (2 * r)
    if isinstance(domain, mi.Simplex):
        return beta(1, n, scale=r).cdf
    return beta((n + 1) / 2, (n + 1) / 2, loc=-r, scale=2 * r).cdf


@pytest.mark.parametrize("domain", SETS, ids=str)
@pytest.mark.parametrize("way", ["sample", "law"])
def test_draws_are_uniform(domain, way):
    torch.manual_seed(1)
    x = domain.sample(20_000, generator(1)) if way == "sample" else domain.law().sample((20_000,))
    assert x.dtype == (torch.float64 if way == "sample" else torch.float32)
    assert domain.contains(x, 1e-6).all()
    for coordinate in {0, domain.n - 1}:
        assert kstest(x[:, coordinate].numpy(), marginal(domain)).pvalue > 1e-3


@pytest.mark.parametrize("domain", SETS, ids=str)
def test_a_chord_ends_on_the_edge(domain):
    x = domain.sample(200, generator(2))
    direction = torch.randn(200, domain.n, generator=generator(3), dtype=torch.float64)
    low, high = domain.chord(x, direction)
    assert (low <= 0).all()
    assert (high >= 0).all()
    for end in (low, high):
        assert domain.contains(x + 0.999999 * end[:, None] * direction).all()
        assert not domain.contains(x + 1.001 * end[:, None] * direction, 1e-9).any()


@pytest.mark.parametrize("domain", [one for one in SETS if one.n > 1], ids=str)
def test_a_line_that_misses_has_no_chord(domain):
    outside = torch.full((1, domain.n), 5.0 * domain.radius, dtype=torch.float64)
    along = torch.zeros_like(outside)
    along[0, -1] = 1.0
    low, high = domain.chord(outside, along)
    assert bool(low > high)


@pytest.mark.parametrize("domain", SETS, ids=str)
def test_depth_is_how_far_the_mirrored_set_fits(domain):
    x = domain.sample(20, generator(4))
    depth = domain.depth(x)
    assert ((depth >= 0) & (depth <= 1)).all()
    others = domain.sample(4000, generator(5))
    for point, alpha in zip(x, depth, strict=True):
        assert domain.contains(point - alpha * (others - point), 1e-6).all()
    if domain.symmetric:
        assert domain.depth(torch.zeros(1, domain.n, dtype=torch.float64)).item() == 1.0


def test_no_larger_mirrored_set_fits():
    """At the corners of the set, where the mirrored one touches."""
    triangle, x = mi.Simplex(2), torch.tensor([[0.2, 0.3]], dtype=torch.float64)
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    alpha = triangle.depth(x)
    assert triangle.contains(x - alpha * (corners - x), 1e-9).all()
    assert not triangle.contains(x - 1.01 * alpha * (corners - x)).all()


@pytest.mark.parametrize("domain", SETS, ids=str)
def test_the_map_from_normals_can_be_differentiated(domain):
    u = torch.randn(5, domain.n, generator=generator(6), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(domain.push, u)


@given(st.floats(-8.0, 8.0))
@settings(max_examples=25, deadline=None)
def test_far_normals_stay_inside(value):
    u = torch.full((1, 6), value, dtype=torch.float64)
    for domain in (mi.Ball(6), mi.Cube(6), mi.Simplex(6)):
        assert domain.contains(domain.push(u), 1e-9).all()


def test_estimators_run_on_the_law():
    """Pr[x_1 >= t] on the ball is a Beta tail."""
    ball, t = mi.Ball(5), 0.93
    problem = pr.RiskProblem(lambda x: x[:, 0] - t, ball.law(), name="cap")
    exact = beta(3, 3, loc=-1, scale=2).logsf(t)
    found = pr.run_smc(problem, particles=500, seed=0, progress=False)
    assert abs(found.log_prob - exact) < 4 * found.std_error + 0.05


def test_a_set_without_size_is_refused():
    with pytest.raises(pr.RiskError, match="radius"):
        mi.Ball(3, math.inf)
    with pytest.raises(pr.RiskError, match="n >= 1"):
        mi.Cube(0)
