"""Third-cumulant propagation and the skew-corrected tail: closed forms first, then Monte Carlo."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ppl_risk.errors import RiskError
from ppl_risk.propagation.cumulants import Cumulants
from ppl_risk.propagation.cumulants_activation import SMOOTH, hermite_table
from ppl_risk.propagation.skewed import corrected_tail


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated(n, seed=0):
    half = drawn(n, n, seed=seed) / math.sqrt(n)
    return half @ half.T + 0.1 * torch.eye(n)


def through(weights, f="relu", order=3):
    x = Cumulants.gaussian(torch.zeros(weights[0].shape[1]), torch.eye(weights[0].shape[1]))
    for weight in weights[:-1]:
        x = x.affine(weight).activation(f, order=order)
    return x.affine(weights[-1])


def joint_third(x, a, b, c):
    """kappa(a.x, b.x, c.x) from cumulants of sums alone."""
    sums = [a + b + c, a + b, a + c, b + c, a, b, c]
    signs = torch.tensor([1, -1, -1, -1, 1, 1, 1]).double()
    return (signs * x.third(torch.stack(sums))).sum() / 6


@pytest.mark.parametrize("f", ["relu", *SMOOTH])
def test_table_is_the_integral_of_the_centred_powers(f):
    mean, sd = torch.tensor([0.3, -1.2, 2.0, -40.0]).double(), torch.tensor([0.7, 1.5, 0.2, 2.0]).double()
    grid = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = torch.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi) * (grid[1] - grid[0])
    orders = torch.stack([density, grid * density, (grid**2 - 1) * density, (grid**3 - 3 * grid) * density])
    orders = torch.cat([orders, ((grid**4 - 6 * grid**2 + 3) * density)[None]])
    function = torch.relu if f == "relu" else SMOOTH[f]
    value = function(mean[:, None] + sd[:, None] * grid)
    centre = value @ density
    expected = torch.stack([orders @ (value - centre[:, None]).T ** p for p in range(1, 5)])
    found, table = hermite_table(f, mean, sd)
    torch.testing.assert_close(found, centre, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(table, expected, rtol=2e-6, atol=1e-9)


def test_affine_maps_keep_a_gaussian_gaussian():
    weight, bias, covariance = drawn(3, 4), drawn(3, seed=1), correlated(4)
    x = Cumulants.gaussian(torch.ones(4), covariance).affine(weight, bias)
    torch.testing.assert_close(x.mean, weight.sum(1) + bias)
    torch.testing.assert_close(x.covariance, weight @ covariance @ weight.T)
    assert (x.third(torch.eye(3)) == 0).all()
    assert float(x.tau) == 0


def test_relu_of_independent_units_is_exact():
    mean, variance, weight = drawn(5), drawn(5, seed=1).square() + 0.1, drawn(4, 5, seed=2)
    grid = torch.linspace(-12, 12, 400_001, dtype=torch.float64)
    density = torch.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi) * (grid[1] - grid[0])
    value = (mean[:, None] + variance.sqrt()[:, None] * grid).relu()
    centred = value - (value @ density)[:, None]
    x = Cumulants.gaussian(mean, torch.diag(variance)).activation("relu").affine(weight)
    torch.testing.assert_close(x.mean, weight @ (value @ density), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(x.covariance, weight * (centred**2 @ density) @ weight.T, rtol=1e-7, atol=1e-8)
    kappa = centred**3 @ density
    torch.testing.assert_close(x.third(torch.eye(4)), weight**3 @ kappa, rtol=1e-7, atol=1e-8)
    for i, j, k in itertools.combinations_with_replacement(range(4), 3):
        found = joint_third(x, *torch.eye(4).double()[[i, j, k]])
        torch.testing.assert_close(found, weight[i] * weight[j] * weight[k] @ kappa, rtol=1e-6, atol=1e-7)


def test_squares_of_correlated_units():
    mean, s = drawn(4), correlated(4)
    x = Cumulants.gaussian(mean, s).activation(torch.square)
    torch.testing.assert_close(x.mean, mean**2 + s.diagonal())
    torch.testing.assert_close(x.covariance, 4 * torch.outer(mean, mean) * s + 2 * s**2)
    for i, j, k in itertools.combinations_with_replacement(range(4), 3):
        paths = (
            mean[i] * s[i, j] * s[j, k] * mean[k]
            + mean[j] * s[j, k] * s[k, i] * mean[i]
            + mean[k] * s[k, i] * s[i, j] * mean[j]
        )
        triangle = 8 * s[i, j] * s[j, k] * s[k, i]
        # distinct units: paths only, the triangle has no such factors; repeated ones are exact
        expected = 8 * paths + (0 if len({i, j, k}) == 3 else triangle)
        torch.testing.assert_close(joint_third(x, *torch.eye(4).double()[[i, j, k]]), expected)


def test_the_identity_changes_nothing():
    x = through([drawn(6, 6, seed=s) / 2 for s in range(3)])
    y = x.activation(lambda z: z)
    assert float(x.tau) > 0.01
    directions = drawn(20, 6, seed=9)
    for before, after in (
        (x.mean, y.mean),
        (x.covariance, y.covariance),
        (x.third(directions), y.third(directions)),
        (x.tau, y.tau),
    ):
        torch.testing.assert_close(before, after)


def test_scaling_the_weights_scales_the_cumulants():
    weights = [drawn(6, 6, seed=s) / 2 for s in range(3)]
    x, y = through(weights), through([1e-3 * weights[0], 7 * weights[1], weights[2]])
    torch.testing.assert_close(7e-3 * x.mean, y.mean)
    torch.testing.assert_close(7e-3**2 * x.covariance, y.covariance)
    torch.testing.assert_close(7e-3**3 * x.third(torch.eye(6)), y.third(torch.eye(6)))
    torch.testing.assert_close(x.skewness(), y.skewness())
    torch.testing.assert_close(x.tau, y.tau)


@pytest.fixture(scope="module")
def sampled():
    """Four weight layers, 48 wide, and draws of the last pre-activations."""
    weights = [drawn(48, 48, seed=s) * math.sqrt(2 / 48) for s in range(4)]
    x = torch.randn(300_000, 48, generator=torch.Generator().manual_seed(5))
    x = torch.cat([x, -x])
    for weight in weights[:-1]:
        x = (x @ weight.T.float()).relu()
    return weights, (x @ weights[-1].T.float()).double()


def test_third_order_beats_second_against_monte_carlo(sampled):
    weights, draws = sampled
    second, third = through(weights, order=2), through(weights)
    centred = draws - draws.mean(0)
    covariance = centred.T @ centred / len(draws)
    for truth, one, two in (
        (draws.mean(0), third.mean, second.mean),
        (covariance, third.covariance, second.covariance),
    ):
        assert (one - truth).square().mean() < 0.2 * (two - truth).square().mean()
    kappa = (centred**3).mean(0)
    assert (third.third(torch.eye(48)) - kappa).norm() < 0.15 * kappa.norm()
    excess = ((centred**4).mean(0) / centred.square().mean(0) ** 2 - 3).mean()
    assert abs(3 * third.tau - excess) < 0.3 * excess


def test_log_tail_against_monte_carlo(sampled):
    weights, draws = sampled
    x = through(weights)
    threshold = draws.T.topk(len(draws) // 1000, dim=1).values[:, -1]
    normal = torch.special.log_ndtr((x.mean - threshold) / x.covariance.diagonal().sqrt())
    gamma = corrected_tail(x.mean, x.covariance.diagonal().sqrt(), x.skewness(), threshold)
    errors = [(found - math.log(1e-3)).abs().mean() for found in (x.log_tail(threshold), gamma, normal)]
    assert errors[0] < 0.7 * errors[1] < 0.7 * 0.7 * errors[2]


def test_a_smooth_activation_against_monte_carlo():
    weights = [drawn(48, 48, seed=s) * math.sqrt(1 / 48) for s in range(3)]
    x = torch.randn(200_000, 48, generator=torch.Generator().manual_seed(5)).double()
    for weight in weights[:-1]:
        x = torch.nn.functional.gelu(x @ weight.T)
    x = x @ weights[-1].T
    found = through(weights, "gelu")
    kappa = ((x - x.mean(0)) ** 3).mean(0)
    assert (found.third(torch.eye(48)) - kappa).norm() < 0.2 * kappa.norm()
    assert (found.mean - x.mean(0)).abs().max() < 5 * (x.var(0) / len(x)).sqrt().max()


def test_units_that_do_not_move_do_no_harm():
    covariance = torch.diag(torch.tensor([1.0, 0.0, 1.0, 1e-12]).double())
    weight = drawn(4, 4).requires_grad_()
    x = Cumulants.gaussian(torch.tensor([0.0, 1.0, -30.0, 2.0]), covariance).activation("relu")
    torch.testing.assert_close(x.mean[1:], torch.tensor([1.0, 0.0, 2.0]).double())
    y = x.affine(weight).activation("relu").affine(weight)
    (y.mean.sum() + y.third(torch.eye(4)).sum() + y.tau).backward()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()


def test_gradients_are_those_of_differences():
    def summary(first, second):
        x = through([first, second, torch.eye(3)])
        return torch.cat([x.mean, x.covariance.flatten(), x.third(torch.eye(3)), x.tau[None]])

    assert torch.autograd.gradcheck(summary, (drawn(3, 3).requires_grad_(), drawn(3, 3, seed=1).requires_grad_()))


def test_a_breakdown_is_said():
    weights = [drawn(16, 16, seed=s) * math.sqrt(2 / 16) for s in range(20)]
    with pytest.raises(RiskError, match="broken down"):
        through(weights, "gelu")
    assert through(weights, "gelu", order=2).mean.isfinite().all()
    with pytest.raises(RiskError, match="of no law"):
        Cumulants.gaussian(torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]])).activation("relu")
    twins = Cumulants.gaussian(torch.zeros(2), torch.ones(2, 2)).activation("relu")  # a correlation of 1 is lawful
    assert twins.mean.isfinite().all()


def test_what_is_refused():
    x = Cumulants.gaussian(torch.zeros(2), torch.eye(2))
    with pytest.raises(RiskError, match="order 2 or 3"):
        x.activation("relu", order=4)
    with pytest.raises(RiskError, match="softplus"):
        x.activation("softplus")


def tail(skewness, z, excess=None):
    one = torch.ones((), dtype=torch.float64)
    excess = None if excess is None else excess * one
    return corrected_tail(3 * one, 2 * one, skewness * one, 3 + 2 * torch.as_tensor(z, dtype=torch.float64), excess)


@pytest.mark.parametrize("skewness", [-1.5, -0.5, -0.05, 0.02, 0.3, 1.0, 1.5])
def test_corrected_tail_is_the_gamma(skewness):
    size = abs(skewness)
    # short sides end half way to the gamma's end; 40 sd on a long side is e^-50 and less
    z = np.linspace(-1 / size if skewness > 0 else -40, 40 if skewness > 0 else 1 / size, 401)
    z = z[np.abs(z) < 40]
    k = 4 / size**2
    exact = stats.gamma.logsf(k + math.sqrt(k) * z, k) if skewness > 0 else stats.gamma.logcdf(k - math.sqrt(k) * z, k)
    seen = exact > -600  # scipy's own logarithm ends near there
    np.testing.assert_allclose(tail(skewness, z)[seen], exact[seen], atol=2e-3, rtol=0)


def test_corrected_tail_without_skewness_is_normal():
    z = np.linspace(-30, 30, 601)
    np.testing.assert_allclose(tail(0.0, z), stats.norm.logsf(z), rtol=1e-12)


@pytest.mark.parametrize(("skewness", "excess"), [(0.0, 0.3), (0.3, 0.5), (-0.3, 0.4), (0.5, 0.0)])
def test_excess_is_a_fluctuating_variance(skewness, excess):
    tau = max((excess - 1.5 * skewness**2) / (3 + 0.375 * skewness**2), 0.0)
    sigma = math.sqrt(math.log1p(tau))
    y = np.linspace(-12, 12, 301)
    scale, weight = np.exp(sigma * y / 2 - sigma**2 / 4), stats.norm.pdf(y) * (y[1] - y[0])
    z = np.linspace(-8, 8, 17)
    mixed = np.exp(tail(skewness * math.exp(-0.375 * sigma**2), z[:, None] / scale).numpy()) @ weight
    np.testing.assert_allclose(tail(skewness, z, excess), np.log(mixed), atol=2e-3)
    grid = np.linspace(-25, 25, 2000)  # moments from the tail: E f^q = integral of q z^(q-1) Pr, over both sides
    above = np.exp(tail(skewness, grid, excess).numpy()) - (grid < 0)
    moments = [np.trapezoid(q * grid ** (q - 1) * above, grid) for q in range(1, 5)]
    wanted = [0, 1, skewness, 3 + max(excess, 1.5 * skewness**2)]
    np.testing.assert_allclose(moments, wanted, atol=0.01)


def test_corrected_tail_is_differentiable_in_every_argument():
    z = torch.tensor([-3.0, -0.5, 0.5, 3.0, 8.0]).double()
    for skewness, excess in ((-0.8, 1.5), (-0.1, 0.2), (0.15, 0.2), (0.8, 1.5)):
        start = [torch.full_like(z, value).requires_grad_() for value in (0.1, 1.2, skewness, excess)]
        assert torch.autograd.gradcheck(corrected_tail, (*start[:3], z.requires_grad_(), start[3]))
        assert torch.autograd.gradcheck(corrected_tail, (*start[:3], z.requires_grad_()))


@settings(deadline=None, max_examples=200)
@given(st.floats(-1.5, 1.5), st.floats(-30, 30), st.floats(1e-3, 5), st.none() | st.floats(-1, 3))
def test_corrected_tail_is_a_falling_probability(skewness, z, step, excess):
    low, high = tail(skewness, [z, z + step], excess).tolist()
    assert -math.inf < high <= low <= 0
    if z > 0:
        assert high < low
