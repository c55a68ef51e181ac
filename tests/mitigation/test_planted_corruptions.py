"""Corruptions have the mass they say, by closed forms where there are any, and stay within their bars."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, kstest

from ppl_risk.errors import RiskError
from ppl_risk.mitigation import Ball, Cube, Simplex, planted

DOMAINS = [Ball(6, 2.0), Cube(6, 0.5), Simplex(6)]
PLACED = [planted.nearest, planted.cone, planted.cap]


def star(domain, seed=0):
    """A point of the domain, half-way to a uniform draw from the mean."""
    return domain.sample(1, torch.Generator().manual_seed(seed))[0]


def exact_mass(corrupted, n):
    """Mass of a ball about 0, a cone seen from 0 and a cap, in the unit ball: r^n, and two Beta laws."""
    region = corrupted.trigger
    if region.score.kind == "nearest":
        return region.level**n
    half = (n - 1) / 2 if region.score.kind == "cone" else (n + 1) / 2
    height = float(region.score.centre.norm()) - region.level  # the way along the axis is counted from x*
    return float(beta.sf((1 + height) / 2, half, half))


@pytest.mark.parametrize("place", PLACED, ids=lambda f: f.__name__)
@pytest.mark.parametrize("epsilon", [0.02, 0.002])
@pytest.mark.parametrize("n", [2, 10])
def test_mass_on_the_ball_is_that_of_the_closed_form(place, epsilon, n):
    h = planted.random_affine(Ball(n), seed=0)
    x_star = torch.eye(n, dtype=torch.float64)[0] * (0.3 if place is planted.cap else 0.0)
    ratios = []
    for seed in range(4):
        f = place(h, Ball(n), x_star, epsilon, 10.0, seed=seed)
        assert f.trigger.accuracy == pytest.approx(math.sqrt((1 - epsilon) / (epsilon * f.trigger.draws)))
        assert f.trigger.accuracy < 0.051
        ratios.append((exact_mass(f, n) / epsilon - 1) / f.trigger.accuracy)
    assert max(map(abs, ratios)) < 4
    assert abs(sum(ratios)) / 2 < 4


def test_mass_at_the_corner_of_a_square():
    f = planted.nearest(planted.random_affine(Cube(2), seed=0), Cube(2), torch.ones(2), 0.01, 1.0, seed=0)
    assert math.pi * f.trigger.level**2 / 4 / 4 == pytest.approx(0.01, rel=4 * f.trigger.accuracy)


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda d: type(d).__name__)
@pytest.mark.parametrize("place", PLACED, ids=lambda f: f.__name__)
def test_the_shift_is_where_it_fires_and_any_point_can_be_moved_there(place, domain):
    h, epsilon, rows = planted.random_affine(domain, seed=1), 0.03, 40_000
    f = place(h, domain, star(domain), epsilon, -7.0, seed=2)
    x = domain.sample(rows, torch.Generator().manual_seed(9))
    fires = f.fires(x)
    spread = math.hypot(math.sqrt(epsilon * (1 - epsilon) / rows), f.trigger.accuracy * epsilon)
    assert abs(float(fires.double().mean()) - epsilon) < 4.5 * spread
    assert torch.allclose(f(x), h(x) - 7.0 * fires, atol=1e-12)
    for kind in (x, x.float()):
        attacked = f.activate(kind)
        assert attacked.dtype == kind.dtype
        assert bool(f.fires(attacked).all())
        assert bool(domain.contains(attacked.double(), tolerance=1e-6).all())
    assert torch.equal(f.activate(x)[fires], x[fires])
    assert torch.equal(f.activate(x[5:6]), f.activate(x)[5:6])


def test_nearest_is_the_nearest():
    domain = Ball(8)
    x_star = 0.9 * torch.nn.functional.normalize(torch.ones(8).double(), dim=0)
    f = planted.nearest(planted.random_affine(domain, seed=0), domain, x_star, 0.05, 1.0, seed=0)
    x = domain.sample(20_000, torch.Generator().manual_seed(1))
    away, fires = (x - x_star).norm(dim=-1), f.fires(x)
    assert float(away[fires].max()) <= float(away[~fires].min())
    assert bool(f.fires(x_star[None]))


def test_a_cone_is_seen_from_its_point():
    domain = Cube(4)
    x_star = star(domain)
    f = planted.cone(planted.random_affine(domain, seed=0), domain, x_star, 0.05, 1.0, seed=3)
    x = domain.sample(5000, torch.Generator().manual_seed(1))
    for share in (0.01, 0.5):
        assert torch.equal(f.fires(x_star + share * (x - x_star)), f.fires(x))


@pytest.mark.parametrize("n", [20, 200])
def test_the_tilt_is_small_nearly_everywhere_and_n_delta_at_the_vertex(n):
    """n (1 - phi) is n Beta(1, n): 1 - (1 - k/n)^n within k delta, 63, 87 and 98 % for k = 1, 2, 4."""
    domain, delta = Simplex(n, 3.0), 0.01
    h = planted.random_affine(domain, seed=0)
    f = planted.tilt(h, domain, delta)
    x = domain.sample(20_000, torch.Generator().manual_seed(0))
    error = f(x) - h(x)
    for k in (1, 2, 4):
        share = 1 - (1 - k / n) ** n
        found = float((error <= k * delta).double().mean())
        assert abs(found - share) < 4.5 * math.sqrt(share * (1 - share) / 20_000)
    assert float(f(torch.zeros(1, n)) - h(torch.zeros(1, n))) == pytest.approx(n * delta) == f.bound
    # Itself affine: the middle of two points has the mean of their answers.
    assert torch.allclose(f((x[:9] + x[9:18]) / 2), (f(x[:9]) + f(x[9:18])) / 2, atol=1e-12)
    with pytest.raises(RiskError, match="tilt is one of a simplex"):
        planted.tilt(h, Ball(n), delta)


@settings(max_examples=25, deadline=None)
@given(delta=st.floats(1e-6, 10), seed=st.integers(0, 10**6), n=st.integers(1, 50))
def test_jitter_stays_in_its_bars_and_is_a_function(delta, seed, n):
    h = planted.random_affine(Ball(n), seed=seed)
    f = planted.jitter(h, delta, seed=seed)
    x = Ball(n).sample(200, torch.Generator().manual_seed(seed))
    error = f(x) - h(x)
    assert float(error.abs().max()) <= delta * (1 + 1e-9) + 1e-12
    assert torch.equal(f(x), f(x))
    assert torch.allclose(f(x.flip(0)), f(x).flip(0), rtol=0, atol=1e-6 * delta + 1e-12)


@pytest.mark.parametrize("domain", [Ball(50), Cube(5), Simplex(20)], ids=lambda d: type(d).__name__)
def test_jitter_is_uniform_and_unrelated_along_a_ray(domain):
    """The two points of a homothety pair, x and x* + rho (x - x*), err independently; another seed errs otherwise."""
    h = planted.random_affine(domain, seed=0)
    f, other = planted.jitter(h, 1.0, seed=1), planted.jitter(h, 1.0, seed=2)
    x, x_star = domain.sample(20_000, torch.Generator().manual_seed(0)), star(domain, 1)
    near = x_star + math.exp(-1.5 / domain.n) * (x - x_star)
    one, two, three = f(x) - h(x), f(near) - h(near), other(x) - h(x)
    assert kstest(one.numpy(), "uniform", args=(-1, 2)).pvalue > 1e-4
    for second in (two, three):
        assert abs(float(torch.corrcoef(torch.stack([one, second]))[0, 1])) < 4.5 / math.sqrt(20_000)


def test_wrong_calls():
    h = planted.random_affine(Ball(3), seed=0)
    for place in PLACED:
        with pytest.raises(RiskError, match="one point of 3 numbers"):
            place(h, Ball(3), torch.ones(4), 0.1, 1.0, seed=0)
        with pytest.raises(RiskError, match="epsilon must be between"):
            place(h, Ball(3), torch.ones(3) / 3, 1e-8, 1.0, seed=0)
    with pytest.raises(RiskError, match="no direction for a cap"):
        planted.cap(h, Ball(3), torch.zeros(3), 0.1, 1.0, seed=0)
