r"""One run of adaptive multilevel SMC: log p = sum over levels of log(weighted share above the next level).

Each level is the highest at which the effective number of particles stays at `keep` of them (for equal weights: a quantile;
Au and Beck 2001, doi:10.1016/S0266-8920(01)00019-4; Cerou et al. 2012). The survivors are resampled to few ancestors, each
of which runs a chain all of whose states are kept (waste-free SMC, Dau and Chopin 2022, arXiv 2011.02328), so a level of N
particles costs N - N keep calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ppl_risk.importance.pareto import effective_sample_size
from ppl_risk.problem import RiskProblem
from ppl_risk.smc.moves import MOVES, State, cat, flat_at, take
from ppl_risk.smc.resampling import systematic

TARGET_ACCEPTANCE = 0.4
#: Below this acceptance the gradient points at one of several boundaries at once (a corner), and pCN takes over.
CORNER_ACCEPTANCE = 0.35
PCN_KEEP = 0.1
#: Shares of the coordinates that pCN may move at once; the smaller ones are tried where the step of all has become small.
SHARES = (1.0, 1 / 4, 1 / 16, 1 / 64)
SMALL_STEP = 0.25
#: Chains are thinned while successive kept margins correlate more than the first figure, down again below the second.
STICKY, FREE, LARGEST_THIN = 0.5, 0.25, 64
#: Levels in a row that gain less than this share of the margin's spread mean that the particles have stopped rising.
SMALLEST_GAIN = 1e-4
PATIENCE = 5
#: Share of the wanted survivors below which ties have left fewer.
ENOUGH = 0.9
#: Share of particles without a slope, or of line moves that lead there, above which these leave out a part of the event.
FLAT = 0.01


class Level(NamedTuple):
    """What happened at one level; the fields are those of the /smc_history group.

    `survivors` is the number of different particles above the level where ties left fewer than were asked for (else nan), `flat`
    the share of particles without a slope, or of line moves that lead there.
    """

    threshold: float
    log_ratio: float
    ess: float
    acceptance: float = math.nan
    step_size: float = math.nan
    n_unique: float = math.nan
    autocorrelation: float = math.nan
    thin: float = math.nan
    survivors: float = math.nan
    flat: float = math.nan


class Tuning(NamedTuple):
    """What is carried from level to level: kernel, share kept, step size for each of `SHARES`, and steps between kept states."""

    move: str
    keep: float
    steps: tuple[float, ...] = (0.8,) * len(SHARES)
    thin: int = 1


class Run(NamedTuple):
    """One run: log p (-inf where the event was not reached), its levels, posterior draws, and what the survival curve needs.

    `survival` holds, per level, log Pr of being there, and the margins with their log weights.
    """

    log_prob: float
    levels: list[Level]
    posterior: Tensor
    survival: list[tuple[float, Tensor, Tensor]]
    best_margin: float
    first_margin: Tensor


def next_level(margin: Float[Tensor, " n"], log_weight: Float[Tensor, " n"], keep: float) -> float:
    """The threshold just above the first particle that need not survive, where those above number keep * n effectively.

    That particle itself must not count: with k survivors of n, k / n over the share truly above has mean 1, whereas counting the
    particle on the threshold would add 1 / (k - 1) of bias a level (Guyader, Hengartner, Matzner-Lober 2011,
    doi:10.1007/s00245-011-9135-z). On a plateau the tied particles are kept together.
    """
    ordered, index = margin.sort(descending=True)
    w = (log_weight[index] - log_weight.max()).double().exp()
    ess = w.cumsum(0).square() / w.square().cumsum(0).clamp(min=1e-300)
    enough = torch.nonzero(ess >= keep * len(margin) - 1e-9)
    below = int(enough[0]) + 1 if len(enough) else len(margin)
    if below >= len(margin):
        return min(0.0, float(ordered[-1]))
    first_out = ordered[below]
    if first_out < ordered[0]:
        first_out = torch.nextafter(first_out, ordered[0])
    return min(0.0, float(first_out))


def run_levels(
    problem: RiskProblem,
    start: State,
    log_weight: Float[Tensor, " particles"],
    *,
    tuning: Tuning,
    may_switch: bool = False,
    max_levels: int,
    posterior_draws: int,
    fixed_levels: list[float] | None = None,
    watch: Callable[[State], None] | None = None,
) -> Run:
    """Climb from weighted particles of the unconditioned law to the event.

    Args:
        problem: the problem. start, log_weight: particles and their log weights, whose mean weight estimates 1.
        tuning: kernel and share kept to begin with. may_switch: whether pCN may take over from a gradient kernel in a corner.
        max_levels: after which the run gives up. posterior_draws: rows wanted given catastrophe.
        fixed_levels: thresholds to use instead of adaptive ones; then exp(log_prob) is unbiased but for step-size tuning.
        watch: shown the particles of every level.
    """
    state, count = start, len(start.margin)
    levels: list[Level] = []
    survival: list[tuple[float, Tensor, Tensor]] = []
    log_prob, stalled, threshold = 0.0, 0, -math.inf
    finite = state.margin[torch.isfinite(state.margin)]
    spread = (float(finite.std()) if len(finite) > 1 else 0.0) or 1.0
    while len(levels) < max_levels:
        previous = threshold
        if fixed_levels is None:
            threshold = next_level(state.margin, log_weight, tuning.keep)
            if threshold <= previous:
                above = state.margin[state.margin > previous]
                threshold = min(0.0, float(above.min())) if len(above) else previous
        else:
            threshold = min(0.0, fixed_levels[len(levels)]) if len(levels) < len(fixed_levels) else 0.0
        wanted = tuning.keep * count if fixed_levels is None else 0.0
        survival.append((log_prob, state.margin, log_weight))
        alive = torch.where(state.margin >= threshold, log_weight, -torch.inf)
        log_ratio = float(alive.double().logsumexp(0)) - math.log(len(alive))
        log_prob += log_ratio
        level = Level(threshold, log_ratio, effective_sample_size(alive), survivors=_tied(state, alive, wanted))
        if not math.isfinite(log_prob) or threshold >= 0:
            levels.append(level)
            break
        seeds = take(state, systematic(alive, max(2, round(tuning.keep * count))))
        new, found, carried = refresh(problem, seeds, threshold, count, tuning)
        if may_switch and found["flat"] > FLAT:
            # A line needs a slope at both its ends: into the event of a clamped margin no move is accepted. Once more without.
            seeds = take(state, systematic(alive, max(2, round(PCN_KEEP * count))))._replace(gradient=None)
            new, again, carried = refresh(problem, seeds, threshold, count, Tuning("pcn", PCN_KEEP))
            found = again | {"flat": found["flat"]}
        state, tuning = new, carried
        if watch is not None:
            watch(state)
        levels.append(level._replace(**found))
        log_weight = torch.zeros(len(state.margin), dtype=log_weight.dtype, device=log_weight.device)
        if may_switch and tuning.move == "gradient" and levels[-1].acceptance < CORNER_ACCEPTANCE:
            tuning = Tuning("pcn", PCN_KEEP)
            state = state._replace(gradient=None)
        stalled = stalled + 1 if threshold - previous < SMALLEST_GAIN * spread else 0
        if stalled >= PATIENCE:
            break
    reached = bool((state.margin >= 0).any()) and threshold >= 0
    posterior = start.u[:0]
    if reached and posterior_draws:
        alive = torch.where(state.margin >= 0, log_weight, -torch.inf)
        seeds = take(state, systematic(alive, max(2, round(tuning.keep * posterior_draws))))
        posterior = refresh(problem, seeds, 0.0, posterior_draws, tuning)[0].u
    return Run(log_prob if reached else -math.inf, levels, posterior, survival, float(state.margin.max()), start.margin)


def refresh(
    problem: RiskProblem, seeds: State, level: float, count: int, tuning: Tuning
) -> tuple[State, dict[str, float], Tuning]:
    """Chains from the seeds until there are about `count` states; returns them, the level's figures, and the next tuning.

    Where successive kept states hardly differ the next level keeps every second one as often (and back again).
    """
    chain = max(1, round(count / len(seeds.margin)) - 1)
    states, current, steps = [seeds], seeds, list(tuning.steps)
    shares = _shares_to_try(tuning, seeds.u.shape[1])
    jumps, rates, tried = dict.fromkeys(shares, 0.0), [], dict.fromkeys(shares, 0)
    flat = [float(flat_at(seeds).double().mean())] if seeds.gradient is not None else [0.0]
    for _ in range(chain):
        for _ in range(tuning.thin):
            # Each share once, then the one that moved the particles furthest; every step is a valid move.
            index = min(shares, key=lambda i: (tried[i] > 0, -jumps[i]))
            new, accept = MOVES[tuning.move](problem, current, level, steps[index], SHARES[index])
            rates.append(float(accept.float().mean()))
            tried[index] += 1
            flat += [] if new.barred is None else [float(new.barred.double().mean())]
            jumps[index] = float((new.u - current.u).square().sum(-1).mean())
            # Robbins and Monro on the logit of the step, within (0, 1).
            logit = math.log(steps[index] / (1 - steps[index]))
            logit += 2.0 / tried[index] ** 0.6 * (rates[-1] - TARGET_ACCEPTANCE)
            steps[index] = min(0.99, max(0.01, 1 / (1 + math.exp(-logit))))
            current = new
        states.append(current)
    sticky = _autocorrelation(torch.stack([s.margin for s in states]))
    thin = tuning.thin * 2 if sticky > STICKY else max(1, tuning.thin // 2) if sticky < FREE else tuning.thin
    found = {
        "acceptance": sum(rates) / len(rates), "step_size": steps[0], "n_unique": float(len(torch.unique(seeds.u[:, 0]))),
        "autocorrelation": sticky, "thin": float(tuning.thin), "flat": max(flat),
    }  # fmt: skip
    return cat(states), found, tuning._replace(steps=tuple(steps), thin=min(thin, LARGEST_THIN))


def _tied(state: State, alive: Float[Tensor, " particles"], wanted: float) -> float:
    """How many different particles survive, where they are clearly fewer than wanted; nan elsewhere."""
    if not effective_sample_size(alive) < ENOUGH * wanted:
        return math.nan
    return float(len(state.u[torch.isfinite(alive)].double().sum(-1).unique()))


def _shares_to_try(tuning: Tuning, dimension: int) -> list[int]:
    if tuning.move != "pcn" or tuning.steps[0] > SMALL_STEP:
        return [0]
    return [index for index, share in enumerate(SHARES) if share == 1 or share * dimension >= 1]


def _autocorrelation(margins: Float[Tensor, "steps chains"]) -> float:
    """Lag-one correlation of the margin along the chains."""
    centred = (margins - margins.mean()).double()
    variance = float(centred.square().mean())
    return float((centred[1:] * centred[:-1]).mean()) / variance if variance > 0 else 0.0
