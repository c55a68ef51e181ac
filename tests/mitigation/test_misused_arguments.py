"""Arguments of a wrong kind: each call is refused by a RiskError that says what, whatever hints a caller ignores."""

import math

import jaxtyping
import pytest
import torch

from ppl_risk import RiskError
from ppl_risk import mitigation as mi

BALL, NAN = mi.Ball(3), math.nan
X = BALL.sample(50, torch.Generator().manual_seed(0))


def f(x):
    return x.sum(-1)


Y, G = f(X), mi.LocalAffine(BALL, 0.02, 0.1).mitigate(f)


def local(model=f, samples=None, seed=0, **more):
    return mi.LocalAffine(**{"domain": BALL, "epsilon": 0.02, "delta": 0.1} | more).mitigate(model, samples, seed=seed)


def defer(**more):
    return mi.defer_to_trusted(f, f, **{"suspicion": lambda x, y: y, "budget": 0.1, "natural": X} | more)


def compare(models, **more):
    return mi.compare_risk(models, BALL.law(), lambda y: y, estimator=mi.plain(50), **more)


ODD = (NAN, math.inf, -1.0, True, "1", None, 1j, torch.ones(2))
CALLS = [
    *(lambda v=v, k=k: local(**{k: v}) for v in ODD for k in ("epsilon", "delta", "failure", "repeats")),
    *(lambda v=v: local(seed=v) for v in (2.5, "3", None, 2**70, NAN)),
    *(lambda v=v, s=s: s(v) for v in (2.5, 0, -1, True, "3", None, NAN) for s in (mi.Ball, mi.Cube, mi.Simplex)),
    *(lambda v=v: mi.Cube(3, v) for v in (NAN, 0.0, -1.0, True, "1")),
    *(lambda v=v: G(v) for v in (None, "X", X[0], X[:, :2], X[None], X + 0j, torch.tensor(1.0), X * NAN)),
    *(
        lambda m=m: local(m)
        for m in (
            3,
            None,
            lambda: 1,
            lambda x: 1.0,
            lambda x: None,
            lambda x: "a",
            lambda x: {}[1],
            lambda x: x.foo,
            lambda x: f(x) + 0j,
            lambda x: (f(x), f(X)),
            torch.nn.Linear(2, 1),
        )
    ),
    *(
        lambda s=s: local(samples=s)
        for s in (
            X,
            (X, Y, Y),
            {"X": X},
            (X, Y[:, None]),
            (X[0], Y),
            (X[:, :2], Y),
            (X[:0], Y[:0]),
            (["a"], ["b"]),
            (X, Y + 0j),
        )
    ),
    lambda: mi.LocalAffine("BALL", 0.02, 0.1),
    lambda: mi.LocalAffine(mi.Ball, 0.02, 0.1),
    lambda: local(variant=["line"]),
    lambda: mi.LocalPolynomial(1.5, BALL, 0.001, 0.1),
    lambda: mi.LocalPolynomial(True, BALL, 0.001, 0.1),
    lambda: mi.GlobalFourier(NAN),
    lambda: mi.GlobalFourier(True),
    lambda: mi.GlobalFourier(0.5, probes=0),
    lambda: mi.GlobalFourier(0.5, values="model").mitigate(f, n=3.5),
    lambda: mi.FourierSeries("a", [1.0]),
    lambda: mi.FourierSeries(torch.ones(1, 3).bool(), torch.tensor([NAN])),
    lambda: mi.walsh_hadamard([1.0, 2.0]),
    lambda: mi.resample(f, times=2.5),
    lambda: mi.resample(f, wrong=NAN),
    lambda: mi.resample(f, error_bar=NAN),
    lambda: mi.resample(f, aggregate=3),
    lambda: mi.resample(f, perturb=3),
    lambda: mi.resample(f, probes=X * NAN),
    lambda: mi.resample(f, probes=X[:0]),
    lambda: mi.resample(f, aggregate=lambda a: a[:2])(X),
    lambda: mi.resample(f)(X[0]),
    lambda: mi.resample(f, mi.Reduction(1, lambda x, g: x[None], lambda a: a))(X),
    lambda: mi.Reduction(1.5, abs, abs),
    lambda: defer(natural=X * NAN),
    lambda: defer(natural=X[0]),
    lambda: defer(budget=NAN),
    lambda: defer(budget=True),
    lambda: defer(suspicion=None),
    lambda: defer(suspicion=lambda x, y: 1.0),
    lambda: mi.relearn_affine(None),
    lambda: mi.relearn_affine((X, Y))(X[0]),
    lambda: mi.relearn_affine((X, Y))(X[:, :2]),
    lambda: mi.relearn_polynomial((X, Y), 1.5),
    lambda: mi.relearn_affine((X, Y), ridge=True),
    lambda: mi.relearn_affine_robust(f, BALL, queries=40.5),
    lambda: mi.relearn_affine_robust(f, None),
    lambda: mi.relearn_parities((X.sign(), Y.sign()), NAN),
    lambda: mi.relearn_parities((X.sign(), Y.sign()), 0.5)(X),
    lambda: mi.median("abc"),
    lambda: mi.median(Y + 0j),
    lambda: mi.median_of_means(Y, 2.5),
    lambda: mi.median_of_means(Y, True),
    lambda: mi.trimmed_mean(Y, "a"),
    lambda: mi.mean_of_medians(Y, NAN),
    lambda: mi.mean_of_medians(Y, 0.1, group=2.5),
    lambda: mi.group_size(3000, 0.1, tail="t"),
    lambda: mi.mean_of_medians(Y, 0.1, group=3, seed=1.5),
    lambda: mi.group_size(30.5, 0.1),
    lambda: mi.group_failure(30, 0.1, 0),
    lambda: mi.mean_of_medians_bars(30.5, 0.1),
    lambda: mi.mean_of_medians_bars(3000, 0.1, failure=2.0),
    lambda: mi.geometric_median(X, tolerance=NAN),
    lambda: mi.geometric_median(X, iterations=2.5),
    lambda: mi.total_variation_test(None, f),
    lambda: mi.total_variation_test(abs, abs, runs=2.5),
    lambda: mi.total_variation_test(abs, abs, runs=5, resolution=math.inf),
    lambda: mi.total_variation_test(abs, abs, seed=-1),
    lambda: mi.distinguisher_advantage(abs, abs, lambda o: "a", runs=8),
    lambda: mi.advise("affine", 2.5),
    lambda: mi.advise("affine", 3, epsilon=NAN, delta=0.1),
    lambda: mi.advise("affine", 3, samples=(X, Y)),
    lambda: mi.advise("affine", 3, bars=NAN),
    lambda: compare([f]),
    lambda: compare({}),
    lambda: compare({"a": None}),
    lambda: compare({"a": f}, attack=3),
    lambda: compare({"a": f}, attack=lambda x: "x"),
    lambda: compare({"a": f}, seed=1.5),
    lambda: compare({"a": f}, attack=lambda x: x, attacked_draws=2.5),
    lambda: mi.plain(2.5),
    lambda: mi.model_of(f),
    lambda: mi.with_model(None, f),
    lambda: mi.Oracle(f, batch=2.5),
    lambda: mi.Mitigated(f, None),
    lambda: BALL.sample(2.5),
    lambda: BALL.contains("X"),
    lambda: BALL.contains(X[:, :2]),
    lambda: mi.mitigation_model(None, f),
]


@pytest.fixture
def hints_are_ignored():
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.mark.parametrize("call", CALLS, ids=range(len(CALLS)))
def test_arguments_of_a_wrong_kind_are_named(call, hints_are_ignored):
    with pytest.raises(RiskError, match=r".{20}"):
        call()
