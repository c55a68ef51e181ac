"""Local mitigators: exact where the model is, within the bars where it is off, refused where the premise is."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, kstest

import ppl_risk as pr
from ppl_risk import RiskError, Status
from ppl_risk import mitigation as mi
from ppl_risk.errors import PremiseError
from ppl_risk.mitigation.majority import epsilon_premise, largest_bad_share, log_failure, share_of
from ppl_risk.mitigation.rays import extrapolation, lobatto, smallest_ratio

SETS = [mi.Ball(8), mi.Cube(8), mi.Simplex(8)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def affine(domain, seed):
    """An affine truth of standard deviation 1 on the set."""
    w = torch.randn(domain.n, generator=generator(seed), dtype=torch.float64)
    scale = (domain.sample(4000, generator(seed + 1)) @ w).std()
    return lambda x: x.double() @ w / scale + 0.3


def corrupted(truth, domain, centre, epsilon, shift, delta):
    """Off by a shift on the share epsilon nearest the centre, by at most delta elsewhere."""
    radius = (domain.sample(40_000, generator(9)) - centre).norm(dim=-1).quantile(epsilon)
    near = lambda x: (x.double() - centre).norm(dim=-1) <= radius  # noqa: E731
    return lambda x: truth(x) + delta * torch.sin(997.0 * x.double().sum(-1)) + shift * near(x)


@given(st.integers(1, 60), st.floats(1e-6, 0.49))
@settings(max_examples=30, deadline=None)
def test_the_tail_of_the_median_is_binomial(repeats, q):
    exact = sum(binom.pmf(b, repeats, q) for b in range(math.ceil(repeats / 2), repeats + 1))
    assert math.exp(log_failure(repeats, q)) == pytest.approx(exact, rel=1e-6, abs=1e-300)
    assert exact <= math.exp(-2 * repeats * (0.5 - q) ** 2) + 1e-12


def test_the_largest_share_is_where_the_tail_is_the_failure():
    q = largest_bad_share(25, 1e-3)
    assert math.exp(log_failure(25, q)) == pytest.approx(1e-3, rel=1e-6)
    assert largest_bad_share(4000, 1e-3) == 0.25


def test_epsilon_is_certified_refuted_or_left_open():
    assert epsilon_premise(0, 1000, 0.005).holds is True
    assert epsilon_premise(0, 100, 0.005).holds is None
    assert epsilon_premise(30, 1000, 0.005).holds is False
    found = share_of(30, 1000)
    assert binom.cdf(30, 1000, found.high) == pytest.approx(0.01, rel=1e-6)
    assert binom.sf(29, 1000, found.low) == pytest.approx(0.01, rel=1e-6)


@given(st.integers(0, 6), st.floats(0.05, 0.95))
@settings(max_examples=30, deadline=None)
def test_weights_extrapolate_polynomials_exactly(degree, rho):
    nodes = lobatto(rho, degree)
    weights = extrapolation(nodes)
    for power in range(degree + 1):
        assert weights @ nodes**power == pytest.approx(float(power == 0), abs=1e-9 * np.abs(weights).sum())
    # No other nodes of the interval magnify less: the value at 0 of the Chebyshev polynomial.
    at_zero = np.cosh(degree * np.arccosh((1 + rho) / (1 - rho)))
    assert np.abs(weights).sum() == pytest.approx(at_zero, rel=1e-7)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_the_ratio_spends_what_is_allowed(degree):
    rho = smallest_ratio(20, degree, 50.0)
    assert lobatto(rho, degree)[-1] == 1.0
    assert (lobatto(rho, degree) ** -20.0).sum() == pytest.approx(50.0, rel=1e-6)


@pytest.mark.parametrize("domain", SETS, ids=str)
@pytest.mark.parametrize("variant", ["auto", "homothety", "line"])
def test_an_exact_model_is_returned_exactly(domain, variant):
    truth = affine(domain, 1)
    g = mi.LocalAffine(domain, epsilon=0.02, delta=0.0, variant=variant).mitigate(truth)
    x = domain.sample(50, generator(2))
    torch.testing.assert_close(g(x), truth(x), atol=1e-7, rtol=0)


@pytest.mark.parametrize("domain", SETS, ids=str)
@pytest.mark.parametrize("variant", ["auto", "line"])
@pytest.mark.parametrize("shift", [10.0, -1e6])
def test_errors_stay_within_the_bars_in_every_run(domain, variant, shift):
    """The worst place for the corruption is around the input; 40 runs, one failure in 1000 allowed for each."""
    truth, x = affine(domain, 3), domain.sample(40, generator(4))
    broken = 0
    for seed in range(40):
        model = corrupted(truth, domain, x[seed], 0.02, shift, 0.01)
        g = mi.LocalAffine(domain, epsilon=0.02, delta=0.01, variant=variant).mitigate(model, seed=seed)
        found = g.examine(x[seed : seed + 1])
        assert abs(model(x[seed : seed + 1]) - truth(x[seed : seed + 1])) > 9
        broken += bool((found.answer - truth(x[seed : seed + 1])).abs() > found.bar)
        assert found.answer == g(x[seed : seed + 1])
    assert broken <= 1


def test_bad_trials_are_no_more_than_promised():
    """The eps-mass nearest the input is where most homothetic points fall: about half the bound."""
    domain = mi.Ball(10)
    truth, x = affine(domain, 5), domain.sample(1, generator(6))
    model = corrupted(truth, domain, x[0], 0.02, 10.0, 0.0)
    g = mi.LocalAffine(domain, epsilon=0.02, delta=0.0, repeats=4000, failure=1e-3).mitigate(model)
    values = g.answer.trials(x).values[0]
    bad = float(((values - truth(x)).abs() > 1e-6).double().mean())
    assert 0.1 * g.answer.ray.bad < bad <= g.answer.ray.bad + 3 * math.sqrt(0.25 / 4000)


def test_points_of_a_line_are_uniform_each():
    """The second point, over all lines through an input, has the uniform law; from inside and from outside."""
    domain = mi.Ball(4)
    for place in (torch.tensor([[0.3, 0.1, 0.0, 0.2]]), torch.tensor([[1.5, 0.0, 0.0, 0.0]])):
        asked = []
        oracle = mi.Oracle(lambda x, asked=asked: asked.append(x) or x[:, 0])
        mi.LocalAffine(domain, epsilon=1e-3, delta=0.0, repeats=4000, variant="line").mitigate(oracle)(place.double())
        second = asked[-1]
        assert domain.contains(second, 1e-6).all()
        assert kstest(second.norm(dim=-1).numpy() ** 4, "uniform").pvalue > 1e-3
        assert kstest((second[:, 0].numpy() + 1) / 2, "beta", (2.5, 2.5)).pvalue > 1e-3


def test_central_inputs_are_not_magnified_and_outer_ones_extrapolate():
    domain = mi.Ball(50)
    truth = affine(domain, 7)
    g = mi.LocalAffine(domain, epsilon=1e-3, delta=0.01).mitigate(
        corrupted(truth, domain, torch.zeros(50), 1e-3, 50.0, 0.01)
    )
    centre, edge = torch.zeros(1, 50, dtype=torch.float64), domain.sample(1, generator(8))
    assert g.examine(centre).bar.item() == pytest.approx(0.01)
    assert g.examine(edge).bar.item() == pytest.approx(g.card.error_bar)
    assert abs(g(centre) - truth(centre)) <= 0.01
    outside = 3 * edge
    torch.testing.assert_close(g(outside), truth(outside), atol=20.0, rtol=0)
    strict = mi.LocalAffine(domain, epsilon=1e-3, delta=0.01, variant="homothety").mitigate(truth)
    with pytest.raises(RiskError, match="outside"):
        strict(outside)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_polynomials_are_returned_exactly(degree):
    """With a shift on the nearest 1e-3 of the set, and no error elsewhere."""
    domain = mi.Ball(5)
    w = torch.randn(4, 5, generator=generator(1), dtype=torch.float64)
    truth = lambda x: sum((x @ w[k]) ** k for k in range(degree + 1)) + 0.0  # noqa: E731
    x = domain.sample(30, generator(2))
    model = corrupted(truth, domain, x[0], 1e-3, 100.0, 0.0)
    g = mi.LocalPolynomial(degree, domain, epsilon=1e-3, delta=0.0).mitigate(model)
    torch.testing.assert_close(g(x), truth(x), atol=1e-7, rtol=0)
    assert g.card.queries == 25
    assert g.answer.queries_per_input == 25 * max(degree, 1)


def test_degree_one_is_the_affine_mitigator():
    domain = mi.Cube(6)
    truth = affine(domain, 2)
    x = domain.sample(9, generator(3))
    one = mi.LocalPolynomial(1, domain, epsilon=0.01, delta=0.1).mitigate(truth, seed=4)
    other = mi.LocalAffine(domain, epsilon=0.01, delta=0.1, variant="homothety").mitigate(truth, seed=4)
    torch.testing.assert_close(one(x), other(x))
    assert one.card.error_bar == pytest.approx(other.card.error_bar, rel=1e-6)


def test_independent_noise_is_averaged_and_the_bar_says_so():
    """More trials narrow the mean of medians, as they do not narrow the bars of one median."""
    domain = mi.Ball(20)
    truth, x = affine(domain, 1), domain.sample(1, generator(2))
    model = lambda x: truth(x) + 0.05 * torch.sin(1e7 * x.double().sum(-1))  # noqa: E731
    errors, bars = [], []
    for repeats in (1000, 16000):
        mitigator = mi.LocalAffine(domain, epsilon=1e-3, delta=0.05, repeats=repeats, noise="independent")
        made = [mitigator.mitigate(model, seed=seed) for seed in range(20)]
        errors.append(np.sqrt(np.mean([float((g(x) - truth(x)) ** 2) for g in made])))
        bars.append(made[0].card.error_bar)
        assert all(abs(float(g(x) - truth(x))) <= g.card.error_bar for g in made)
    assert errors[1] < errors[0] / 2
    assert bars[1] < bars[0] / 2
    assert "independent" in str(made[0].card)


def test_a_false_epsilon_is_refused_by_rows_and_seen_in_the_trials():
    """True epsilon 1e-2, declared 2e-3: more than half of the homothetic points fall where the model is off."""
    domain = mi.Ball(10)
    truth, x = affine(domain, 1), 0.5 * domain.sample(1, generator(2))
    model = corrupted(truth, domain, x[0], 1e-2, 20.0, 0.0)
    rows = domain.sample(3000, generator(3))
    mitigator = mi.LocalAffine(domain, epsilon=2e-3, delta=0.001, repeats=401, variant="homothety")
    g = mitigator.mitigate(model, (rows, truth(rows)))
    assert g.card.status is Status.REFUSED
    with pytest.raises(PremiseError, match="epsilon"):
        g(x)
    assert abs(g.anyway()(x) - truth(x)) > 10
    assert bool(g.examine(x).refuted)
    honest = mi.LocalAffine(domain, epsilon=2e-2, delta=0.001, repeats=401, variant="homothety").mitigate(
        model, (rows, truth(rows))
    )
    assert honest.card.status is Status.OK
    assert not bool(honest.examine(x).refuted)
    assert abs(honest(x) - truth(x)) < honest.card.error_bar


def test_too_large_an_epsilon_is_refused_at_once():
    with pytest.raises(RiskError, match="too large"):
        mi.LocalAffine(mi.Ball(3), epsilon=0.3, delta=0.1).mitigate(lambda x: x[:, 0])
    with pytest.raises(RiskError, match="too large"):
        mi.LocalPolynomial(3, mi.Ball(3), epsilon=0.1, delta=0.1).mitigate(lambda x: x[:, 0])


def test_noise_magnified_beyond_double_precision_is_refused():
    g = mi.LocalPolynomial(6, mi.Ball(200), epsilon=1e-3, delta=0.0).mitigate(lambda x: x[:, 0])
    assert g.card.status is Status.REFUSED
    assert "double precision" in str(g.card)


def test_the_mitigated_model_is_a_network_like_any_other():
    domain = mi.Ball(4)
    truth = affine(domain, 1)
    g = mi.LocalAffine(domain, epsilon=0.01, delta=0.0).mitigate(truth)
    problem = pr.RiskProblem(g, domain.law(), lambda y: y - 2.0, name="mitigated")
    assert pr.check(problem).ok
    clean = pr.monte_carlo(pr.RiskProblem(truth, domain.law(), lambda y: y - 2.0), calls=2000, seed=0)
    assert pr.monte_carlo(problem, calls=2000, seed=0).log_prob == clean.log_prob
