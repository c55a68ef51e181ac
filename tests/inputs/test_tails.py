"""Laws with quantiles by formula or by SciPy: cdf(T(u)) = Phi(u) in both tails, gradients, precision, parameters."""

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.stats as st
import torch
import torch.distributions as td
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy.special import log_ndtr

from ppl_risk.inputs import transport_of
from ppl_risk.inputs.tails import ndtr, thresholds

# name -> (law of two parameters in (0.3, 6), the same in SciPy)
LAWS = {
    "gamma": (lambda a, b: td.Gamma(a, b), lambda a, b: st.gamma(a, scale=1 / b)),
    "chi2": (lambda a, b: td.Chi2(a + b), lambda a, b: st.chi2(a + b)),
    "inverse-gamma": (lambda a, b: td.InverseGamma(a + 1, b), lambda a, b: st.invgamma(a + 1, scale=b)),
    "beta": (lambda a, b: td.Beta(a, b), lambda a, b: st.beta(a, b)),
    "student": (lambda a, b: td.StudentT(a + 1, -b, a), lambda a, b: st.t(a + 1, -b, a)),
    "cauchy": (lambda a, b: td.Cauchy(0 * a, b), lambda a, b: st.cauchy(0, b)),
    "half-cauchy": (lambda a, b: td.HalfCauchy(b), lambda a, b: st.halfcauchy(scale=b)),
    "half-normal": (lambda a, b: td.HalfNormal(b), lambda a, b: st.halfnorm(scale=b)),
    "gumbel": (lambda a, b: td.Gumbel(a, b), lambda a, b: st.gumbel_r(a, b)),
    "weibull": (lambda a, b: td.Weibull(b, a + 0.5), lambda a, b: st.weibull_min(a + 0.5, scale=b)),
    "pareto": (lambda a, b: td.Pareto(b, a + 1), lambda a, b: st.pareto(a + 1, scale=b)),
    "generalised pareto": (
        lambda a, b: td.GeneralizedPareto(0 * a, b, a / 6),
        lambda a, b: st.genpareto(a / 6, scale=b),
    ),
    "lognormal": (lambda a, b: td.LogNormal(a, b / 3), lambda a, b: st.lognorm(b / 3, scale=np.exp(a))),
    "exponential": (lambda a, b: td.Exponential(b), lambda a, b: st.expon(scale=1 / b)),
    "laplace": (lambda a, b: td.Laplace(0 * a, b), lambda a, b: st.laplace(0, b)),
    "logistic": (lambda a, b: dist.Logistic(0 * a, b), lambda a, b: st.logistic(0, b)),
    "uniform": (lambda a, b: td.Uniform(-a, 0 * b), lambda a, b: st.uniform(-a, a)),
}
DECREASING = {"inverse-gamma"}
# Within float64 of an end that is not 0 nothing can be told apart: the tail there is held to less.
NEAR_AN_END = {"beta": 1, "uniform": -1, "pareto": -1}
PARAMETER = some.floats(0.3, 6.0)


def tails_of(scipys, x, u):
    """log of the tail that u is in, from the law's own cdf or survival function."""
    with np.errstate(divide="ignore"):
        return np.where(u < 0, scipys.logcdf(x), scipys.logsf(x))


