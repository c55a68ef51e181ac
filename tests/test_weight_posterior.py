"""Random weights: closed forms, the same law with the weights integrated out and drawn, and layers that cannot be."""

import copy
import math
import pickle

import pytest
import torch
import torch.distributions as td
from scipy.stats import ks_2samp, norm
from torch import nn
from torch.func import functional_call

from builders import Residual, Twice, assert_means, assert_within, first, random_linear, standard
from ppl_risk import monte_carlo, run_smc
from ppl_risk.errors import NoTransportError, RiskError, UnknownNameError
from ppl_risk.preflight import check
from ppl_risk.weight_posterior import uncertain_weights

N = 20_000


def linear(n=5, outputs=1, dtype=torch.float64):
    return random_linear(n, outputs, torch.Generator().manual_seed(0)).to(dtype)


def two_layers():
    g = torch.Generator().manual_seed(1)
    return nn.Sequential(random_linear(4, 6, g), nn.ReLU(), random_linear(6, 2, g)).eval()


BOTH = {"0.weight": 0.3, "0.bias": 0.2, "2.weight": torch.full((2, 6), 0.25), "2.bias": 0.1}
X = torch.tensor([0.5, -1.0, 2.0, 0.0])


@pytest.mark.parametrize("collapse", [True, False])
def test_one_layer_in_closed_form(collapse):
    """margin = W x + b - t ~ N(M x + m - t, |S x|^2 + s^2) at a fixed x: p is a normal tail."""
    net, x = linear(), torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0], dtype=torch.float64)
    sigma = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.05]], dtype=torch.float64)
    spread = math.sqrt(float((sigma * x).square().sum()) + 0.3**2)
    bar = float(net(x).detach()) + 4.0 * spread
    problem = uncertain_weights(net, {"weight": sigma, "bias": 0.3}, x, lambda y: y[:, 0] - bar, collapse=collapse)
    assert problem.inputs.event_shape == ((1,) if collapse else (6,))
    u = torch.randn(7, *problem.inputs.event_shape, dtype=torch.float64)
    direction = (
        torch.ones(1, dtype=torch.float64)
        if collapse
        else torch.cat([(sigma * x)[0], sigma.new_tensor([0.3])]) / spread
    )
    torch.testing.assert_close(problem.margin(u), spread * (u @ direction) - 4.0 * spread)
    estimate = run_smc(problem, particles=400, progress=False)
    assert_within(estimate.log_prob, float(norm.logsf(4.0)), estimate.std_error)


def test_one_layer_with_a_random_input():
    """One input N(0, 1), weight N(1, 0.5^2): the margin's variance is 1 + 0.25, and it is no normal: moments by rule."""
    net = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(net.weight)
    for collapse in (True, False):
        problem = uncertain_weights(net, {"weight": 0.5}, standard(1, dtype=torch.float64), first, collapse=collapse)
        torch.manual_seed(0)
        margin = problem.margin(problem.sample(N)).detach()
        assert_means(torch.stack([margin, margin**2, margin**4], 1), [0.0, 1.25, 3 * (1 + 6 * 0.25 + 3 * 0.25**2)])


@pytest.mark.parametrize(
    "inputs", [X, td.Independent(td.Gamma(torch.full((4,), 2.0), 1.0), 1)], ids=["fixed", "random"]
)
def test_collapsed_and_drawn_weights_have_one_law(inputs):
    """Both outputs, their sum and product of a ReLU network: Kolmogorov and Smirnov, and the mean of the product."""
    torch.manual_seed(0)
    outputs = []
    for collapse in (True, False):
        problem = uncertain_weights(two_layers(), BOTH, inputs, collapse=collapse)
        size = 0 if isinstance(inputs, torch.Tensor) else 4
        assert problem.network.dimension == size + ((6 + 2) if collapse else (24 + 6 + 12 + 2))
        with torch.no_grad():
            outputs.append(problem.network(problem.sample(N)))
    one, two = outputs
    for project in (lambda y: y[:, 0], lambda y: y[:, 1], lambda y: y.sum(1), lambda y: y[:, 0] * y[:, 1]):
        assert ks_2samp(project(one).numpy(), project(two).numpy()).pvalue > 1e-4


