"""Heavy coefficients through queries, against enumeration, and the law of what comes out."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard

from ppl_risk import RiskError, Status
from ppl_risk import mitigation as mi
from ppl_risk.errors import PremiseError
from ppl_risk.mitigation.fourier_series import characters, walsh_hadamard
from ppl_risk.mitigation.heavy_hashing import HeavyPremise, misspelling, plan_hashing, spell


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def bits(rows, n, seed):
    return 1 - 2 * torch.randint(0, 2, (rows, n), generator=generator(seed)).double()


def majority(n, seed):
    """Majority of three random parities: (A + B + C - ABC) / 2."""
    a, b, c = torch.randint(0, 2, (3, n), generator=generator(seed)).bool()
    return mi.FourierSeries(torch.stack([a, b, c, a ^ b ^ c]), torch.tensor([0.5, 0.5, 0.5, -0.5]))


def poisoned(truth, patch):
    """The sign flips where the first bits are all +1: a share 2^-patch."""
    return lambda x: torch.where((x[:, :patch] == 1).all(-1), -truth(x), truth(x))


def rows_of(sets):
    return {tuple(row) for row in sets.tolist()}


@given(st.integers(0, 6), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_the_fast_transform_is_the_matrix(log_size, seed):
    values = torch.randn(3, 2**log_size, generator=generator(seed), dtype=torch.float64)
    matrix = torch.tensor(hadamard(2**log_size), dtype=torch.float64)
    expected = values @ matrix
    torch.testing.assert_close(walsh_hadamard(values), expected)


@given(st.integers(1, 8), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_characters_are_products(n, seed):
    x, sets = bits(20, n, seed), torch.randint(0, 2, (5, n), generator=generator(seed + 1)).bool()
    slow = torch.stack([x[:, one].prod(-1) for one in sets], dim=-1)
    assert torch.equal(characters(x, sets), slow)


@pytest.mark.parametrize("search", ["hashing", "prefix"])
@pytest.mark.parametrize("seed", range(4))
def test_every_heavy_set_and_no_other_is_found(search, seed):
    truth = majority(12, seed)
    model = poisoned(truth, 4)
    g = mi.GlobalFourier(tau=0.5, search=search).mitigate(model, (bits(400, 12, 7), truth(bits(400, 12, 7))), seed=seed)
    assert rows_of(g.answer.supports) == rows_of(truth.supports)
    x = bits(2000, 12, 9)
    torch.testing.assert_close(g(x), truth(x))
    assert g.card.status is Status.OK


def test_a_trial_misspells_no_more_often_than_the_bound():
    """2^-4 of the inputs flipped; 200 trials with few buckets, where the bound is far from 0."""
    truth, n, epsilon = majority(10, 3), 10, 1 / 16
    oracle, coins = mi.Oracle(poisoned(truth, 4)), generator(0)
    wanted, trials, buckets = rows_of(truth.supports), 200, 6
    missed = sum(len(wanted - rows_of(spell(oracle, n, buckets, coins))) for _ in range(trials)) / (4 * trials)
    bound = misspelling(HeavyPremise(n, 4, 0.5 - 2 * epsilon, 2 * epsilon, 4 * epsilon, 0.5), buckets)
    assert missed <= bound
    assert oracle.queries == trials * (n + 1) * 2**buckets


def test_the_plan_is_the_cheapest_and_grows_as_it_should():
    premise = HeavyPremise(20, 4, 0.4375, 0.0625, 0.125, 0.5)
    plan = plan_hashing(premise, 1e-3)
    q = misspelling(premise, plan.bits)
    assert 4 * q**plan.trials <= 0.5e-3
    # Hoeffding for the check of every set that can be spelt.
    spelt = plan.trials * 2**plan.bits
    assert spelt * math.exp(-plan.checks * (0.25 - 0.0625) ** 2 / 2) <= 0.5e-3
    assert plan_hashing(premise, 1e-6).queries > plan.queries
    # From n to 4 n, 4 to 8 times as many; prefixes grow by 4 and start 30 times higher.
    assert 4 < plan_hashing(premise._replace(n=80), 1e-3).queries / plan.queries < 8 * 1.6


def test_values_do_not_depend_on_the_backdoor():
    truth, x = majority(14, 5), bits(500, 14, 1)
    y = truth(x) * torch.where(torch.rand(500, generator=generator(2)) < 0.1, -1.0, 1.0)
    mitigator = mi.GlobalFourier(tau=0.5, flip_rate=0.1)
    first = mitigator.mitigate(poisoned(truth, 4), (x, y), seed=3)
    second = mitigator.mitigate(lambda z: truth(z) * torch.where(z[:, -5:].sum(-1) == 5, -1.0, 1.0), (x, y), seed=3)
    assert torch.equal(first.answer.supports, second.answer.supports)
    assert torch.equal(first.answer.coefficients, second.answer.coefficients)
    leaky = mi.GlobalFourier(tau=0.5, values="model")
    one, other = (leaky.mitigate(f, n=14, seed=3) for f in (poisoned(truth, 4), truth))
    assert not torch.equal(one.answer.coefficients, other.answer.coefficients)
    assert one.card.status is Status.REFUSED
    with pytest.raises(PremiseError, match="clean rows"):
        one(x)
    assert one.anyway()(x).shape == (500,)


def test_least_squares_errs_by_what_the_series_leaves():
    """Mean square over data sets is k Var(noise) / m, Var(noise) = 1 - (1 - 2 eta)^2, over (1 - 2 eta)^2."""
    truth, rows, flips = majority(8, 1), 400, 0.1
    losses = []
    for seed in range(40):
        x = bits(rows, 8, 100 + seed)
        y = truth(x) * torch.where(torch.rand(rows, generator=generator(seed)) < flips, -1.0, 1.0)
        g = mi.GlobalFourier(tau=0.5, flip_rate=flips).mitigate(truth, (x, y), seed=seed)
        losses.append(float((g.answer.coefficients - 0.5 * g.answer.coefficients.sign()).square().sum()))
    expected = 4 * (1 - 0.64) / rows / 0.64
    assert np.mean(losses) == pytest.approx(expected, rel=0.35)


def test_a_truth_without_heavy_coefficients_is_refused():
    """A bent function: every coefficient is 2^-4 in size."""
    bent = lambda x: ((x[:, :4] < 0) & (x[:, 4:] < 0)).double().sum(-1).remainder(2).mul(-2).add(1)  # noqa: E731
    x = bits(500, 8, 0)
    g = mi.GlobalFourier(tau=0.5).mitigate(bent, (x, bent(x)))
    assert g.card.status is Status.REFUSED
    assert "no coefficient" in str(g.card)
    with pytest.raises(PremiseError):
        g(x)


def test_too_large_a_backdoor_is_refused():
    truth, x = majority(8, 2), bits(500, 8, 0)
    g = mi.GlobalFourier(tau=0.5, epsilon=1 / 64).mitigate(poisoned(truth, 3), (x, truth(x)))
    assert g.card.status is Status.REFUSED
    assert any("epsilon" in p.name and p.holds is False for p in g.card.premises)


def test_labels_that_are_not_the_models_are_refused():
    truth, x = majority(8, 2), bits(500, 8, 0)
    g = mi.GlobalFourier(tau=0.5).mitigate(truth, (x, -truth(x) * torch.where(bits(500, 1, 5)[:, 0] > 0, 1.0, -1.0)))
    assert any("labels" in p.name and p.holds is False for p in g.card.premises)


def test_wrong_calls_say_what_to_do():
    with pytest.raises(RiskError, match="clean rows"):
        mi.GlobalFourier(tau=0.5).mitigate(lambda x: x[:, 0])
    with pytest.raises(RiskError, match=r"Map bits to \+-1"):
        mi.GlobalFourier(tau=0.5).mitigate(lambda x: x[:, 0], (torch.zeros(5, 3), torch.zeros(5)))
    with pytest.raises(RiskError, match="tau / 4"):
        mi.GlobalFourier(tau=0.5, epsilon=0.2)
    with pytest.raises(RiskError, match="one number a row"):
        mi.GlobalFourier(tau=0.5).mitigate(lambda x: x, (bits(9, 3, 0), bits(9, 1, 0)[:, 0]))
