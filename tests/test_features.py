"""Method 2: tails of sums of independent features against closed forms, where independence fails, and the worst law nearby."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

import ppl_risk as pr
from builders import linear_gaussian, residual_problem, standard
from ppl_risk.errors import RiskError
from ppl_risk.propagation.dictionaries import given_directions, random_dictionary, train_sae
from ppl_risk.propagation.feature_propagation import propagate_features
from ppl_risk.propagation.features import Dictionary, fit_features, one_factor
from ppl_risk.propagation.saddlepoint import Quantiles, Sums, cumulants, dominating_point, log_all_at_least
from ppl_risk.randomness import seeded
from ppl_risk.risk_estimate import LOG10, Status


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sums(start, weights, rest=None):
    """One law of k sums of J features of standard normals."""
    start, weights = (torch.as_tensor(np.asarray(part), dtype=torch.float64)[None] for part in (start, weights))
    rest = torch.zeros(start.shape[1], start.shape[1]).double() if rest is None else rest
    zero = torch.zeros(1, weights.shape[2], dtype=torch.float64)
    return Sums(start, weights, rest[None], zero, zero + 1)


def read(quantiles, law):
    return float(log_all_at_least(quantiles, law, dominating_point(quantiles, law))[0])


def sparse(count, rate=0.2):
    """Features that are 0 with probability 1 - rate and then rise, faster from 1.5 standard deviations on."""
    start = float(norm.isf(rate))
    row = torch.tensor([[start, start + 0.7, start + 1.7]], dtype=torch.float64)
    values = torch.tensor([[0.0, 1.0, 3.0]], dtype=torch.float64)
    zero = torch.zeros(count, dtype=torch.float64)
    return Quantiles(row.expand(count, -1).clone(), values.expand(count, -1).clone(), zero, zero + 2.0)


def on_grid(quantiles, step=0.008, size=2**14):
    """The law of the first feature in cells of width `step`: what convolutions are made of."""
    u = torch.linspace(-9, 9, 400_001, dtype=torch.float64)[:, None]
    z = quantiles.of(u.expand(-1, len(quantiles.left)))[:, 0].numpy()
    mass = np.exp(-(u[:, 0].numpy() ** 2) / 2)
    return np.bincount(np.round(z / step).astype(int), weights=mass / mass.sum(), minlength=size)


@pytest.mark.parametrize("t", [-1.5, 0.0, 0.8, 2.5])
def test_cumulants_of_a_sparse_feature_are_its_integrals(t):
    mean, sd = 0.3, 0.7
    u = torch.linspace(-12, 12, 400_001, dtype=torch.float64)
    z = sparse(1).of((mean + sd * u)[:, None])[:, 0]
    log = t * z - u.square() / 2
    share = torch.softmax(log, 0)
    first = (share * z).sum()
    told = sparse(1).tilted(*(torch.full((1, 1), x, dtype=torch.float64) for x in (t, mean, sd)))
    exact = torch.logsumexp(log, 0) - torch.logsumexp(-u.square() / 2, 0)
    assert told.log.item() == pytest.approx(float(exact), abs=1e-6)
    assert told.mean.item() == pytest.approx(float(first), abs=1e-6)
    assert told.variance.item() == pytest.approx(float((share * (z - first).square()).sum()), abs=1e-6)


def test_tilted_draws_have_the_tilted_moments():
    args = [torch.full((40_000, 1), x, dtype=torch.float64) for x in (1.2, 0.3, 0.7)]
    with seeded(0):
        z = sparse(1).sample(*args)
    told = sparse(1).tilted(*(a[:1] for a in args))
    assert abs(float(z.mean() - told.mean)) < 4.5 * math.sqrt(float(told.variance) / len(z))
    assert float(z.var()) == pytest.approx(float(told.variance), rel=0.05)


@pytest.mark.parametrize("far", [0.5, 3.0, 9.0, 35.0])
def test_sums_of_gaussian_features_are_exact(far):
    quantiles = Quantiles.gaussian(torch.tensor([1.0, -2.0, 0.0]).double(), torch.tensor([1.0, 2.0, 0.5]).double())
    law = sums([3.0 - far * math.sqrt(8.25)], [[1.0, 1.0, 1.0]], torch.tensor([[3.0]]).double())
    assert read(quantiles, law._replace(start=law.start - 2.0)) == pytest.approx(float(norm.logsf(far)), rel=1e-8)


def test_several_sums_of_gaussian_features_are_an_orthant():
    assert read(Quantiles.gaussian(torch.zeros(2).double(), torch.ones(2).double()), sums([-3.0, -5.0], np.eye(2))) == (
        pytest.approx(float(norm.logsf(3.0) + norm.logsf(5.0)), rel=1e-8)
    )


@pytest.mark.parametrize("threshold", [14.0, 20.0, 30.0])
def test_sums_of_sparse_features_agree_with_their_convolution(threshold):
    count, step = 40, 0.008
    grid = on_grid(sparse(count), step)
    whole = np.fft.irfft(np.fft.rfft(grid, len(grid)) ** count, len(grid))
    exact = math.log(whole[round(threshold / step) :].sum())
    got = read(sparse(count), sums([-threshold], np.ones((1, count))))
    assert got == pytest.approx(exact, abs=0.01)


def test_a_sum_of_few_spikes_agrees_with_enumeration():
    """Twelve features that are 0 or about 1: the binomial law, between its steps."""
    start = float(norm.isf(0.1))
    knots = torch.tensor([[start, start + 1e-4]], dtype=torch.float64).expand(12, -1).clone()
    values = torch.tensor([[0.0, 1.0]], dtype=torch.float64).expand(12, -1).clone()
    quantiles = Quantiles(knots, values, torch.zeros(12).double(), torch.zeros(12).double())
    exact = sum(
        0.1 ** sum(k) * 0.9 ** (12 - sum(k)) * norm.sf(5.5 - sum(k), scale=0.5)
        for k in itertools.product((0, 1), repeat=12)
    )
    law = sums([-5.5], np.ones((1, 12)), torch.tensor([[0.25]]).double())
    assert read(quantiles, law) == pytest.approx(math.log(exact), abs=0.03)


def test_the_dominating_point_is_where_the_gradient_allows():
    law = sums([-4.0, 2.0, -1.0], drawn(3, 30).abs())
    theta = dominating_point(sparse(30), law)
    bound, gradient, _ = cumulants(sparse(30), law, theta)
    assert bool((theta >= 0).all())
    assert float((gradient.clamp_max(0.0)).abs().max()) < 1e-6
    assert float((gradient * theta).abs().max()) < 1e-6
    assert read(sparse(30), law) <= float(bound[0])


def test_a_linear_network_of_gaussian_features_is_exact():
    known = linear_gaussian(6, 4.0)
    told = propagate_features(
        known.problem, torch.eye(6), marginals="gaussian", draws=40_000, checks=400, slices=0, progress=False
    )
    assert told.log_prob == pytest.approx(known.log_prob, abs=0.15)
    assert told.status is Status.MODEL_ONLY
    assert told.evidence["share_that_fails"] > 0.95
    assert told.evidence["log10_p_of_draws"] == pytest.approx(told.log10_prob, abs=0.15)


def test_slices_along_features_agree_with_draws_of_the_same_law():
    """What was read off against the network's own frequency under P_0, for a bent network and sparse features."""
    problem = residual_problem()
    told = [propagate_features(problem, "random", slices=k, draws=2000, checks=4000, progress=False) for k in (0, 1)]
    with seeded(5):
        hits = (problem.margin(told[0].guide.law.sample(600_000).float()) >= 0).double().mean()
    for one in told:
        assert one.log10_prob == pytest.approx(math.log10(float(hits)), abs=0.1)
        assert one.evidence["log10_p_of_draws"] == pytest.approx(math.log10(float(hits)), abs=0.1)


