"""The Pyro model: densities by hand, one law in two coordinate systems, any leading batch shape."""

import math

import pyro
import pytest
import torch
from pyro import poutine
from scipy.stats import norm
from torch import nn

from builders import NETWORKS, assert_means, assert_within, linear_gaussian, standard
from ppl_risk.activations import INPUT, ActivationModel
from ppl_risk.errors import RiskError
from ppl_risk.problem import RiskProblem


def normal_log_density(value: torch.Tensor, mean: torch.Tensor, sigma: float) -> torch.Tensor:
    return torch.as_tensor(norm.logpdf(value.numpy(), mean.numpy(), sigma)).flatten(1).sum(1)


def by_hand(model: ActivationModel, values: dict[str, torch.Tensor], temperature: float) -> torch.Tensor:
    """log p(values, catastrophe) of the residual network, layer by layer."""
    net, noisy = model.problem.network, model.coordinates == "noise"
    total = normal_log_density(values[INPUT], torch.zeros_like(values[INPUT]), 1.0)

    def site(name: str, mean: torch.Tensor) -> torch.Tensor:
        nonlocal total
        if noisy:
            noise = values[f"{name}.noise"]
            total = total + normal_log_density(noise, torch.zeros_like(noise), 1.0)
            return mean + model.sigma[name] * noise
        total = total + normal_log_density(values[name], mean, model.sigma[name])
        return values[name]

    with torch.no_grad():
        x = values[INPUT]
        inner = site("inner", net.inner(x))
        outer = site("outer", net.outer(inner.tanh()))
        margin = site("head", net.head(x + outer))[:, 0] - 1.5
    return total + (torch.nn.functional.logsigmoid(margin / temperature) if temperature else 0.0)


@pytest.mark.parametrize("temperature", [0.0, 0.3])
@pytest.mark.parametrize("coordinates", ["activation", "noise"])
def test_log_joint_by_hand(coordinates, temperature):
    model = ActivationModel(NETWORKS["residual"](), coordinates, resolution=0.2)
    values = model.prior_draws(6)
    assert set(values) == set(model.sites)
    with torch.no_grad():
        torch.testing.assert_close(
            model.log_joint(values, temperature).double(), by_hand(model, values, temperature), rtol=1e-5, atol=1e-4
        )


def test_resolution_zero_is_the_exact_network():
    problem = NETWORKS["residual"]()
    model = ActivationModel(problem, "noise", resolution=0.0)
    assert list(model.sites) == [INPUT]
    u = torch.randn(5, 4)
    with torch.no_grad(), poutine.condition(data={INPUT: u}):
        torch.testing.assert_close(model(), problem.margin(u))


@pytest.mark.parametrize("kind", NETWORKS)
def test_both_coordinate_systems_are_one_law(kind):
    """Margin moments of two independent samples, 4.5 sigmas, and again with the resolution that the sites declare."""
    problem, n = NETWORKS[kind](), 20_000
    margins = []
    for coordinates in ("activation", "noise"):
        model = ActivationModel(problem, coordinates, resolution=0.5)
        torch.manual_seed(len(margins))
        with torch.no_grad(), pyro.plate("draws", n):
            margins.append(model().double())
    features = [torch.stack([m, m.square(), (m > margins[0].median()).double()], -1) for m in margins]
    error = (sum(f.var(0) for f in features) / n).sqrt()
    assert ((features[0].mean(0) - features[1].mean(0)).abs() / error).max() < 4.5


@pytest.mark.parametrize("coordinates", ["activation", "noise"])
def test_margin_law_of_a_linear_network_in_closed_form(coordinates):
    """Every sigma adds its share to the variance, carried on by the layers behind it."""
    known = linear_gaussian(3, 1.0)
    model = ActivationModel(known.problem, coordinates, resolution=0.4)
    behind = known.problem.network[1].weight.detach()
    variance = known.std**2 + float(behind.norm()) ** 2 * model.sigma["0"] ** 2 + model.sigma["1"] ** 2
    torch.manual_seed(0)
    with torch.no_grad(), pyro.plate("draws", 100_000):
        gap = model() - known.mean
    assert_means(torch.stack([gap, gap.square()], -1), [0.0, variance])


