r"""Markov moves that leave N(0, I) restricted to {margin >= level} invariant.

- `pcn`: u' = sqrt(1 - s^2) u + s xi, accepted iff margin(u') >= level (preconditioned Crank-Nicolson, Cotter et al. 2013,
  doi:10.1214/13-STS421). One call a step, and its acceptance does not depend on the dimension. Where many conditions must hold
  at once it may move a random share of the coordinates only (each choice of coordinates is reversible, so their mixture is).
  Coordinates that act through a step function (`Transport.discrete`: a Bernoulli, the component of a mixture) are at every
  second turn drawn afresh instead, a few of them and nothing else: a small step seldom carries them over a threshold.
- `gibbs`: the same with every coordinate: at every second turn a random few are drawn afresh from N(0, 1) and the rest stay;
  accepted iff margin(u') >= level. For events that depend on which few of many coordinates are large: a fresh one forgets
  where it was.
- `gradient`: with n the unit gradient of the margin at u, the part across n moves as in pCN and the height n.u is drawn afresh
  from N(0, 1) above the linearised boundary; Metropolis and Hastings accept against the hard event. Two calls a step; in a
  linear network the chain forgets its height at once. (Line sampling as a Markov move: ours.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ppl_risk.errors import PreflightError, undefined_margins
from ppl_risk.problem import RiskProblem

SLACK = 0.2
FAR = 4.0
#: Tail lengths (1 / height) below a particle at which its linearised bound is cut: where the slope runs out it lies far too deep.
DEEPEST = 6.0


class State(NamedTuple):
    """Particles in the normal space: u (particles, d), margin (particles,), and the margin's gradient where moves use it.

    `barred` marks those whose last proposal lay above the level where the margin has no slope (line moves only).
    """

    u: Tensor
    margin: Tensor
    gradient: Tensor | None = None
    barred: Tensor | None = None


#: (problem, state, level, step size, share of the coordinates) -> (new state, which particles moved)
Move = Callable[[RiskProblem, State, float, float, float], tuple[State, Bool[Tensor, " particles"]]]


def evaluate(problem: RiskProblem, u: Float[Tensor, "particles d"], move: str) -> State:
    """A state with what the named move needs."""
    state = State(u, *problem.margin_and_gradient(u)) if move == "gradient" else State(u, problem.margin_of_normal(u))
    wrong = int(torch.isnan(state.margin).sum())
    if wrong:
        raise PreflightError(undefined_margins(wrong, u.shape[0]))
    return state


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


def pcn(
    problem: RiskProblem, state: State, level: float, step: float, share: float = 1.0
) -> tuple[State, Bool[Tensor, " particles"]]:
    """Preconditioned Crank-Nicolson, of a random share of the coordinates; discrete ones are redrawn at every second turn."""
    return _walk(problem, state, level, step, share, problem.transport.discrete)


def gibbs(
    problem: RiskProblem, state: State, level: float, step: float, share: float = 1.0
) -> tuple[State, Bool[Tensor, " particles"]]:
    """At every second turn a fresh draw of a random few coordinates, of any kind; otherwise as pCN."""
    return _walk(problem, state, level, step, share, torch.ones(state.u.shape[1], dtype=torch.bool))


def _walk(
    problem: RiskProblem, state: State, level: float, step: float, share: float, redraw: Bool[Tensor, " d"] | None
) -> tuple[State, Bool[Tensor, " particles"]]:
    u = state.u
    proposal = math.sqrt(1 - step**2) * u + step * torch.randn_like(u)
    if share < 1:
        proposal = torch.where(torch.rand_like(u) < share, proposal, u)
    if redraw is not None:
        proposal = torch.where(torch.rand_like(u[:, :1]) < 0.5, _redrawn(u, redraw.to(u.device)), proposal)
    new = evaluate(problem, proposal, "pcn")
    accept = new.margin >= level
    return _choose(accept, new, state), accept


def _redrawn(u: Float[Tensor, "particles d"], marks: Bool[Tensor, " d"]) -> Float[Tensor, "particles d"]:
    """One marked coordinate at random drawn afresh, and a share of the other marked ones, between one of them and half.

    The share is drawn for each particle, uniformly on a logarithmic scale: how many coordinates can be let go at once depends on
    the event, and the step of pCN, which is tuned to the others, does not tell.
    """
    places = marks.nonzero()[:, 0]
    always = places[torch.randint(len(places), (len(u), 1), device=u.device)]
    share = 0.5 * torch.rand_like(u[:, :1]).mul(-math.log(max(1.0, len(places) / 2))).exp()
    chosen = (marks & (torch.rand_like(u) < share)).scatter(1, always, True)
    return torch.where(chosen, torch.randn_like(u), u)


class _Line(NamedTuple):
    """A particle seen along its gradient: unit normal n (0 where flat), height a = n.u, linearised bound on it."""

    normal: Tensor
    height: Tensor
    bound: Tensor


def flat_at(state: State) -> Bool[Tensor, " particles"]:
    """Particles at which the margin has no slope to speak of."""
    assert state.gradient is not None
    return state.gradient.double().norm(dim=-1) <= 1e-12 * (1 + state.margin.double().abs())


def _line(state: State, level: float) -> _Line:
    assert state.gradient is not None
    u, gradient = state.u.double(), state.gradient.double()
    slope, flat = gradient.norm(dim=-1), flat_at(state)
    normal = torch.where(flat[:, None], 0.0, gradient / slope.clamp(min=1e-300)[:, None])
    height = (normal * u).sum(-1)
    bound = height - (state.margin.double() - level) / slope.clamp(min=1e-300)
    # Any function of the particle will do; a straight margin puts one in e^6 further down, so hardly any move changes.
    bound = torch.maximum(bound, height - DEEPEST / height.clamp(min=1.0))
    # Lowered by a fifth of the tail's own length: where the margin bends, the way back must stay open.
    bound = bound - SLACK / bound.clamp(min=1.0)
    return _Line(normal, height, torch.where(flat, -torch.inf, bound.clamp(min=-30.0)))


def _tail_sample(bound: Tensor) -> Tensor:
    """Heights above `bound`: of N(0, 1) where it is low, of h exp(-h^2 / 2) where it is high.

    The second has the same tail up to a factor h, a closed form at any height (Robert 1995, doi:10.1007/BF00143942 on the
    tail of a normal), and Metropolis and Hastings see to the rest.
    """
    uniform = torch.rand_like(bound)
    low = -torch.special.ndtri((torch.special.log_ndtr(-bound).exp() * uniform).clamp(min=1e-300))
    return torch.where(bound < FAR, low, (bound.square() - 2 * uniform.clamp(min=1e-300).log()).sqrt())


def _tail_log_density(height: Tensor, bound: Tensor) -> Tensor:
    """Log density of `_tail_sample`, without the -log(2 pi) / 2 that a coordinate moved by pCN leaves out too."""
    low = -height.square() / 2 - torch.special.log_ndtr(-bound)
    far = height.clamp(min=1e-300).log() - (height.square() - bound.square()) / 2 + 0.5 * math.log(2 * math.pi)
    return torch.where(bound < FAR, low, far)


def _log_density(new: Tensor, old: Tensor, line: _Line, step: float) -> Float[Tensor, " particles"]:
    """log q(old -> new), up to constants that both directions share."""
    height = (line.normal * new).sum(-1)
    across = new - height[:, None] * line.normal - math.sqrt(1 - step**2) * (old - line.height[:, None] * line.normal)
    steep = torch.isfinite(line.bound)
    tail = _tail_log_density(height, line.bound) + math.log(step)
    along = torch.where(steep, torch.where(height >= line.bound, tail, -torch.inf), 0.0)
    return along - across.square().sum(-1) / (2 * step**2)


def gradient(
    problem: RiskProblem, state: State, level: float, step: float, share: float = 1.0
) -> tuple[State, Bool[Tensor, " particles"]]:
    """Line move: across the gradient as pCN, along it a fresh draw of N(0, 1) above the linearised boundary (no `share`).

    Where the margin is linear the new height is independent of the old one and every proposal is accepted.
    """
    here = _line(state, level)
    old = state.u.double()
    height = _tail_sample(here.bound)
    noise = math.sqrt(1 - step**2) * (old - here.height[:, None] * here.normal) + step * torch.randn_like(old)
    across = noise - (noise * here.normal).sum(-1, keepdim=True) * here.normal
    height = torch.where(torch.isfinite(here.bound), height, 0.0)
    new = evaluate(problem, (across + height[:, None] * here.normal).to(state.u.dtype), "gradient")
    u = new.u.double()
    ratio = (
        (old.square() - u.square()).sum(-1) / 2
        + _log_density(old, u, _line(new, level), step)
        - _log_density(u, old, here, step)
    )
    above = new.margin >= level
    accept = above & (torch.rand_like(ratio).log() < ratio)
    barred = above & flat_at(new) & torch.isfinite(here.bound)
    return _choose(accept, new, state)._replace(barred=barred), accept


MOVES: dict[str, Move] = {"pcn": pcn, "gibbs": gibbs, "gradient": gradient}
