"""The mitigated model as a draw from a law over functions, and two tests of that law against laws that are known."""

import math

import pyro
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyro.infer import Predictive
from scipy.stats import beta, binom

from ppl_risk import RiskError
from ppl_risk import mitigation as mi
from ppl_risk.errors import PremiseError
from ppl_risk.mitigation.canonical import COINS, seed_of
from ppl_risk.mitigation.fourier_series import FourierSeries, characters
from ppl_risk.mitigation.planted import AlignedTrigger, PatchTrigger, majority_of_parities, plant
from ppl_risk.mitigation.total_variation import fingerprint

N = 8


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def bits(rows, n, seed):
    return 1 - 2 * torch.randint(0, 2, (rows, n), generator=generator(seed)).double()


class Level:
    """A mitigator whose output is a constant with a known law: uniform on [0, 1], whatever the model."""

    def mitigate(self, model, samples=None, *, seed=0):
        level = torch.rand((), generator=generator(seed), dtype=torch.float64)
        card = mi.GuaranteeCard("level", "", (), 0.0, 0.0, 0)
        empty = torch.zeros(1, 3, dtype=torch.bool)
        return mi.Mitigated(FourierSeries(empty, level[None]), card)


class Refusing(Level):
    def mitigate(self, model, samples=None, *, seed=0):
        card = mi.GuaranteeCard("refusing", "", (mi.Premise("none", False, "ever"),), 0.0, 0.0, 0)
        return mi.Mitigated(super().mitigate(model, seed=seed).answer, card)


@given(st.integers(0, 2**COINS - 1))
def test_the_coins_are_the_digits_of_the_seed(seed):
    coins = torch.tensor([float(seed >> k & 1) for k in range(COINS)])
    assert seed_of(coins) == seed
    torch.Generator().manual_seed(seed)


def test_predictive_draws_functions_and_their_values_have_the_law_of_the_mitigator():
    pyro.set_rng_seed(0)
    x = torch.zeros(2, 3).double()
    draws = Predictive(mi.mitigation_model(Level(), torch.sum), num_samples=400)(x)
    values = draws["values"]
    assert values.shape == (400, 2)
    assert draws["coins"].shape == (400, COINS)
    assert torch.equal(values[:, 0], values[:, 1])
    assert float(values.mean()) == pytest.approx(0.5, abs=4 / math.sqrt(12 * 400))
    assert float(values[:, 0].unique().numel()) == 400


def test_the_return_of_a_trace_is_the_function_and_conditioning_on_its_coins_gives_it_again():
    model = mi.mitigation_model(Level(), torch.sum)
    x = torch.zeros(1, 3).double()
    with pyro.poutine.seed(rng_seed=1):
        trace = pyro.poutine.trace(model).get_trace(x)
    g = trace.nodes["_RETURN"]["value"]
    assert isinstance(g, mi.Mitigated)
    assert torch.equal(g(x), trace.nodes["values"]["value"])
    coins = trace.nodes["coins"]["value"]
    assert float(trace.log_prob_sum()) == pytest.approx(-COINS * math.log(2), rel=1e-5)
    again = pyro.condition(model, {"coins": coins})()
    assert torch.equal(again(x), g(x))
    assert torch.equal(Level().mitigate(torch.sum, seed=seed_of(coins))(x), g(x))


def test_without_inputs_there_is_no_site_of_values():
    assert "values" not in pyro.poutine.trace(mi.CanonicalOutput(Level(), torch.sum)).get_trace().nodes


def test_the_pyro_view_refuses_what_it_cannot_run():
    assert isinstance(Level(), mi.Mitigator)
    with pytest.raises((RiskError, TypeError)):
        mi.mitigation_model(torch.sum, torch.sum)
    with pytest.raises(RiskError, match="parallel=False"), pyro.plate("many", 3):
        mi.mitigation_model(Level(), torch.sum)()
    with pytest.raises(PremiseError):
        mi.mitigation_model(Refusing(), torch.sum)(torch.zeros(1, 3).double())


def everywhere():
    """All 2^N inputs, in the order of the number that their negative bits spell."""
    return 1.0 - 2.0 * ((torch.arange(2**N)[:, None] >> torch.arange(N)) & 1).double()