@pytest.fixture(scope="module")
def checks():
    def told(number, **options):
        problem = pr.load_model("consistency_checks", checks=number)
        settings = {"layer": "evidence", "marginals": "gaussian", "draws": 20_000, "progress": False}
        return propagate_features(problem, torch.eye(number), **settings | options)

    return told


def test_independence_fails_on_a_common_cause_and_coactivation_repairs_it(checks):
    plain = {n: checks(n).log_prob for n in (4, 16)}
    for number, value in plain.items():
        assert value == pytest.approx(number * float(norm.logsf(4.0)), rel=0.02)
        truth = pr.load_truth("consistency_checks", checks=number).log_prob
        assert value < truth - 6 * number
        assert checks(number, coactivation="pairwise").log_prob == pytest.approx(truth, abs=0.15)


def test_independence_fails_on_exclusion_and_coactivation_repairs_it():
    problem = pr.load_model("excluded_catastrophe")
    told = {
        c: propagate_features(
            problem, torch.eye(2), layer="features", marginals="gaussian", coactivation=c, draws=20_000, progress=False
        )
        for c in ("none", "pairwise")
    }
    assert told["none"].prob == pytest.approx(norm.cdf(-1) ** 2, rel=0.05)
    assert told["pairwise"].log10_prob < -12
    assert not any(t.status.believable for t in told.values())


