"""Laws of a function's output: as propagation has them, and as draws show them."""

import math

import torch

from builders import standard
from ppl_risk.problem import RiskProblem
from ppl_risk.propagation.full import FullJoint
from ppl_risk.propagation.interpret import carry
from ppl_risk.propagation.low_rank import LowRankJoint
from ppl_risk.tracing import Tape, trace

DRAWS = 200_000
NOISE = 5 / math.sqrt(DRAWS)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated(n, seed=0, spread=1.0):
    """A mean and a covariance with strong correlations."""
    half = drawn(n, n, seed=seed) + 0.7 * drawn(n, 1, seed=seed + 1)
    covariance = half @ half.T / n + 0.05 * torch.eye(n)
    return 0.7 * spread * drawn(n, seed=seed + 2), spread**2 * covariance


def tape_of(function, *shape):
    """The steps from the input to the function's output, flattened."""
    problem = RiskProblem(function, standard(*shape), lambda y: y.flatten(1).sum(-1))
    return Tape(trace(problem).steps[:-1])


def law_of(function, shape, mean, covariance, rank=None):
    """Mean and covariance of the output by the full family, or by the low-rank family of some rank."""
    tape = tape_of(function, *shape)
    if rank is None:
        joint = FullJoint(tape.steps[0].name, mean[None], covariance[None])
    else:
        root = torch.linalg.cholesky(covariance)
        joint = LowRankJoint(tape.steps[0].name, mean[None], torch.zeros_like(mean)[None], root[None], rank)
    law = carry(tape, joint).law_of(tape.steps[-1].name)
    return law.mean[0], law.covariance()[0]


@torch.no_grad()
def sampled(function, shape, mean, covariance, draws=DRAWS):
    """Mean and covariance of the output in draws, half of them mirrored."""
    u = drawn(draws // 2, len(mean), seed=99)
    x = mean + torch.cat([u, -u]) @ torch.linalg.cholesky(covariance).T
    y = function(x.float().reshape(-1, *shape)).double().flatten(1)
    return y.mean(0), y.T.cov().reshape(y.shape[1], -1)


def assert_law(found, expected, mean=0.0, covariance=0.0, noise=NOISE):
    """Errors of the mean in standard deviations, of covariances over the product of two; `noise` comes on top."""
    sd = expected[1].diagonal().sqrt()
    off = float(((found[0] - expected[0]) / sd).abs().max())
    apart = float(((found[1] - expected[1]) / (sd[:, None] * sd)).abs().max())
    assert off <= mean + noise, f"mean is {off:.4f} standard deviations off"
    assert apart <= covariance + noise, f"covariance is {apart:.4f} off"