@pytest.mark.parametrize("law", LAWS)
@settings(deadline=None, max_examples=12, derandomize=True)
@given(a=PARAMETER, b=PARAMETER)
def test_tail_probability_is_that_of_the_normal(law, a, b):
    """|u| up to 12, tail probability 2e-33: the law's own tail at T(u) is Phi(-|u|) to 1e-6 relative."""
    ours = LAWS[law][0](*(torch.tensor(value, dtype=torch.float64) for value in (a, b)))
    scipys = LAWS[law][1](a, b)
    u = np.array([-12.0, -8.0, -5.0, -2.0, -0.7, -0.1, 0.0, 0.3, 1.0, 3.0, 6.0, 9.0, 12.0])
    if law in NEAR_AN_END:
        u = u[(u > -5.5) if NEAR_AN_END[law] < 0 else (u < 5.5)]
    if law == "uniform":
        u = u[u < 5.5]
    x = transport_of(ours)(torch.as_tensor(u)[:, None]).reshape(-1).numpy()
    side = -u if law in DECREASING else u
    wanted = log_ndtr(-np.abs(u))
    got = tails_of(scipys, x, side)
    kept = (np.abs(x) > 1e-290) & (np.abs(x) < 1e290)
    assert kept.sum() >= 8
    np.testing.assert_allclose(got[kept], wanted[kept], atol=1e-6 if law not in NEAR_AN_END else 1e-4)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_monotone_finite_and_differentiable(law, dtype):
    """Strictly monotone on |u| <= 8 with slopes that are those of differences, finite to 12, of the law's type."""
    ours = LAWS[law][0](torch.tensor(1.7, dtype=dtype), torch.tensor(2.3, dtype=dtype))
    transport = transport_of(ours)
    assert (transport.dimension, transport.discrete) == (1, None)
    u = torch.linspace(-12, 12, 49, dtype=dtype)[:, None].requires_grad_()
    x = transport(u)
    assert x.dtype == dtype == ours.sample().dtype
    assert x.shape == (49,) or x.shape == (49, *ours.event_shape)
    (slope,) = torch.autograd.grad(x.sum(), u)
    assert bool(torch.isfinite(x).all() & torch.isfinite(slope).all())
    sign = -1 if law in DECREASING else 1
    low, high = (13, 35) if law in NEAR_AN_END else (8, 41)
    assert bool((sign * slope[low:high] > 0).all())
    assert bool((sign * x[low:high].diff() > 0).all())
    if dtype is torch.float64:
        with torch.no_grad():
            difference = (transport(u + 1e-6) - transport(u - 1e-6)) / 2e-6
        inside = slice(15, 34)
        torch.testing.assert_close(slope[inside, 0], difference[inside], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("law", [k for k in LAWS if k not in NEAR_AN_END])
def test_single_precision_does_not_saturate(law):
    """float32 at |u| = 11 is the float64 value to 1e-3: nothing was rounded to 1 on the way."""
    values = [
        transport_of(LAWS[law][0](torch.tensor(1.7, dtype=t), torch.tensor(2.3, dtype=t)))(
            torch.tensor([[-11.0], [-7.0], [7.0], [11.0]], dtype=t)
        )
        for t in (torch.float32, torch.float64)
    ]
    torch.testing.assert_close(values[0].double(), values[1], rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("law", ["gamma", "beta", "student"])
def test_gradients_of_parameters_are_those_of_differences(law):
    """They matter where a parameter is itself random."""
    u = torch.linspace(-4, 3, 9, dtype=torch.float64)[:, None]
    a, b = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (1.7, 2.3))
    found = torch.autograd.grad(transport_of(LAWS[law][0](a, b))(u).sum(), (a, b))
    for place, gradient in enumerate(found):
        ends = []
        for sign in (1, -1):
            moved = [1.7, 2.3]
            moved[place] += sign * 1e-4
            law_there = LAWS[law][0](*(torch.tensor(v, dtype=torch.float64) for v in moved))
            ends.append(float(transport_of(law_there)(u).sum()))
        assert float(gradient) == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-5)


def test_batched_laws_with_a_law_a_row():
    """Independent laws with parameters of their own; each column follows its own law."""
    g = torch.Generator().manual_seed(0)
    concentration = torch.tensor([0.5, 2.0, 40.0])
    law = td.Independent(td.Gamma(concentration, torch.tensor(2.0)), 1)
    x = transport_of(law)(torch.randn(4000, 3, generator=g))
    assert x.shape == (4000, 3)
    for column, a in zip(x.T, concentration, strict=True):
        assert st.kstest(column.numpy(), st.gamma(float(a), scale=0.5).cdf).pvalue > 1e-4


def test_uniform_near_an_end_that_is_zero():
    u = torch.tensor([[-12.0], [-9.0]], dtype=torch.float64)
    upper, lower = transport_of(td.Uniform(-2.0, 0.0))(-u), transport_of(td.Uniform(0.0, 2.0))(u)
    np.testing.assert_allclose(lower.numpy(), 2 * np.exp(log_ndtr(u[:, 0].numpy())), rtol=1e-6)
    torch.testing.assert_close(upper, -lower)


def test_tails_and_thresholds_are_exact_on_both_sides():
    u = torch.tensor([-30.0, -12.0, -5.0, 0.0], dtype=torch.float64)
    np.testing.assert_allclose(ndtr(u).log().numpy(), log_ndtr(u.numpy()), rtol=1e-12)
    p = torch.tensor([1e-30, 0.3, 1.0])
    found = thresholds(p, torch.tensor([1.0, 0.7, 1e-30])).numpy()
    np.testing.assert_allclose(found, [st.norm.ppf(1e-30), st.norm.ppf(0.3), st.norm.isf(1e-30)], rtol=1e-6)
