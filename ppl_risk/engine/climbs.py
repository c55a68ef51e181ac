r"""The second route: independent SMC runs on a budget of calls, and what they pass on the way.

Each run is `smc.run_levels` with preconditioned Crank-Nicolson moves, which need no gradient and work in any dimension. A run that
would pass its share of the calls stops and gives no number; what it has seen still serves the first route.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_risk.errors import CallLimitError
from ppl_risk.parallel import Unit, fits
from ppl_risk.problem import RiskProblem
from ppl_risk.smc.levels import Run, Tuning, run_levels
from ppl_risk.smc.moves import State, evaluate
from ppl_risk.smc.run import combine

RUNS = 4
KEEP = 0.25
#: Steps a particle takes per level, for planning: chains are thinned where they move slowly.
EFFORT = 1.8
#: The nearest point alone makes a bent event look likelier or less likely than it is: levels are planned between these.
FEWEST_LEVELS, MOST_LEVELS = 9.0, 15.0
FEWEST_PARTICLES = 40
#: What a run may spend at most, in units of what was planned for it.
OVERRUN = 1.45
#: Levels before the event whose particles are kept, and rows kept of each earlier one.
LAST, TRAIL = 3, 24


class Climbs(NamedTuple):
    """log p and its standard error over the runs that finished (nan for fewer than two); what all of them saw.

    `seen` (n, d) are particles of the last levels and `hit` their outcomes, `final` (m, d) the particles in the event,
    `trail` some of the particles of all levels, `values` how many different margins they had (3 stands for more).
    """

    log_prob: float
    std_error: float
    finished: int
    planned: int
    seen: Tensor
    hit: Tensor
    final: Tensor
    trail: Tensor
    values: int = 3


def plan(budget: int, log_prob_guess: float) -> dict[str, int]:
    """Particles of each run and the calls it may spend, from the budget of all runs and a guess of log p."""
    levels = min(MOST_LEVELS, max(FEWEST_LEVELS, log_prob_guess / math.log(KEEP)))
    particles = int(max(FEWEST_PARTICLES, budget / RUNS / (1 + EFFORT * levels)))
    return {"particles": particles, "calls": int(OVERRUN * budget / RUNS)}


@torch.no_grad()
def climb(problem: RiskProblem, unit: Unit) -> dict[str, Any]:
    """One run: its log p (nan where it was stopped), and points in the precision of the network."""
    states: list[State] = []
    run: Run | None = None
    first = torch.zeros(0, device=problem.device)
    particles = unit.arguments["particles"]
    with problem.metered(unit.arguments["calls"]):
        try:
            u = torch.randn(particles, problem.transport.dimension, device=problem.device).to(problem.dtype)
            start = evaluate(problem, u, "pcn")
            first = start.margin
            run = run_levels(
                problem, start, u.new_zeros(particles, dtype=torch.float64), tuning=Tuning("pcn", KEEP), max_levels=200,
                posterior_draws=0, watch=states.append,
            )  # fmt: skip
        except CallLimitError:
            pass
    empty = torch.zeros(0, problem.transport.dimension, device=problem.device, dtype=problem.dtype)
    last = states[-LAST:]
    seen = torch.cat([empty, *(s.u for s in last)])
    margin = torch.cat([empty[:, :0].sum(-1), *(s.margin for s in last)])
    final = states[-1].u[states[-1].margin >= 0] if states else empty
    trail = torch.cat([empty, *(s.u[:: max(1, len(s.u) // TRAIL)] for s in states)])
    log_prob = math.nan if run is None else run.log_prob
    return {
        "log_prob": log_prob, "seen": seen, "hit": margin >= 0, "final": final, "trail": trail,
        "values": torch.cat([first, margin]).double().unique()[:3],
    }  # fmt: skip


def is_climb(_unit: Unit, result: dict[str, Any]) -> bool:
    """Whether a result read from a file is what `climb` returned."""
    form = {"log_prob": "float", "seen": "float n d", "hit": "bool n", "final": "float m d"}
    form |= {"trail": "float k d", "values": "float v"}
    return fits(result, form)


def gather(results: list[dict[str, Any]], device: torch.device) -> Climbs:
    """The runs together."""
    log_probs = np.array([r["log_prob"] for r in results])
    log_probs = log_probs[~np.isnan(log_probs)]
    enough = len(log_probs) >= 2
    log_prob, std_error = combine(log_probs) if enough else (math.nan, math.nan)

    def joined(name: str) -> Tensor:
        return torch.cat([torch.as_tensor(r[name], device=device) for r in results])

    values = torch.cat([torch.as_tensor(r["values"]).double().cpu() for r in results]).unique()
    return Climbs(
        log_prob, std_error, len(log_probs), len(results), joined("seen").double(), joined("hit"),
        joined("final").double(), joined("trail").double(), min(3, len(values)),
    )  # fmt: skip


def prior_error(log_prob: float, particles: int) -> float:
    """Standard error of log p that theory expects of `RUNS` runs: levels (1 - keep) / (keep N), twice that for moves that remember.

    Four runs say little of their own spread, so the observed one is judged beside this.
    """
    levels = max(1.0, log_prob / math.log(KEEP))
    return math.sqrt(2 * levels * (1 - KEEP) / (KEEP * particles) / RUNS)