@pytest.mark.parametrize("bias", [True, False])
def test_covariance_of_a_layer_is_carried_over_exactly(bias):
    """d output / d u is a root of J Sigma J^T, in both forms."""
    layer = nn.Linear(3, 2, bias=bias).double()
    size, x = 8 if bias else 6, torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    root = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).tril()
    sigma = root @ root.mT
    jacobian = torch.zeros(2, size, dtype=torch.float64)
    for unit in range(2):
        jacobian[unit, 3 * unit : 3 * unit + 3] = x
        if bias:
            jacobian[unit, 6 + unit] = 1.0
    exact = jacobian @ sigma @ jacobian.mT
    for collapse in (True, False):
        net = uncertain_weights(layer, {"network": sigma}, x, first, collapse=collapse).network
        with torch.no_grad():
            centre = net(torch.zeros(1, net.dimension, dtype=torch.float64))
            slope = (net(torch.eye(net.dimension, dtype=torch.float64)) - centre).mT
        torch.testing.assert_close(centre[0], layer(x))
        torch.testing.assert_close(slope @ slope.mT, exact, rtol=1e-6, atol=1e-8)


def test_last_layer_laplace_in_closed_form():
    """A ReLU network whose last layer has a full covariance: the margin at a fixed input is normal."""
    net, root = two_layers(), torch.randn(14, 14, generator=torch.Generator().manual_seed(3)) / 8
    problem = uncertain_weights(net, {"2": root @ root.mT}, X, lambda y: y[:, 0] - y[:, 1] - 6.0)
    features = torch.cat([net[:2](X), torch.ones(1)]).double().detach()
    row = torch.cat([features[:6], -features[:6], torch.tensor([1.0, -1.0])])
    std = float(((root.double().mT @ row) ** 2).sum().sqrt())
    z = (6.0 - float((net(X)[0] - net(X)[1]).detach())) / std
    estimate = run_smc(problem, particles=400, progress=False)
    assert_within(estimate.log_prob, float(norm.logsf(z)), estimate.std_error)


