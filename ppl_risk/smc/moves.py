r"""Markov moves that leave N(0, I) restricted to {margin >= level} invariant.

- `pcn`: u' = sqrt(1 - s^2) u + s xi, accepted iff margin(u') >= level (preconditioned Crank-Nicolson, Cotter et al. 2013,
  doi:10.1214/13-STS421). One call a step, and its acceptance does not depend on the dimension.
- `gradient`: the Crank-Nicolson Langevin proposal u' = ((2 - d) u + 2 d g(u) + sqrt(8 d) xi) / (2 + d), where g is the gradient
  of log sigmoid((margin - level) / T): it pushes back from the boundary what the contraction towards 0 pulls over it. Two
  calls a step; accepted by Metropolis and Hastings against the hard event.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ppl_risk.problem import RiskProblem


class State(NamedTuple):
    """Particles in the normal space: u (particles, d), margin (particles,), and the margin's gradient where moves use it."""

    u: Tensor
    margin: Tensor
    gradient: Tensor | None = None


#: (problem, state, level, step size) -> (new state, which particles moved)
Move = Callable[[RiskProblem, State, float, float], tuple[State, Bool[Tensor, " particles"]]]


def evaluate(problem: RiskProblem, u: Float[Tensor, "particles d"], move: str) -> State:
    """A state with what the named move needs."""
    if move == "gradient":
        return State(u, *problem.margin_and_gradient(u))
    return State(u, torch.cat([problem.run(problem.from_normal(rows)) for rows in u.split(problem.batch_size)]))


def take(state: State, index: Tensor) -> State:
    """Rows of a state."""
    return State(*(None if part is None else part[index] for part in state))


def cat(states: list[State]) -> State:
    """States end to end."""
    return State(*(None if parts[0] is None else torch.cat(parts) for parts in zip(*states, strict=True)))  # pyright: ignore


def _choose(accept: Bool[Tensor, " particles"], new: State, old: State) -> State:
    def pick(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return None if a is None or b is None else torch.where(accept[:, None] if a.dim() > 1 else accept, a, b)

    return State(*(pick(a, b) for a, b in zip(new, old, strict=True)))  # pyright: ignore[reportArgumentType]


def pcn(problem: RiskProblem, state: State, level: float, step: float) -> tuple[State, Bool[Tensor, " particles"]]:
    """Preconditioned Crank-Nicolson."""
    proposal = math.sqrt(1 - step**2) * state.u + step * torch.randn_like(state.u)
    new = evaluate(problem, proposal, "pcn")
    accept = new.margin >= level
    return _choose(accept, new, state), accept


def gradient(problem: RiskProblem, state: State, level: float, step: float) -> tuple[State, Bool[Tensor, " particles"]]:
    """Crank-Nicolson Langevin; `step` in (0, 1) is matched to pCN's: delta = 2 (1 - r) / (1 + r), r = sqrt(1 - step^2)."""
    keep = math.sqrt(1 - step**2)
    delta = 2 * (1 - keep) / (1 + keep)
    # As wide as the gap that the particles have above the level: the push fades inside the event.
    width = max(float((state.margin - level).mean()), 1e-12)

    def mean(s: State) -> Tensor:
        push = torch.sigmoid((level - s.margin) / width)[:, None] / width * s.gradient
        return ((2 - delta) * s.u + 2 * delta * push) / (2 + delta)

    spread = math.sqrt(8 * delta) / (2 + delta)
    proposal = mean(state) + spread * torch.randn_like(state.u)
    new = evaluate(problem, proposal, "gradient")

    def log_density(at: Tensor, centre: Tensor) -> Tensor:
        return -((at - centre) / spread).square().sum(-1) / 2

    ratio = (
        (state.u.square() - new.u.square()).sum(-1) / 2 + log_density(state.u, mean(new)) - log_density(new.u, mean(state))
    )
    accept = (new.margin >= level) & (torch.rand_like(ratio).log() < ratio)
    return _choose(accept, new, state), accept


MOVES: dict[str, Move] = {"pcn": pcn, "gradient": gradient}
