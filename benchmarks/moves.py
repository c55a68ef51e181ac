r"""Markov moves for rare-event SMC in the normal space, compared at equal calls: which to keep in `ppl_risk.smc.moves`.

Two of them are the library's, `pcn` and `gradient`. The others are defined here and registered only while the study runs:

- `elliptical`: elliptical slice sampling (Murray, Adams, MacKay 2010, arXiv 1001.0356) with the hard constraint as likelihood:
  u' = u cos t + xi sin t with xi ~ N(0, I), t uniform on the circle, the bracket of t shrunk towards 0 until margin(u') >= level.
  Every particle moves; one call an angle tried, and only particles whose angle failed are evaluated again. No step size.
- `hamiltonian`: v ~ N(0, I), then three Verlet steps: the pair (u, v) is rotated exactly, which keeps its normal law, between
  kicks of v (Beskos et al. 2011, doi:10.1016/j.spa.2011.06.003; in subset simulation: Wang, Broccardo, Song 2017, arXiv
  1706.01435; for networks, on a tempered event: Tit, Furon, Rousset 2023, PMLR 206:323-334). Kicks follow the gradient of
  log sigmoid((margin - level) / T) with T half the particles' mean excess over the level (tuned, as the step is, on the
  particles that are moved): for a straight boundary that balances the pull of N(0, I) there. They preserve volume and are
  reversible whatever potential they come from, so accepting with

      min(1, exp((|u|^2 + |v|^2 - |u'|^2 - |v'|^2) / 2)) 1{margin(u') >= level}

  is exact for the hard event. Two calls a Verlet step (margin and gradient); the gradient at u is known from the step before.
- `langevin`: the same with one Verlet step.

`run_levels` treats them as it treats its own, tuning step and thinning on the way, and never changes the move within a run.
Work-normalised variance: relative MSE of p times mean calls / 1000, a run without an answer counting as p = 0; beside it, less
at the mercy of single runs, the same with the mean square of log p - log(truth) over the runs that answered.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from benchmarks.rare_event_classes import problem_of, truth_of
from benchmarks.results import table
from ppl_risk.errors import CallLimitError
from ppl_risk.problem import RiskProblem
from ppl_risk.randomness import child_seeds, seeded
from ppl_risk.risk_estimate import LOG10
from ppl_risk.smc.levels import Tuning, run_levels
from ppl_risk.smc.moves import MOVES, Move, State, evaluate

TITLE = "Markov moves of rare-event SMC at equal calls"
LABELS = (
    "linear d=20 1e-6", "linear d=200 1e-6", "digits 1e-7", "digits_weights last", "four_branches", "far_modes d=20",
    "curved shell", "curved corner5",
)  # fmt: skip
COMPARED = ("pcn", "gradient", "elliptical", "hamiltonian", "langevin")
KEEP, SEED = 0.25, 0
#: Calls a run is to cost, and how many runs. At the smaller budget dear moves are left with few particles, hence the larger one.
BUDGETS = {2000: 40, 8000: 24}
#: Runs of each round of the pilot, which sets the particles; a run is stopped at so many times the calls wanted.
PILOTS, OVERRUN = (3, 8), 5
#: Angles an elliptical move tries before it stays where it is; reversible too, for both ways shrink the bracket alike.
MOST_ANGLES = 60
#: T in units of the particles' mean excess.
SMOOTHING = 0.5


def elliptical(
    problem: RiskProblem, state: State, level: float, step: float, share: float = 1.0
) -> tuple[State, Bool[Tensor, " particles"]]:
    """Elliptical slice sampling within {margin >= level}; neither `step` nor `share` is used."""
    u, margin = state.u.clone(), state.margin.clone()
    other = torch.randn_like(u)
    angle = 2 * math.pi * torch.rand_like(margin)
    low, high = angle - 2 * math.pi, angle.clone()
    left = torch.arange(len(margin), device=u.device)
    for _ in range(MOST_ANGLES):
        turn = angle[left, None]
        new = evaluate(problem, state.u[left] * turn.cos() + other[left] * turn.sin(), "elliptical")
        inside = new.margin >= level
        u[left[inside]], margin[left[inside]] = new.u[inside], new.margin[inside]
        left = left[~inside]
        if not len(left):
            break
        below = angle[left] < 0
        low[left] = torch.where(below, angle[left], low[left])
        high[left] = torch.where(below, high[left], angle[left])
        angle[left] = low[left] + (high[left] - low[left]) * torch.rand_like(margin[left])
    moved = torch.ones_like(margin, dtype=torch.bool)
    moved[left] = False
    return State(u, margin), moved


def hamiltonian(
    problem: RiskProblem, state: State, level: float, step: float, share: float = 1.0, *, verlet_steps: int = 3
) -> tuple[State, Bool[Tensor, " particles"]]:
    """Rotations by asin(step) between kicks of a smoothed event, accepted by Metropolis against the hard one (no `share`)."""
    assert state.gradient is not None
    smooth = SMOOTHING * float((state.margin - level).mean().clamp(min=1e-12))
    turn = math.asin(step)

    def kick(at: State) -> Tensor:
        assert at.gradient is not None
        force = torch.sigmoid((level - at.margin) / smooth) / smooth
        return turn / 2 * force[:, None] * at.gradient

    velocity = torch.randn_like(state.u)
    before = (state.u.double().square() + velocity.double().square()).sum(-1)
    at = state
    for _ in range(verlet_steps):
        velocity = velocity + kick(at)
        u = math.cos(turn) * at.u + math.sin(turn) * velocity
        velocity = math.cos(turn) * velocity - math.sin(turn) * at.u
        at = evaluate(problem, u, "gradient")
        velocity = velocity + kick(at)
    after = (at.u.double().square() + velocity.double().square()).sum(-1)
    accept = (at.margin >= level) & (torch.rand_like(before).log() < (before - after) / 2)
    assert at.gradient is not None
    u, gradient = (torch.where(accept[:, None], *pair) for pair in ((at.u, state.u), (at.gradient, state.gradient)))
    return State(u, torch.where(accept, at.margin, state.margin), gradient), accept


KERNELS: dict[str, Move] = {
    "elliptical": elliptical, "hamiltonian": hamiltonian, "langevin": partial(hamiltonian, verlet_steps=1),
}  # fmt: skip


@contextmanager
def registered(kernels: dict[str, Move]) -> Iterator[None]:
    """The library's moves with these among them, for as long as the block runs."""
    before = dict(MOVES)
    MOVES.update(kernels)
    try:
        yield
    finally:
        MOVES.clear()
        MOVES.update(before)