def test_sigma_is_a_share_of_the_spread_of_the_layer():
    known = linear_gaussian(3, 1.0)
    model = ActivationModel(known.problem, resolution=0.1, pilot=4000)
    rows = known.problem.network[0].weight.detach() * 0.5
    assert_within(
        model.sigma["0"], 0.1 * float(rows.square().sum(1).mean().sqrt()), 0.1 * float(rows.norm()) / 4000**0.5
    )
    assert_within(model.sigma["1"], 0.1 * known.std, 0.1 * known.std / 8000**0.5)
    assert_within(model.margin_spread, known.std, known.std / 8000**0.5)


def test_site_spread_includes_the_resolution_also_for_dead_units():
    problem = RiskProblem(nn.Linear(2, 3), standard(2), lambda y: y[:, 0])
    with torch.no_grad():
        problem.network.weight[1] = 0.0
    model = ActivationModel(problem, resolution=0.1)
    assert float(model.sites["network"].spread[1]) == pytest.approx(model.sigma["network"], rel=1e-4)


@pytest.mark.parametrize("coordinates", ["activation", "noise"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_leading_batch_dimensions(kind, coordinates):
    """(2, 3) rows through plates give what six single rows give."""
    model = ActivationModel(NETWORKS[kind](), coordinates)
    values = model.prior_draws(6)
    flat = model.log_joint(values, 0.5)
    shaped = {n: v.reshape(2, 3, *v.shape[1:]) for n, v in values.items()}
    with torch.no_grad(), pyro.plate("a", 2, dim=-2), pyro.plate("b", 3, dim=-1):
        trace = poutine.trace(poutine.condition(model, data=shaped)).get_trace(0.5)
        trace.compute_log_prob()
    total = sum(trace.nodes[n]["log_prob"] for n in [*values, "catastrophe"])
    assert total.shape == (2, 3)
    torch.testing.assert_close(total.reshape(6), flat.detach(), rtol=1e-4, atol=1e-3)
    single = torch.cat([model.log_joint({n: v[i : i + 1] for n, v in values.items()}, 0.5) for i in range(6)])
    torch.testing.assert_close(single, flat, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("coordinates", ["activation", "noise"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_draws_given_the_input_follow_the_network(kind, coordinates):
    model = ActivationModel(NETWORKS[kind](), coordinates, resolution=1e-3)
    u = torch.randn(8, model.problem.transport.dimension)
    drawn = model.draws_given(u)
    assert {n: v.shape[1:] for n, v in drawn.items()} == {n: s.shape for n, s in model.sites.items()}
    torch.testing.assert_close(drawn[INPUT], u)
    if coordinates == "activation":
        for name, value in model.problem.activations(model.problem.from_normal(u))[0].items():
            # the first layer is off by its own sigma alone, later ones by what comes through as well
            torch.testing.assert_close(drawn[name], value, rtol=0, atol=20 * max(model.sigma.values()))


@pytest.mark.parametrize(
    ("coordinates", "resolution", "text"),
    [
        ("activation", 0.0, "coordinates='noise' for the exact network"),
        ("activation", -0.1, "must be positive"),
        ("noise", -0.1, "must be"),
        ("polar", 0.1, "one of .*activation"),
    ],
)
def test_resolution_rules(coordinates, resolution, text):
    with pytest.raises(RiskError, match=text):
        ActivationModel(NETWORKS["linear"](), coordinates, resolution=resolution)


def test_layer_without_a_row_per_input_is_named():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Linear(2, 2)

        def forward(self, x):
            return x + self.table(torch.ones(1, 2))

    problem = RiskProblem(Positions().eval(), standard(2), lambda y: y[:, 0])
    with pytest.raises(RiskError, match=r'"table" returned shape \(1, 2\) for 512 rows.*leave the layer out'):
        ActivationModel(problem)


def test_pilot_is_booked_and_seeded():
    problem = NETWORKS["linear"]()
    with problem.metered() as meter:
        one, two = (ActivationModel(problem, seed=3, pilot=100) for _ in range(2))
    assert meter.forward_calls == 200
    assert one.margin_spread == two.margin_spread != ActivationModel(problem, seed=4, pilot=100).margin_spread
    assert math.isfinite(one.margin_spread)
