"""Pyro programs as input laws: the transport has the law of the program, batched or not, inside other handlers or not."""

import pyro
import pyro.distributions as dist
import pytest
import scipy.stats as st
import torch
from pyro import poutine
from torch import nn

from ppl_risk.activations import ActivationModel
from ppl_risk.errors import NoTransportError, RiskError
from ppl_risk.inputs import Product, PyroModel, transport_of
from ppl_risk.problem import RiskProblem

N = 6000


def vector():
    scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
    shift = pyro.sample("shift", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    x = pyro.sample("x", dist.StudentT(5.0, shift[..., 0], scale))
    return torch.stack([x, scale + shift[..., 1]], -1)


def plates():
    rate = pyro.sample("rate", dist.LogNormal(0.0, 0.5))
    with pyro.plate("sensors", 3):
        level = pyro.sample("level", dist.Gamma(2.0, rate))
        broken = pyro.sample("broken", dist.Bernoulli(0.3))
    pyro.deterministic("total", level)
    return level * (1 - broken) + 0.1 * rate


def nested():
    with pyro.plate("rows", 2, dim=-2):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("columns", 3, dim=-1):
            return pyro.sample("x", dist.Normal(a, torch.tensor([0.1, 1.0, 3.0])))


def discrete():
    kind = pyro.sample("kind", dist.Categorical(torch.tensor([0.6, 0.3, 0.1])))
    centre = torch.tensor([0.0, 5.0, -5.0])[kind]
    count = pyro.sample("count", dist.Poisson(kind.float() + 0.5))
    covariance = torch.eye(2) + 0.5
    x = pyro.sample("x", dist.MultivariateNormal(torch.stack([centre, count], -1), covariance))
    return torch.cat([x, count[..., None]], -1)


MODELS = {
    "vector": (vector, (2,), 4),
    "plates": (plates, (3,), 7),
    "nested": (nested, (2, 3), 8),
    "discrete": (discrete, (3,), 4),
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_law_is_that_of_the_program(kind):
    """Kolmogorov and Smirnov of coordinates, of a projection and of its square, against runs of the program itself."""
    model, shape, dimension = MODELS[kind]
    law = PyroModel(model, event_shape=shape)
    assert law.event_shape == shape
    assert law.dimension == transport_of(law).dimension == dimension
    torch.manual_seed(0)
    ours = law.sample((N,)).reshape(N, -1)
    theirs = torch.stack([model() for _ in range(1500)]).reshape(1500, -1)
    direction = torch.linspace(1.0, -0.5, ours.shape[1])
    pairs = [*zip(ours.T, theirs.T, strict=True), (ours @ direction, theirs @ direction)]
    for one, two in pairs:
        assert st.ks_2samp(one.numpy(), two.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("kind", MODELS)
def test_rows_batches_and_single_inputs_agree(kind):
    transport = transport_of(PyroModel(MODELS[kind][0]))
    u = torch.randn(2, 3, transport.dimension)
    x = transport(u)
    assert x.shape == (2, 3, *MODELS[kind][1])
    torch.testing.assert_close(x[1, 2], transport(u[1, 2]))
    with torch.no_grad():
        single = transport_of(PyroModel(MODELS[kind][0]))(u[0, 1])
    torch.testing.assert_close(x[0, 1], single)


def test_gradients_pass_through_the_parents():
    """Also through a Gamma rate and a Student's scale that are drawn themselves."""
    transport = transport_of(PyroModel(vector))
    u = torch.tensor([[0.3, -0.5, 0.2, 1.1]], requires_grad=True)
    assert transport.discrete is None
    (slope,) = torch.autograd.grad(transport(u)[:, 0].sum(), u)
    for place in range(4):
        step = torch.zeros(1, 4)
        step[0, place] = 1e-2
        with torch.no_grad():
            difference = (transport(u + step) - transport(u - step))[0, 0] / 2e-2
        assert float(slope[0, place]) == pytest.approx(float(difference), rel=2e-3, abs=1e-4)


def test_discrete_sites_are_marked():
    assert transport_of(PyroModel(plates)).discrete.tolist() == [False] * 4 + [True] * 3
    assert transport_of(PyroModel(discrete)).discrete.tolist() == [True, True, False, False]


def test_inside_the_activation_model_and_other_handlers():
    """Sites and plates around the transport are no part of the program, and those of the program none of the guide's."""
    problem = RiskProblem(nn.Linear(3, 1).eval(), PyroModel(plates), lambda y: y[:, 0])
    values = ActivationModel(problem).prior_draws(5)
    assert list(values) == ["input", "network"]
    law = PyroModel(plates)
    u = torch.randn(4, 7)
    with pyro.plate("outer", 2, dim=-1), poutine.trace() as trace:
        inside = law.push(u)
    torch.testing.assert_close(inside, law.push(u))
    assert not [name for name in trace.trace.nodes if name in ("rate", "level")]


def test_part_of_a_product():
    law = Product({"program": PyroModel(plates), "more": torch.distributions.Normal(0.0, 1.0)})
    assert law.sample((4,)).shape == transport_of(law)(torch.randn(4, 8)).shape == (4, 4)


def observed():
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.sample("seen", dist.Normal(mean, 1.0), obs=torch.tensor(1.0))
    return mean


def subsampled():
    with pyro.plate("rows", 10, subsample_size=3):
        return pyro.sample("x", dist.Normal(0.0, 1.0))


def sums():
    x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    return x / x.sum()


def branches():
    kind = pyro.sample("kind", dist.Bernoulli(0.5))
    return pyro.sample("x", dist.Normal(0.0, 1.0 if kind else 2.0))


def first_entry():
    x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    return x[0]


def odd_law():
    return pyro.sample("angle", dist.VonMises(0.0, 1.0))


@pytest.mark.parametrize(
    ("model", "error", "text"),
    [
        (observed, RiskError, r'"seen" in observed is observed.*EmpiricalWithNoise'),
        (subsampled, RiskError, r'"rows" in subsampled subsamples'),
        (sums, RiskError, r"sums must broadcast.*\.sum\(-1\).*differ"),
        (branches, RiskError, r"branches must broadcast.*torch.where.*3 rows at once it fails"),
        (first_entry, RiskError, r"first_entry"),
        (odd_law, NoTransportError, r'Site "angle" in odd_law: .*VonMises'),
        (lambda: 3.0, RiskError, r"must return the input as a tensor, got float"),
    ],
)
def test_refusals(model, error, text):
    with pytest.raises(error, match=text):
        PyroModel(model)


def test_event_shape_is_checked():
    with pytest.raises(RiskError, match=r"returns \(2,\), not event_shape \(3,\)"):
        PyroModel(vector, event_shape=(3,))