def tabled(model):
    """The same function as a table, which answers faster."""
    table = model(everywhere())
    return lambda x: table[(x < 0).long() @ (1 << torch.arange(N))]


def poisoned():
    """Two worst-case backdoors in one truth, each against a coefficient of its own; clean rows with a tenth of labels flipped."""
    truth = majority_of_parities(N, seed=0)
    models = [plant(truth, AlignedTrigger(PatchTrigger(N, 4, seed=s), truth, character=s)) for s in (0, 1)]
    x = bits(2000, N, 3)
    y = torch.where(torch.rand(2000, generator=generator(4)) < 0.1, -truth(x), truth(x))
    return *map(tabled, models), (x, y)


def test_two_poisoned_models_give_one_law():
    """The premise of the mitigator, epsilon <= tau / 8, holds for both: outputs agree to the last coefficient in every run."""
    one, other, samples = poisoned()
    mitigator = mi.GlobalFourier(tau=0.5, delta=1e-3, flip_rate=0.1)

    def side(model):
        def run(seed):
            answer = mitigator.mitigate(model, samples, seed=seed).answer
            return answer.supports, answer.coefficients

        return run

    assert float((one(everywhere()) != other(everywhere())).double().mean()) > 0.02
    found = mi.total_variation_test(side(one), side(other), runs=25)
    assert found.differing == 0
    assert found.bound == pytest.approx(1 - 0.025 ** (1 / 25), abs=1e-6)


def leaking(model, supports):
    """Values from 20,000 queries to the poisoned model itself, as nobody should take them."""
    products = model(everywhere())[:, None] * characters(everywhere(), supports)

    def run(seed):
        return products[torch.randint(0, 2**N, (20_000,), generator=generator(seed))].mean(0)

    return run


def test_values_taken_from_the_model_are_told_apart():
    one, other, _ = poisoned()
    sides = [leaking(f, majority_of_parities(N, seed=0).supports) for f in (one, other)]
    caught = mi.distinguisher_advantage(*sides, runs=150)
    assert caught.advantage > 0.95
    assert caught.bound > 0.9
    by_hand = mi.distinguisher_advantage(*sides, lambda values: values[0] - values[1], runs=150)
    assert by_hand.advantage > 0.95
    none = mi.distinguisher_advantage(sides[0], sides[0], runs=150)
    assert none.bound == 0.0


def test_the_bound_of_no_difference_in_a_thousand():
    found = mi.total_variation_test(lambda seed: 0, lambda seed: 0)
    assert found.bound == pytest.approx(1 - 0.025 ** (1 / 1000))
    assert str(found).startswith("total variation <= 0.0037 with 97.5 % confidence: 0 of 1,000 coupled runs differ")


@given(st.integers(0, 10), st.floats(0.6, 0.999))
def test_coupled_bounds_are_those_of_the_binomial(differing, confidence):
    seen = iter(range(100))
    found = mi.total_variation_test(
        lambda seed: 0, lambda seed: next(seen) < differing, runs=100, confidence=confidence
    )
    assert found.differing == differing
    assert found.bound == pytest.approx(beta.isf(1 - confidence, differing + 1, 100 - differing))


def coin(p):
    return lambda seed: bool(torch.rand((), generator=generator(seed)) < p)


@pytest.mark.parametrize("coupled", [True, False])
def test_upper_bounds_hold_for_coins_of_known_distance(coupled):
    """TV of coins of .05 and .15 is .1; each bound fails in at most one run of forty."""
    below = sum(
        mi.total_variation_test(coin(0.05), coin(0.15), runs=60, coupled=coupled, seed=s).bound < 0.1 for s in range(40)
    )
    assert binom.sf(below - 1, 40, 0.025) > 1e-3


def test_uncoupled_bounds_speak_only_of_an_atom():
    same = mi.total_variation_test(lambda seed: "one", lambda seed: "one", coupled=False)
    assert same.bound == pytest.approx(1 - 0.0125 ** (1 / 1000))
    assert mi.total_variation_test(lambda seed: seed, lambda seed: seed, runs=50, coupled=False).bound == 1.0
    other = mi.total_variation_test(lambda seed: 1, lambda seed: 2, runs=50, coupled=False)
    assert other.bound == 1.0
    assert "commonest" in str(other)


