"""Transport maps: standard normals pushed through the map follow the input law."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.stats as st
import torch
import torch.distributions as td
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy.special import log_ndtr

from ppl_risk.errors import NoTransportError
from ppl_risk.inputs import transport_of

LOCS, SCALES = some.floats(-5, 5), some.floats(0.05, 20)
SCALAR = {
    "normal": (lambda a, b: td.Normal(a, b), lambda a, b: st.norm(a, b)),
    "lognormal": (lambda a, b: td.LogNormal(a / 5, b / 10), lambda a, b: st.lognorm(b / 10, scale=np.exp(a / 5))),
    "laplace": (lambda a, b: td.Laplace(a, b), lambda a, b: st.laplace(a, b)),
    "exponential": (lambda a, b: td.Exponential(b), lambda a, b: st.expon(scale=1 / b)),
    "uniform": (lambda a, b: td.Uniform(a, a + b), lambda a, b: st.uniform(a, b)),
    "gumbel": (lambda a, b: td.Gumbel(a, b), lambda a, b: st.gumbel_r(a, b)),
    "cauchy": (lambda a, b: td.Cauchy(a, b), lambda a, b: st.cauchy(a, b)),
    "pyro-normal": (lambda a, b: dist.Normal(a, b).mask(True), lambda a, b: st.norm(a, b)),
}


@pytest.mark.parametrize("law", SCALAR)
@settings(deadline=None, max_examples=25, derandomize=True)
@given(loc=LOCS, scale=SCALES)
def test_scalar_law_is_the_quantile_at_phi(law, loc, scale):
    """Exact where the map is monotone: T(u) is the quantile of the law at Phi(u)."""
    ours, scipys = (make(*map(to, (loc, scale))) for make, to in zip(SCALAR[law], (_double, float), strict=True))
    u = np.linspace(-4.5, 4.5, 41)
    low, high = scipys.ppf(np.exp(log_ndtr(u))), scipys.isf(np.exp(log_ndtr(-u)))
    expected = np.where(u < 0, low, high)
    x = transport_of(ours)(torch.as_tensor(u)[:, None]).numpy()
    np.testing.assert_allclose(x, expected, rtol=1e-6, atol=1e-9 * (1 + abs(loc) + scale))


def _double(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("law", ["laplace", "exponential", "lognormal", "normal"])
def test_far_tails_in_single_precision(law):
    """|u| = 8 has tail probability 6e-16, far beyond what float32 can hold next to 1."""
    ours = SCALAR[law][0](torch.tensor(0.5), torch.tensor(1.5))
    scipys = SCALAR[law][1](0.5, 1.5)
    u = torch.tensor([[-8.0], [-6.0], [6.0], [8.0]], requires_grad=True)
    x = transport_of(ours)(u).reshape(-1)
    tail = np.exp(log_ndtr(-np.abs(u.detach().numpy()[:, 0]).astype(float)))
    expected = [*scipys.ppf(tail[:2]), *scipys.isf(tail[2:])]
    np.testing.assert_allclose(x.detach().numpy(), expected, rtol=1e-5)
    (slope,) = torch.autograd.grad(x.sum(), u)
    assert bool((slope > 0).all())
    assert bool(torch.isfinite(slope).all())


@pytest.mark.parametrize("law", SCALAR)
def test_finite_in_single_precision_at_eight(law):
    ours = SCALAR[law][0](torch.tensor(0.5), torch.tensor(1.5))
    x = transport_of(ours)(torch.tensor([[-8.0], [8.0]]))
    assert bool(torch.isfinite(x).all())
    assert float(x[1]) > float(x[0])


@pytest.mark.parametrize(
    ("law", "cdf"),
    [(td.HalfNormal(2.0), st.halfnorm(scale=2.0).cdf), (td.Weibull(2.0, 1.5), st.weibull_min(1.5, scale=2.0).cdf)],
    ids=["half-normal", "weibull"],
)
def test_folded_laws_by_kolmogorov_and_smirnov(law, cdf):
    u = torch.randn(5000, 1, generator=torch.Generator().manual_seed(0))
    assert st.kstest(transport_of(law)(u).reshape(-1).numpy(), cdf).pvalue > 1e-4


def multivariate() -> dict[str, td.Distribution]:
    g = torch.Generator().manual_seed(3)
    root = torch.randn(6, 6, generator=g).tril() + 2 * torch.eye(6)
    roots = torch.randn(6, 6, 6, generator=g).tril() + 2 * torch.eye(6)
    loc = torch.randn(6, 6, generator=g)
    factor = torch.randn(6, 2, generator=g)
    return {
        "mvn": td.MultivariateNormal(loc[0], scale_tril=root),
        "low-rank": td.LowRankMultivariateNormal(loc[0], factor, torch.rand(6, generator=g) + 0.1),
        "rows of mvn": td.Independent(td.MultivariateNormal(loc, scale_tril=root), 1),
        "rows of mvns": td.Independent(td.MultivariateNormal(loc, scale_tril=roots), 1),
        "rows of low-rank": td.Independent(
            td.LowRankMultivariateNormal(loc, factor.expand(6, 6, 2), torch.ones(6, 6)), 1
        ),
        "log of mvn": td.TransformedDistribution(
            td.MultivariateNormal(loc[0] / 3, scale_tril=root / 9), [td.ExpTransform()]
        ),
        "image": td.Independent(td.Laplace(loc.reshape(1, 6, 6), 0.5), 3),
        "affine image": td.TransformedDistribution(
            td.Independent(td.Normal(torch.zeros(1, 6, 6), 1.0), 3), [td.AffineTransform(1.0, 2.0, event_dim=3)]
        ),
        "pyro expanded": dist.Exponential(torch.tensor(2.0)).expand([5]).to_event(1),
        "reshaped": td.TransformedDistribution(
            td.MultivariateNormal(torch.zeros(36), torch.eye(36) + 0.5), [td.ReshapeTransform((36,), (1, 6, 6))]
        ),
        "simplex": td.LogisticNormal(torch.tensor([0.5, -0.5]), torch.tensor([1.0, 0.7])),
    }


@pytest.mark.parametrize("kind", multivariate())
def test_pushed_normals_have_the_moments_of_the_law(kind):
    """Means of x and of random quadratic forms against the law's own draws: two samples, 5 sigmas."""
    law = multivariate()[kind]
    transport = transport_of(law)
    assert transport.event_shape == law.event_shape
    torch.manual_seed(1)
    n = 40_000
    pushed = transport(torch.randn(n, transport.dimension))
    drawn = law.sample((n,))
    assert pushed.shape == drawn.shape
    weights = torch.randn(law.event_shape.numel(), 12) / math.sqrt(law.event_shape.numel())

    centre = drawn.reshape(n, -1).mean(0)
    one_sigma = ((drawn.reshape(n, -1) - centre) @ weights)[:, :1].std()  # some laws are narrow

    def features(x: torch.Tensor) -> np.ndarray:
        flat = x.reshape(n, -1)
        scores = (flat - centre) @ weights
        return torch.cat([flat[:, :36], scores.square(), (scores[:, :1] > one_sigma).float()], 1).double().numpy()

    one, two = features(pushed), features(drawn)
    error = np.sqrt(one.var(0) / n + two.var(0) / n)
    assert (np.abs(one.mean(0) - two.mean(0)) / error).max() < 5


@pytest.mark.parametrize("kind", multivariate())
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_leading_batch_shapes_pass_row_by_row(kind, lead):
    transport = transport_of(multivariate()[kind])
    u = torch.randn(*lead, transport.dimension)
    x = transport(u)
    assert x.shape == (*lead, *transport.event_shape)
    rows = torch.stack([transport(row) for row in u.reshape(-1, transport.dimension)])
    torch.testing.assert_close(x.reshape(rows.shape), rows, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "law",
    [
        td.VonMises(0.0, 1.0),
        td.Independent(td.VonMises(torch.zeros(3), 1.0), 1),
        td.Dirichlet(torch.ones(3)),
        td.Multinomial(5, torch.ones(3)),
        td.MixtureSameFamily(td.Categorical(torch.ones(2)), td.VonMises(torch.zeros(2), 1.0)),
    ],
    ids=lambda law: type(law).__name__,
)
def test_law_without_a_map_says_what_still_works(law):
    with pytest.raises(NoTransportError, match=r"monte_carlo.*TransformedDistribution.*PyroModel"):
        transport_of(law)
