"""Recorded data with noise: draws, transport and density are the same law."""

import math

import pytest
import scipy.stats as st
import torch
import torch.distributions as td

from builders import assert_means
from ppl_risk.errors import RiskError
from ppl_risk.inputs import EmpiricalWithNoise, transport_of

N = 20_000
DATA = torch.tensor([[-2.0, 1.0], [0.0, 3.0], [5.0, -1.0]])
WEIGHTS = torch.tensor([2.0, 1.0, 5.0])
ROOT = torch.tensor([[0.5, 0.0], [0.4, 0.3]])
NOISES = {
    "one number": {"noise": 0.3},
    "one a coordinate": {"noise": torch.tensor([0.1, 2.0])},
    "root": {"scale_tril": ROOT},
    "covariance": {"covariance": ROOT @ ROOT.T},
    "weighted": {"noise": 0.3, "weights": WEIGHTS},
}


def reference(noise=None, scale_tril=None, covariance=None, weights=None):
    """The same law in torch's own words."""
    w = torch.ones(3) if weights is None else weights
    if noise is not None:
        kernel = td.Independent(td.Normal(DATA, torch.as_tensor(noise).expand(3, 2)), 1)
    else:
        kernel = td.MultivariateNormal(DATA, ROOT @ ROOT.T)
    return td.MixtureSameFamily(td.Categorical(w), kernel)


@pytest.mark.parametrize("kind", NOISES)
def test_draws_and_transport_and_density(kind):
    law, other = EmpiricalWithNoise(DATA, **NOISES[kind]), reference(**NOISES[kind])
    transport = transport_of(law)
    assert transport.dimension == 3
    assert transport.discrete.tolist() == [True, False, False]
    torch.manual_seed(0)
    drawn, pushed, theirs = law.sample((N,)), transport(torch.randn(N, 3)), other.sample((N,))
    for x in (drawn, pushed):
        for project in (torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([1.0, -1.0])):
            assert st.ks_2samp((x @ project).numpy(), (theirs @ project).numpy()).pvalue > 1e-4
    assert_means(drawn, law.mean)
    torch.testing.assert_close(law.log_prob(theirs[:12].reshape(3, 4, 2)), other.log_prob(theirs[:12]).reshape(3, 4))


def test_images_and_numbers():
    images = torch.randn(7, 1, 2, 2, dtype=torch.float64)
    law = EmpiricalWithNoise(images, 0.1)
    x = transport_of(law)(torch.randn(3, 5, dtype=torch.float64))
    assert x.shape == law.sample((3,)).shape == (3, 1, 2, 2)
    assert x.dtype == law.sample().dtype == torch.float64
    assert law.log_prob(x).shape == (3,)
    numbers = EmpiricalWithNoise(torch.tensor([1.0, 2.0]), 0.5)
    exact = math.log((st.norm(1, 0.5).pdf(1.3) + st.norm(2, 0.5).pdf(1.3)) / 2)
    assert float(numbers.log_prob(torch.tensor(1.3))) == pytest.approx(exact, rel=1e-5)
    assert transport_of(numbers)(torch.randn(6, 2)).shape == (6,)


def test_small_noise_far_from_the_origin_keeps_its_density():
    """Distances of 1e-2 at 1e3: a matrix product would lose them."""
    law = EmpiricalWithNoise(1e3 + torch.zeros(40, 30), 0.01)
    x = torch.full((30,), 1000.0)
    exact = -30 * (math.log(0.01) + 0.5 * math.log(2 * math.pi))
    assert float(law.log_prob(x)) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "exactly one of"),
        ({"noise": 0.1, "scale_tril": ROOT}, "exactly one of"),
        ({"noise": 0.0}, "must be > 0"),
        ({"noise": torch.ones(3)}, r"fits one input of shape \(2,\)"),
        ({"scale_tril": torch.eye(3)}, r"must be \(2, 2\).*got \(3, 3\)"),
        ({"covariance": -torch.eye(2)}, "not positive definite"),
        ({"noise": 0.1, "weights": torch.ones(2)}, "weights must be 3 numbers"),
        ({"noise": 0.1, "weights": torch.tensor([-1.0, 1.0, 1.0])}, "weights must be 3 numbers"),
    ],
)
def test_refusals(arguments, text):
    with pytest.raises(RiskError, match=text):
        EmpiricalWithNoise(DATA, **arguments)


@pytest.mark.parametrize("data", [torch.zeros(0, 2), torch.tensor([1, 2]), torch.tensor([[math.nan]])])
def test_data_must_be_finite_and_floating(data):
    with pytest.raises(RiskError, match="finite floating tensor"):
        EmpiricalWithNoise(data, 0.1)
