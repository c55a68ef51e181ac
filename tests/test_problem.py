"""The problem: batching, gradients, cost, and what it refuses."""

import inspect

import pytest
import torch
from torch import nn

from builders import NETWORKS, first, linear_gaussian, standard
from ppl_risk.errors import RiskError
from ppl_risk.problem import RiskProblem
from ppl_risk.smc import run_smc
from ppl_risk.smc.run import has_gradient


@pytest.mark.parametrize("kind", NETWORKS)
def test_batches_equal_one_batch(kind):
    problem = NETWORKS[kind]()
    x, u = problem.sample(23), torch.randn(23, problem.transport.dimension)
    with torch.no_grad():
        whole = problem.run(x)
    values, _ = problem.activations(x)
    margin, gradient = problem.margin_and_gradient(u)
    problem.batch_size = 5
    torch.testing.assert_close(problem.margin(x).detach(), whole)
    for name, value in problem.activations(x)[0].items():
        torch.testing.assert_close(value, values[name])
    for small, large in zip(problem.margin_and_gradient(u), (margin, gradient), strict=True):
        torch.testing.assert_close(small, large)


@pytest.mark.parametrize("kind", NETWORKS)
def test_gradient_against_central_differences(kind):
    problem = NETWORKS[kind]()
    for part in (problem.network, problem.detector):
        if isinstance(part, nn.Module):
            part.double()
    exact = standard(*problem.inputs.event_shape, dtype=torch.float64)
    problem = RiskProblem(problem.network, exact, problem.detector)
    u, h = torch.randn(4, problem.transport.dimension, dtype=torch.float64), 1e-6
    _, gradient = problem.margin_and_gradient(u)
    with torch.no_grad():
        numeric = torch.stack(
            [
                (problem.margin(problem.from_normal(u + h * e)) - problem.margin(problem.from_normal(u - h * e)))
                / (2 * h)
                for e in torch.eye(u.shape[1], dtype=torch.float64)
            ],
            -1,
        )
    torch.testing.assert_close(gradient, numeric, atol=1e-7, rtol=1e-6)
    assert all(p.grad is None for p in problem.parameters())


def test_linear_gradient_is_the_row_of_weights():
    known = linear_gaussian(3, 2.0)
    _, gradient = known.problem.margin_and_gradient(torch.randn(7, 3))
    torch.testing.assert_close(gradient.norm(dim=1), torch.full((7,), known.std))
    assert torch.unique(gradient, dim=0).shape[0] == 1


def test_gradient_of_a_constant_margin_is_zero():
    problem = RiskProblem(lambda x: x[:, 0].sign().detach() + 0 * x[:, 0], standard(2))
    assert (problem.margin_and_gradient(torch.randn(3, 2))[1] == 0).all()


FLAT = {
    "every coordinate acts through steps": lambda: RiskProblem(
        lambda x: x.sum(-1) - 2.5,
        torch.distributions.Independent(torch.distributions.Bernoulli(torch.full((4,), 0.1)), 1),
    ),
    "integers": lambda: RiskProblem(lambda x: x.double() - 2.5, torch.distributions.Categorical(torch.ones(5))),
    "a detached margin": lambda: RiskProblem(lambda x: x[:, 0].detach() - 1.0, standard(4)),
}


@pytest.mark.parametrize("kind", FLAT)
def test_a_margin_without_a_graph_has_gradient_zero_and_books_none(kind):
    problem = FLAT[kind]()
    u = torch.randn(7, problem.transport.dimension)
    problem.batch_size = 3
    with problem.metered() as meter:
        margin, gradient = problem.margin_and_gradient(u)
    torch.testing.assert_close(margin, problem.margin_of_normal(u))
    torch.testing.assert_close(gradient, torch.zeros_like(u))
    assert (meter.forward_calls, meter.gradient_calls) == (7, 0)
    assert not has_gradient(problem)
    moves = run_smc(problem, particles=40, runs=2, max_levels=2, posterior_draws=0, progress=False).settings["moves"]
    assert moves == "pcn"


def test_meters_nest_and_stop():
    problem = NETWORKS["residual"]()
    with problem.metered() as outer:
        problem.margin(problem.sample(10))
        with pytest.raises(KeyError), problem.metered() as inner:
            problem.margin_and_gradient(torch.randn(7, 4))
            raise KeyError
        problem.activations(problem.sample(3))
    problem.margin(problem.sample(100))
    assert (outer.forward_calls, outer.gradient_calls) == (20, 7)
    assert (inner.forward_calls, inner.gradient_calls) == (7, 7)


def test_looking_up_the_cost_is_not_booked():
    problem = NETWORKS["conv"]()
    with problem.metered() as meter:
        assert problem.batch_size >= 16
        assert problem.flops_per_row > 0
    assert meter.forward_calls == 0


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 3), (64, 10)])
def test_flops_of_a_linear_layer(rows, columns):
    problem = RiskProblem(nn.Linear(rows, columns), standard(rows), first)
    assert problem.flops_per_row == 2 * rows * columns
    with problem.metered() as meter:
        problem.margin_and_gradient(torch.randn(5, rows))
    assert problem.flops(meter) == 3 * 5 * 2 * rows * columns


def test_inputs_follow_the_type_of_the_network():
    problem = linear_gaussian(2, 1.0, dtype=torch.float64).problem
    single = RiskProblem(problem.network, standard(2), first)
    assert single.sample(2).dtype == single.from_normal(torch.randn(2, 2)).dtype == torch.float64
    tokens = RiskProblem(nn.Embedding(5, 1), torch.distributions.Categorical(torch.ones(5)), first)
    assert tokens.sample(3).dtype == torch.int64


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((3, standard(2)), "network must be callable, got int"),
        ((nn.Linear(2, 1), standard(2), "margin"), "detector must be callable, got str"),
        ((nn.Linear(2, 1), torch.zeros(2)), "Tensor.*EmpiricalWithNoise"),
        (
            (nn.Linear(2, 1), torch.distributions.Normal(torch.zeros(2), 1.0)),
            r"batch shape \(2,\).*Independent\(inputs, 1\)",
        ),
        ((nn.Linear(2, 1), torch.distributions.Normal(torch.zeros(3, 2), 1.0)), r"Independent\(inputs, 2\)"),
    ],
)
def test_refusals_say_what_to_do(arguments, text):
    with pytest.raises(RiskError, match=text):
        # Unchecked, as a user would call it: the type checker of the tests would answer first.
        unchecked = inspect.unwrap(RiskProblem.__init__)
        unchecked(object.__new__(RiskProblem), *arguments)


def test_repr_names_the_essentials():
    text = repr(NETWORKS["headed"]())
    assert "'headed'" in text
    assert "layers: 0, detector.score" in text
    assert "13 weights" in text
