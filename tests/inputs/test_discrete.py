"""Step functions of a normal: F(x - 1) < Phi(u) <= F(x) in both tails, whatever the probabilities."""

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.stats as st
import torch
import torch.distributions as td
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy.special import ndtr

from ppl_risk.inputs import transport_of

P, MEAN = some.floats(1e-6, 0.999), some.floats(0.01, 300.0)
LAWS = {
    "bernoulli": (lambda p, m: td.Bernoulli(p), lambda p, m: st.bernoulli(p)),
    "bernoulli by logits": (lambda p, m: td.Bernoulli(logits=p.log() - (-p).log1p()), lambda p, m: st.bernoulli(p)),
    "binomial": (lambda p, m: td.Binomial(17, p), lambda p, m: st.binom(17, p)),
    "geometric": (lambda p, m: td.Geometric(p), lambda p, m: st.geom(p, loc=-1)),
    "poisson": (lambda p, m: td.Poisson(m), lambda p, m: st.poisson(m)),
    "negative binomial": (lambda p, m: td.NegativeBinomial(m, 0.9 * p), lambda p, m: st.nbinom(m, 1 - 0.9 * p)),
    "categorical": (
        lambda p, m: td.Categorical(torch.stack([p / 2, 1 - p, p / 2])),
        lambda p, m: st.rv_discrete(values=([0, 1, 2], [p / 2, 1 - p, p / 2])),
    ),
}
U = np.concatenate([np.linspace(-11, 11, 45) + 0.0137, np.random.default_rng(0).normal(size=20)])


def quantile_faults(scipys, x, u, tolerance=1e-9):
    """Places where x is not min{k : F(k) >= Phi(u)}, by the smaller tail."""
    low = u < 0
    wrong_low = low & ~((scipys.cdf(x) >= ndtr(u) * (1 - tolerance)) & (scipys.cdf(x - 1) <= ndtr(u) * (1 + tolerance)))
    tail = ndtr(-u)
    wrong_high = ~low & ~((scipys.sf(x) <= tail * (1 + tolerance)) & (scipys.sf(x - 1) >= tail * (1 - tolerance)))
    return u[wrong_low | wrong_high]


@pytest.mark.parametrize("law", LAWS)
@settings(deadline=None, max_examples=15, derandomize=True)
@given(p=P, mean=MEAN)
def test_quantile_in_both_tails(law, p, mean):
    ours = LAWS[law][0](torch.tensor(p, dtype=torch.float64), torch.tensor(mean, dtype=torch.float64))
    transport = transport_of(ours)
    x = transport(torch.as_tensor(U)[:, None])
    assert x.dtype == ours.sample().dtype
    assert transport.discrete.tolist() == [True]
    scipys = LAWS[law][1](p, mean)
    keep = np.ones(len(U), bool) if law != "categorical" else np.abs(U) < 7  # SciPy's table loses the upper tail
    faults = quantile_faults(scipys, x.reshape(-1).numpy()[keep], U[keep], 1e-9 if law != "categorical" else 1e-3)
    assert len(faults) == 0, faults
    one_by_one = torch.stack([transport(torch.as_tensor(u)[None]) for u in U[:20]])
    torch.testing.assert_close(one_by_one.reshape(-1), x[:20].reshape(-1))  # a search there, a table here


@pytest.mark.parametrize(
    ("law", "u", "value"),
    [
        (td.Bernoulli(torch.tensor(1e-12)), 7.0344, 1.0),  # Phi(-7.0345) = 1e-12
        (td.Bernoulli(torch.tensor(1e-12)), 7.034, 0.0),
        (td.Categorical(torch.tensor([1.0, 1e-12])), 7.0346, 1),
        (td.Categorical(torch.tensor([1.0, 1e-12])), 7.034, 0),
        (td.Categorical(torch.tensor([1e-12, 1.0])), -7.0346, 0),
        (td.Categorical(torch.tensor([0.0, 1.0])), -30.0, 1),
        (td.Poisson(torch.tensor(1e-9)), 6.0, 1.0),
        (td.Geometric(torch.tensor(1.0)), 5.0, 0.0),
        (td.Binomial(3, torch.tensor(0.5)), 40.0, 3.0),
    ],
)
def test_rare_categories_keep_their_probability_in_single_precision(law, u, value):
    """torch keeps logits clamped at 1e-7; the probabilities as given count."""
    if u == 7.0344:
        u = float(st.norm.isf(1e-12)) + 1e-5
    assert float(transport_of(law)(torch.tensor([u]))) == value


BATCHES = {
    "bernoullis": td.Independent(td.Bernoulli(torch.tensor([[0.1, 0.5, 0.9], [0.3, 0.01, 0.99]])), 2),
    "categories": td.Independent(td.Categorical(torch.rand(4, 5, generator=torch.Generator().manual_seed(0))), 1),
    "one hot": td.OneHotCategorical(torch.tensor([0.2, 0.5, 0.3])),
    "one hots": td.Independent(td.OneHotCategorical(torch.tensor([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]])), 1),
    "poissons": td.Independent(td.Poisson(torch.tensor([0.1, 3.0, 70.0])), 1),
    "pyro": dist.Bernoulli(torch.tensor(0.2)).expand([4]).to_event(1),
    "pyro masked": dist.Poisson(torch.tensor([2.0, 1.0])).mask(True).to_event(1),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_batches_follow_their_law(kind):
    """Chi-square of each coordinate's counts against draws of the law itself."""
    law = BATCHES[kind]
    transport = transport_of(law)
    assert bool(transport.discrete.all())
    torch.manual_seed(0)
    pushed, drawn = transport(torch.randn(6000, transport.dimension)), law.sample((6000,))
    assert pushed.shape == drawn.shape
    assert pushed.dtype == drawn.dtype
    for ours, theirs in zip(pushed.reshape(6000, -1).T, drawn.reshape(6000, -1).T, strict=True):
        edges = torch.cat([ours, theirs]).double().quantile(torch.linspace(0, 1, 9).double()).unique()[1:-1]
        places = [torch.bucketize(x.double().contiguous(), edges, right=True) for x in (ours, theirs)]
        table = torch.stack([place.bincount(minlength=9) for place in places]).numpy()
        table = table[:, table.sum(0) > 0]
        if table.shape[1] > 1:
            assert st.chi2_contingency(table).pvalue > 1e-4
    lead = transport(torch.zeros(2, 3, transport.dimension) + torch.tensor([0.3, -1.0, 2.0])[:, None])
    torch.testing.assert_close(lead[1, 2], transport(torch.full((transport.dimension,), 2.0)))


def test_a_table_too_large_is_searched():
    law = td.Independent(td.Poisson(torch.tensor([5.0, 4e6], dtype=torch.float64)), 1)
    u = torch.tensor([[0.5, -1.5], [3.0, 6.0]], dtype=torch.float64)
    x = transport_of(law)(u)
    for column, rate in ((0, 5.0), (1, 4e6)):
        assert len(quantile_faults(st.poisson(rate), x[:, column].numpy(), u[:, column].numpy(), 1e-6)) == 0
