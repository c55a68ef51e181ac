"""Truths by seed: spectra against a full sum over the cube, moments against closed forms, polynomials against their definition."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_risk.errors import RiskError
from ppl_risk.mitigation import Ball, Cube, Domain, Simplex, planted
from ppl_risk.mitigation.monomials import Polynomial, exponents_of


def cube_points(n):
    return 1 - 2 * (torch.arange(2**n)[:, None] >> torch.arange(n) & 1).double()


def spectrum(values, n):
    """All Fourier coefficients, by the fast Walsh-Hadamard transform; entry S has bit i set where i is in the set."""
    v = values.clone()
    for i in range(n):
        v = v.view(-1, 2, 2**i)
        v = torch.stack([v[:, 0] + v[:, 1], v[:, 0] - v[:, 1]], 1).reshape(-1)
    return v / 2**n


@pytest.mark.parametrize(
    ("make", "terms", "size"), [(planted.majority_of_parities, 4, 0.5), (planted.product_of_majorities, 16, 0.25)]
)
@pytest.mark.parametrize("seed", range(4))
def test_spectrum_of_a_fourier_truth(make, terms, size, seed):
    h = make(9, seed=seed)
    values = h(cube_points(9))
    assert set(values.tolist()) == {-1.0, 1.0}
    found = spectrum(values, 9)
    places = (h.supports.long() << torch.arange(9)).sum(-1)
    assert torch.allclose(found[places], h.coefficients, atol=1e-12)
    assert int((found.abs() > 1e-12).sum()) == terms
    assert torch.allclose(h.coefficients.abs(), torch.full((terms,), size).double())
    assert torch.equal(h(cube_points(9).float()), values)


def test_the_majority_is_a_majority():
    h, x = planted.majority_of_parities(8, seed=3), cube_points(8)
    votes = torch.stack([torch.where(s, x, 1.0).prod(-1) for s in h.supports[:3]])
    assert torch.equal(h(x), votes.sum(0).sign())


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 12), count=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_no_product_of_independent_parities_is_constant(n, count, seed):
    if count > n:
        with pytest.raises(RiskError, match="independent parities"):
            planted.independent_parities(n, count, seed=seed)
        return
    sets = planted.independent_parities(n, count, seed=seed)
    picks = torch.tensor(list(itertools.product([0, 1], repeat=count)))[1:]
    assert bool((picks @ sets.long() % 2).any(-1).all())


def test_moments_on_the_ball_the_cube_and_the_simplex():
    """E x_1^2, E x_1^2 x_2^2 and E x_1 x_2 by hand; r = 2."""
    rows = torch.tensor([[2, 0, 0], [2, 2, 0], [1, 1, 0], [0, 0, 0]])
    n, r = 3, 2.0
    ball = [r**2 / (n + 2), r**4 / ((n + 2) * (n + 4)), 0.0, 1.0]
    cube = [r**2 / 3, r**4 / 9, 0.0, 1.0]
    top = math.factorial(n)
    simplex = [r**2 * top * 2 / math.factorial(n + 2), r**4 * top * 4 / math.factorial(n + 4)]
    simplex += [r**2 * top / math.factorial(n + 2), 1.0]
    for domain, wanted in ((Ball(n, r), ball), (Cube(n, r), cube), (Simplex(n, r), simplex)):
        assert planted.monomial_moments(domain, rows).tolist() == pytest.approx(wanted, rel=1e-12)
    another = type("Prism", (Domain,), dict.fromkeys(Domain.__abstractmethods__))
    with pytest.raises(RiskError, match="Moments are known"):
        planted.monomial_moments(another(3), rows)


@pytest.mark.parametrize("domain", [Ball(4, 3.0), Cube(4, 0.5), Simplex(4, 2.0)], ids=lambda d: type(d).__name__)
def test_moments_agree_with_draws(domain):
    x = domain.sample(200_000, torch.Generator().manual_seed(0))
    rows = torch.randint(0, 4, (20, 4), generator=torch.Generator().manual_seed(1))
    drawn = torch.stack([x.pow(row).prod(-1) for row in rows])
    error = drawn.std(-1) / math.sqrt(drawn.shape[1])
    z = (drawn.mean(-1) - planted.monomial_moments(domain, rows)) / error.clamp_min(1e-300)
    assert float(z.abs().max()) < 4.5


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 60), radius=st.floats(0.1, 10), seed=st.integers(0, 10**6))
def test_affine_truths_have_unit_spread(n, radius, seed):
    """Variances by hand: of w.x on the ball, the cube, and the simplex (a Dirichlet law)."""
    w = planted.random_affine(Ball(n, radius), seed=seed).weight
    assert float(w.square().sum()) * radius**2 / (n + 2) == pytest.approx(1)
    w = planted.random_affine(Cube(n, radius), seed=seed).weight
    assert float(w.square().sum()) * radius**2 / 3 == pytest.approx(1)
    w = planted.random_affine(Simplex(n, radius), seed=seed).weight
    inner = (n + 1) * float(w.square().sum()) - float(w.sum()) ** 2
    assert inner * radius**2 / ((n + 1) ** 2 * (n + 2)) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("domain", [Ball(6), Cube(6), Simplex(6)], ids=lambda d: type(d).__name__)
@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_polynomials_have_unit_spread_and_their_degree(domain, degree):
    h = planted.random_polynomial(domain, degree, seed=degree)
    x = domain.sample(100_000, torch.Generator().manual_seed(2))
    values = h(x)
    fourth = float((values - values.mean()).pow(4).mean())
    assert abs(float(values.var()) - 1) < 5 * math.sqrt((fourth - 1) / len(x))
    # Along a line the differences of order degree + 1 vanish, and those of order degree do not.
    along = h(x[:1] + torch.arange(degree + 2.0)[:, None] * (x[1:2] - x[:1]))
    assert float(along.diff(n=degree).abs().max()) > 1e-6
    assert float(along.diff(n=degree + 1).abs().max()) < 1e-9 * max(1.0, float(along.abs().max()))


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 6), degree=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_a_polynomial_is_the_sum_of_its_monomials(n, degree, seed):
    h = planted.random_polynomial(Cube(n), degree, seed=seed)
    exponents = exponents_of(h.index, n)
    assert len(h.coefficients) == math.comb(n + degree, degree) == len(exponents.unique(dim=0))
    assert int(exponents.sum(-1).max()) == degree
    x = Cube(n).sample(5, torch.Generator().manual_seed(seed))
    by_hand = sum(c * x.pow(a).prod(-1) for c, a in zip(h.coefficients, exponents, strict=True))
    assert torch.allclose(h(x), by_hand, atol=1e-10)
    assert torch.allclose(h(x.float()), by_hand, atol=1e-4)


def test_many_monomials_are_drawn_not_listed():
    h = planted.random_polynomial(Ball(50), 3, seed=0)
    exponents = exponents_of(h.index, 50)
    assert len(exponents.unique(dim=0)) == len(exponents) == 500
    assert int(exponents.sum(-1).max()) == 3
    assert math.comb(53, 3) == 23_426
    x = Ball(50).sample(20_000, torch.Generator().manual_seed(1))
    assert float(h(x).std()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: planted.majority_of_parities(12, seed=seed),
        lambda seed: planted.random_affine(Ball(12), seed=seed),
        lambda seed: planted.random_polynomial(Ball(12), 2, seed=seed),
    ],
)
def test_the_seed_decides_and_the_caller_is_left_alone(make):
    x = Ball(12).sample(20, torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    one, same, other = make(1)(x), make(1)(x), make(2)(x)
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_wrong_calls():
    with pytest.raises(RiskError, match="degree must be"):
        planted.random_polynomial(Ball(3), 0, seed=0)
    with pytest.raises(RiskError, match="independent parities"):
        planted.product_of_majorities(5, seed=0)
    with pytest.raises(RiskError, match="one coefficient a monomial"):
        Polynomial(torch.zeros(2, 1, dtype=torch.long), torch.ones(3))
