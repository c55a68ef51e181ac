"""The edge of a random bulk against closed forms, and what is found above it."""

import math

import pytest
import torch
from scipy.optimize import brentq

from builders import assert_means
from ppl_risk.selection.marchenko_pastur import _median, edge, outliers


def noise(m, n, seed=0, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(m, n, generator=g, dtype=torch.float64)


def planted(theta, m=120, n=240, seed=0):
    """Noise of variance 1 / n plus theta times a unit rank one; its vectors."""
    g = torch.Generator().manual_seed(100 + seed)
    left, right = (
        torch.nn.functional.normalize(torch.randn(k, generator=g, dtype=torch.float64), dim=0) for k in (m, n)
    )
    return noise(m, n, seed, 1 / math.sqrt(n)) + theta * torch.outer(left, right), left, right


def test_median_of_a_square_matrix_is_that_of_the_quarter_circle():
    root = brentq(lambda x: (x * math.sqrt(4 - x * x) / 2 + 2 * math.asin(x / 2)) / math.pi - 0.5, 0.1, 1.9)
    assert _median(1.0) == pytest.approx(root**2, abs=1e-6)


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5, 0.75, 1.0])
def test_median_gives_the_published_threshold(ratio):
    """omega = lambda* / sqrt(median) is 0.56 b^3 - 0.95 b^2 + 1.82 b + 1.43 to within 0.02 (Gavish and Donoho 2014)."""
    optimal = math.sqrt(2 * (ratio + 1) + 8 * ratio / (ratio + 1 + math.sqrt(ratio**2 + 14 * ratio + 1)))
    published = 0.56 * ratio**3 - 0.95 * ratio**2 + 1.82 * ratio + 1.43
    assert optimal / math.sqrt(_median(ratio)) == pytest.approx(published, abs=0.02)


@pytest.mark.parametrize(("m", "n", "scale"), [(200, 200, 1.0), (100, 300, 0.2), (300, 100, 5.0)])
def test_edge_is_the_closed_form(m, n, scale):
    """s (sqrt m + sqrt n); the median of 100 and more singular values moves by less than a hundredth."""
    values = torch.linalg.svdvals(noise(m, n, scale=scale))
    assert edge(values, m, n) == pytest.approx(scale * (math.sqrt(m) + math.sqrt(n)), rel=0.02)


@pytest.mark.parametrize(("m", "n"), [(41, 41), (41, 80), (120, 41)])
def test_pure_noise_has_almost_no_outliers(m, n):
    """The largest singular value passes the edge of an infinite matrix in about one of six (Tracy and Widom)."""
    ranks = [int(torch.linalg.matrix_rank(outliers(noise(m, n, seed)))) for seed in range(60)]
    # 60 matrices at one in six: 10, with a deviation of 2.9
    assert sum(ranks) <= 10 + 4 * 2.9
    assert max(ranks) <= 2


def test_median_of_an_even_count_lies_in_the_middle():
    even, odd = torch.tensor([4.0, 3.0, 1.0, 0.5]), torch.tensor([4.0, 2.0, 0.5])
    assert edge(even, 4, 8) == pytest.approx(edge(odd, 4, 8))


def test_planted_spikes_are_found():
    """Value and vectors as Benaych-Georges and Nadakuditi (2012) say, for variance 1 / n and aspect c = m / n."""
    theta, c = 2.5, 0.5
    found = []
    for seed in range(25):
        matrix, left, right = planted(theta, m=150, n=300, seed=seed)
        u, values, v = torch.linalg.svd(outliers(matrix), full_matrices=False)
        assert int((values > 1e-9).sum()) in (1, 2)  # the spike, and what noise puts at the edge
        found.append([float(values[0]), float(u[:, 0] @ left) ** 2, float(v[0] @ right) ** 2])
    value = math.sqrt((1 + theta**2) * (c + theta**2)) / theta
    overlap_left = 1 - c * (1 + theta**2) / (theta**2 * (theta**2 + c))
    overlap_right = 1 - (c + theta**2) / (theta**2 * (theta**2 + 1))
    assert_means(torch.tensor(found), [value, overlap_left, overlap_right])


def test_spikes_inside_the_bulk_are_not():
    found = [int(torch.linalg.matrix_rank(outliers(planted(0.4, seed=s)[0]))) for s in range(10)]
    assert sum(found) <= 5


def test_outliers_are_a_part_of_the_matrix():
    matrix = planted(3.0)[0]
    part = outliers(matrix)
    torch.testing.assert_close(part @ (matrix - part).mT, torch.zeros(120, 120, dtype=torch.float64), atol=1e-9, rtol=0)
