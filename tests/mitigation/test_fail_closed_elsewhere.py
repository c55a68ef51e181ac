"""Fourier cards, reports and bare arguments: what is printed is what holds, and what is wrong is named."""

import math

import pytest
import torch

import ppl_risk as pr
from ppl_risk import RiskError, Status
from ppl_risk import mitigation as mi
from ppl_risk.mitigation import planted

TRUTH = planted.majority_of_parities(8, seed=0)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def bits(count, seed=2):
    return 1 - 2 * torch.randint(0, 2, (count, 8), generator=generator(seed)).double()


X = bits(600)
Y = TRUTH(X)
#: All inputs of eight bits.
ALL = (1 - 2 * ((torch.arange(256)[:, None] >> torch.arange(8)) & 1)).double()
TWO = [lambda x, c=c: 0.5 * x[:, 0] + c * x[:, 1] for c in (0.3, 0.35, 0.4)]


def flipped(y, rate, seed):
    return y * torch.where(torch.rand(len(y), generator=generator(seed)) < rate, -1.0, 1.0)


def failed(g):
    return " ".join(p.name for p in g.card.premises if p.holds is False)


@pytest.mark.parametrize(
    ("options", "model", "samples", "name"),
    [
        ({}, TRUTH, (X, torch.where(torch.arange(600) == 3, torch.nan, Y)), "finite"),
        ({}, TRUTH, (torch.cat([torch.ones(600, 1).double(), X[:, 1:]], 1), None), "uniform bits"),
        ({"flip_rate": 0.1}, TRUTH, (X, Y), "but for flips"),
        ({"flip_rate": 0.1}, TRUTH, (X, flipped(Y, 0.2, 1)), "but for flips"),
        ({"sign": True}, TWO[1], (X, None), "but for flips"),
        *(({}, two, (X, None), "coefficient") for two in TWO),
        ({"tau": 0.3}, lambda x: x[:, :5].sum(-1).sign(), (X, None), "but for flips"),
    ],
)
def test_a_false_premise_of_the_series_is_seen_in_rows_or_values(options, model, samples, name):
    x, y = samples
    g = mi.GlobalFourier(**({"tau": 0.5} | options)).mitigate(model, (x, model(x) if y is None else y), seed=1)
    assert name in failed(g)


@pytest.mark.parametrize("flips", [0.05, 0.2])
def test_bars_of_the_series_are_kept_and_right_flips_are_not_refused(flips):
    broken = refused = 0
    for seed in range(20):
        x = bits(400, 10 + seed)
        mitigator = mi.GlobalFourier(0.5, flip_rate=flips, probes=200)
        g = mitigator.mitigate(TRUTH, (x, flipped(TRUTH(x), flips, seed)), seed=seed)
        refused += g.card.status is Status.REFUSED
        broken += float((g.anyway()(ALL) - TRUTH(ALL)).square().mean().sqrt()) > g.card.error_bar + 1e-8
    assert broken == 0
    assert refused == 0
    assert "root mean square" in str(g.card)


def test_a_report_promises_only_what_a_card_does():
    ball = mi.Ball(4)
    truth, x = planted.random_affine(ball, seed=1), ball.sample(300, generator(0))
    mitigator = mi.LocalAffine(ball, 0.02, 1e-3)
    models = {
        "held": mitigator.mitigate(truth, (x, truth(x))),
        "refused": mitigator.mitigate(truth, (x, truth(x) + 9)).anyway(),
    }
    found = mi.compare_risk(models, ball.law(), lambda y: y - 1, truth=truth, estimator=mi.plain(500))
    assert set(found.promised) == {"held"}
    assert "on average over the mitigator's coins" in str(found)
    law = pr.load_model("backdoored_parity", n=8).inputs
    series = mi.GlobalFourier(0.5).mitigate(TRUTH, (X, Y))
    assert not mi.compare_risk({"g": series}, law, lambda y: y - 2, truth=TRUTH, estimator=mi.plain(200)).promised


def test_attacked_inputs_and_margins_that_are_no_numbers_are_named():
    law = mi.Ball(2).law()
    call = lambda **more: mi.compare_risk(  # noqa: E731
        {"f": lambda x: x[:, 0]}, law, more.pop("detector", lambda y: y - 1), estimator=mi.plain(100), **more
    )
    with pytest.raises(RiskError, match="NaN"):
        call(attack=lambda x: x * math.nan)
    with pytest.raises(RiskError, match="NaN"):
        call(attack=lambda x: x + 9, detector=lambda y: torch.where(y > 5, torch.nan, y))
    with pytest.raises(RiskError, match="a row for each"):
        call(attack=lambda x: x[:3])


def test_outputs_that_agree_with_nothing_do_not_agree():
    with pytest.raises(RiskError, match="NaN"):
        mi.total_variation_test(lambda s: math.nan, lambda s: math.nan, runs=5)
    assert mi.total_variation_test(lambda s: 1e300, lambda s: 2e300, runs=5).differing == 5
    with pytest.raises(RiskError, match="NaN"):
        mi.distinguisher_advantage(lambda s: math.nan, lambda s: 1.0, runs=8)
