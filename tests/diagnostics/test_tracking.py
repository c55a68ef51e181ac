"""What tracking moved: layers and directions that matter are named, those that do not are not."""

import numpy as np
import pytest

from builders import four_directions
from ppl_risk import select
from ppl_risk.diagnostics import what_tracking_moved
from ppl_risk.errors import RiskError


@pytest.fixture(scope="module")
def found():
    problem = four_directions()
    return problem, what_tracking_moved(problem, select(problem), 1, 4, draws=20_000, progress=False)


def test_the_layer_that_matters_comes_first(found):
    _, tracking = found
    first, second = tracking.layers
    assert first.layer == "0"
    assert first.decades > 0.05 + 3 * first.error
    # the read-out reads one number, which rank 1 carries already
    assert second.layer == "2"
    assert abs(second.decades) < 3 * second.error
    assert tracking.log10_high - tracking.log10_low == pytest.approx(first.decades, abs=1e-6)


def test_every_direction_of_it_matters(found):
    _, tracking = found
    mine = [m for m in tracking.directions if m.layer == "0"]
    assert sorted(m.direction for m in mine) == [1, 2, 3]
    assert all(m.decades > 3 * m.error for m in mine)


def test_pictures_lie_in_what_the_network_reads(found):
    problem, tracking = found
    rows = problem.network[0].weight[:4].mT.numpy()
    for direction in (1, 2, 3):
        shown = tracking.inputs["0", direction]
        assert shown.shape == (16,)
        inside = np.linalg.norm(rows.T @ shown) / np.linalg.norm(shown)
        assert inside > 0.98  # 4000 draws: the other 12 coordinates are noise of 1/63 each
        np.testing.assert_array_equal(shown, tracking.units["0", direction])


def test_it_explains_itself(found):
    text = str(found[1])
    assert "Tracking 4 directions a layer instead of 1" in text
    assert "reads units" in text


@pytest.mark.parametrize(("low", "high"), [(2, 2), (3, 1), (-1, 2)])
def test_ranks_must_grow(low, high):
    problem = four_directions()
    with pytest.raises(RiskError, match="low < high"):
        what_tracking_moved(problem, select(problem, draws=100), low, high, progress=False)
