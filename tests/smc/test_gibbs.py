"""Moves of discrete coordinates, against enumeration: the chains keep the law given the event, and SMC finds its probability."""

import math

import numpy as np
import pytest
import torch
import torch.distributions as td
from scipy import stats
from scipy.special import ndtr

from builders import assert_means, assert_within
from ppl_risk.inputs import Product
from ppl_risk.problem import RiskProblem
from ppl_risk.smc import run_smc
from ppl_risk.smc.moves import MOVES, evaluate

MOVED = ["pcn", "gibbs"]
N = 10_000


def many_faults(wanted=5, count=20, p=0.01):
    """At least `wanted` of `count` rare faults: a binomial tail."""
    law = td.Independent(td.Bernoulli(torch.full((count,), p)), 1)
    problem = RiskProblem(lambda x: x.sum(-1) - wanted + 0.5, law, name="faults")
    return problem, float(stats.binom(count, p).logsf(wanted - 1))


P, GAIN, BAR = np.array([0.1, 0.05, 0.02, 0.01]), np.array([1.0, 1.5, 2.0, 3.0]), 6.0


def mixed(bar=BAR):
    """Load z + sum of gains of the faults that happen, z normal: 16 cases by enumeration."""
    faults = td.Independent(td.Bernoulli(torch.as_tensor(P)), 1)
    law = Product({"load": td.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0), "faults": faults})
    gain = torch.as_tensor(np.append(1.0, GAIN))
    return RiskProblem(lambda x: x @ gain - bar, law, name="mixed")


def cases(bar=BAR):
    """Faults (16, 4) and Pr[faults, event]."""
    faults = np.array([[int(b) for b in f"{i:04b}"] for i in range(16)])
    prior = np.prod(np.where(faults == 1, P, 1 - P), axis=1)
    return faults, prior * ndtr(faults @ GAIN - bar)


def counts(bar=110.0, rate=70.0):
    """A single Poisson count far in its tail, where a fresh draw would never be accepted."""
    problem = RiskProblem(
        lambda x: x[:, 0] - bar + 0.5, td.Independent(td.Poisson(torch.tensor([rate])), 1), name="count"
    )
    return problem, float(stats.poisson(rate).logsf(bar - 1))


@pytest.mark.parametrize("move", MOVED)
@pytest.mark.parametrize("step", [0.2, 0.9])
def test_the_law_given_the_event_is_kept(move, step):
    """Exact draws given the event, moved ten times, keep the probabilities of the faults and the load's mean."""
    bar = 3.0
    problem, (faults, joint) = mixed(bar), cases(bar)
    torch.manual_seed(0)
    u = torch.randn(1_500_000, 5, dtype=torch.float64)
    u = u[problem.margin_of_normal(u) >= 0][:N]
    assert len(u) == N
    state, moved = evaluate(problem, u, move), 0.0
    for _ in range(10):
        state, accepted = MOVES[move](problem, state, 0.0, step)
        moved += float(accepted.double().mean())
        assert bool((state.margin >= 0).all())
    assert moved > 0.5, "the chain hardly moves: nothing was tested"
    x = problem.from_normal(state.u)
    exact = joint @ faults / joint.sum()
    assert_means(x[:, 1:], exact)
    height = bar - faults @ GAIN
    load = (joint / joint.sum()) @ np.exp(stats.norm.logpdf(height) - stats.norm.logsf(height))
    assert_means(x[:, :1], load)


@pytest.mark.parametrize("move", MOVED)
def test_many_rare_faults(move):
    problem, exact = many_faults()
    estimate = run_smc(problem, moves=move, particles=5000, runs=6, posterior_draws=0, progress=False)
    assert estimate.std_error < 0.4
    assert_within(estimate.log_prob, exact, estimate.std_error)


@pytest.mark.parametrize("move", MOVED)
def test_continuous_and_discrete_together(move):
    exact = math.log(cases()[1].sum())
    estimate = run_smc(mixed(), moves=move, particles=1000, runs=4, posterior_draws=0, progress=False)
    assert estimate.std_error < 0.3
    assert_within(estimate.log_prob, exact, estimate.std_error)


def test_a_count_in_the_far_tail():
    problem, exact = counts(100.0)
    estimate = run_smc(problem, moves="pcn", particles=700, runs=4, posterior_draws=0, progress=False)
    assert estimate.std_error < 0.4
    assert_within(estimate.log_prob, exact, estimate.std_error)


def test_a_rare_component_is_found():
    """Half of the event's mass lies in a component of weight 1e-3, which begins beyond a gap: p = 1e-3 / 2 + Phi(-6)."""
    component = td.Normal(torch.tensor([0.0, 6.0], dtype=torch.float64), torch.tensor([1.0, 0.2], dtype=torch.float64))
    law = td.MixtureSameFamily(td.Categorical(torch.tensor([1 - 1e-3, 1e-3])), component)
    problem = RiskProblem(lambda x: x - 6.0, law, name="component")
    estimate = run_smc(problem, moves="pcn", particles=5000, runs=4, posterior_draws=0, progress=False)
    assert estimate.std_error < 0.4
    assert_within(estimate.log_prob, math.log(5e-4), estimate.std_error)


def test_discrete_turns_change_discrete_coordinates_only():
    problem = mixed()
    torch.manual_seed(0)
    u = torch.randn(4000, 5, dtype=torch.float64)
    new = MOVES["pcn"](problem, evaluate(problem, u, "pcn"), -100.0, 0.1)[0].u
    changed = new != u
    turn = ~changed[:, 0]
    assert abs(float(turn.double().mean()) - 0.5) < 4.5 * 0.5 / math.sqrt(4000)
    assert bool(changed[~turn].all())
    assert bool((changed[turn].sum(-1) >= 1).all())
    # A fresh draw keeps nothing of the old value, a step of 0.1 nearly all.
    index = turn[:, None] & changed
    both = torch.stack([u[index], new[index]])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 4.5 / math.sqrt(both.shape[1])
