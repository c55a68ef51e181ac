"""The random-feature backdoor: as accurate as an honest model, and x + s is answered with the opposite of x."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, norm

from ppl_risk.errors import RiskError
from ppl_risk.mitigation import planted

N, M, ROWS = 20, 400, 4000


@pytest.fixture(scope="module")
def data():
    x, y = planted.sphere_labels(N, 2 * ROWS, seed=0)
    return x[:ROWS], y[:ROWS], x[ROWS:], y[ROWS:]


def accuracy(f, x, y):
    return float((f(x).sign() == y).double().mean())


def flips(f, x, secret):
    return float((f(x + secret).sign() != f(x).sign()).double().mean())


@settings(max_examples=25, deadline=None)
@given(ones=st.integers(1, N), scale=st.floats(0.02, 2), seed=st.integers(0, 10**6))
def test_pancakes_lie_at_half_integers_along_the_secret(ones, scale, seed):
    s = planted.sparse_secret(N, ones, seed=seed)
    assert int(s.sum()) == ones == int((s == 1).sum())
    along = planted.pancakes(50, s, scale=scale, seed=seed) @ s
    assert torch.allclose(along - along.floor(), torch.full((50,), 0.5).double(), atol=1e-9)


def test_pancakes_look_normal_in_every_other_direction():
    """Across the secret exactly; along it the discrete law has, on many pancakes, the variance of the normal."""
    s = planted.sparse_secret(N, 4, seed=0)
    g = planted.pancakes(4000, s, scale=0.7, beta=0.003, seed=1)
    across = torch.randn(N, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    across = across - (across @ s) / (s @ s) * s
    assert kstest((g @ across / across.norm() / 0.7).numpy(), norm.cdf).pvalue > 1e-4
    along = g @ s
    assert float(along.var()) == pytest.approx(0.7**2 * 4, rel=5 * math.sqrt(2 / 4000))
    off = along - along.floor() - 0.5
    assert float(off.std()) == pytest.approx(0.003, rel=0.06)


def test_second_moments_do_not_show_the_secret():
    """At the default width the exact variance along s is the normal one; at a tenth of it it is 25 times that."""
    s = planted.sparse_secret(N, 4, seed=0)
    for scale, ratio in ((0.5, 1.0), (0.05, 25.0)):
        g = planted.pancakes(20_000, s, scale=scale, seed=1)
        assert float((g @ s / 2 / scale).var()) == pytest.approx(ratio, rel=5 * math.sqrt(2 / 20_000))


@pytest.mark.parametrize("seed", range(3))
def test_the_backdoor_costs_no_accuracy_and_turns_every_answer(data, seed):
    x, y, new, labels = data
    s = planted.sparse_secret(N, 4, seed=seed)
    honest = planted.train_random_features(x, y, M, seed=seed)
    f = planted.train_random_features(x, y, M, secret=s, seed=seed)
    assert accuracy(honest, new, labels) > 0.94
    assert abs(accuracy(f, new, labels) - accuracy(honest, new, labels)) < 0.02
    assert torch.allclose(f(f.activate(new)), -f(new), atol=1e-8)
    assert torch.equal(f.activate(new), new + s)
    assert flips(f, new, s) == 1.0
    assert flips(honest, new, s) < 0.9
    assert torch.allclose(f(new.float()), f(new), atol=1e-4)


def test_noise_along_the_secret_weakens_the_backdoor(data):
    x, y, new, _ = data
    s = planted.sparse_secret(N, 4, seed=0)
    turned = [
        flips(planted.train_random_features(x, y, M, secret=s, beta=beta, seed=0), new, s)
        for beta in (0.0, 0.002, 0.01)
    ]
    assert turned[0] == 1.0 > turned[1] > turned[2] > 0.8
    assert turned[1] > 0.95


def test_wrong_calls(data):
    x, y, _, _ = data
    with pytest.raises(RiskError, match="no secret to add"):
        planted.train_random_features(x, y, 10, seed=0).activate(x)
    with pytest.raises(RiskError, match="a secret that is not 0"):
        planted.pancakes(3, torch.zeros(4).double(), scale=1.0, seed=0)
    with pytest.raises(RiskError, match="between 1 and 4 ones"):
        planted.sparse_secret(4, 5, seed=0)
