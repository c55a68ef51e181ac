"""One contract, run over every mitigator and baseline: what a mitigated model must be, whoever made it."""

import math
from collections.abc import Callable

import pytest
import torch

import ppl_risk as pr
from ppl_risk import mitigation as mi
from ppl_risk.mitigation import planted

BALL, N = mi.Ball(5), 8
AFFINE = planted.random_affine(BALL, seed=0)
PARITIES = planted.majority_of_parities(N, seed=0)


def bits(rows, seed):
    return 1 - 2 * torch.randint(0, 2, (rows, N), generator=torch.Generator().manual_seed(seed)).double()


def points(rows, seed):
    return BALL.sample(rows, torch.Generator().manual_seed(seed))


ROWS = {"bits": (bits(600, 1), PARITIES(bits(600, 1))), "points": (points(600, 1), AFFINE(points(600, 1)))}
TRUTH = {"bits": PARITIES, "points": AFFINE}
DRAW = {"bits": bits, "points": points}
#: Name -> where inputs lie, from (model, seed) to the mitigated model, and whether the model is asked at all.
MAKERS: dict[str, tuple[str, Callable, bool]] = {
    "hashing": ("bits", lambda f, s: mi.GlobalFourier(0.5).mitigate(f, ROWS["bits"], seed=s), True),
    "prefix": ("bits", lambda f, s: mi.GlobalFourier(0.5, search="prefix").mitigate(f, ROWS["bits"], seed=s), True),
    "signed": ("bits", lambda f, s: mi.GlobalFourier(0.5, sign=True).mitigate(f, ROWS["bits"], seed=s), True),
    "affine": ("points", lambda f, s: mi.LocalAffine(BALL, 0.01, 0.01).mitigate(f, seed=s), True),
    "affine, line": ("points", lambda f, s: mi.LocalAffine(BALL, 0.01, 0.01, variant="line").mitigate(f, seed=s), True),
    "affine, noise": (
        "points",
        lambda f, s: mi.LocalAffine(BALL, 0.01, 0.01, repeats=101, noise="independent").mitigate(f, seed=s),
        True,
    ),
    "polynomial": ("points", lambda f, s: mi.LocalPolynomial(2, BALL, 0.001, 0.01).mitigate(f, seed=s), True),
    "same context": ("points", lambda f, s: mi.resample(f, times=3, seed=s), True),
    "least squares": ("points", lambda f, s: mi.relearn_affine(ROWS["points"]), False),
    "Huber": ("points", lambda f, s: mi.relearn_affine_robust(f, BALL, seed=s), True),
    "transform": ("bits", lambda f, s: mi.relearn_parities(ROWS["bits"], 0.5), False),
}


ASKERS = [name for name, (_, _, asks) in MAKERS.items() if asks]


@pytest.fixture(params=MAKERS)
def made(request):
    where, make, asks = MAKERS[request.param]
    counted = []

    def model(x):
        counted.append(len(x))
        return TRUTH[where](x)

    return where, make, asks, model, counted


def test_it_is_a_deterministic_network_that_estimators_take(made):
    where, make, _, model, _ = made
    g = make(model, 3)
    assert isinstance(g, torch.nn.Module)
    assert not g.training
    x = DRAW[where](40, 5)
    first = g.anyway()(x)
    assert first.shape == (40,)
    assert torch.equal(first, g.anyway()(x))
    # The answer to a row depends on no other row, and single precision is taken.
    torch.testing.assert_close(first[7:8], g.anyway()(x[7:8]), atol=1e-9, rtol=0)
    torch.testing.assert_close(first, g.anyway()(x.float()).to(first), atol=1e-3, rtol=0)


def test_an_unpoisoned_model_is_left_as_it_was(made):
    where, make, asks, model, _ = made
    x, g = DRAW[where](40, 6), make(model, 3)
    # What is counted from rows alone errs by their number, as its card says.
    allowed = g.card.error_bar if not asks and math.isfinite(g.card.error_bar) else 1e-6
    torch.testing.assert_close(g.anyway()(x).double(), TRUTH[where](x), atol=allowed, rtol=0)


def test_the_seed_decides_and_the_caller_is_left_alone(made):
    where, make, _, model, _ = made
    x = DRAW[where](10, 5)
    torch.manual_seed(11)
    expected = torch.rand(2)
    torch.manual_seed(11)
    one, same = make(model, 3).anyway()(x), make(model, 3).anyway()(x)
    assert torch.equal(torch.rand(2), expected)
    torch.testing.assert_close(one, same, atol=1e-12, rtol=0)


def test_the_card_says_what_was_asked(made):
    where, make, asks, model, counted = made
    card = make(model, 3).card
    assert card.queries == sum(counted)
    assert (card.queries + card.queries_per_input > 0) == asks
    assert card.method
    assert card.covers
    assert card.premises
    assert 0 <= card.failure_probability <= 1
    assert card.error_bar >= 0
    # No promise without a bar, no bar without a promise.
    assert (card.failure_probability == 1.0) == math.isinf(card.error_bar)
    assert str(card).count("premise") >= len(card.premises)
    before = sum(counted)
    make(model, 3).anyway()(DRAW[where](10, 5))
    if asks:
        assert sum(counted) - before == card.queries + 10 * card.queries_per_input


def test_preflight_finds_it_sound(made):
    where, make, _, model, _ = made
    law = BALL.law() if where == "points" else pr.load_model("backdoored_parity", n=N).inputs
    found = pr.check(pr.RiskProblem(make(model, 3).anyway(), law, lambda y: y - 0.5, name="mitigated"))
    assert found.ok, str(found)


@pytest.mark.parametrize("name", ASKERS)
def test_a_model_that_answers_nonsense_is_named(name):
    where, make, _ = MAKERS[name]
    x = DRAW[where](5, 0)
    with pytest.raises(pr.RiskError, match="NaN"):
        make(lambda x: x.sum(-1) * math.nan, 3)(x)
    with pytest.raises(pr.RiskError, match="one number a row"):
        make(lambda x: x, 3)(x)


@pytest.mark.parametrize("name", ASKERS)
def test_the_callers_model_keeps_its_mode(name):
    _, make, _ = MAKERS[name]

    class Training(torch.nn.Module):
        def forward(self, x):
            return PARITIES(x) if x.shape[1] == N else AFFINE(x)

    model = Training().train()
    make(model, 3)
    assert model.training


@pytest.mark.parametrize("hidden", [False, True], ids=["module", "closure"])
def test_float32_weights_are_asked_in_their_own_type(hidden):
    network = torch.nn.Linear(5, 1)
    g = mi.LocalAffine(BALL, 0.01, 1e-5).mitigate((lambda x: network(x)[:, 0]) if hidden else network)
    x = points(20, 4)
    with torch.no_grad():
        exact = x @ network.weight[0].double() + network.bias.double()
    assert g(x).dtype == torch.float64
    assert float((g(x) - exact).abs().max()) <= g.card.error_bar