class Found(NamedTuple):
    """Of one run: log p (-inf where the event was not reached or the calls ran out) and calls."""

    log_prob: float
    calls: int


@torch.no_grad()
def climb(problem: RiskProblem, move: str, particles: int, seed: int, calls: int) -> Found:
    """One run of SMC with one kernel from first to last."""
    needs = "pcn" if move in ("pcn", "elliptical") else "gradient"
    log_prob = -math.inf
    with seeded(seed), problem.metered(OVERRUN * calls) as meter:
        try:
            u = torch.randn(particles, problem.transport.dimension).to(problem.dtype)
            log_prob = run_levels(
                problem, evaluate(problem, u, needs), u.new_zeros(particles, dtype=torch.float64),
                tuning=Tuning(move, KEEP), max_levels=200, posterior_draws=0,
            ).log_prob  # fmt: skip
        except CallLimitError:
            pass
    return Found(log_prob, meter.calls)


def particles_for(problem: RiskProblem, move: str, calls: int) -> int:
    """Particles at which a run costs about `calls`, found by pilots on seeds that the study does not use."""
    particles = calls // 20
    for runs in PILOTS:
        spent = [climb(problem, move, particles, seed, calls).calls for seed in child_seeds(SEED + 1, runs)]
        particles = max(20, round(particles * calls / float(np.mean(spent))))
    return particles


def figures(found: list[Found], truth: float) -> dict[str, float]:
    """What the runs of one kernel on one class are worth."""
    log_probs = np.array([f.log_prob for f in found])
    answered = log_probs[np.isfinite(log_probs)]
    calls = float(np.mean([f.calls for f in found]))
    square = float(np.mean((np.exp(log_probs - truth) - 1) ** 2))
    log_square = float(np.mean((answered - truth) ** 2)) if len(answered) else math.nan
    return {
        "calls": calls, "sd": float(answered.std(ddof=1) / LOG10) if len(answered) > 1 else math.nan,
        "bias": float(np.mean(answered - truth)) / LOG10 if len(answered) else math.nan,
        "rmse": math.sqrt(square), "failed": 1 - len(answered) / len(found),
        "work": square * calls / 1000, "log_work": log_square * calls / 1000,
    }  # fmt: skip


def compare(calls: int, runs: int) -> str:
    """Every kernel on every class at one budget, and geometric means over the classes."""
    rows: list[dict[str, object]] = []
    works: dict[str, list[tuple[float, float]]] = {move: [] for move in COMPARED}
    for label in LABELS:
        problem, truth = problem_of(label), truth_of(label).log_prob
        for move in COMPARED:
            particles = particles_for(problem, move, calls)
            got = figures([climb(problem, move, particles, seed, calls) for seed in child_seeds(SEED, runs)], truth)
            works[move].append((got["work"], got["log_work"]))
            rows.append({
                "class": label, "move": move, "particles": particles, "calls": f"{got['calls']:,.0f}",
                "sd of log10 p": f"{got['sd']:.2f}", "bias of log10 p": f"{got['bias']:+.2f}", "rel. RMSE": f"{got['rmse']:.2f}",
                "work": f"{got['work']:.3g}", "log work": f"{got['log_work']:.3g}", "failed": f"{got['failed']:.0%}",
            })  # fmt: skip
    means = {move: np.exp(np.log(np.array(pairs)).mean(0)) for move, pairs in works.items()}
    summary: list[dict[str, object]] = [
        {
            "geometric means": move, "work": f"{mean[0]:.2f}", "log work": f"{mean[1]:.2f}",
            "over pcn's": " and ".join(f"{ratio:.2f}" for ratio in mean / means["pcn"]),
        }
        for move, mean in means.items()
    ]  # fmt: skip
    return f"### About {calls:,} calls a run, {runs} runs\n\n{table(rows)}\n\n{table(summary)}"


def run() -> str:
    """The text of the section."""
    with registered(KERNELS):
        tables = [compare(calls, runs) for calls, runs in BUDGETS.items()]
    return (
        f"Single runs of `run_levels`, {KEEP:.0%} kept a level, no change of move. work: work-normalised variance, relative MSE of "
        "p x calls / 1000, a run without an answer counting as p = 0; log work: the same with log p (nats) in place of p / truth, "
        "over the runs that answered. Lower is better. Where most runs are far too low, work is near calls / 1000 and says "
        "little.\n\n" + "\n\n".join(tables)
    )
