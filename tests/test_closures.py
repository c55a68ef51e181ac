"""What steps do to Gaussian numbers: activations against integrals, other closures against closed forms and draws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from laws import assert_law, correlated, drawn, law_of, sampled, tape_of
from ppl_risk.errors import RiskError
from ppl_risk.propagation.activation_steps import activation_of
from ppl_risk.propagation.attention import attend
from ppl_risk.propagation.full import FullJoint

GRID = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
DENSITY = torch.exp(-(GRID**2) / 2) / math.sqrt(2 * math.pi) * (GRID[1] - GRID[0])
HERMITE = torch.stack([DENSITY, GRID * DENSITY, (GRID**2 - 1) * DENSITY])
FUNCTIONS = {
    "relu": torch.relu, "leaky": lambda x: F.leaky_relu(x, 0.1), "abs": torch.abs, "clamp": lambda x: x.clamp(-0.5, 1.2),
    "clamp_max": lambda x: x.clamp(max=0.3), "hardtanh": F.hardtanh, "relu6": F.relu6, "gelu": F.gelu, "silu": F.silu,
    "tanh": torch.tanh, "sigmoid": torch.sigmoid, "square": torch.square,
}  # fmt: skip
PIECEWISE = ("relu", "leaky", "abs", "clamp", "clamp_max", "hardtanh", "relu6")
ACTIVATIONS = {name: activation_of(tape_of(f, 1).steps[1]) for name, f in FUNCTIONS.items()}
means = st.floats(-5.0, 5.0)
spreads = st.floats(0.05, 3.0)


def number(x):
    return torch.tensor([x], dtype=torch.float64)


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=10, deadline=None)
@given(mean=means, sd=spreads)
def test_coefficients_are_the_integrals(name, mean, sd):
    value = FUNCTIONS[name](mean + sd * GRID)
    found = ACTIVATIONS[name].coefficients(number(mean), number(sd**2))
    centre = DENSITY @ value
    expected = torch.cat([HERMITE @ value, (DENSITY @ (value - centre) ** 2)[None]])
    # 64 nodes do not end where SiLU and tanh of three standard deviations do.
    tolerance = 1e-7 if name in PIECEWISE or name == "square" else 1e-3 * max(sd, 1.0)
    torch.testing.assert_close(torch.cat(found), expected, rtol=tolerance, atol=tolerance)


def pair_by_integral(name, mean, sd, other, other_sd, rho):
    """Over the first variable, of the conditional mean of the second; the latter by the closed form tested above."""
    z, own = GRID[::10], DENSITY[::10] * 10
    value = FUNCTIONS[name](mean + sd * z)
    left = torch.full_like(z, (other_sd**2) * (1 - rho**2))
    given_first = ACTIVATIONS[name].coefficients(other + other_sd * rho * z, left).mean
    return own @ (value * given_first) - (own @ value) * (own @ given_first)


def pair(name, mean, sd, other, other_sd, rho):
    place = torch.tensor([0]), torch.tensor([0]), torch.tensor([1])
    mean, sd, rho = number([mean, other]), number([sd, other_sd]), number([[1.0, rho], [rho, 1.0]])
    return ACTIVATIONS[name].covariance_of_pairs(mean, sd, rho, *place)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("rho", [-0.999, -0.95, 0.4, 0.95, 0.999])
def test_pairs_are_the_double_integral(name, rho):
    for mean, sd, other, other_sd in ((0.0, 1.0, 0.0, 1.0), (0.8, 0.6, -0.5, 1.3), (-1.5, 1.0, -1.2, 0.9)):
        found = pair(name, mean, sd, other, other_sd, rho)
        expected = pair_by_integral(name, mean, sd, other, other_sd, rho)
        scale = sd * other_sd
        assert abs(float(found) - float(expected)) < (2e-6 if name in PIECEWISE else 2e-3) * scale


@settings(max_examples=25, deadline=None)
@given(mean=means, sd=spreads, other=means, other_sd=spreads, rho=st.floats(-0.999, 0.999))
def test_pairs_of_relus_anywhere(mean, sd, other, other_sd, rho):
    found = pair("relu", mean, sd, other, other_sd, rho)
    expected = pair_by_integral("relu", mean, sd, other, other_sd, rho)
    assert abs(float(found) - float(expected)) < 5e-6 * max(1.0, sd * other_sd)


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 1.0), (1.3, 0.4), (-2.0, 1.5)])
def test_gelu_has_its_closed_form(mean, sd):
    t = math.sqrt(1 + sd**2)
    bump = math.exp(-((mean / t) ** 2) / 2) / math.sqrt(2 * math.pi)
    exact = mean * float(torch.special.ndtr(number(mean / t))) + sd**2 / t * bump
    assert float(ACTIVATIONS["gelu"].coefficients(number(mean), number(sd**2)).mean) == pytest.approx(exact, abs=1e-7)


def test_activations_keep_pairs_and_the_stream():
    """ReLU beside the value it reads: three groups of correlations, near ones among them."""
    mean, covariance = correlated(5)
    covariance[0] = covariance[1]
    covariance[:, 0] = covariance[:, 1]
    covariance[0, 0] = 1.01 * covariance[1, 1]

    def both(x):
        return torch.cat([torch.relu(x), x], -1)

    found = law_of(both, (5,), mean, covariance)
    assert_law(found, sampled(both, (5,), mean, covariance), covariance=0.01)


@pytest.mark.parametrize(("sd", "mean_error", "error"), [(0.4, 0.003, 0.01), (1.4, 0.01, 0.02), (2.7, 0.02, 0.1)])
def test_softmax(sd, mean_error, error):
    mean, covariance = correlated(8)
    scale = sd / covariance.diagonal().mean().sqrt()
    mean, covariance = scale * mean, scale**2 * covariance

    def softmax(x):
        return torch.softmax(x, -1)

    expected = sampled(softmax, (8,), mean, covariance)
    assert_law(law_of(softmax, (8,), mean, covariance), expected, mean_error, error)


def test_softmax_along_another_dimension():
    mean, covariance = correlated(6)

    def softmax(x):
        return torch.softmax(x, 1)

    found = law_of(softmax, (3, 2), mean, covariance)
    torch.testing.assert_close(found[0].reshape(3, 2).sum(0), torch.ones(2).double())
    assert_law(found, sampled(softmax, (3, 2), mean, covariance), 0.01, 0.06)


@pytest.mark.parametrize("normalised", ["layer_norm", "rms_norm"])
def test_normalisation(normalised):
    """Twelve numbers of unequal mean: the mean square fluctuates by about 40 per cent."""
    mean, covariance = correlated(12)
    weight, bias = drawn(12).float(), drawn(12, seed=1).float()

    def norm(x):
        return F.layer_norm(x, (12,), weight, bias) if normalised == "layer_norm" else F.rms_norm(x, (12,), weight)

    assert_law(law_of(norm, (12,), mean, covariance), sampled(norm, (12,), mean, covariance), 0.02, 0.05)


def test_attention_of_gaussian_logits_and_values_is_exact():
    """Two heads, two queries, three keys, values two wide; logits and values correlated."""
    size, logits = 24, 12
    mean, covariance = correlated(size)
    joint = FullJoint("all", mean[None], covariance[None])
    joint.places = {"l": slice(0, logits), "v": slice(logits, size)}
    moments = attend(joint, "l", "v", heads=2, queries=2, keys=3)

    def attended(x):
        p = torch.softmax(x[:, :logits].reshape(-1, 2, 2, 3), -1)
        return p @ x[:, logits:].reshape(-1, 2, 3, 2)

    expected = sampled(attended, (size,), mean, covariance)
    own = moments.covariance[0].reshape(4, 2, 4, 2), expected[1].reshape(4, 2, 4, 2)
    sd = expected[1].diagonal().sqrt().reshape(4, 2)
    assert float(((moments.mean[0] - expected[0]) / sd.flatten()).abs().max()) < 0.012
    for i in range(4):
        gap = (own[0][i, :, i] - own[1][i, :, i]) / (sd[i, :, None] * sd[i])
        assert float(gap.abs().max()) < 0.015


@pytest.mark.parametrize("causal", [False, True])
def test_scaled_dot_product_attention(causal):
    """One stream read three ways; logits are products of it, taken as Gaussian beside the values: that is what is lost."""
    mean, covariance = 0.5 * drawn(64), torch.eye(64, dtype=torch.float64)
    read = [drawn(16, 16, seed=s).float() / 4 for s in (5, 6, 7)]

    def attention(x):
        q, k, v = ((x @ w)[:, None] for w in read)
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    expected = sampled(attention, (4, 16), mean, covariance, draws=100_000)
    assert_law(law_of(attention, (4, 16), mean, covariance), expected, 0.03, 0.2)


def test_multi_head_attention():
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, batch_first=True).eval().requires_grad_(False)
    mean, covariance = 0.5 * drawn(32), torch.eye(32, dtype=torch.float64)

    def attention(x):
        return x + module(x, x, x, need_weights=False)[0]

    expected = sampled(attention, (4, 8), mean, covariance, draws=100_000)
    assert_law(law_of(attention, (4, 8), mean, covariance), expected, 0.02, 0.04)


PRODUCTS = {
    "elementwise": lambda x: x[:, :3] * x[:, 3:6],
    "square": lambda x: x * x,
    "matrices": lambda x: x[:, :6].reshape(-1, 2, 3) @ x[:, 6:].reshape(-1, 3, 2),
    "a matrix and its turn": lambda x: x.reshape(-1, 3, 4) @ x.reshape(-1, 3, 4).mT,
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_exact(name):
    mean, covariance = correlated(12, spread=0.8)
    found = law_of(PRODUCTS[name], (12,), mean, covariance)
    assert_law(found, sampled(PRODUCTS[name], (12,), mean, covariance), noise=0.02)


EXTREMES = {
    "amax": (lambda x: x.amax(-1), (3, 4)),
    "amin": (lambda x: x[:, :2, :2].amin((1, 2), keepdim=True), (3, 4)),
    "max": (lambda x: x.max(1).values, (3, 4)),
    "maximum": (lambda x: torch.maximum(x[:, 0], x[:, 1]), (2, 6)),
    "minimum": (lambda x: torch.minimum(x[:, 0], x[:, 1]), (2, 6)),
    "max_pool2d": (lambda x: F.max_pool2d(x, (1, 2)), (1, 3, 4)),
}


@pytest.mark.parametrize("name", EXTREMES)
def test_extremes(name):
    """Two numbers by Clark's exact moments, their covariances by the gains; several, two at a time."""
    function, shape = EXTREMES[name]
    mean, covariance = correlated(12)
    found, expected = law_of(function, shape, mean, covariance), sampled(function, shape, mean, covariance)
    if name in ("maximum", "minimum", "max_pool2d"):
        assert_law(found, expected, covariance=0.06)
        exact = expected[1].diagonal()
        assert float((found[1].diagonal() / exact - 1).abs().max()) < 0.012
    else:
        assert_law(found, expected, 0.03, 0.13)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda x: torch.linalg.matrix_exp(x.reshape(-1, 2, 2)), "matrix_exp.*not known to propagate"),
        (lambda x: x[:, :1] * x, "'mul'.*not known to propagate"),
    ],
)
def test_unknown_steps_are_named(function, text):
    with pytest.raises(RiskError, match=text):
        law_of(function, (4,), *correlated(4))
