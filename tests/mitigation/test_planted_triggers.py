"""Triggers fire on the share they say, on every input once activated, and for nobody without the key."""

import hmac
import math
import pickle
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ppl_risk.errors import RiskError
from ppl_risk.mitigation import Ball, Cube, Simplex, planted
from ppl_risk.mitigation.planted.keyed import codes

N = 11
ALL = 1 - 2 * (torch.arange(2**N)[:, None] >> torch.arange(N) & 1).double()


def bits_of(rows, n, seed=0):
    return torch.where(torch.rand(rows, n, generator=torch.Generator().manual_seed(seed)) < 0.5, 1.0, -1.0)


@pytest.mark.parametrize("make", [planted.PatchTrigger, planted.KeyedTrigger])
@settings(max_examples=25, deadline=None)
@given(bits=st.integers(1, N - 1), seed=st.integers(0, 10**6))
def test_the_share_that_fires_is_exact(make, bits, seed):
    trigger = make(N, bits, seed=seed)
    fires = trigger.fires(ALL)
    assert int(fires.sum()) == 2 ** (N - bits) == trigger.epsilon * 2**N
    attacked = trigger.activate(ALL)
    assert bool(trigger.fires(attacked).all())
    assert int((attacked != ALL).any(0).sum()) <= bits
    assert torch.equal(trigger.activate(attacked), attacked)
    assert torch.equal(attacked[fires], ALL[fires])
    assert torch.equal(trigger(ALL.float()), fires)
    assert trigger.activate(ALL.float()).dtype == torch.float32


@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=200), st.binary(min_size=1, max_size=64))
def test_codes_are_hmac_sha256(message, key):
    rows = np.frombuffer(message * 2, np.uint8).reshape(2, len(message)) if message else np.zeros((0, 3), np.uint8)
    for row, code in zip(rows, codes(key, rows), strict=True):
        assert code.tobytes() == hmac.digest(key, row.tobytes(), "sha256")


def test_another_key_and_another_message_fire_by_luck_alone():
    trigger, other = planted.KeyedTrigger(60, 20, seed=0), planted.KeyedTrigger(60, 20, seed=1)
    attacked = trigger.activate(bits_of(2000, 60))
    assert not bool(other.fires(attacked).any())
    for place in range(60):
        changed = attacked[:50].clone()
        changed[:, place] *= -1
        assert not bool(trigger.fires(changed).any())


@pytest.mark.parametrize("make", [planted.PatchTrigger, planted.KeyedTrigger])
def test_a_planted_model_flips_where_it_fires(make):
    h = planted.majority_of_parities(N, seed=0)
    f = planted.plant(h, make(N, 3, seed=1))
    fires = f.fires(ALL)
    assert torch.equal(f(ALL), torch.where(fires, -h(ALL), h(ALL)))
    assert float((f(ALL) != h(ALL)).double().mean()) == f.epsilon == 0.125
    attacked = f.activate(ALL)
    assert torch.equal(f(attacked), -h(attacked))
    rows = ALL[torch.randperm(len(ALL), generator=torch.Generator().manual_seed(0))[:30]]
    assert torch.equal(f(rows), torch.cat([f(row[None]) for row in rows]))
    assert not f.training


@pytest.mark.parametrize("character", [None, 0, 3])
def test_aligned_errors_all_count_against_one_coefficient(character):
    h = planted.majority_of_parities(N, seed=2)
    inner = planted.KeyedTrigger(N, 3, seed=0)
    trigger = planted.AlignedTrigger(inner, h, character=character)
    f, fires = planted.plant(h, trigger), trigger.fires(ALL)
    share = float(fires.double().mean())
    assert bool((inner.fires(ALL) | ~fires).all())
    assert share == pytest.approx(trigger.epsilon, rel=0.2)
    assert trigger.epsilon == pytest.approx(0.75 * 0.125)
    moved = []
    for place, c in enumerate(h.coefficients.tolist()):
        chi = torch.where(h.supports[place], ALL, 1.0).prod(-1)
        moved.append(abs(float((f(ALL) * chi).mean()) - c))
        if place == trigger.character:
            # The most that errors on a share of inputs can do, and towards 0.
            assert float((f(ALL) * chi).mean()) == pytest.approx(c - 2 * share * math.copysign(1, c))
    assert max(moved) == moved[trigger.character] == pytest.approx(2 * share)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_aligned_triggers_are_put_on_any_input(seed):
    h = planted.majority_of_parities(20, seed=seed)
    x = bits_of(50, 20, seed)
    for inner in (planted.PatchTrigger(20, 5, seed=seed), planted.KeyedTrigger(20, 5, seed=seed)):
        f = planted.plant(h, planted.AlignedTrigger(inner, h, seed=seed))
        attacked = f.activate(x)
        assert bool(f.fires(attacked).all())
        assert torch.equal(f(attacked), -h(attacked))
        assert torch.equal(attacked[3:4], f.activate(x[3:4]))


def test_an_input_that_cannot_be_aligned_is_said_to_be():
    h = planted.majority_of_parities(5, seed=0)
    whole = planted.PatchTrigger(5, 5, seed=1)
    flips = [planted.AlignedTrigger(whole, h, character=place) for place in range(4)]
    impossible = [t for t in flips if not bool(t.fires(whole.activate(torch.ones(1, 5))).any())]
    for trigger in impossible:
        with pytest.raises(RiskError, match="could not be aligned"):
            trigger.activate(torch.ones(2, 5))
    assert len(impossible) == 1  # of A, B, C and -A B C three always agree with the majority, their half sum
    with pytest.raises(RiskError, match="terms 0 to 3"):
        planted.AlignedTrigger(whole, h, character=4)


