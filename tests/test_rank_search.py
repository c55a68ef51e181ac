"""The rank at which the tail stands still is the number of directions that the margin depends on."""

import pytest
import torch

from builders import four_directions
from ppl_risk import choose_rank, fit_layerwise, monte_carlo, select
from ppl_risk.errors import RiskError
from ppl_risk.guides import Selected

#: The tails are about one in fifty: counting sees them, and costs least.
COUNTED = {"draws": 100_000, "tail": "count", "progress": False}


def test_rank_is_the_number_of_directions_that_are_read():
    problem = four_directions()
    search = choose_rank(problem, ranks=[1, 2, 3, 4, 8, 16], tolerance=0.01, **COUNTED)
    assert search.rank == 4
    assert search.settled
    assert list(search.estimates) == [1, 2, 3, 4, 8, 16]
    counted = monte_carlo(problem, calls=200_000, progress=False)
    low, high = counted.interval(0.999)
    assert low < search.estimate.log_prob + 3 * search.estimate.std_error
    assert search.estimate.log_prob - 3 * search.estimate.std_error < high
    text = str(search)
    assert "<- chosen" in text
    assert "Rank 4" in text


def test_search_stops_when_the_tail_stands_still_twice():
    search = choose_rank(four_directions(), ranks=[4, 5, 6, 8, 16], **COUNTED)
    assert list(search.estimates) == [4, 5, 6]
    assert search.rank == 4


def test_a_tail_that_still_moves_is_said_to():
    search = choose_rank(four_directions(), ranks=[1, 4], **COUNTED)
    assert not search.settled
    assert "still moving" in str(search)
    assert search.rank == 4


@pytest.mark.parametrize("ranks", [[4], [4, 4], [4, 2]])
def test_ranks_must_grow(ranks):
    with pytest.raises(RiskError, match="at least two and grow"):
        choose_rank(four_directions(), ranks=ranks, progress=False)


def test_selection_is_found_where_none_is_given():
    problem = four_directions()
    given = choose_rank(problem, select(problem, seed=3), ranks=[2, 4], seed=3, **COUNTED)
    found = choose_rank(problem, ranks=[2, 4], seed=3, **COUNTED)
    assert given.estimate.log_prob == found.estimate.log_prob
    again = fit_layerwise(problem, Selected(select(problem, seed=3).at(4)), seed=3, **COUNTED)
    assert again.log_prob == found.estimates[4].log_prob
    torch.testing.assert_close(found.selection.layers[0].functionals, given.selection.layers[0].functionals)
