"""Mixtures and products: one normal chooses the component, the others drive it."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.stats as st
import torch
import torch.distributions as td

from builders import assert_means
from ppl_risk.errors import RiskError
from ppl_risk.inputs import Product, transport_of

N = 20_000
W = torch.tensor([0.5, 0.3, 0.2])


def mixtures():
    g = torch.Generator().manual_seed(1)
    loc = 2 * torch.randn(3, 4, generator=g)
    root = torch.randn(3, 4, 4, generator=g).tril(-1) / 2 + torch.eye(4)
    several = torch.rand(2, 3, generator=g)
    return {
        "normals": td.MixtureSameFamily(td.Categorical(W), td.Normal(torch.tensor([-3.0, 0.0, 4.0]), W)),
        "gammas": td.MixtureSameFamily(td.Categorical(W), td.Gamma(torch.tensor([0.5, 3.0, 50.0]), torch.ones(3))),
        "counts": td.MixtureSameFamily(td.Categorical(W), td.Poisson(torch.tensor([0.5, 3.0, 50.0]))),
        "vectors": td.MixtureSameFamily(td.Categorical(W), td.MultivariateNormal(loc, scale_tril=root)),
        "images": td.MixtureSameFamily(
            td.Categorical(W), td.Independent(td.Laplace(loc.reshape(3, 2, 2), torch.ones(3, 2, 2)), 2)
        ),
        "a mixture a coordinate": td.Independent(
            td.MixtureSameFamily(td.Categorical(several), td.Normal(loc[:2, :3], torch.ones(2, 3))), 1
        ),
        "mixture of mixtures": td.MixtureSameFamily(
            td.Categorical(torch.tensor([0.7, 0.3])),
            td.MixtureSameFamily(td.Categorical(several), td.Normal(loc[:2, :3], torch.ones(2, 3))),
        ),
        "pyro": dist.MixtureSameFamily(dist.Categorical(W), dist.Normal(loc, 1.0).to_event(1)),
        "diagonal": dist.MixtureOfDiagNormals(loc, torch.ones(3, 4) / 3, W.log()),
    }


@pytest.mark.parametrize("kind", mixtures())
def test_pushed_normals_follow_the_mixture(kind):
    """Kolmogorov and Smirnov on every coordinate and on a random projection, against the mixture's own draws."""
    law = mixtures()[kind]
    transport = transport_of(law)
    torch.manual_seed(0)
    pushed, drawn = transport(torch.randn(N, transport.dimension)), law.sample((N,))
    assert pushed.shape == drawn.shape
    assert pushed.dtype == drawn.dtype
    one, two = pushed.reshape(N, -1), drawn.reshape(N, -1)
    direction = torch.randn(one.shape[1])
    for ours, theirs in [*zip(one.T, two.T, strict=True), (one @ direction, two @ direction)]:
        assert st.ks_2samp(ours.numpy(), theirs.numpy()).pvalue > 1e-4
    lead = torch.randn(2, 3, transport.dimension)
    torch.testing.assert_close(transport(lead)[1, 2], transport(lead[1, 2]))


def test_which_normals_choose():
    marks = {kind: transport_of(law).discrete.tolist() for kind, law in mixtures().items()}
    assert marks["vectors"] == [True] + [False] * 4
    assert marks["counts"] == [True, True]
    assert marks["a mixture a coordinate"] == [True, False, True, False]
    assert marks["mixture of mixtures"] == [True, True, False]


def test_gradient_is_that_of_the_component_and_none_of_the_choice():
    law = mixtures()["vectors"]
    u = torch.randn(50, 5, requires_grad=True)
    x = transport_of(law)(u)
    (slope,) = torch.autograd.grad(x[:, 0].sum(), u)
    assert bool((slope[:, 0] == 0).all())
    index = torch.bucketize(u[:, 0].contiguous(), td.Normal(0.0, 1.0).icdf(torch.tensor([0.5, 0.8])))
    roots = law.component_distribution.scale_tril[index]
    torch.testing.assert_close(slope[:, 1], roots[:, 0, 0])


def test_a_component_of_probability_1e_12_is_there():
    law = td.MixtureSameFamily(td.Categorical(torch.tensor([1.0, 1e-12])), td.Normal(torch.tensor([0.0, 100.0]), 1.0))
    u = torch.tensor([[7.03, 0.0], [7.04, 0.0]])
    assert transport_of(law)(u).tolist() == [0.0, 100.0]


def mixed():
    return Product(
        {
            "wear": td.Gamma(2.0, 1.0),
            "faults": td.Independent(td.Bernoulli(torch.tensor([0.2, 0.6])), 1),
            "field": td.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.8], [0.8, 1.0]])),
            "kind": td.Categorical(torch.tensor([0.2, 0.3, 0.5])),
        }
    )


def test_product_of_different_laws():
    law = mixed()
    transport = transport_of(law)
    torch.manual_seed(0)
    x, y = law.sample((N,)), transport(torch.randn(N, 6))
    assert x.shape == y.shape == (N, 6)
    assert x.dtype == y.dtype == torch.float32
    assert transport.discrete.tolist() == [False, True, True, False, False, True]
    for rows in (x, y):
        assert_means(torch.cat([rows, rows[:, 3:4] * rows[:, 4:5]], 1), [2.0, 0.2, 0.6, 0.0, 0.0, 1.3, 0.8])
    assert st.kstest(y[:, law.slices["wear"]].reshape(-1).numpy(), st.gamma(2).cdf).pvalue > 1e-4


def test_density_of_a_product_is_the_sum():
    law = mixed()
    x = law.sample((4, 3))
    expected = sum(
        one.log_prob(x[..., law.slices[name]].reshape(4, 3, *one.event_shape)) for name, one in law.laws.items()
    )
    torch.testing.assert_close(law.log_prob(x), expected)
    assert "wear: Gamma" in repr(law)


def test_product_of_integers_stays_integer():
    law = Product([td.Categorical(torch.ones(3)), td.Independent(td.Categorical(torch.ones(2, 4)), 1)])
    assert law.sample((2,)).dtype == transport_of(law)(torch.zeros(2, 3)).dtype == torch.int64
    assert float(law.log_prob(law.sample())) == pytest.approx(-math.log(48))


def test_single_numbers_and_images_are_flattened():
    image = td.Independent(td.Normal(torch.arange(4.0).reshape(2, 2), 1e-6), 2)
    law = Product([td.Normal(9.0, 1e-6), image])
    np.testing.assert_allclose(law.sample().numpy(), [9, 0, 1, 2, 3], atol=1e-4)
    np.testing.assert_allclose(transport_of(law)(torch.zeros(5)).numpy(), [9, 0, 1, 2, 3], atol=1e-4)


@pytest.mark.parametrize(
    ("laws", "text"),
    [
        ([], "at least one"),
        ({"a": td.Normal(torch.zeros(2), 1.0)}, r'"a".*batch shape \(2,\).*Independent'),
    ],
)
def test_product_refuses(laws, text):
    with pytest.raises(RiskError, match=text):
        Product(laws)
