"""A run of SMC as a unit of work: what it is told, and its `Run` as numbers and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ppl_risk.importance.proposal import Proposal, standard_normal
from ppl_risk.parallel import Unit, digest, fits
from ppl_risk.problem import RiskProblem
from ppl_risk.randomness import seeded
from ppl_risk.smc.levels import Level, Run, Tuning, run_levels
from ppl_risk.smc.moves import evaluate


@torch.no_grad()
def climb(shared: tuple[RiskProblem, Proposal], unit: Unit) -> dict[str, Any]:
    """One independent run from the proposal to the event."""
    (problem, proposal), told = shared, unit.arguments
    u, log_q = proposal.sample(told["particles"])
    log_weight = standard_normal(u.shape[-1], u.device).log_prob(u) - log_q
    run = run_levels(
        problem,
        evaluate(problem, u.to(problem.dtype), told["moves"]),
        log_weight,
        tuning=Tuning(told["moves"], told["keep"]),
        may_switch=told["may_switch"],
        max_levels=told["max_levels"],
        posterior_draws=told["posterior_draws"],
        fixed_levels=told["levels"],
    )
    return run._asdict()


def run_of(result: Mapping[str, Any], device: torch.device) -> Run:
    """The `Run` that `climb` returned, with the posterior draws where the problem lives."""
    fields = dict(result)
    fields["levels"] = [Level(*level) for level in result["levels"]]
    fields["survival"] = [tuple(level) for level in result["survival"]]
    return Run(**fields | {"posterior": result["posterior"].to(device)})


def is_run(unit: Unit, result: Mapping[str, Any]) -> bool:
    """Whether a result read from a file is what `climb` returned."""
    numbers = {"log_prob": "float", "best_margin": "float", "posterior": "float rows d", "first_margin": "float n"}
    curve = {"log_prob": "float", "margin": "float n", "log_weight": "float n"}
    return (
        set(result) == set(Run._fields)
        and fits({name: result[name] for name in numbers}, numbers, n=unit.arguments["particles"])
        and all(len(level) == len(Level._fields) and all(type(v) is float for v in level) for level in result["levels"])
        and len(result["survival"]) > 0
        and all(fits(dict(zip(curve, level, strict=True)), curve) for level in result["survival"])
    )


def start_of(proposal: Proposal) -> str:
    """Names a proposal by seeded draws and their densities: part of a unit's key, for a guide is no JSON."""
    with seeded(0, proposal.shares.device):
        u, log_q = proposal.sample(64)
    return digest([{"u": u, "log_q": log_q}])
