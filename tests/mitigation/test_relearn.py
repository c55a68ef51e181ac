"""The baselines against closed forms, what their cards do not promise, and the advice between them and a mitigator."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard
from scipy.optimize import least_squares

from ppl_risk import RiskError, Status
from ppl_risk import mitigation as mi
from ppl_risk.errors import PremiseError
from ppl_risk.mitigation.advice import bars_of, rows_for_parities
from ppl_risk.mitigation.monomials import monomial_index, monomials
from ppl_risk.mitigation.planted import majority_of_parities, nearest, random_affine, random_polynomial, tilt
from ppl_risk.mitigation.relearn import TURN, huber


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def bits(rows, n, seed):
    return 1 - 2 * torch.randint(0, 2, (rows, n), generator=generator(seed)).double()


@given(st.integers(0, 7), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_the_transform_is_the_matrix_and_works_in_place(log_size, seed):
    values = normal(2, 3, 2**log_size, seed=seed)
    wanted = values @ torch.tensor(hadamard(2**log_size), dtype=torch.float64)
    found = mi.walsh_hadamard(values)
    assert found is values
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(mi.walsh_hadamard(found) / 2**log_size, mi.walsh_hadamard(wanted) / 2**log_size)


@pytest.mark.parametrize("bad", [torch.zeros(6).double(), torch.zeros(8), torch.zeros(8, 8).double().T])
def test_the_transform_refuses_what_it_cannot_do_in_place(bad):
    with pytest.raises(RiskError, match="contiguous float64"):
        mi.walsh_hadamard(bad)


@given(st.integers(1, 6), st.integers(1, 4))
def test_there_is_a_row_for_every_monomial(n, degree):
    index = monomial_index(n, degree)
    exponents = {tuple(np.bincount(row, minlength=n + 1)[1:]) for row in index.numpy()}
    assert len(exponents) == len(index) == math.comb(n + degree, degree)
    assert max(map(sum, exponents)) == degree
    x = normal(5, n, seed=n)
    slow = torch.stack([x.pow(torch.tensor(np.bincount(row, minlength=n + 1)[1:])).prod(-1) for row in index], -1)
    torch.testing.assert_close(monomials(x, index), slow)


@given(st.integers(1, 6), st.integers(1, 3), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_a_polynomial_is_relearned_exactly(n, degree, seed):
    truth = random_polynomial(mi.Ball(n), degree, seed=seed)
    x = mi.Ball(n).sample(4 * math.comb(n + degree, degree), generator(seed))
    g = mi.relearn_polynomial((x, truth(x)), degree)
    fresh = mi.Ball(n).sample(50, generator(seed + 1))
    torch.testing.assert_close(g(fresh), truth(fresh), rtol=0, atol=1e-7)
    assert g.card.queries == 0
    assert g.card.status is Status.OK


def test_least_squares_has_the_error_that_theory_gives():
    """E |w - truth|^2 = sigma^2 tr (A'A)^-1, over 400 draws of the noise."""
    x, truth = normal(60, 4), normal(5, seed=1)
    a = torch.cat([torch.ones(60, 1).double(), x], 1)
    noise = 0.1 * normal(400, 60, seed=2)
    fits = torch.stack([mi.relearn_affine((x, a @ truth + row)).answer.coefficients for row in noise])
    wanted = 0.01 * float(torch.linalg.inv(a.mT @ a).trace())
    found = (fits - truth).square().sum(1)
    assert float(found.mean()) == pytest.approx(wanted, abs=4 * float(found.std()) / 20)


@given(st.integers(3, 40), st.floats(1e-3, 10.0), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_ridge_solves_its_normal_equations_with_few_rows_and_with_many(rows, ridge, seed):
    x, y = normal(rows, 3, seed=seed), normal(rows, seed=seed + 1)
    a = monomials(x, monomial_index(3, 2))
    w = mi.relearn_polynomial((x, y), 2, ridge=ridge).answer.coefficients
    torch.testing.assert_close(a.mT @ (a @ w - y) + ridge * w, torch.zeros(10).double(), rtol=0, atol=1e-8)


def test_the_fit_of_least_norm_goes_through_the_rows_and_is_the_pseudo_inverse():
    x, y = normal(7, 3), normal(7, seed=1)
    g = mi.relearn_polynomial((x, y), 2, ridge=0.0)
    torch.testing.assert_close(g(x), y)
    wanted = torch.linalg.pinv(monomials(x, monomial_index(3, 2))) @ y
    torch.testing.assert_close(g.answer.coefficients, wanted)
    assert g.card.premises[0].holds is None


def test_rows_that_do_not_determine_the_fit_are_refused():
    x = normal(5, 10)
    with pytest.raises(RiskError, match=r"5 clean rows cannot determine 11 coefficients.*Give 44 rows"):
        mi.relearn_affine((x, x[:, 0]))
    x = bits(200, 4, 0)
    with pytest.raises(RiskError, match=r"determine 11 of 15 coefficients"):
        mi.relearn_polynomial((x, x[:, 0]), 2)
    with pytest.raises(RiskError, match="GiB"):
        mi.relearn_polynomial((normal(30_000, 50), normal(30_000)), 3)


@pytest.mark.parametrize(("x", "y"), [(normal(4, 2), normal(3)), (normal(0, 2), normal(0))])
def test_rows_of_the_wrong_shape_are_refused(x, y):
    # With annotations checked, unequal lengths are caught by those.
    with pytest.raises((RiskError, TypeError)):
        mi.relearn_affine((x, y))


def test_values_that_are_not_numbers_are_refused():
    with pytest.raises(RiskError, match="NaN"):
        mi.relearn_affine((normal(9, 2), torch.full((9,), math.nan)))
    with pytest.raises(RiskError, match="ridge"):
        mi.relearn_affine((normal(9, 2), normal(9)), ridge=-1.0)


def test_cards_of_relearning_promise_no_error_bar():
    x = normal(50, 3)
    for g in (mi.relearn_affine((x, x.sum(-1))), mi.relearn_affine_robust(lambda x: x.sum(-1), mi.Cube(3))):
        assert math.isinf(g.card.error_bar)
        assert g.card.failure_probability == 1.0
        assert "nothing" in g.card.covers
        assert not g.card.certified


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_huber_stands_where_its_estimating_equation_is_zero(seed):
    a, y = normal(60, 4, seed=seed), normal(60, seed=seed + 1)
    y[:6] += 30
    w, scale, rounds = huber(a, y)
    residual = y - a @ w
    assert rounds > 0
    assert scale == pytest.approx(float(residual.abs().median()) / 0.6745, rel=1e-6)
    assert float((a.mT @ (residual / (TURN * scale)).clamp(-1, 1)).abs().max()) < 1e-5
    scipys = least_squares(
        lambda b: a.numpy() @ b - y.numpy(), w.numpy() + 0.1, jac=lambda b: a.numpy(), loss="huber", f_scale=TURN * scale,
        xtol=1e-14, ftol=1e-14, gtol=1e-12,
    )  # fmt: skip
    np.testing.assert_allclose(w.numpy(), scipys.x, atol=1e-4)


@pytest.mark.parametrize("domain", [mi.Ball(10), mi.Cube(10), mi.Simplex(10)], ids=lambda d: type(d).__name__)
def test_the_robust_refit_is_exact_where_the_errors_are_large_and_few(domain):
    truth = random_affine(domain, seed=3)
    star = domain.sample(1, generator(5))
    f = nearest(truth, domain, star[0], 0.02, 10.0, seed=0)
    assert abs(float(f(star) - truth(star))) == pytest.approx(10.0)
    g = mi.relearn_affine_robust(f, domain, seed=1)
    assert g.card.queries == 44
    assert abs(float(g(star) - truth(star))) < 1e-7
    again = mi.relearn_affine_robust(f, domain, seed=1)
    # Not to the last bit: LAPACK rounds by where its arrays lie in memory.
    torch.testing.assert_close(g.answer.coefficients, again.answer.coefficients, rtol=0, atol=1e-8)


def test_the_seed_alone_decides_where_the_robust_refit_asks():
    asked = []

    def model(x):
        asked.append(x)
        return x.sum(-1)

    for seed in (1, 1, 2):
        mi.relearn_affine_robust(model, mi.Cube(3), seed=seed)
    assert torch.equal(asked[0], asked[1])
    assert not torch.equal(asked[0], asked[2])


def test_the_robust_refit_beats_least_squares_on_the_same_queries():
    """Table 4.3 of the reference at n = 50: errors of .01 everywhere, 10 on the 2 % nearest to x*."""
    domain, robust, plain = mi.Ball(50), [], []
    for seed in range(5):
        truth, star = random_affine(domain, seed=seed), domain.sample(1, generator(100 + seed))
        bad = nearest(truth, domain, star[0], 0.02, 10.0, seed=seed)

        def f(x, bad=bad):
            return bad(x) + 0.01 * torch.sign(torch.sin(1e4 * x[:, 0]))

        x = domain.sample(204, generator(seed))
        robust.append(abs(float(mi.relearn_affine_robust(f, domain, seed=seed)(star) - truth(star))))
        plain.append(abs(float(mi.relearn_affine((x, f(x)))(star) - truth(star))))
    assert max(robust) < 0.1
    assert np.median(plain) > 1.0


def test_the_robust_refit_takes_a_tilt_as_it_stands():
    """A tilt within the bars is affine itself: off by n delta at the vertex, and nothing in the queries shows it."""
    domain = mi.Simplex(20)
    truth = random_affine(domain, seed=0)
    tilted = tilt(truth, domain, 0.01)
    corner = torch.zeros(1, 20).double()
    there = float(tilted(corner) - truth(corner))
    g = mi.relearn_affine_robust(tilted, domain)
    assert float(g(corner) - truth(corner)) == pytest.approx(there, abs=1e-8)
    assert abs(there) > 0.15


def test_too_few_queries_and_a_refit_that_does_not_settle(monkeypatch):
    with pytest.raises(RiskError, match="at least 8 queries"):
        mi.relearn_affine_robust(lambda x: x.sum(-1), mi.Cube(3), queries=7)
    monkeypatch.setattr("ppl_risk.mitigation.relearn.ROUNDS", 1)
    g = mi.relearn_affine_robust(lambda x: x[:, 0] ** 3, mi.Cube(3))
    with pytest.raises(PremiseError, match="stands still"):
        g(torch.zeros(1, 3).double())


def test_constant_functions_are_refitted():
    for level in (0.0, 1e6):
        g = mi.relearn_affine_robust(lambda x, level=level: torch.full((len(x),), level), mi.Ball(4))
        assert float(g(torch.zeros(1, 4).double())) == pytest.approx(level)


@given(st.integers(4, 12), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_parities_are_relearned_from_noisy_rows(n, seed):
    truth = majority_of_parities(n, seed=seed)
    x = bits(3000, n, seed)
    flips = torch.rand(3000, generator=generator(seed + 1)) < 0.1
    g = mi.relearn_parities((x, torch.where(flips, -truth(x), truth(x))), 0.4, n)
    sets = {tuple(row) for row in g.answer.supports.tolist()}
    assert sets == {tuple(row) for row in truth.supports.tolist()}
    assert g.card.status is Status.OK
    # The bars are about the mean label, .8 of the truth.
    fresh = bits(500, n, seed + 2)
    assert float((g(fresh) - 0.8 * truth(fresh)).abs().max()) <= g.card.error_bar


def test_every_coefficient_is_that_of_the_definition():
    x, y = bits(40, 5, 0), normal(40).clamp(-1, 1)
    g = mi.relearn_parities((x, y), 0.02, bound=1.0).anyway().answer
    for support, value in zip(g.supports, g.coefficients, strict=True):
        assert float((y * x[:, support].prod(-1)).mean()) == pytest.approx(float(value), abs=1e-12)


def test_the_failure_probability_of_the_sets_bounds_what_happens():
    """Where Hoeffding allows one failure in two, pure noise must invent a set in no more than half the runs."""
    n, tau = 6, 0.5
    m = rows_for_parities(n, tau, 0.5)
    x = bits(300 * m, n, 1).reshape(300, m, n)
    y = bits(300, m, 2)
    invented = [len(mi.relearn_parities((x[i], y[i]), tau, failure=0.5).answer.supports) > 0 for i in range(300)]
    assert sum(invented) <= 150


def test_parities_from_too_few_rows_are_refused_and_beyond_22_bits_nothing_is_tried():
    x = bits(20, 12, 0)
    g = mi.relearn_parities((x, x[:, 0]), 0.5)
    assert g.card.status is Status.REFUSED
    with pytest.raises(PremiseError, match="rows enough"):
        g(x)
    with pytest.raises(RiskError, match=r"2\^60.*8.59e\+09 GiB.*parity with noise"):
        mi.relearn_parities((bits(20, 60, 0), bits(1, 20, 0)[0]), 0.5, 60)
    with pytest.raises(RiskError, match="of \\+-1"):
        mi.relearn_parities((normal(20, 5), x[:, 0]), 0.5)
    with pytest.raises(RiskError, match="within the bound"):
        mi.relearn_parities((x, 2 * x[:, 0]), 0.5)


@pytest.mark.parametrize(
    ("given_", "word"),
    [
        ({"problem": "affine", "n": 50, "samples": 204}, "Relearn"),
        ({"problem": "affine", "n": 50, "samples": 203}, "Mitigate"),
        ({"problem": "affine", "n": 200, "samples": 50, "epsilon": 0.02, "delta": 0.01}, "Mitigate"),
        ({"problem": "affine", "n": 200, "epsilon": 0.25, "delta": 0.01}, "Relearn"),
        ({"problem": "affine", "n": 200, "queries": 10, "needed": 50}, "Relearn"),
        ({"problem": "polynomial", "n": 20, "degree": 3, "samples": 1771, "epsilon": 1e-4, "delta": 1e-3}, "Mitigate"),
        ({"problem": "polynomial", "n": 20, "degree": 3, "samples": 7084}, "Relearn"),
        ({"problem": "polynomial", "n": 20, "degree": 3, "epsilon": 0.125}, "Relearn"),
        ({"problem": "parities", "n": 20, "samples": 2000}, "Relearn"),
        ({"problem": "parities", "n": 20, "samples": 200}, "Mitigate"),
        ({"problem": "parities", "n": 60, "samples": 10**9}, "Mitigate"),
        ({"problem": "parities", "n": 60, "epsilon": 0.125}, "Relearn"),
        ({"problem": "parities", "n": 60, "needed": 10**6, "queries": 10}, "Relearn"),
    ],
)
def test_the_advice(given_, word):
    said = mi.advise(**given_)
    assert re.fullmatch(rf"{word}: [^.]*(\d\.\d[^.]*)*\.", said), said


def test_advice_refuses_what_it_does_not_know():
    with pytest.raises((RiskError, TypeError)):
        mi.advise("quadratic", 3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(RiskError, match="n >= 1"):
        mi.advise("affine", 0)


@given(st.integers(2, 300), st.floats(1e-8, 0.08), st.floats(1e-6, 1.0))
def test_the_bars_are_the_mitigators_own(n, epsilon, delta):
    """And narrower than those of c = ln(1 / 12 epsilon), which Hoeffding's bound would allow."""
    bars = bars_of(n, 1, epsilon, delta)
    assert bars == pytest.approx(mi.LocalAffine(mi.Ball(n), epsilon, delta).mitigate(lambda x: x[:, 0]).card.error_bar)
    rho = math.exp(-math.log(1 / (12 * epsilon)) / n)
    assert delta <= bars <= delta * (1 + rho) / (1 - rho)
    assert math.isinf(bars_of(n, 1, 0.2, delta))


def test_relearning_agrees_with_the_advice_on_its_card():
    x = normal(44, 10)
    assert mi.relearn_affine((x, x[:, 0])).card.advice.startswith("Relearn")
    assert mi.relearn_affine((x[:43], x[:43, 0])).card.advice.startswith("Mitigate")
