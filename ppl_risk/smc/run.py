"""Rare-event SMC: independent runs of adaptive levels, and an interval from their spread."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_risk.arguments import checked, reals
from ppl_risk.errors import ArgumentError, RiskError
from ppl_risk.guides import Guide
from ppl_risk.importance.proposal import Proposal, defensive_mixture, standard_normal
from ppl_risk.parallel import folder_of, plan_units, run_units, tried_twice
from ppl_risk.parallel.loop import undone_if_it_fails
from ppl_risk.posterior import posterior_of
from ppl_risk.preflight import last_look, require_sound
from ppl_risk.problem import RiskProblem
from ppl_risk.randomness import seeded
from ppl_risk.risk_estimate import LOG10, RiskEstimate, Status, clopper_pearson, decades
from ppl_risk.smc.levels import FLAT, Level, Run
from ppl_risk.smc.moves import MOVES
from ppl_risk.smc.units import climb, is_run, run_of, start_of

#: Relative spread of the mean of the runs above which they are said to disagree.
LARGEST_ERROR = 0.5
SMALLEST_ACCEPTANCE = 0.02
#: Different particles below which a level where margins tie rests on luck; such runs are low together.
FEWEST_SURVIVORS = 5
#: Hits among the first draws of every run from which a flag is counted well enough.
SMALLEST_HITS = 20


def _guide(call: str, name: str, value: Any) -> Any:
    if value is not None and not callable(getattr(value, "input_law", None)):
        raise ArgumentError(
            f"{call}: {name} must be a fitted guide, as fit_svi(problem).guide, got {type(value).__name__}."
        )
    return value


@checked(levels=reals, guide=_guide)
def run_smc(
    problem: RiskProblem,
    *,
    guide: Guide | None = None,
    particles: int = 1000,
    runs: int = 4,
    keep: float = 0.25,
    moves: str | None = None,
    max_levels: int = 300,
    levels: list[float] | None = None,
    posterior_draws: int = 1000,
    seed: int = 0,
    progress: bool = True,
    engine: Any = None,
    folder: str | Path | None = None,
) -> RiskEstimate:
    """Estimate p by adaptive multilevel SMC in the normal space.

    p is the mean over runs; std_error is the larger of the runs' relative and logarithmic standard deviations over sqrt(runs),
    and the interval Student's on runs - 1 degrees of freedom. A guide only changes where the particles start (weighted, with
    10 % of the prior mixed in), so a bad one costs time and not correctness.

    Args:
        problem: the problem. guide: a fitted guide to start from.
        particles, runs: per run, and independent runs (at least 4 for an interval).
        keep: share surviving a level.
        moves: "gradient" (two calls a step), "pcn" (one) or "gibbs" (one; a few coordinates are drawn afresh at every second
            turn: for events that depend on which few of many are large). Default "gradient" where the margin has one, until its
            acceptance falls in a corner of the event, and else "pcn", which redraws coordinates that act through steps.
        max_levels: levels after which a run gives up. levels: fixed thresholds instead of adaptive ones.
        posterior_draws: rows given catastrophe over all runs. seed: reproduces. progress: show a bar.
        engine: where the runs go, None, a dask Client or an address; folder: keeps finished ones (`ppl_risk.parallel`).

    Raises:
        PreflightError: the problem is not sound. NoTransportError: no map from standard normals.
        RiskError: unknown moves, fewer than 2 runs or 20 particles.

    Example:
        >>> from ppl_risk.zoo import load_model
        >>> run_smc(load_model("linear_gaussian"), particles=100, progress=False).method
        'SMC gradient'
    """
    if moves is not None and moves not in MOVES:
        raise RiskError(f"moves must be one of {sorted(MOVES)}, got {moves!r}.")
    if runs < 2 or particles < 20:
        raise RiskError(
            f"At least 2 runs of 20 particles are needed for an interval, got runs={runs}, particles={particles}."
        )
    started = time.perf_counter()
    first_look = require_sound(problem)
    work = first_look.units.problem
    with problem.metered() as meter:
        may_switch = moves is None
        moves = moves or ("gradient" if has_gradient(work) else "pcn")
        proposal = _start(problem, guide)
        told = {
            "particles": int(particles), "keep": float(keep), "moves": moves, "may_switch": may_switch,
            "max_levels": int(max_levels), "posterior_draws": int(posterior_draws) // runs,
            "levels": None if levels is None else [float(level) for level in levels], "start": start_of(proposal),
        }  # fmt: skip
        # A key is read only where results outlive this call.
        folder = folder_of(folder)
        known = "" if engine is None and folder is None else work
        found = run_units(
            plan_units(known, "SMC", [told] * runs, seed=seed), climb, (work, proposal), engine=engine, folder=folder,
            progress=progress, note=lambda run: f"log10 p {run['log_prob'] / LOG10:.2f}", sound=is_run,
        )  # fmt: skip
        results = [run_of(run, problem.device) for run in found]
        rows = [r.posterior for r in results if len(r.posterior)]
        posterior = {}
        if len(rows) == runs:
            shortest = min(map(len, rows))
            with seeded(seed, problem.device):
                together = torch.cat([r[torch.randperm(len(r), device=r.device)[:shortest]] for r in rows])
            x = problem.from_normal(together)
            posterior = tried_twice(problem, lambda: posterior_of(problem, x, chains=runs), "The posterior of SMC")
    log_prob, std_error = combine(np.array([r.log_prob for r in results]))
    history = _history([r.levels for r in results])
    first = _first_draws(results, round(float(proposal.shares[0]) * particles))
    bound = decades(clopper_pearson(*first, 0.9)[1] / LOG10)
    status, remedy = _verdict(results, std_error, history, bound, max_levels, may_switch)
    estimate = RiskEstimate(
        method=f"SMC {moves}" + (" from a guide" if guide is not None else ""),
        log_prob=log_prob, std_error=std_error, status=status, remedy=remedy, dof=runs - 1.0,
        **problem.cost(meter),
        seconds=time.perf_counter() - started, seed=seed, problem=problem.name,
        evidence={
            "runs": float(runs), "run_spread": std_error * math.sqrt(runs), "levels": float(history["threshold"].shape[1]),
            "lowest_acceptance": float(np.nanmin(np.append(history["acceptance"], 1.0))),
            "fewest_survivors": float(np.nanmin(history["ess"])), "best_margin": max(r.best_margin for r in results),
        },
        hits=first if status is Status.NO_HITS else None,
        posterior=posterior, history={"smc_history": history}, survival=_survival(results),
        settings={"particles": particles, "runs": runs, "keep": keep, "moves": moves, "guide": guide is not None},
    )  # fmt: skip
    return last_look(estimate, problem, first_look, torch.cat([margin for r in results for _, margin, _ in r.survival]))


def has_gradient(problem: RiskProblem) -> bool:
    """Whether the margin can be differentiated and is not flat everywhere that was looked."""
    with seeded(0, problem.device):
        u = torch.randn(8, problem.transport.dimension, device=problem.device)
    for last in (False, True):  # what fails once, for want of memory say, must not decide how the particles move
        try:
            with nullcontext() if last else undone_if_it_fails([problem]):
                return bool((problem.margin_and_gradient(u)[1] != 0).any())
        except RuntimeError:  # what torch raises where there is no graph
            continue
    return False


def _start(problem: RiskProblem, guide: Guide | None) -> Proposal:
    if guide is not None:
        return defensive_mixture(guide.input_law())
    dimension = problem.transport.dimension
    one = torch.ones(1, dtype=torch.float64, device=problem.device)
    return Proposal([standard_normal(dimension, problem.device)], one)


def combine(log_probs: np.ndarray) -> tuple[float, float]:
    """log of the mean of the runs' probabilities (unbiased on p, not on log p), and the standard error of that log."""
    runs = len(log_probs)
    log_mean = float(np.logaddexp.reduce(log_probs)) - math.log(runs)
    if not math.isfinite(log_mean):
        return math.nan, math.nan
    # The relative spread understates a skewed sample and the logarithmic one does not; a run at 0 has only the first.
    relative = float(np.exp(log_probs - log_mean).std(ddof=1))
    logarithmic = float(log_probs.std(ddof=1)) if np.isfinite(log_probs).all() else 0.0
    return log_mean, max(relative, logarithmic) / math.sqrt(runs)


