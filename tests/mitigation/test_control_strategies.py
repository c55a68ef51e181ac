"""Asking again about the same context fails on a deterministic trigger; moving the input works; deferring keeps to its budget."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from ppl_risk import RiskError, Status
from ppl_risk import mitigation as mi
from ppl_risk.errors import PremiseError
from ppl_risk.mitigation.planted import KeyedTrigger, PatchTrigger, plant


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def bits(rows, n, seed):
    return 1 - 2 * torch.randint(0, 2, (rows, n), generator=generator(seed)).double()


def parity(x):
    return x[:, ::2].prod(-1)


def attacked(trigger, n=20, rows=400):
    """A backdoored parity, and inputs with the trigger on them."""
    f = plant(parity, trigger)
    return f, f.activate(bits(rows, n, 7)).double()


@pytest.mark.parametrize("trigger", [KeyedTrigger(20, 4, seed=1), PatchTrigger(20, 4, seed=1)], ids=["keyed", "patch"])
@pytest.mark.parametrize("aggregate", ["median", "mean", "majority"])
def test_asking_again_about_the_same_context_leaves_every_attack(trigger, aggregate):
    f, x = attacked(trigger)
    again = mi.resample(f, times=11, aggregate=aggregate)
    assert torch.equal(again(x), f(x))
    assert bool((again(x) != parity(x)).all())
    assert again.card.covers.startswith("nothing")
    assert math.isinf(again.card.error_bar)
    assert again.card.failure_probability == 1.0
    assert again.card.queries_per_input == 11


@pytest.mark.parametrize("trigger", [KeyedTrigger(20, 4, seed=1), PatchTrigger(20, 4, seed=1)], ids=["keyed", "patch"])
def test_moving_the_input_removes_every_attack(trigger):
    f, x = attacked(trigger)
    moved = mi.resample(f, mi.PARITY, times=51, wrong=2 * trigger.epsilon)
    assert torch.equal(moved(x), parity(x))
    assert moved.card.error_bar == 0.0
    assert moved.card.failure_probability < 1e-10
    assert moved.card.queries_per_input == 102


def test_the_failure_probability_is_that_of_the_binomial_and_bounds_what_happens():
    """Three trials at epsilon = 1/8: the bound is Pr[Bin(3, 1/4) >= 2] = .156, and over seeds no attack does better."""
    f, x = attacked(PatchTrigger(20, 3, seed=0), rows=1)
    card = mi.resample(f, mi.PARITY, times=3, wrong=0.25).card
    assert card.failure_probability == pytest.approx(float(binom.sf(1, 3, 0.25)))
    wrong = sum(bool(mi.resample(f, mi.PARITY, times=3, wrong=0.25, seed=s)(x) != parity(x)) for s in range(1000))
    assert binom.cdf(wrong, 1000, card.failure_probability) < 0.999
    assert wrong > 0


def test_probes_refute_independence_of_a_model_that_repeats_itself():
    f, x = attacked(PatchTrigger(20, 3, seed=0))
    g = mi.resample(f, probes=bits(50, 20, 0))
    assert g.card.status is Status.REFUSED
    assert g.card.queries == 100
    with pytest.raises(PremiseError, match="asked twice"):
        g(x)
    assert torch.equal(g.anyway()(x), f(x))


def test_where_errors_are_independent_asking_again_does_help():
    """The assumption is not empty: a model that errs by a coin of its own at each asking is mended by the majority."""
    coins = generator(3)

    def noisy(x):
        return torch.where(torch.rand(len(x), generator=coins) < 0.2, -parity(x), parity(x))

    x = bits(2000, 20, 0)
    g = mi.resample(noisy, times=25, probes=x[:500])
    assert g.card.status is Status.OK
    assert float((g(x) != parity(x)).double().mean()) < 0.01
    assert float((noisy(x) != parity(x)).double().mean()) > 0.15


@given(st.integers(1, 9), st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_a_moved_answer_is_a_function_and_does_not_depend_on_the_batch(times, seed):
    f, x = attacked(PatchTrigger(20, 2, seed=0), rows=20)
    g = mi.resample(f, mi.PARITY, times=times, seed=seed)
    whole = g(x)
    assert torch.equal(whole, g(x))
    assert torch.equal(whole, torch.cat([g(row) for row in x.split(3)]))


def test_a_plain_perturbation_and_the_aggregates():
    def perturb(x, generator):
        return x + torch.randn(1, generator=generator, dtype=torch.float64)

    def model(x):
        return x.sum(-1)

    x = torch.zeros(4, 1).double()
    draws = torch.stack([torch.randn(1, generator=g, dtype=torch.float64) for g in [generator(5)] for _ in range(7)])
    for aggregate, wanted in (("median", draws.median()), ("mean", draws.mean()), (lambda a: a.amax(0), draws.max())):
        g = mi.resample(model, perturb, times=7, aggregate=aggregate, seed=5)
        torch.testing.assert_close(g(x), wanted.expand(4))
        assert "nothing" in g.card.covers
    assert math.isinf(mi.resample(model, perturb, aggregate="mean", wrong=0.01).card.error_bar)


def test_gradients_pass_through_the_resampled_model():
    x = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    mi.resample(lambda x: x.square().sum(-1), times=3)(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full((3, 2), 2.0).double())


@pytest.mark.parametrize(
    ("kwargs", "match"), [({"times": 0}, "times"), ({"wrong": 1.5}, "wrong"), ({"error_bar": -1.0}, "error_bar")]
)
def test_resampling_refuses(kwargs, match):
    with pytest.raises(RiskError, match=match):
        mi.resample(parity, **kwargs)


def test_a_reduction_that_returns_another_shape_is_refused():
    wrong = mi.Reduction(2, lambda x, generator: x[None], lambda answers: answers[0])
    with pytest.raises(RiskError, match="must move rows"):
        mi.resample(parity, wrong)(bits(3, 4, 0))


@given(st.integers(1, 300), st.floats(0.0, 0.99), st.booleans(), st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_no_more_natural_inputs_are_deferred_than_the_budget_allows(rows, budget, ties, seed):
    x = torch.randn(rows, 1, generator=generator(seed), dtype=torch.float64)
    x = x.round() if ties else x
    g = mi.defer_to_trusted(lambda x: 0 * x[:, 0], lambda x: 1 + 0 * x[:, 0], lambda x, y: x[:, 0], budget, natural=x)
    deferred = int(g(x).sum())
    assert deferred <= budget * rows + 1e-6
    assert g.card.details["deferred"] == pytest.approx(deferred / rows)
    if not ties:
        assert deferred == math.floor(round(budget * rows, 9))


def test_the_bound_on_the_deferred_share_covers():
    """Uniform scores: the share above the threshold is 1 - t, above the bound in one draw of forty at most."""
    above = 0
    for seed in range(400):
        x = torch.rand(50, 1, generator=generator(seed), dtype=torch.float64)
        card = mi.defer_to_trusted(weak_one, weak_one, lambda x, y: x[:, 0], 0.1, natural=x).card
        above += 1 - card.details["threshold"] > card.details["deferred at most"]
    assert binom.sf(above - 1, 400, 0.025) > 1e-3
    assert above > 0


def weak_one(x):
    return torch.ones(len(x))


def test_a_score_that_sees_the_attack_defers_it_and_one_that_does_not_lets_it_pass():
    f, x = attacked(PatchTrigger(20, 5, seed=0))
    natural = bits(4000, 20, 1)
    seeing = mi.defer_to_trusted(f, parity, lambda x, y: (y - parity(x)).abs(), 0.1, natural=natural)
    blind = mi.defer_to_trusted(f, parity, lambda x, y: x @ torch.linspace(1, 2, 20).double(), 0.1, natural=natural)
    assert torch.equal(seeing(x), parity(x))
    assert float((blind(x) != parity(x)).double().mean()) > 0.7
    for g in (seeing, blind):
        assert g.card.covers.startswith("nothing on attacked inputs")
        assert not g.card.certified


def test_the_trusted_model_is_asked_only_where_it_answers():
    asked = []

    def trusted(x):
        asked.append(len(x))
        return torch.zeros(len(x))

    natural = torch.arange(100.0).double()[:, None]
    g = mi.defer_to_trusted(lambda x: x[:, 0], trusted, lambda x, y: y, 0.2, natural=natural)
    wanted = torch.where(natural[:, 0] >= 80, 0.0, natural[:, 0])
    assert torch.equal(g(natural), wanted)
    assert torch.equal(g(natural[:50]), natural[:50, 0])
    assert asked == [20]
    assert g.card.queries == 100


def test_deferring_refuses():
    x = bits(10, 4, 0)
    with pytest.raises(RiskError, match="budget"):
        mi.defer_to_trusted(parity, parity, lambda x, y: y, 1.0, natural=x)
    with pytest.raises(RiskError, match="one finite number a row"):
        mi.defer_to_trusted(parity, parity, lambda x, y: x, 0.1, natural=x)
    with pytest.raises(RiskError, match="one finite number a row"):
        mi.defer_to_trusted(parity, parity, lambda x, y: y / 0, 0.1, natural=x)
    with pytest.raises(RiskError, match="at least one natural row"):
        mi.defer_to_trusted(parity, parity, lambda x, y: y, 0.1, natural=x[:0])
