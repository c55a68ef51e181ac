"""Small problems whose answer is known, and the two comparisons that every statistical test uses."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor, nn

from ppl_risk.problem import RiskProblem


class Known(NamedTuple):
    """A problem, its exact log probability, and the mean and standard deviation of a Gaussian margin."""

    problem: RiskProblem
    log_prob: float
    mean: float = math.nan
    std: float = math.nan


def standard(*shape: int, dtype: torch.dtype = torch.float32) -> torch.distributions.Distribution:
    law = torch.distributions.Normal(torch.zeros(shape, dtype=dtype), 1.0)
    return torch.distributions.Independent(law, len(shape))


def first(y: Tensor) -> Tensor:
    return y[:, 0]


def random_linear(rows: int, columns: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(rows, columns)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(columns, rows, generator=generator) / math.sqrt(rows))
        layer.bias.copy_(0.1 * torch.randn(columns, generator=generator))
    return layer


def linear_gaussian(d: int, z: float, hidden: int | None = None, dtype: torch.dtype = torch.float32) -> Known:
    """Two linear layers on Normal(0.3, 0.5): the margin is normal, with catastrophe z standard deviations away."""
    generator = torch.Generator().manual_seed(d)
    net = nn.Sequential(random_linear(d, hidden or d, generator), random_linear(hidden or d, 1, generator)).to(dtype)
    loc, scale = torch.full((d,), 0.3, dtype=dtype), torch.full((d,), 0.5, dtype=dtype)
    with torch.no_grad():
        row = (net[1].weight.double() @ net[0].weight.double())[0]
        std = float((row * scale.double()).norm())
        centre = net[1].weight.double() @ (net[0].weight.double() @ loc.double() + net[0].bias.double())
        net[1].bias.copy_(-z * std - centre)
    law = torch.distributions.Independent(torch.distributions.Normal(loc, scale), 1)
    return Known(RiskProblem(net, law, first, name=f"linear({d})"), float(norm.logsf(z)), -z * std, std)


def two_sided(z: float, d: int = 2) -> Known:
    """|x_0| >= z: two separate catastrophes."""
    problem = RiskProblem(lambda x: x[:, 0].abs() - z, standard(d), name="two-sided")
    return Known(problem, math.log(2) + float(norm.logsf(z)))


def orthant(d: int, correlation: float = 0.0) -> Known:
    """All coordinates positive: 2^-d when independent, 1 / (d + 1) at correlation 1/2."""
    assert correlation in (0.0, 0.5)
    cov = torch.full((d, d), correlation) + (1 - correlation) * torch.eye(d)
    law = torch.distributions.MultivariateNormal(torch.zeros(d), cov)
    exact = -d * math.log(2) if correlation == 0 else -math.log(d + 1)
    return Known(RiskProblem(lambda x: x.min(-1).values, law, name="orthant"), exact)


def conv_problem() -> RiskProblem:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    return RiskProblem(net.eval(), standard(1, 6, 6), lambda y: y[:, 2] - 0.3, name="conv")


class Residual(nn.Module):
    def __init__(self, d: int = 4) -> None:
        super().__init__()
        self.inner = nn.Linear(d, d)
        self.outer = nn.Linear(d, d)
        self.head = nn.Linear(d, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.outer(torch.tanh(self.inner(x))))


def residual_problem() -> RiskProblem:
    torch.manual_seed(1)
    return RiskProblem(Residual().eval(), standard(4), lambda y: y[:, 0] - 1.5, name="residual")


class Twice(nn.Module):
    """One linear module that is called twice."""

    def __init__(self, d: int = 3) -> None:
        super().__init__()
        self.fc = nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.tanh(self.fc(x)))


def twice_problem() -> RiskProblem:
    torch.manual_seed(2)
    return RiskProblem(Twice().eval(), standard(3), lambda y: y.sum(-1) - 0.1, name="twice")


class Head(nn.Module):
    """A detector with weights of its own."""

    def __init__(self, d: int = 3) -> None:
        super().__init__()
        self.score = nn.Linear(d, 1)

    def forward(self, y: Tensor) -> Tensor:
        return self.score(y)[:, 0] - 0.3


def headed_problem() -> RiskProblem:
    torch.manual_seed(3)
    return RiskProblem(nn.Sequential(nn.Linear(2, 3), nn.Tanh()).eval(), standard(2), Head().eval(), name="headed")


NETWORKS = {
    "linear": lambda: linear_gaussian(3, 1.0).problem,
    "conv": conv_problem,
    "residual": residual_problem,
    "twice": twice_problem,
    "headed": headed_problem,
}


def assert_within(value: float, exact: float, std_error: float, sigmas: float = 4.0, slack: float = 0.0) -> None:
    """|value - exact| <= sigmas * std_error + slack, with a message that says by how much it failed."""
    assert std_error > 0, "a standard error of zero or nan makes the comparison empty"
    gap = abs(value - exact)
    assert gap <= sigmas * std_error + slack, (
        f"{value:.5g} against {exact:.5g}: {gap / std_error:.1f} sigmas of {std_error:.3g}"
    )


def assert_means(samples: np.ndarray | Tensor, exact: np.ndarray | Tensor | float, sigmas: float = 4.5) -> None:
    """Column means of independent rows agree with exact expectations."""
    samples = np.asarray(samples, dtype=float).reshape(len(samples), -1)
    error = samples.std(0, ddof=1) / math.sqrt(len(samples))
    assert (error > 0).all()
    gap = np.abs(samples.mean(0) - np.asarray(exact, dtype=float).reshape(-1)) / error
    assert gap.max() <= sigmas, f"column {gap.argmax()} is {gap.max():.1f} sigmas off"


def four_directions(threshold: float = 10.0) -> RiskProblem:
    """sum_k relu(r_k . x) over four orthonormal rows r_k, along which alone x varies five times as much as it does elsewhere.

    Coordinates presumed independent spread that variance over all sixteen directions, so every r_k that is tracked counts.
    """
    generator = torch.Generator().manual_seed(4)
    net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))
    rows = torch.linalg.qr(torch.randn(16, 16, generator=generator)).Q
    with torch.no_grad():
        net[0].weight.copy_(rows)
        net[0].bias.zero_()
        net[2].weight.zero_()
        net[2].weight[0, :4] = 1.0
        net[2].bias.fill_(-threshold)
    law = torch.distributions.MultivariateNormal(torch.zeros(16), torch.eye(16) + 4 * rows[:4].mT @ rows[:4])
    return RiskProblem(net.eval().requires_grad_(False), law, first, name="four directions")
