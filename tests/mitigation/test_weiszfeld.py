"""The geometric median: closed forms, the least mean distance, and points on which Weiszfeld alone is slow."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_risk import mitigation as mi
from ppl_risk.errors import RiskError


def draws(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def test_geometric_median_in_closed_form():
    square = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
    torch.testing.assert_close(mi.geometric_median(square), torch.ones(2).double())
    # Fermat's point of the right isosceles triangle with legs 1 is (1 - 1/sqrt(3)) / 2 along each leg.
    triangle = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    fermat = torch.full((2,), (1 - 3**-0.5) / 2).double()
    torch.testing.assert_close(mi.geometric_median(triangle), fermat, rtol=0, atol=1e-6)
    # With an angle of 120 degrees or more it is that corner, exactly.
    assert mi.geometric_median(torch.tensor([[0.0, 0.0], [1.0, 0.1], [-1.0, 0.1]])).tolist() == [0.0, 0.0]
    # More than half the points on one spot hold it, whatever the others do.
    held = torch.tensor([[1.0, 2.0]] * 4 + [[1e9, 0.0], [0.0, -1e9], [5.0, 5.0]])
    assert mi.geometric_median(held).tolist() == [1.0, 2.0]
    line = torch.tensor([[float(t), 2.0 * t] for t in (0, 1, 2, 50, 99)])
    torch.testing.assert_close(mi.geometric_median(line), torch.tensor([2.0, 4.0]).double())
    assert torch.equal(mi.geometric_median(draws(3, 10, 1))[:, 0], mi.median(draws(3, 10, 1)[..., 0]))


@given(st.integers(0, 2**31), st.integers(2, 6), st.integers(3, 30), st.floats(-100, 100), st.floats(0.01, 100))
@settings(max_examples=30, deadline=None)
def test_geometric_median_is_least_and_moves_with_the_points(seed, d, n, shift, scale):
    points = draws(2, n, d, seed=seed)
    found = mi.geometric_median(points)

    def distance(x):
        return (points - x[:, None]).norm(dim=-1).mean(-1)

    for near in (1e-3, 1e-1):
        for s in range(5):
            assert bool((distance(found) <= distance(found + near * draws(2, d, seed=s)) + 1e-9).all())
    turn = torch.linalg.qr(draws(d, d, seed=seed)).Q
    moved = mi.geometric_median(shift + scale * points @ turn)
    # Near its minimum the distance is flat: points whose distances agree to 1e-9 need not agree as well themselves.
    assert bool((distance((moved - shift) / scale @ turn.mT) <= distance(found) * (1 + 1e-8)).all())
    looped = torch.stack([mi.geometric_median(row) for row in points])
    assert bool((distance(looped) <= distance(found) * (1 + 1e-8)).all())
    assert mi.geometric_median(points.reshape(2, 1, n, d)).shape == (2, 1, d)


@pytest.mark.parametrize("off", [1e-1, 1e-3, 1e-5])
def test_a_median_beside_a_data_point_is_reached(off):
    """(0, off) pulls down with force 1, two points at an angle pull up with 2 cos(angle), a little more than 1."""
    angle = torch.tensor(torch.pi / 3 - off, dtype=torch.float64)
    side, up = angle.sin(), angle.cos()
    points = torch.stack([torch.stack([side, up]), torch.stack([-side, up]), torch.zeros(2).double()])
    found = mi.geometric_median(points)
    # Fermat's point of an isosceles triangle sees each pair of corners under 120 degrees.
    assert found[0].item() == pytest.approx(0, abs=1e-9)
    assert found[1].item() == pytest.approx((up - side / 3**0.5).item(), abs=1e-7)


def test_a_third_of_far_points_moves_it_little():
    """Uniform ball of R^10, a third at distance 1e6 to one side: bias near tan(30 degrees) of the typical radius."""
    clean = draws(20, 2000, 10)
    ball = torch.randn(20, 2000, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ball = ball / ball.norm(dim=-1, keepdim=True) * clean[..., :1].abs().pow(0.1)
    ball[:, :667] = 1e6 * torch.eye(10, dtype=torch.float64)[0]
    assert bool((mi.geometric_median(ball).norm(dim=-1) - 0.555).abs().max() < 0.05)


@pytest.mark.parametrize("points", [
    torch.tensor([[0.0, 0.0], [1e12, 0.0], [0.0, -1e12], [1.0, 1.0], [2.0, 0.5]]),
    torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)),
    torch.arange(12.0)[:, None] * torch.tensor([1.0, 3.0]),
    torch.ones(7, 3), torch.zeros(1, 4), torch.tensor([[0.0, 0.0], [1.0, 0.0]]),
    torch.cat([draws(50, 2) * 1e-9, draws(49, 2) + 5]),
])  # fmt: skip
def test_awkward_points_are_solved(points):
    points = points.double()
    found = mi.geometric_median(points)
    least = (points - found).norm(dim=-1).mean()
    around = torch.cat([points, found + draws(200, points.shape[1]), found + 1e-6 * draws(200, points.shape[1])])
    assert bool((torch.cdist(around, points).mean(-1) >= least * (1 - 1e-8)).all())


def test_mistakes_are_named():
    with pytest.raises(RiskError, match=r"\(\.\.\., n, d\)"):
        mi.geometric_median(torch.ones(0, 2))
    with pytest.raises(RiskError, match="after 1 steps"):
        mi.geometric_median(draws(30, 2), iterations=1)
