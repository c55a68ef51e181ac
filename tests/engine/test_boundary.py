"""The probit fit of a boundary recovers the one that outcomes were drawn from, and the gate made of it has small variance."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from ppl_risk.engine.boundary import ROUGHEST, SMOOTHEST, fit_boundary, optimal
from ppl_risk.importance.gated import Gate, Gated, Points

N = 6000
HEIGHTS = {
    "normal": lambda: 3 + 1.5 * torch.randn(N, dtype=torch.float64),
    "uniform": lambda: 1 + 4 * torch.rand(N, dtype=torch.float64),
    "mostly far below": lambda: 4.5 - torch.distributions.Exponential(0.5).sample((N,)).double(),
}


def normals(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def outcomes(gate, height, v, bulge):
    boundary = gate.boundary(v, torch.zeros(len(v), dtype=torch.float64) if bulge is None else bulge)
    return height - gate.roughness * normals(len(height)) >= boundary


@pytest.mark.parametrize("kind", list(HEIGHTS))
@pytest.mark.parametrize("roughness", [0.1, 0.4, 1.0])
def test_the_boundary_is_recovered(kind, roughness):
    torch.manual_seed(0)
    truth = Gate(3.0, roughness, doubles(0.4, 0.0), doubles(-0.1, 0.2))
    height, v = HEIGHTS[kind](), normals(N, 2)
    found = fit_boundary(height, v, None, outcomes(truth, height, v, None))
    assert found is not None
    slack = 0.03 + 0.12 * roughness
    assert found.start == pytest.approx(3.0, abs=slack)
    assert found.roughness == pytest.approx(roughness, rel=0.15)
    assert found.linear.tolist() == pytest.approx([0.4, 0.0], abs=slack)
    assert found.square.tolist() == pytest.approx([-0.1, 0.2], abs=slack)
    assert found.bulge == 0.0


def test_the_bulge_is_recovered():
    """|rest|^2 / others - 1 varies little, so a ridge of fixed size would hide its coefficient."""
    truth = Gate(3.0, 0.3, doubles(0.2), doubles(0.0), 4.0)
    bulges, few = [], 300
    for seed in range(8):
        torch.manual_seed(seed)
        height, v, bulge = HEIGHTS["normal"]()[:few], normals(few, 1), normals(few, 200).square().mean(-1) - 1
        found = fit_boundary(height, v, bulge, outcomes(truth, height, v, bulge))
        assert found is not None
        assert found.start == pytest.approx(3.0, abs=0.2)
        bulges.append(found.bulge)
    assert np.mean(bulges) == pytest.approx(4.0, abs=0.8)


def test_a_sharp_boundary_is_as_smooth_as_is_allowed():
    torch.manual_seed(2)
    height = HEIGHTS["normal"]()
    found = fit_boundary(height, normals(N, 1), None, height >= 3.2)
    assert found is not None
    assert SMOOTHEST <= found.roughness < 3 * SMOOTHEST
    assert found.start == pytest.approx(3.2, abs=0.03)


def test_points_far_out_do_not_bend_the_fit():
    torch.manual_seed(3)
    truth = Gate(3.0, 0.3, doubles(0.2), doubles(0.1))
    height, v = HEIGHTS["normal"](), normals(N, 1)
    hit = outcomes(truth, height, v, None)
    wild = fit_boundary(torch.cat([height, height]), torch.cat([v, 30 * v.abs() + 5]), None, torch.cat([hit, ~hit]))
    alone = fit_boundary(height, v, None, hit)
    assert wild is not None
    assert alone is not None
    assert wild.linear.tolist() == pytest.approx(alone.linear.tolist(), abs=1e-2)
    assert wild.start == pytest.approx(alone.start, abs=1e-2)


NOTHING = {
    "no hit": lambda height: height > 99,
    "nine hits": lambda height: height >= height.topk(9).values[-1],
    "hits only": lambda height: height < 99,
    "hits at random": lambda height: torch.rand(N) < 0.5,
    "hits below": lambda height: height <= 3,
}


@pytest.mark.parametrize("kind", list(NOTHING))
def test_where_there_is_nothing_to_learn_there_is_no_gate(kind):
    torch.manual_seed(4)
    height = HEIGHTS["normal"]()
    assert fit_boundary(height, normals(N, 2), None, NOTHING[kind](height)) is None


def test_the_roughest_gate_is_as_told():
    torch.manual_seed(5)
    height, v = HEIGHTS["uniform"](), normals(N, 1)
    found = fit_boundary(height, v, None, outcomes(Gate(3.0, 2.0, doubles(0.0), doubles(0.0)), height, v, None))
    assert found is not None
    assert 1.5 < found.roughness < ROUGHEST


def second_moment(gate, truth):
    """E[w^2] / p^2 of a proposal on a line whose event is hit with probability Phi((t - start) / s) at t, by quadrature."""
    law = Gated(torch.eye(1).double(), doubles(0.0), doubles(1.0), gate=gate)
    t = np.linspace(-9, 14, 200_001)
    log_chance = norm.logcdf((t - truth.start) / truth.roughness)
    log_tilt = law.log_tilt(Points.of(torch.as_tensor(t[:, None]))).numpy()
    p = norm.sf(truth.start / math.sqrt(1 + truth.roughness**2))
    return float(np.trapezoid(np.exp(norm.logpdf(t) + log_chance - log_tilt), t)) / p**2


@pytest.mark.parametrize(("start", "roughness"), [(2.0, 0.3), (4.0, 0.3), (4.0, 0.6), (5.0, 1.0)])
def test_the_optimal_gate_is_not_that_of_the_event(start, roughness):
    """Against the least second moment there is, that of q ~ phi sqrt(Pr[hit | t]): within a tenth of it."""
    truth = Gate(start, roughness, doubles(), doubles())
    t = np.linspace(-9, 14, 200_001)
    least = float(np.trapezoid(norm.pdf(t) * np.sqrt(norm.cdf((t - start) / roughness)), t)) ** 2
    least /= norm.sf(start / math.sqrt(1 + roughness**2)) ** 2
    assert least <= second_moment(optimal(truth), truth) < 1.1 * least
    gate = optimal(truth)
    assert norm.cdf((start - gate.start) / gate.roughness) == pytest.approx(math.sqrt(0.5), abs=2e-3)
    assert second_moment(truth, truth) > 2 * second_moment(optimal(truth), truth)
