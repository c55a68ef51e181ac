"""The input of a layer: what is carried is carried exactly, the rest is as independent as what is carried allows."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_risk.guides.residual import CarriedInput, conditioned_variances

WIDTH, RANK = 6, 2


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def conditioned(scales, functionals):
    """D - D B (B^T D B)^{-1} B^T D: independent units given B^T h = 0."""
    weighted = scales[:, None] * functionals
    return torch.diag(scales) - weighted @ torch.linalg.solve(functionals.mT @ weighted, weighted.mT)


def admissible(functionals):
    """A basis of the symmetric P with P B = 0 and diag P = 0: what tracked moments leave open, as (count, n, n)."""
    free = torch.linalg.svd(functionals).U[:, functionals.shape[1] :]
    m = free.shape[1]
    pairs = [(i, j) for i in range(m) for j in range(i + 1)]
    units = torch.zeros(len(pairs), m, m, dtype=torch.float64)
    for k, (i, j) in enumerate(pairs):
        units[k, i, j] = units[k, j, i] = 1.0
    candidates = free @ units @ free.mT
    diagonals = torch.stack([p.diagonal() for p in candidates], 1)
    null = torch.linalg.svd(diagonals).Vh[torch.linalg.matrix_rank(diagonals) :]
    return torch.einsum("cp,pij->cij", null, candidates)


def entropy(covariance, functionals):
    """Log volume on the space orthogonal to the functionals (twice the entropy, up to a constant)."""
    free = torch.linalg.svd(functionals).U[:, functionals.shape[1] :]
    return float(torch.logdet(free.mT @ covariance @ free))


def law_of(seed=0, width=WIDTH, rank=RANK):
    """Random functionals, and a covariance whose residual is correlated, with room for the same variances without."""
    functionals = normals(width, rank, seed=seed)
    scales = 0.3 + normals(width, seed=seed + 1).square()
    moved = scales[:, None] * functionals
    mixed = normals(rank, rank, seed=seed + 2)
    covariance = torch.diag(scales) + moved @ (mixed @ mixed.mT) @ moved.mT
    free = torch.linalg.svd(functionals).U[:, rank:]
    volume = torch.linalg.inv(free.mT @ conditioned(scales, functionals) @ free)
    for step in admissible(functionals):
        covariance = covariance + 0.2 / torch.linalg.eigvals(volume @ free.mT @ step @ free).abs().max() * step
    return functionals, covariance


def draws_of(covariance, n=400, seed=9):
    """Rows whose sample mean is 1 and whose sample covariance is the given one, both exactly."""
    z = normals(n, len(covariance), seed=seed)
    z = z - z.mean(0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(z.mT.cov())).mT
    return 1.0 + z @ torch.linalg.cholesky(covariance).mT


def fitted(functionals, h, marginals="normal"):
    law = CarriedInput(functionals, marginals)
    law.fit(h)
    return law.requires_grad_(False)


def covariance_of(law, covariance):
    """Of carried part and noise together, where h has the given covariance."""
    carried = law.pattern @ (law.functionals.mT @ covariance @ law.functionals) @ law.pattern.mT
    return carried + law.root() @ law.root().mT


@pytest.mark.parametrize("seed", range(4))
def test_tracked_moments_are_those_of_the_draws(seed):
    functionals, covariance = law_of(seed)
    law = fitted(functionals, draws_of(covariance))
    kept = covariance_of(law, covariance)
    torch.testing.assert_close(kept.diagonal(), covariance.diagonal(), rtol=2e-4, atol=0)
    torch.testing.assert_close(kept @ functionals, covariance @ functionals, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(law.centre, torch.ones(WIDTH, dtype=torch.float64))
    spread = covariance.diagonal().sqrt()
    assert ((kept - covariance) / torch.outer(spread, spread)).abs().max() > 0.01, "nothing was left out: an empty test"


@pytest.mark.parametrize("seed", range(4))
def test_pattern_is_the_regression_on_what_is_carried(seed):
    functionals, covariance = law_of(seed)
    law = fitted(functionals, draws_of(covariance))
    moved = covariance @ functionals
    torch.testing.assert_close(law.pattern, moved @ torch.linalg.inv(functionals.mT @ moved), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("marginals", ["normal", "empirical"])
def test_carried_functionals_pass_row_by_row(marginals):
    functionals, covariance = law_of()
    h = draws_of(covariance)
    law = fitted(functionals, h, marginals)
    with torch.no_grad():
        law.shift.copy_(normals(WIDTH, seed=3))
    noise = law.noise(normals(*h.shape, seed=5))
    assert noise.std(0).min() > 0.05, "no noise: an empty test"
    assert (noise @ functionals).abs().max() < 1e-9
    torch.testing.assert_close((law.carried(h) + noise) @ functionals, h @ functionals, rtol=0, atol=1e-9)


def test_rank_zero_gives_independent_units():
    _, covariance = law_of()
    h = draws_of(covariance)
    law = fitted(normals(WIDTH, 0), h)
    torch.testing.assert_close(covariance_of(law, covariance), torch.diag(covariance.diagonal()), rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(law.carried(h), torch.ones_like(h))


def test_full_rank_gives_what_the_layer_reads():
    _, covariance = law_of()
    h = draws_of(covariance)
    law = fitted(normals(WIDTH, WIDTH, seed=4), h)
    torch.testing.assert_close(law.carried(h) + law.noise(normals(*h.shape, seed=5)), h, rtol=0, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**30), width=st.integers(2, 12), rank=st.integers(0, 4))
def test_conditioned_variances_solve_their_equation(seed, width, rank):
    """Wherever independent units can have these variances, which is where some D gives them."""
    functionals = normals(width, min(rank, width - 1), seed=seed)
    wanted = conditioned(0.3 + normals(width, seed=seed + 1).square(), functionals).diagonal()
    found = conditioned_variances(wanted, functionals, iterations=20_000)
    torch.testing.assert_close(conditioned(found, functionals).diagonal(), wanted, rtol=2e-4, atol=0)


@pytest.mark.parametrize("seed", range(4))
def test_noise_has_the_largest_entropy_that_tracked_moments_allow(seed):
    """Stationary, and lower on either side along every admissible direction; lower too at the residual of h itself."""
    functionals, covariance = law_of(seed)
    law = fitted(functionals, draws_of(covariance))
    noise = law.root() @ law.root().mT
    best = entropy(noise, functionals)
    free = torch.linalg.svd(functionals).U[:, RANK:]
    precision = free @ torch.linalg.inv(free.mT @ noise @ free) @ free.mT
    directions = admissible(functionals)
    assert len(directions) == (WIDTH - RANK) * (WIDTH - RANK + 1) // 2 - WIDTH
    for direction in directions:
        slope = float((precision * direction).sum())
        assert abs(slope) < 1e-6 * float((precision.abs() * direction.abs()).sum())
        step = 0.2 / torch.linalg.eigvalsh(free.mT @ direction @ free @ free.mT @ precision @ free).abs().max()
        assert max(entropy(noise + sign * step * direction, functionals) for sign in (1, -1)) < best - 1e-3
    moved = covariance @ functionals
    residual = covariance - moved @ torch.linalg.solve(functionals.mT @ moved, moved.mT)
    torch.testing.assert_close(residual.diagonal(), noise.diagonal(), rtol=2e-4, atol=0)
    assert entropy(residual, functionals) < best - 1e-3


def test_a_unit_that_no_independent_noise_moves_as_far_ends_with_less():
    """h_0 = z - h_1 - h_2 with h_1, h_2 in step: no law of independent units given z moves h_0 as far; no unit gets more."""
    covariance = torch.tensor([[4.0, -1.9, -1.9], [-1.9, 1.0, 0.93], [-1.9, 0.93, 1.0]], dtype=torch.float64)
    functionals = torch.ones(3, 1, dtype=torch.float64)
    law = fitted(functionals, draws_of(covariance))
    kept = covariance_of(law, covariance)
    assert float(kept[0, 0]) < 0.6 * float(covariance[0, 0])
    torch.testing.assert_close(kept.diagonal()[1:], covariance.diagonal()[1:], rtol=2e-2, atol=0)
    torch.testing.assert_close(kept @ functionals, covariance @ functionals, rtol=1e-4, atol=1e-4)


def test_dead_units_stay_at_their_value():
    functionals, covariance = law_of()
    h = draws_of(covariance)
    h[:, 2] = 0.0
    h[:, 4] = 7.0
    law = fitted(functionals, h)
    given = law.carried(h) + law.noise(normals(*h.shape, seed=5))
    assert (given[:, 2].abs().max(), (given[:, 4] - 7.0).abs().max()) < (1e-4, 1e-4)
    torch.testing.assert_close(given @ functionals, h @ functionals, rtol=0, atol=1e-9)


def exponential(n, width=3):
    return -torch.special.ndtr(-normals(n, width, seed=6)).log()


def test_empirical_marginals_have_the_quantiles_of_skewed_draws():
    """Exponential units at rank 0, each quantile within 4.5 standard errors of the order statistic and of the mean."""
    n = 20_000
    law = fitted(normals(3, 0), 2.0 * exponential(n), "empirical")
    p = torch.tensor([0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98, 0.995], dtype=torch.float64)
    given = law.centre + law.noise(torch.special.ndtri(p)[:, None].expand(-1, 3))
    wanted = -2.0 * torch.log1p(-p)
    # Density of the law at its quantile is (1 - p) / 2. The deviation moves with the kurtosis, 9, of an exponential.
    error = torch.sqrt(4 * p / (1 - p) + (wanted - 2.0).square() * 8 / 4) / math.sqrt(n)
    assert float(((given - wanted[:, None]).abs() / error[:, None]).max()) < 4.5
    normal = fitted(normals(3, 0), 2.0 * exponential(n))
    assert (normal.centre + normal.noise(torch.special.ndtri(p)[:, None].expand(-1, 3)) - wanted[:, None])[0].max() < -1


def test_empirical_noise_has_mean_zero_and_the_fitted_variance():
    n = 20_000
    h = exponential(n)
    law = fitted(normals(3, 0), h, "empirical")
    grid = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n)
    noise = law.noise(grid[:, None].expand(-1, 3))
    assert noise.mean(0).abs().max() < 2e-3
    torch.testing.assert_close(noise.var(0), h.var(0), rtol=1e-2, atol=0)
    skewness = noise.pow(3).mean(0) / noise.var(0) ** 1.5
    # 2 for an exponential; the third moment of n draws is off by its deviation, sqrt(E x^6 - 4) = sqrt(261), over sqrt(n)
    assert (skewness - 2.0).abs().max() < 4.5 * math.sqrt(261 / n)


def test_noise_beyond_the_knots_goes_on_as_a_straight_line():
    law = fitted(normals(3, 0), exponential(500), "empirical")
    far = law.noise(torch.tensor([[4.0], [6.0], [8.0]], dtype=torch.float64).expand(-1, 3))
    torch.testing.assert_close(far[2] - far[1], far[1] - far[0])
    assert (far[1] > far[0]).all()