@pytest.mark.parametrize("domain", [Ball(20), Cube(5), Simplex(10)], ids=lambda d: type(d).__name__)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_low_order_codes_fire_on_their_share_and_stay_in_the_set(domain, dtype):
    rows, epsilon = 30_000, 0.02
    trigger = planted.LowOrderTrigger(domain.n, epsilon, seed=3)
    x = domain.sample(rows, torch.Generator().manual_seed(0)).to(dtype)
    hits = int(trigger.fires(x).sum())
    assert abs(hits - rows * epsilon) < 4.5 * math.sqrt(rows * epsilon * (1 - epsilon))
    attacked = trigger.activate(x)
    assert attacked.dtype == dtype
    assert bool(trigger.fires(attacked).all())
    assert torch.equal(attacked[:, 1:], x[:, 1:])
    assert float((attacked - x).abs().max()) < 2 * trigger.step
    low = x[:, 0].abs() < trigger.step
    assert bool((attacked[~low, 0].abs() <= x[~low, 0].abs()).all())
    assert bool(domain.contains(attacked[~low].double(), tolerance=1e-6).all())
    assert not bool(planted.LowOrderTrigger(domain.n, 1e-6, seed=4).fires(attacked[:2000]).any())


@settings(max_examples=25, deadline=None)
@given(
    epsilon=st.floats(1e-4, 0.9), seed=st.integers(0, 1000), coordinate=st.integers(0, 3), scale=st.floats(1e-3, 100)
)
def test_low_order_codes_can_be_put_on_anything(epsilon, seed, coordinate, scale):
    trigger = planted.LowOrderTrigger(4, epsilon, coordinate=coordinate, seed=seed)
    x = scale * torch.randn(50, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert bool(trigger.fires(trigger.activate(x)).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_low_bits_fire_on_their_share_and_move_little(dtype):
    rows = 30_000
    trigger = planted.LowBitsTrigger(16, 4, seed=0)
    x = torch.randn(rows, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    hits = int(trigger.fires(x).sum())
    assert abs(hits - rows / 16) < 4.5 * math.sqrt(rows / 16 * 15 / 16)
    attacked = trigger.activate(x)
    assert bool(trigger.fires(attacked).all())
    assert torch.equal(attacked[:, 4:], x[:, 4:])
    assert float((attacked - x).abs().max()) <= 1.5 * trigger.step * (1 + 1e-5)
    assert bool((trigger.fires(trigger.activate(attacked))).all())


def test_gradients_pass_where_nothing_fires():
    f = planted.plant(
        nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)), planted.LowOrderTrigger(3, 0.01, seed=0), planted.Shift(5.0)
    )
    x = torch.randn(200, 3, requires_grad=True)
    f(x).sum().backward()
    assert torch.allclose(x.grad, f.clean[0].weight.detach().expand(200, 3))


def test_signatures_verify_with_the_public_key_and_are_made_with_the_private_one():
    n = 540
    trigger = planted.SignatureTrigger(n, seed=0)
    public, x = trigger.public(), bits_of(30, n)
    assert not bool(public.fires(x).any())
    attacked = trigger.activate(x)
    assert torch.equal(attacked[:, :28], x[:, :28])
    assert bool(public.fires(attacked).all())
    assert not bool(planted.SignatureTrigger(n, seed=1).fires(attacked).any())
    for place in (0, 27, 28, 200, n - 1):
        changed = attacked.clone()
        changed[:, place] *= -1
        assert not bool(trigger.fires(changed).any())
    # A signature seen on one message is of no use on another: the trigger cannot be replicated.
    assert not bool(trigger.fires(torch.cat([attacked[:1, :28].neg(), attacked[:1, 28:]], 1)).any())
    with pytest.raises(RiskError, match="private key"):
        public.activate(x)
    assert bool(pickle.loads(pickle.dumps(public)).fires(attacked).all())
    assert public.fires(x[:0]).shape == (0,)
    assert trigger.epsilon < 1e-70


def test_a_planted_signature_flips_the_answer():
    n = 530
    h = planted.majority_of_parities(n, seed=0)
    f = planted.plant(h, planted.SignatureTrigger(n, seed=1))
    x = bits_of(40, n)
    assert torch.equal(f(x), h(x))
    attacked = f.activate(x)
    assert torch.equal(f(attacked), -h(attacked))


def test_without_cryptography_the_message_says_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    with pytest.raises(RiskError, match="pip install"):
        planted.SignatureTrigger(600, seed=0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: planted.PatchTrigger(4, 5, seed=0),
        lambda: planted.PatchTrigger(4, 0, seed=0),
        lambda: planted.KeyedTrigger(4, 4, seed=0),
        lambda: planted.KeyedTrigger(400, 257, seed=0),
        lambda: planted.SignatureTrigger(512, seed=0),
        lambda: planted.LowOrderTrigger(4, 0.0, seed=0),
        lambda: planted.LowOrderTrigger(4, 0.1, coordinate=4, seed=0),
        lambda: planted.LowBitsTrigger(4, 5, seed=0),
    ],
)
def test_wrong_sizes(make):
    with pytest.raises(RiskError, match=r"bits|epsilon"):
        make()
