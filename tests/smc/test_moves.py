"""Every move leaves the normal law restricted to {margin >= level} invariant.

Exact draws of that law (by rejection) are moved several times and held against fresh exact draws.
"""

import math

import pytest
import torch
from scipy.stats import ks_2samp, norm

from builders import assert_means, standard
from ppl_risk.problem import RiskProblem
from ppl_risk.smc.moves import MOVES, evaluate

D, N = 3, 8000


def bent(x):
    return x[:, 0] + 0.3 * x[:, 0].square() - 0.5 * x[:, 1].square()


# Regions of probability near 1 %; "flat" and "patches" have places without a gradient inside the region.
REGIONS = {
    "half-space": (lambda x: x[:, 0], 2.3),
    "half-space, steep": (lambda x: 1e3 * x[:, 0] - 50.0, 2250.0),
    "outside a ball": (lambda x: x.norm(dim=-1), 3.4),
    "inside a ball": (lambda x: -x.norm(dim=-1), -0.35),
    "two sides": (lambda x: x[:, 0].abs(), 2.5),
    "corner": (lambda x: x[:, :2].min(-1).values, 1.3),
    "bent": (bent, 4.0),
    "saturating": (lambda x: torch.tanh(x[:, 0] + 0.5 * x[:, 1]), 0.99),
    "flat": (lambda x: torch.relu(x[:, 0] - 1.0), 0.0),
    "patches": (lambda x: torch.relu(x[:, 0]) + torch.relu(x[:, 1] - 0.5), 0.0),
    "ripples": (lambda x: x[:, 0] + 0.5 * torch.sin(4 * x[:, 0]), 2.3),
}


def exact_draws(problem, level, count, seed):
    torch.manual_seed(seed)
    kept, have = [], 0
    while have < count:
        u = torch.randn(400_000, D, dtype=torch.float64)
        kept.append(u[problem.run(u) >= level])
        have += len(kept[-1])
    return torch.cat(kept)[:count]


def features(problem, u):
    pairs = torch.stack([u[:, 0] * u[:, 1], u[:, 1] * u[:, 2]], -1)
    near = (u[:, :1] > u[:, :1].median()).double()
    return torch.cat([u, u.square(), pairs, problem.run(u)[:, None], near * 0 + (u[:, 1:2] > 0.3).double()], -1)


@pytest.mark.parametrize("step", [0.3, 0.8])
@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("move", MOVES)
def test_restricted_normal_is_invariant(move, region, step):
    """Two-sample z test on each of 11 features at 4.5 sigmas, and Kolmogorov-Smirnov on the margin."""
    margin, level = REGIONS[region]
    problem = RiskProblem(margin, standard(D, dtype=torch.float64))
    start, fresh = exact_draws(problem, level, N, 0), exact_draws(problem, level, N, 1)
    state, moved = evaluate(problem, start, move), torch.zeros(N)
    torch.manual_seed(2)
    for _ in range(6):
        state, accepted = MOVES[move](problem, state, level, step)
        moved += accepted
    assert float(moved.mean()) > 0.1, "the chain hardly moves: nothing was tested"
    assert bool((state.margin >= level).all())
    one, two = features(problem, state.u), features(problem, fresh)
    error = ((one.var(0) + two.var(0)) / N).sqrt()
    gap = (one.mean(0) - two.mean(0)).abs()
    assert bool((gap <= 4.5 * error).all()), (gap / error).tolist()
    if region not in ("flat", "patches"):  # ties
        assert ks_2samp(problem.run(state.u).numpy(), problem.run(fresh).numpy()).pvalue > 1e-5


@pytest.mark.parametrize("level", [5.0, 8.0, 10.0, 25.0])
@pytest.mark.parametrize("move", MOVES)
def test_half_space_in_closed_form(move, level):
    """Far out, where rejection cannot go: u_0 | u_0 > level is known."""
    n = 20_000
    problem = RiskProblem(lambda x: x[:, 0], standard(D, dtype=torch.float64))
    torch.manual_seed(0)
    tail = torch.rand(n, dtype=torch.float64) * norm.sf(level)
    u = torch.randn(n, D, dtype=torch.float64)
    u[:, 0] = torch.as_tensor(norm.isf(tail.numpy()))
    state = evaluate(problem, u, move)
    for _ in range(6):
        state, _ = MOVES[move](problem, state, level, 1.5 / level)
    mills = math.exp(norm.logpdf(level) - norm.logsf(level))
    assert_means(
        torch.cat([state.u, state.u[:, :1].square(), state.u[:, 1:].square()], -1),
        [mills, 0.0, 0.0, 1 + level * mills, 1.0, 1.0],
    )


def test_gradient_move_forgets_the_height_at_once():
    """In a linear network the new height is independent of the old one; nearly every proposal is accepted."""
    problem = RiskProblem(lambda x: x[:, 0] - 6.0, standard(D))
    torch.manual_seed(0)
    u = torch.randn(4000, D)
    u[:, 0] = 6.0 + torch.rand(4000)
    state, accepted = MOVES["gradient"](problem, evaluate(problem, u, "gradient"), 0.0, 0.5)
    assert float(accepted.double().mean()) > 0.75
    both = torch.stack([u[accepted, 0], state.u[accepted, 0]])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 4.5 / math.sqrt(int(accepted.sum()))


@pytest.mark.parametrize("move", MOVES)
def test_rejected_particles_stay_and_carried_values_are_true(move):
    margin, level = REGIONS["bent"]
    problem = RiskProblem(margin, standard(D, dtype=torch.float64))
    start = exact_draws(problem, level, 500, 3)
    old = evaluate(problem, start, move)
    new, accepted = MOVES[move](problem, old, level, 0.8)
    assert 0 < int(accepted.sum()) < 500
    assert torch.equal(new.u[~accepted], start[~accepted])
    again = evaluate(problem, new.u, move)
    torch.testing.assert_close(new.margin, again.margin)
    if move == "gradient":
        torch.testing.assert_close(new.gradient, again.gradient)


def test_cost_of_a_step():
    problem = RiskProblem(lambda x: x[:, 0], standard(D))
    for move, cost in (("pcn", (50, 0)), ("gradient", (50, 50))):
        state = evaluate(problem, torch.randn(50, D), move)
        with problem.metered() as meter:
            MOVES[move](problem, state, -10.0, 0.5)
        assert (meter.forward_calls, meter.gradient_calls) == cost