def _first_draws(results: list[Run], prior_rows: int) -> tuple[int, int]:
    """(hits, draws) of the prior, whose draws come first: all that a failed climb has established."""
    first = torch.cat([r.first_margin[:prior_rows] for r in results])
    return int((first >= 0).sum()), len(first)


def _verdict(
    results: list[Run], std_error: float, history: dict[str, np.ndarray], bound: str, max_levels: int, may_switch: bool
) -> tuple[Status, str]:
    reached = sum(math.isfinite(r.log_prob) for r in results)
    values = np.unique(np.concatenate([margin.cpu().numpy() for r in results for _, margin, _ in r.survival]))
    if reached == 0:
        best = max(r.best_margin for r in results)
        if max(len(r.levels) for r in results) >= max_levels:
            return Status.NO_HITS, (
                f"After {max_levels} levels the particles were still rising, at margin {best:.3g}; catastrophe is >= 0. Only "
                f"P < {bound} is known, from the first draws. Raise max_levels."
            )
        if len(values) == 1:
            return Status.NO_HITS, (
                f"Every particle stayed at margin {best:.3g}: there is nothing for particles to rise by. Only P < {bound} is "
                "known, from the first draws. Return a margin that grows towards the catastrophe, e.g. score - threshold."
            )
        return Status.NO_HITS, (
            f"The particles stopped at margin {best:.3g}, catastrophe is >= 0: it cannot be reached under this input law, or "
            f"the search is stuck. Only P < {bound} is known, from the first draws. Raise particles."
        )
    # A flag can be counted: that is what the first draws do where they meet the event often enough.
    if len(values) <= 2 and min(int((r.first_margin >= 0).sum()) for r in results) < SMALLEST_HITS:
        return Status.DEGENERATE, (
            f"The margin takes {len(values)} values (a flag), so there are no levels between and SMC only counts. Return score - "
            "threshold, or use ppl_risk.monte_carlo with many calls."
        )
    if reached < len(results) or not std_error <= LARGEST_ERROR:
        return Status.RUNS_DISAGREE, (
            f"{reached} of {len(results)} runs reached the event, relative error {std_error:.2f}. Use more particles, or start "
            "from a guide: run_smc(problem, guide=fit_svi(problem).guide)."
        )
    survivors = float(np.nanmin(np.append(history["survivors"], np.inf)))
    if survivors < FEWEST_SURVIVORS:
        return Status.DEGENERATE, (
            f"Margins tie (a step, a rounding, a flag, a saturated sigmoid): {survivors:.0f} particles carried a level. Return "
            "what is in front of the step or the last sigmoid, or use more particles."
        )
    # "gradient" asked for by name stays though the slope ends: between clamped and sloping parts hardly a particle then moves.
    flat = history["flat"][np.isfinite(history["flat"])]
    if not may_switch and bool(((flat > FLAT) & (flat < 1)).any()):
        return (
            Status.DEGENERATE,
            "The margin has no slope on a part of the way. Leave `moves` to its default, or use moves='pcn'.",
        )
    if float(np.nanmin(np.append(history["acceptance"], 1.0))) < SMALLEST_ACCEPTANCE:
        return Status.DEGENERATE, "Hardly a move was accepted at some level. Use more particles or moves='gradient'."
    return Status.OK, ""