class Branching(nn.Module):
    """Convolution, then a Linear on a sequence, called twice, with an embedding of position."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.conv = nn.Conv1d(1, 3, 3)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(12, 1)

    def forward(self, x):
        h = torch.tanh(self.conv(x))
        return self.head(torch.tanh(self.mix(torch.tanh(self.mix(h)))).flatten(1))


def test_drawn_weights_are_those_of_each_row_for_any_module():
    """Row by row functional_call with trained + sigma u gives the same numbers."""
    net, x = Branching().eval(), torch.randn(1, 6)
    sigma = {"conv.weight": 0.3, "conv.bias": 0.1, "mix.weight": 0.2, "head.bias": 0.5}
    problem = uncertain_weights(net, sigma, x, first, collapse=False)
    u = problem.sample(5)
    with torch.no_grad():
        together = problem.margin(u)
        for row, margin in zip(u, together, strict=True):
            named, start = {}, 0
            for name in sigma:
                p = dict(net.named_parameters())[name]
                named[name] = p + sigma[name] * row[start : start + p.numel()].reshape(p.shape)
                start += p.numel()
            torch.testing.assert_close(functional_call(net, named, (x[None],))[0, 0], margin)
    assert start == u.shape[1]


def test_sites_gradients_and_an_untouched_network():
    net = two_layers()
    x = torch.randn(3, 4)
    before = net(x).detach()
    problem = uncertain_weights(net, BOTH, standard(4), lambda y: y[:, 0] - 3.0, layers=["0", "2"])
    u = problem.sample(6)
    values, margin = problem.activations(u)
    assert list(values) == ["model.0", "model.2"]
    torch.testing.assert_close(values["model.2"][:, 0] - 3.0, margin)
    mean = net[0](problem.network.inputs_of(u[:, :4]))
    noise = (u[:, :4].square().sum(1, keepdim=True) * 0.09 + 0.04).sqrt() * u[:, 4:10]
    torch.testing.assert_close(values["model.0"], mean + noise)
    with torch.no_grad():  # a value put in the place of the random output counts
        put = problem.run(u, lambda name, y: torch.zeros_like(y) if name == "model.0" else y)
    assert bool((put != margin).any())
    _, gradient = problem.margin_and_gradient(u)
    step = torch.zeros_like(u)
    step[:, 7] = 1e-2
    with torch.no_grad():
        difference = (problem.margin(u + step) - problem.margin(u - step)) / 2e-2
    torch.testing.assert_close(gradient[:, 7], difference, atol=2e-3, rtol=2e-2)
    assert torch.equal(net(x), before)
    assert not any("forward" in vars(module) for module in net.modules())
    assert check(problem).ok


def test_a_dead_row_has_finite_gradients():
    problem = uncertain_weights(nn.Linear(2, 1), {"weight": 0.1}, torch.zeros(2), first)
    assert bool(torch.isfinite(problem.margin_and_gradient(torch.randn(3, 1))[1]).all())


def test_copies_and_pickles():
    problem = uncertain_weights(two_layers(), BOTH, standard(4), first)
    u = problem.sample(3)
    for other in (copy.deepcopy(problem.network), pickle.loads(pickle.dumps(problem.network))):
        torch.testing.assert_close(other(u), problem.network(u))


def test_the_dimension_of_a_reader_of_digits():
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    sigma = {name: 0.1 for name, _ in net.named_parameters()}
    assert uncertain_weights(net, sigma, torch.zeros(64), first).network.dimension == 138
    assert uncertain_weights(net, sigma, torch.zeros(64), first, collapse=False).network.dimension == 8970


def test_monte_carlo_agrees_with_the_average_over_weights():
    """p is the mean over weights of Phi: a single weight, averaged on a grid."""
    net = nn.Linear(1, 1).double()
    with torch.no_grad():
        net.weight.fill_(1.0)
        net.bias.fill_(-2.0)
    problem = uncertain_weights(net, {"weight": 0.4}, standard(1, dtype=torch.float64), first)
    grid = torch.linspace(-8, 8, 4000, dtype=torch.float64)
    risks = torch.as_tensor(norm.sf(2.0 / (1 + 0.4 * grid).abs().numpy()))
    exact = float((torch.exp(-grid.square() / 2) * risks).sum() / torch.exp(-grid.square() / 2).sum())
    estimate = monte_carlo(problem, calls=100_000, progress=False)
    assert_within(estimate.log_prob, math.log(exact), estimate.std_error)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.two(self.one(x))


class Unused(Residual):
    def forward(self, x):
        return nn.functional.linear(x, self.head.weight)


@pytest.mark.parametrize(
    ("net", "posterior", "x", "collapse", "text"),
    [
        (Branching(), {"conv.weight": 0.1}, torch.zeros(1, 6), True, r'"conv" is a Conv1d.*collapse=False'),
        (Twice(), {"fc.weight": 0.1}, torch.zeros(3), True, r'"fc" is called twice.*collapse=False'),
        (
            nn.Linear(2, 1),
            {"weight": 0.1},
            torch.zeros(7, 2),
            True,
            r'"network" reads \(2, 7, 2\).*sequence.*collapse=False',
        ),
        (Tied(), {"one.weight": 0.1}, torch.zeros(3), True, r'"one.weight" are shared \(one.weight, two.weight\)'),
        (Unused(), {"head.weight": 0.1}, torch.zeros(4), False, r'never calls "head"'),
        (
            two_layers(),
            {"0.weight": torch.ones(3)},
            X,
            True,
            r'"0.weight" has shape \(3,\); the parameter has \(6, 4\)',
        ),
        (two_layers(), {"0.weight": -0.1}, X, True, r">= 0"),
        (two_layers(), {"2": torch.eye(3)}, X, True, r'"2" has shape \(3, 3\).*\(14, 14\)'),
        (two_layers(), {"2": -torch.eye(14)}, X, True, "not symmetric and positive definite"),
        (two_layers(), {"2": torch.eye(14), "2.bias": 0.1}, X, True, "both a covariance"),
        (two_layers(), {}, X, True, "posterior is empty"),
        (two_layers(), {"0.bias": 0.1}, td.Normal(torch.zeros(4), 1.0), True, r"batch shape \(4,\)"),
    ],
)
def test_refusals(net, posterior, x, collapse, text):
    with pytest.raises(RiskError, match=text):
        uncertain_weights(net, posterior, x, first, collapse=collapse)


def test_unknown_names_and_laws_without_a_map():
    with pytest.raises(UnknownNameError, match=r'"0.wieght".*0.weight, 0.bias'):
        uncertain_weights(two_layers(), {"0.wieght": 0.1}, X, first)
    with pytest.raises(NoTransportError, match="Dirichlet"):
        uncertain_weights(two_layers(), {"0.bias": 0.1}, td.Dirichlet(torch.ones(4)), first)
