"""The map of a law is the law: against its own draws, and against exact quantiles at 1e-3 and 1e-6 in both tails."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats as st
import torch
import torch.distributions as td

from ppl_risk.inputs import EmpiricalWithNoise, Product, PyroModel, transport_of

TYPES = {"float32": torch.float32, "float64": torch.float64}
#: Standard normals at 1e-6, 1e-3 and their mirror images.
TAILS = [-4.753424308822899, -3.090232306167813, 3.090232306167813, 4.753424308822899]


def _logistic(t):
    return td.TransformedDistribution(
        td.Uniform(t(0.0), t(1.0)), [td.SigmoidTransform().inv, td.AffineTransform(t(1.0), t(2.0))]
    )


#: name -> (law with parameters made by t, the same in SciPy where it is there).
ONE_NUMBER = {
    "normal": (lambda t: td.Normal(t(1.0), t(2.0)), st.norm(1, 2)),
    "lognormal": (lambda t: td.LogNormal(t(0.25), t(1.5)), st.lognorm(1.5, scale=math.exp(0.25))),
    "laplace": (lambda t: td.Laplace(t(1.0), t(2.0)), st.laplace(1, 2)),
    "cauchy": (lambda t: td.Cauchy(t(1.0), t(2.0)), st.cauchy(1, 2)),
    "half-cauchy": (lambda t: td.HalfCauchy(t(2.0)), st.halfcauchy(scale=2)),
    "half-normal": (lambda t: td.HalfNormal(t(2.0)), st.halfnorm(scale=2)),
    "gumbel": (lambda t: td.Gumbel(t(1.0), t(2.0)), st.gumbel_r(1, 2)),
    "pareto": (lambda t: td.Pareto(t(1.5), t(3.0)), st.pareto(3, scale=1.5)),
    "generalised pareto": (lambda t: td.GeneralizedPareto(t(0.0), t(1.0), t(-0.25)), st.genpareto(-0.25)),
    "weibull": (lambda t: td.Weibull(t(2.0), t(0.75)), st.weibull_min(0.75, scale=2)),
    "uniform": (lambda t: td.Uniform(t(-1.0), t(2.0)), st.uniform(-1, 3)),
    "exponential": (lambda t: td.Exponential(t(0.5)), st.expon(scale=2)),
    "logistic by transforms": (_logistic, st.logistic(1, 2)),
    "logistic": (lambda t: dist.Logistic(t(1.0), t(2.0)), st.logistic(1, 2)),
    "student 2.125": (lambda t: td.StudentT(t(2.125)), st.t(2.125)),
    "student 0.5": (lambda t: td.StudentT(t(0.5)), st.t(0.5)),
    "student 30": (lambda t: td.StudentT(t(30.0), t(1.0), t(2.0)), st.t(30, 1, 2)),
    "gamma": (lambda t: td.Gamma(t(2.5), t(2.0)), st.gamma(2.5, scale=0.5)),
    "gamma 0.25": (lambda t: td.Gamma(t(0.25), t(1.0)), st.gamma(0.25)),
    "gamma 1000": (lambda t: td.Gamma(t(1000.0), t(1.0)), st.gamma(1000)),
    "inverse gamma": (lambda t: td.InverseGamma(t(2.5), t(2.0)), st.invgamma(2.5, scale=2)),
    "chi2": (lambda t: td.Chi2(t(3.0)), st.chi2(3)),
    "beta": (lambda t: td.Beta(t(2.0), t(3.0)), st.beta(2, 3)),
    "beta 0.5": (lambda t: td.Beta(t(0.5), t(0.5)), st.beta(0.5, 0.5)),
    "beta 4096": (lambda t: td.Beta(t(4096.0), t(2.0)), st.beta(4096, 2)),
    "fisher": (lambda t: td.FisherSnedecor(t(5.0), t(7.0)), st.f(5, 7)),
    "kumaraswamy": (lambda t: td.Kumaraswamy(t(2.0), t(3.0)), None),
    "continuous bernoulli": (lambda t: td.ContinuousBernoulli(probs=t(0.25)), None),
    "soft laplace": (lambda t: dist.SoftLaplace(t(0.0), t(1.0)), None),
    "poisson": (lambda t: td.Poisson(t(4.5)), st.poisson(4.5)),
    "poisson 1e4": (lambda t: td.Poisson(t(1e4)), st.poisson(1e4)),
    "binomial": (lambda t: td.Binomial(40, probs=t(0.25)), st.binom(40, 0.25)),
    "geometric": (lambda t: td.Geometric(probs=t(2.0**-10)), st.geom(2.0**-10, loc=-1)),
    "negative binomial": (lambda t: td.NegativeBinomial(t(3.0), probs=t(0.25)), st.nbinom(3, 0.75)),
    "bernoulli": (lambda t: td.Bernoulli(probs=t(0.25)), st.bernoulli(0.25)),
    "categorical": (lambda t: td.Categorical(probs=t([0.5, 0.25, 0.25])), None),
    "mixture": (
        lambda t: td.MixtureSameFamily(td.Categorical(t([0.25, 0.75])), td.StudentT(t(3.0), t([-3.0, 3.0]), t(1.0))),
        None,
    ),
    "data": (lambda t: EmpiricalWithNoise(t([-1.0, 0.0, 4.0]), 0.25), None),
    "product": (lambda t: Product([td.Beta(t(2.0), t(3.0))]), None),
}
DECREASING = {"inverse gamma"}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", ONE_NUMBER)
def test_one_number(name, kind):
    """Two samples by Kolmogorov and Smirnov, and far out by exact tails, up to one rounding of x in its type."""
    make, known = ONE_NUMBER[name]
    law = make(lambda v: torch.tensor(v, dtype=TYPES[kind]))
    transport = transport_of(law)
    torch.manual_seed(0)
    ours = transport(torch.randn(10_000, transport.dimension, dtype=TYPES[kind])).reshape(-1).double().numpy()
    theirs = law.sample((10_000,)).reshape(-1).double().numpy()
    assert st.ks_2samp(ours, theirs, method="asymp").pvalue > 1e-4
    if known is None:
        return
    u = torch.tensor(TAILS, dtype=TYPES[kind]) * (-1 if name in DECREASING else 1)
    x = transport(u[:, None]).reshape(-1).double().numpy()
    lower, upper = st.norm.cdf(TAILS), st.norm.sf(TAILS)
    if hasattr(known.dist, "pmf"):
        # Where u is rounded, a law of whole numbers may be one step off.
        expected = np.where(lower < 0.5, known.ppf(lower), known.isf(upper))
        np.testing.assert_allclose(x, expected, atol=0, rtol=1e-12 if kind == "float64" else 1e-6)
        return
    eps = torch.finfo(TYPES[kind]).eps
    around = np.stack([x - eps * np.abs(x), x, x + eps * np.abs(x)])
    tail = np.where(lower < 0.5, known.logcdf(around), known.logsf(around))
    exact = np.where(lower < 0.5, np.log(lower), np.log(upper))
    slack = 1e-9 if kind == "float64" else 1e-5
    assert (tail.min(0) - slack <= exact).all()
    assert (exact <= tail.max(0) + slack).all()


def _gaussians(t):
    """Laws and their covariances: directions that differ by up to seven decades in variance."""
    g = torch.Generator().manual_seed(0)
    n, turn = 4, torch.linalg.qr(torch.randn(4, 4, generator=g, dtype=torch.float64)).Q
    wide = (turn * torch.tensor([1.0, 1e-2, 1e-3, 1e-4], dtype=torch.float64)) @ turn.mT
    factor, small = torch.randn(n, 2, generator=g, dtype=torch.float64), torch.full((n,), 1e-4, dtype=torch.float64)
    tril = torch.linalg.cholesky(wide)
    loc = t(torch.arange(float(n)))
    for scale in (1.0, 30.0, 1000.0):
        low_rank = td.LowRankMultivariateNormal(loc, t(scale * factor), t(small))
        w, d = t(scale * factor).double(), t(small).double()
        yield f"low rank {scale}", low_rank, w @ w.mT + torch.diag(d)
        moved = td.TransformedDistribution(low_rank, [td.AffineTransform(loc, t(torch.tensor(-3.0)), event_dim=1)])
        yield f"low rank {scale} moved", moved, 9 * (w @ w.mT + torch.diag(d))
    yield "covariance", dist.MultivariateNormal(loc, t(wide)), t(wide).double()
    asked = td.MultivariateNormal(loc, t(wide))
    assert asked.precision_matrix.shape == asked.scale_tril.shape  # kept by torch beside what was given
    yield "covariance, others asked for", asked, t(wide).double()
    yield "precision", td.MultivariateNormal(loc, precision_matrix=t(wide)), torch.linalg.inv(t(wide).double())
    given = td.MultivariateNormal(loc, scale_tril=t(tril))
    assert given.covariance_matrix.shape == (n, n)
    yield "factor", given, t(tril).double() @ t(tril).double().mT
    yield (
        "expanded",
        td.Independent(td.MultivariateNormal(loc, t(wide)).expand([2]), 1),
        torch.block_diag(*2 * [t(wide).double()]),
    )


@pytest.mark.parametrize("kind", TYPES)
def test_gaussian_maps_have_the_covariance_that_was_given(kind):
    """A A^T = C in every direction: in units of C, which weigh a direction of small variance like the others."""
    for name, law, covariance in _gaussians(lambda v: v.to(TYPES[kind])):
        transport = transport_of(law)
        loc, matrix = transport.affine
        white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), matrix, upper=False)
        gap = (white @ white.mT - torch.eye(len(white), dtype=torch.float64)).abs().max()
        assert float(gap) < (1e-3 if "low rank 1000" in name else 1e-5), (name, float(gap))
        u = torch.randn(50, transport.dimension, dtype=TYPES[kind], generator=torch.Generator().manual_seed(1))
        x, exact = transport(u).reshape(50, -1), loc + u.double() @ matrix.mT
        assert x.dtype == TYPES[kind]
        rounding = 16 * torch.finfo(TYPES[kind]).eps * exact.abs().amax()
        torch.testing.assert_close(x.double(), exact, rtol=0, atol=float(rounding))


@pytest.mark.parametrize(
    ("law", "affine", "alone"),
    [
        (td.Independent(td.Normal(torch.zeros(2), 2.0), 1), True, True),
        (td.TransformedDistribution(td.Independent(td.Normal(torch.zeros(2), 1.0), 1), [td.AffineTransform(1.0, 2.0)]), True, True),
        (td.Independent(td.TransformedDistribution(td.Normal(torch.zeros(2), 1.0), [td.AffineTransform(1.0, 2.0)]), 1), True, True),
        (td.MultivariateNormal(torch.zeros(2), torch.eye(2)), True, False),
        (Product([td.Normal(0.0, 1.0), dist.Delta(torch.ones(3)).to_event(1)]), True, False),
        (Product([td.Normal(0.0, 1.0), td.Gamma(1.0, 1.0)]), False, True),
        (td.Independent(td.LogNormal(torch.zeros(2), 1.0), 1), False, True),
        (td.LogisticNormal(torch.zeros(2), torch.ones(2)), False, False),
        (td.OneHotCategorical(torch.ones(3)), False, False),
        (EmpiricalWithNoise(torch.zeros(3, 2), 1.0), False, False),
        (PyroModel(lambda: pyro.sample("x", dist.Normal(0.0, 1.0))), False, False),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, td.Distribution) else str(v),
)  # fmt: skip
def test_a_map_says_what_it_is(law, affine, alone):
    """One law in two ways of writing is one law."""
    transport = transport_of(law)
    assert (transport.affine is not None, transport.coordinatewise) == (affine, alone)
    if affine:
        loc, matrix = transport.affine
        u = torch.randn(5, transport.dimension, dtype=torch.float64)
        torch.testing.assert_close(transport(u).reshape(5, -1).double(), loc + u @ matrix.mT)
