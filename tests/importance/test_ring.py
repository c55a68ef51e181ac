"""Rings: density, draws and radii against chi laws, and no variance for |u| >= R."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chi, kstest

from builders import assert_means
from ppl_risk.importance.gated import Gate, Points
from ppl_risk.importance.ring import CHANCES, STEPS, Ring

DRAWS = 60_000


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def basis(d, r):
    generator = torch.Generator().manual_seed(d)
    return torch.linalg.qr(torch.randn(d, max(r, 1), generator=generator, dtype=torch.float64)).Q[:, :r]


def round_ring(d, radius, roughness):
    return Ring(basis(d, 0), doubles(), doubles(), gate=Gate(radius, roughness, doubles(), doubles()))


LAWS = {
    "round": round_ring(9, 3.5, 0.2),
    "plane": round_ring(2, 1.5, 0.4),
    "starts inside": round_ring(4, 0.5, 0.5),
    "bent": Ring(
        basis(8, 2), doubles(0.5, -0.3), doubles(0.8, 1.2), gate=Gate(3.0, 0.3, doubles(0.2, 0.1), doubles(0.1, -0.1))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(LAWS))
def test_density_has_mass_one_and_draws_its_moments(name):
    law = LAWS[name]
    torch.manual_seed(1)
    u, drawn = torch.randn(DRAWS, len(law.basis), dtype=torch.float64), law.sample(DRAWS)
    ratio = law.log_tilt(Points.of(u)).exp()
    assert_means(ratio, 1.0)

    def moments(u):
        return torch.cat([u, u.square(), u * u.roll(1, -1), u.norm(dim=-1, keepdim=True)], -1)

    weighted, drawn = moments(u) * ratio[:, None], moments(drawn)
    error = ((drawn.var(0) + weighted.var(0)) / DRAWS).sqrt()
    assert float(((drawn.mean(0) - weighted.mean(0)).abs() / error).max()) < 4.5


@pytest.mark.parametrize(("d", "radius", "roughness"), [(3, 4.0, 0.1), (9, 6.0, 0.3), (50, 12.0, 0.5), (9, 20.0, 0.1)])
def test_radii_follow_chi_beyond_the_steps(d, radius, roughness):
    law = round_ring(d, radius, roughness)
    torch.manual_seed(2)
    radii = law.sample(10_000).norm(dim=-1).numpy()

    def cdf(r):
        parts = [
            chance * np.where(r >= b, -np.expm1(np.minimum(chi.logsf(r, d) - chi.logsf(b, d), 0.0)), 0.0)
            for chance, b in zip(CHANCES, [radius + roughness * e for e in STEPS], strict=True)
        ]
        return np.sum(parts, 0)

    assert sum(CHANCES) == pytest.approx(1.0)
    assert kstest(radii, cdf).pvalue > 1e-3


@pytest.mark.parametrize("radius", [4.0, 8.0, 25.0])
def test_a_round_boundary_leaves_no_variance(radius):
    law = round_ring(9, radius, 1e-7)
    torch.manual_seed(3)
    u = law.sample(4000)
    tilt = law.log_tilt(Points.of(u))
    assert bool(torch.isfinite(tilt).all())
    log_weight = torch.where(u.norm(dim=-1) >= radius, -tilt, -torch.inf)
    off = (log_weight - chi.logsf(radius, 9)).abs() > 1e-4
    assert float(off.double().mean()) < 2e-3


def test_a_rough_ring_is_unbiased_for_a_round_boundary():
    law = round_ring(9, 5.5, 0.3)
    torch.manual_seed(4)
    u = law.sample(20_000)
    weight = torch.where(u.norm(dim=-1) >= 5.5, (-law.log_tilt(Points.of(u)) - chi.logsf(5.5, 9)).exp(), 0.0)
    assert_means(weight, 1.0)
    assert float(weight.std()) < 1.5


def test_nothing_lies_inside_the_lowest_step():
    law = round_ring(9, 4.0, 0.2)
    edge = 4.0 + 0.2 * min(STEPS)
    u = torch.eye(9, dtype=torch.float64)[:1] * doubles(edge - 1e-6, edge + 1e-6)[:, None]
    tilt = law.log_tilt(Points.of(u))
    assert float(tilt[0]) == -math.inf
    assert float(tilt[1]) == pytest.approx(math.log(CHANCES[0]) - chi.logsf(edge, 9), abs=1e-6)