def _history(runs: list[list[Level]]) -> dict[str, np.ndarray]:
    """Field -> (run, level), padded with nan."""
    longest = max(map(len, runs))
    padded = np.full((len(runs), longest, len(Level._fields)), np.nan)
    for index, levels in enumerate(runs):
        padded[index, : len(levels)] = np.array(levels, dtype=float)
    return {name: padded[..., i] for i, name in enumerate(Level._fields)}


def _weighted_median(value: Tensor, log_weight: Tensor) -> float:
    ordered, index = value.sort()
    mass = log_weight[index].double().softmax(0).cumsum(0)
    return float(ordered[int((mass < 0.5).sum().clamp(max=len(value) - 1))])


def _survival(results: list[Run], points: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """log Pr[margin > t] on a common grid: per run from the level below t, averaged over the runs that got that far."""
    low = float(np.median([_weighted_median(*r.survival[0][1:]) for r in results]))
    known = torch.cat([margin for r in results for _, margin, _ in r.survival])
    known = known[torch.isfinite(known)]
    if not len(known):
        return np.zeros(0), np.zeros(0)
    high = max(r.best_margin for r in results)
    low, high = (
        bound if math.isfinite(bound) else float(end) for bound, end in ((low, known.min()), (high, known.max()))
    )
    grid = np.linspace(low, high, points)
    curves = np.full((len(results), points), -np.inf)
    for row, run in enumerate(results):
        starts = [-np.inf] + [level.threshold for level in run.levels]
        for (log_prob, margin, log_weight), start in zip(run.survival, starts, strict=False):
            order = margin.argsort()
            mass = np.append(log_weight.double().exp()[order].flip(0).cumsum(0).flip(0).cpu().numpy(), 0.0)
            above = mass[np.searchsorted(margin[order].cpu().numpy(), grid)]
            with np.errstate(divide="ignore"):
                curve = log_prob + np.log(above / len(margin))
            curves[row] = np.where(grid >= start, curve, curves[row])
    mean = np.logaddexp.reduce(curves, axis=0) - math.log(len(results))
    seen = np.isfinite(mean)
    return grid[seen], mean[seen]