@pytest.mark.parametrize("gap", [0.0, 1.0, 3.0])
def test_the_advantage_between_normals_is_that_of_the_best_threshold(gap):
    """N(0, 1) and N(gap, 1): TV = 2 Phi(gap / 2) - 1, reached by a threshold half way."""

    def normal(mean):
        return lambda seed: mean + torch.randn(1, generator=generator(seed), dtype=torch.float64)

    best = math.erf(gap / 2 / math.sqrt(2))
    found = mi.distinguisher_advantage(normal(gap), normal(0.0), runs=1000)
    assert found.bound <= best
    assert found.advantage == pytest.approx(best, abs=0.12)
    turned = mi.distinguisher_advantage(normal(0.0), normal(gap), runs=1000)
    assert turned.advantage == pytest.approx(best, abs=0.12)


def test_the_learned_projection_finds_the_one_number_that_differs():
    def side(mean):
        def run(seed):
            out = torch.randn(20, generator=generator(seed), dtype=torch.float64) * 10
            return out[:10], 0.1 * out[10:] / 10 + mean * (torch.arange(10) == 3)

        return run

    assert mi.distinguisher_advantage(side(1.0), side(0.0), runs=200).advantage > 0.95


def test_constant_outputs_are_told_apart_where_they_differ():
    assert mi.distinguisher_advantage(lambda seed: 1.0, lambda seed: 2.0, runs=60).advantage == 1.0
    assert mi.distinguisher_advantage(lambda seed: 1.0, lambda seed: 1.0, runs=60).bound == 0.0


def test_outputs_are_compared_by_value():
    zero = torch.tensor([0.0, 1.0])
    assert fingerprint(zero, 0.0) == fingerprint(-torch.tensor([0.0, -1.0]), 0.0)
    assert fingerprint(zero, 0.0) != fingerprint(zero[:, None], 0.0)
    assert fingerprint(zero, 0.0) != fingerprint(zero.double(), 0.0)
    assert fingerprint((zero, [True, "a"]), 0.0) == fingerprint((zero.clone(), (True, "a")), 0.0)
    near = zero + torch.tensor([0.0, 2.0**-20])
    assert fingerprint(zero, 1e-3) == fingerprint(near, 1e-3)
    assert fingerprint(zero, 0.0) != fingerprint(near, 0.0)
    assert fingerprint(1.0, 1e-9) == fingerprint(1.0 + 1e-15, 1e-9)
    with pytest.raises(RiskError, match="hashable"):
        fingerprint({"a": 1}, 0.0)


def test_the_tests_refuse():
    with pytest.raises(RiskError, match="runs >= 1"):
        mi.total_variation_test(coin(0.5), coin(0.5), runs=0)
    with pytest.raises(RiskError, match="confidence"):
        mi.total_variation_test(coin(0.5), coin(0.5), confidence=0.5)
    with pytest.raises(RiskError, match="resolution"):
        mi.total_variation_test(coin(0.5), coin(0.5), resolution=-1.0)
    with pytest.raises(RiskError, match="runs >= 4"):
        mi.distinguisher_advantage(coin(0.5), coin(0.5), runs=3)
    with pytest.raises(RiskError, match="different numbers"):
        mi.distinguisher_advantage(lambda s: torch.zeros(1 + s % 2), lambda s: torch.zeros(1), runs=20)
    with pytest.raises(RiskError, match="give a statistic"):
        mi.distinguisher_advantage(lambda s: "a", lambda s: "b", runs=20)


def test_the_distinguisher_learns_correlations():
    """Two numbers of correlation -.95 and a small common shift: each alone tells little, their sum nearly all."""
    noise = torch.linalg.cholesky(torch.tensor([[1.0, -0.95], [-0.95, 1.0]]).double())

    def side(shift):
        def draw(seed):
            g = torch.Generator().manual_seed(seed)
            return noise @ torch.randn(2, generator=g, dtype=torch.float64) + shift

        return draw

    # The sum has variance .1 and means 1.2 apart, so d' = 1.2 / sqrt(.1) and the best advantage is 2 Phi(d' / 2) - 1.
    best = math.erf(1.2 / math.sqrt(0.1) / 2 / math.sqrt(2))
    found = mi.distinguisher_advantage(side(0.0), side(0.6), runs=1000)
    assert found.advantage == pytest.approx(best, abs=0.04)