def test_the_worst_law_spends_its_budget_as_the_closed_form_says(checks):
    """N independent Gaussian checks: the best shift is the same for all, Phi(sqrt(2 KL / N) - t)^N."""
    told = checks(4, budget=3.0)
    exact = 4 * float(norm.logsf(4.0 - math.sqrt(2 * 3.0 / 4)))
    assert told.evidence["kl_nats"] == pytest.approx(3.0, abs=1e-3)
    assert told.log_prob == pytest.approx(exact, abs=0.5)


def test_the_worst_law_raises_the_number_and_its_draws_fail_more_often():
    problem = pr.load_model("digits")
    told = propagate_features(problem, "random", count=16, budget=4.0, slices=0, draws=2000, checks=200, progress=False)
    risk = told.guide
    assert told.log10_prob > told.evidence["log10_p_of_start"] + 1
    assert 0 < told.evidence["kl_nats"] <= 4.0 + 1e-9
    with seeded(1):
        start, worst = (
            float((problem.margin(law.sample(5000).float()) >= 0).double().mean()) for law in (risk.start, risk.law)
        )
    assert worst > start + 0.002
    assert math.log10(worst) == pytest.approx(told.log10_prob, abs=0.5)
    assert told.log_prob / LOG10 == pytest.approx(told.evidence["log10_p_of_draws"], abs=0.5)
    # It says what it stands for: inputs that fail.
    margins = torch.as_tensor(told.posterior["margin"])
    assert bool((margins >= 0).all())


def test_moments_of_a_coactive_law_are_those_of_its_draws():
    x = drawn(3000, 3) @ drawn(3, 3, seed=1)
    law = fit_features(Dictionary(torch.eye(3).double(), torch.relu), x, "pairwise")
    assert law.coactive
    first, second = law.second_moments()
    with seeded(0):
        mean, sd = law.normals(drawn(200_000, seed=3))
        z = law.quantiles.of((mean + sd * torch.randn_like(mean))[:, :3])
    assert torch.allclose(z.mean(0), first, atol=0.02)
    assert torch.allclose(z.mT @ z / len(z), second, atol=0.08)
    turn = torch.zeros(law.residual.shape[1], 3).double()
    turn[0, 1] = 0.5
    assert float(law.kl(turn)) == pytest.approx(0.125 * float(second[1, 1]))


def test_one_factor_finds_the_loadings():
    loadings = torch.tensor([0.9, -0.5, 0.3, 0.7]).double()
    correlation = torch.outer(loadings, loadings)
    correlation.fill_diagonal_(1.0)
    found = one_factor(correlation)
    assert torch.allclose(found * found[0].sign(), loadings, atol=1e-4)


def test_an_autoencoder_reconstructs_sparse_rows_better_than_a_random_dictionary():
    codes = torch.relu(drawn(3000, 12) - 1.0)
    x = codes @ drawn(12, 20, seed=1) + 0.01 * drawn(3000, 20, seed=2)
    trained = train_sae(x, 12, steps=300, progress=False)
    again = train_sae(x, 12, steps=300, progress=False)
    assert trained.left_unexplained(x) < 0.5 * random_dictionary(20, 12).left_unexplained(x)
    assert torch.equal(trained.directions, again.directions)
    assert torch.allclose(trained.directions.norm(dim=0), torch.ones(12).double())
    kept = train_sae(x, 12, top=3, steps=20, progress=False).encode(x)
    assert int((kept > 0).sum(-1).max()) <= 3


def test_the_same_seed_gives_the_same_number_and_another_does_not():
    problem = residual_problem()
    a, b, c = (
        propagate_features(problem, "random", slices=0, draws=500, seed=s, progress=False).log_prob for s in (0, 0, 1)
    )
    assert a == b != c


def test_wrong_calls_say_what_to_do():
    problem = pr.RiskProblem(torch.nn.Sequential(torch.nn.Linear(2, 1)), standard(2), lambda y: y[:, 0] - 1.0)
    for options in ({"features": "pca"}, {"coactivation": "all"}, {"layer": "1"}, {"features": torch.eye(3)}):
        with pytest.raises(RiskError, match=r"got|there are"):
            propagate_features(problem, **options, progress=False)
    with pytest.raises(RiskError, match="finite"):
        given_directions(torch.full((2, 1), math.nan))
