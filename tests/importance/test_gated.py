"""Tilted and gated laws against their own densities: normalisation, draws, far tails, and no variance at a flat boundary."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, norm

from builders import assert_means
from ppl_risk.importance.gated import REACH, Gate, Gated, Points, Tilted, gated_heights

DRAWS = 100_000


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def basis(d, r, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, max(r, 1), generator=generator, dtype=torch.float64)).Q[:, :r]


FLAT = Gate(1.5, 0.5, doubles(), doubles())
BENT = Gate(1.0, 0.4, doubles(0.3, -0.2), doubles(0.15, -0.1))
LAWS = {
    "prior": Tilted(basis(5, 0), doubles(), doubles()),
    "no rest": Tilted(basis(2, 2), doubles(1.0, -0.5), doubles(0.8, 1.2)),
    "rest": Tilted(basis(6, 2), doubles(0.7, -0.5), doubles(0.8, 1.2), 0.9),
    "wide rest": Tilted(basis(4, 1), doubles(0.7), doubles(1.0), 1.15),
    "gate on a line": Gated(basis(1, 1), doubles(0.9), doubles(0.6), gate=FLAT),
    "gate, bent, no rest": Gated(basis(3, 3), doubles(0.0, 0.5, -0.3), doubles(1.0, 0.8, 1.2), gate=BENT),
    "gate, bent, rest": Gated(basis(6, 3), doubles(0.0, 0.5, -0.3), doubles(1.0, 0.8, 1.2), 0.9, gate=BENT),
    "gate with a bulge": Gated(
        basis(12, 2), doubles(0.0, 0.4), doubles(1.0, 0.9), 0.95, gate=Gate(1.0, 0.3, doubles(0.2), doubles(0.1), 1.5)
    ),
    "gate, widened": Gated(
        basis(6, 3), doubles(0.0, 0.5, -0.3), doubles(1.0, 0.8, 1.2), 0.9, gate=BENT
    ).widened(1.1),
}  # fmt: skip


def prior(d, draws=DRAWS):
    return torch.randn(draws, d, dtype=torch.float64)


def moments(u):
    """First and second moments of every coordinate and of neighbours, and the fourth of the length."""
    return torch.cat([u, u.square(), u * u.roll(1, -1), u.square().sum(-1, keepdim=True).square() / u.shape[1]], -1)


@pytest.mark.parametrize("name", list(LAWS))
def test_density_has_mass_one(name):
    law = LAWS[name]
    torch.manual_seed(1)
    ratio = law.log_tilt(Points.of(prior(len(law.basis)))).exp()
    if name == "prior":
        assert bool((ratio == 1).all())
    else:
        assert_means(ratio, 1.0)


@pytest.mark.parametrize("name", list(LAWS))
def test_draws_have_the_moments_of_the_density(name):
    """E_q[g] from draws of q and E_phi[g q / phi] from draws of phi, 4.5 joint sigmas."""
    law = LAWS[name]
    torch.manual_seed(2)
    drawn, u = moments(law.sample(DRAWS)), prior(len(law.basis))
    weighted = moments(u) * law.log_tilt(Points.of(u)).exp()[:, None]
    error = ((drawn.var(0) + weighted.var(0)) / DRAWS).sqrt()
    gap = (drawn.mean(0) - weighted.mean(0)).abs() / error
    assert float(gap.max()) < 4.5


def gate_density(bound, roughness):
    """Grid, and phi(t) Phi((t - b) / s) on it, whose mass is divided out by numbers alone."""
    spread = math.sqrt(1 + roughness**2)
    reach = 9 * roughness / spread
    low = max(bound, -9 * spread) / spread**2 - reach
    grid = np.linspace(low, max(bound, 0.0) / spread**2 + reach + 9, 400_001)
    log_density = norm.logpdf(grid) + norm.logcdf((grid - bound) / roughness)
    peak = log_density.max()
    density = np.exp(log_density - peak)
    return grid, density, peak + math.log(np.trapezoid(density, grid))


@pytest.mark.parametrize("roughness", [1e-3, 0.1, 1.0, 3.0])
@pytest.mark.parametrize("bound", [-6.0, 0.0, 2.0, 8.0, 30.0, 37.0])
def test_heights_follow_their_law(bound, roughness):
    grid, density, _ = gate_density(bound, roughness)
    cdf = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    torch.manual_seed(3)
    heights = gated_heights(torch.full((20_000,), bound, dtype=torch.float64), roughness).numpy()
    assert np.isfinite(heights).all()
    assert kstest(heights, lambda t: np.interp(t, grid, cdf / cdf[-1])).pvalue > 1e-3


def test_every_height_has_its_own_bound():
    bound = doubles(-3.0, 5.0, 30.0).repeat(2000)
    torch.manual_seed(4)
    heights = gated_heights(bound, 0.01).view(-1, 3)
    assert bool((heights > doubles(-5.0, 4.9, 29.9)).all())
    assert heights.mean(0).tolist() == pytest.approx([0.0, 5.187, 30.033], abs=0.06)


@settings(max_examples=30, deadline=None)
@given(st.floats(-8.0, 37.0), st.floats(1e-3, 3.0))
def test_the_gates_constant_is_exact_at_every_height(bound, roughness):
    grid, _, log_mass = gate_density(bound, roughness)
    law = Gated(torch.eye(1).double(), doubles(0.0), doubles(1.0), gate=Gate(bound, roughness, doubles(), doubles()))
    tilt = law.log_tilt(Points.of(torch.as_tensor(grid[::4000, None])))
    expected = norm.logcdf((grid[::4000] - bound) / roughness) - log_mass
    np.testing.assert_allclose(tilt.numpy(), expected, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("height", [2.0, 5.0, 12.0, 36.0])
def test_a_flat_boundary_leaves_no_variance(height):
    law = Gated(basis(7, 1), doubles(0.0), doubles(1.0), gate=Gate(height, 1e-6, doubles(), doubles()))
    torch.manual_seed(5)
    u = law.sample(5000)
    log_weight = torch.where(u @ law.basis[:, 0] >= height, -law.log_tilt(Points.of(u)), -torch.inf)
    off = (log_weight - norm.logsf(height)).abs() > 1e-5 * height**2
    assert float(off.double().mean()) < 2e-3
    assert float(log_weight.logsumexp(0)) - math.log(5000) == pytest.approx(norm.logsf(height), abs=2e-3)


def test_a_rough_gate_is_unbiased_for_a_flat_boundary():
    law = LAWS["gate, bent, rest"]
    torch.manual_seed(6)
    u = law.sample(DRAWS)
    weight = torch.where(u @ law.basis[:, 0] >= 1.5, (-law.log_tilt(Points.of(u))).exp(), 0.0)
    assert_means(weight, float(norm.sf(1.5)))


def test_widened_is_the_same_place_seen_less_sharply():
    law = LAWS["gate, bent, rest"]
    wide = law.widened(0.9)
    assert torch.equal(wide.basis, law.basis)
    assert torch.equal(wide.mean, law.mean)
    assert wide.scale.tolist() == [1.0, 1.0, 1.2]
    assert wide.outside == 1.0
    assert wide.gate.roughness == 0.9
    assert (wide.gate.start, wide.gate.bulge) == (law.gate.start, law.gate.bulge)
    assert torch.equal(wide.gate.linear, law.gate.linear)
    assert law.gate.roughness == 0.4


def test_the_boundary_is_the_quadratic_and_no_further_than_its_reach():
    gate = Gate(2.0, 0.1, doubles(0.5), doubles(-0.25), 3.0)
    v = doubles(0.0, 1.0, -2.0, 50.0)[:, None]
    rest = doubles(0.0, -0.5, 0.0, 0.0)
    expected = [2.0, 2.0 + 0.5 - 0.25 - 1.5, 2.0 - 1.0 - 1.0, 2.0 + 0.5 * REACH - 0.25 * REACH**2]
    assert gate.boundary(v, rest).tolist() == pytest.approx(expected)


def test_the_tilt_does_not_see_what_it_does_not_change():
    """In 3000 dimensions the part across the basis leaves the tilt as it is, to the last digits."""
    law = Gated(basis(3000, 2), doubles(0.0, 0.5), doubles(1.0, 0.8), gate=Gate(3.0, 0.2, doubles(0.1), doubles(0.1)))
    torch.manual_seed(7)
    u = law.sample(50)
    across = prior(3000, 50)
    moved = u @ law.basis @ law.basis.mT + across - across @ law.basis @ law.basis.mT
    tilt = law.log_tilt(Points.of(u))
    assert float(tilt.std()) > 0.1
    torch.testing.assert_close(law.log_tilt(Points.of(moved)), tilt, rtol=0, atol=1e-9)
