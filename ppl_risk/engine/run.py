r"""One call from a problem to a probability that is right or says that it is not.

1. Preflight, and a few draws of the prior; where these hit often, counting goes on and that is all.
2. Searches along gradients (rays where there are none) find places; four SMC runs climb to the event on their own: this is the
   second route.
3. A mixture is fitted to what was found: the prior, a normal and a ring over all, gated normals for each place; rounds of
   importance sampling refit it until its weights are even.
4. Fresh draws of the last mixture, with its components as control variates, give the number. It must agree with SMC's.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ppl_risk.arguments import checked
from ppl_risk.crude_monte_carlo import counted
from ppl_risk.engine import climbs as second
from ppl_risk.engine.adapt import Round, adapt, log_tilt
from ppl_risk.engine.explore import Pilot, first_evidence, search, search_rays
from ppl_risk.engine.final import CHUNK, CHUNKS, Weights, chunk, is_chunk, name_of, posterior_rows, weigh
from ppl_risk.engine.verdict import better_route, compare_routes, smc_alone, verdict
from ppl_risk.errors import PreflightError, RiskError, undefined_margins
from ppl_risk.identity import fingerprint
from ppl_risk.importance.gated import Points
from ppl_risk.importance.mixture import Mixture
from ppl_risk.importance.sampling import SMALLEST_ESS, carried
from ppl_risk.parallel import chunks, plan_units, run_units, tried_twice
from ppl_risk.parallel.plan import unmetered
from ppl_risk.posterior import posterior_of, to_chains
from ppl_risk.preflight import last_look, require_sound
from ppl_risk.problem import Meter, RiskProblem
from ppl_risk.randomness import child_seeds, seeded
from ppl_risk.risk_estimate import LOG10, RiskEstimate, Status, clopper_pearson, decades
from ppl_risk.smc.run import has_gradient

METHOD = "mixture importance sampling, checked by SMC"
FEWEST_CALLS = 2000
#: Calls that a fingerprint takes, and chunks between two looks at `target_cv`.
FINGERPRINT_CALLS, WAVE = 16, 2
#: Exploration and adaptation are planned for at most so many calls, with a target for fewer; what is beyond goes into the number.
PLANNED, PLANNED_FOR_TARGET = 100_000, 20_000
#: Numbers that the draws of one round, or of one chunk, may hold: in many dimensions these are cut into more and smaller ones.
LARGEST_BATCH = 2**24
#: Shares of the planned calls.
PILOT, SEARCH, CLIMBS, BLIND_CLIMBS, ROUND, EXPLORED = 0.03, 0.08, 0.35, 0.4, 0.05, 0.65
#: Share of hits among the prior's draws from which counting is as good as anything.
COMMON = 0.1


@checked()
def estimate(
    problem: RiskProblem,
    *,
    max_calls: int = 20_000,
    target_cv: float | None = None,
    posterior_draws: int = 200,
    engine: Any = None,
    folder: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
) -> RiskEstimate:
    """Estimate p by two routes that must agree: adaptive mixture importance sampling, and SMC.

    Args:
        problem: the problem.
        max_calls: forward and gradient calls together, preflight, last look and posterior included; never exceeded.
        target_cv: relative standard error at which to stop earlier; None spends all calls.
        posterior_draws: rows given catastrophe, at most a fiftieth of the calls.
        engine: None, or a dask client or scheduler address that runs the SMC runs and the chunks of draws, with the same answer.
        folder: where finished runs and chunks are kept, to go on from. seed: reproduces. progress: show a bar.

    Raises:
        PreflightError: the problem is not sound, or a margin is NaN. NoTransportError: no map from standard normals.
        RiskError: max_calls below 2000, target_cv not positive.

    Example:
        >>> from ppl_risk.zoo import load_model
        >>> estimate(load_model("linear_gaussian"), max_calls=5000, progress=False).status.name
        'OK'
    """
    if max_calls < FEWEST_CALLS:
        raise RiskError(
            f"max_calls must be at least {FEWEST_CALLS}, got {max_calls}. For fewer there is ppl_risk.monte_carlo."
        )
    if target_cv is not None and not target_cv > 0:
        raise RiskError(f"target_cv is a relative standard error and must be positive, got {target_cv}.")
    started = time.perf_counter()
    first_look = require_sound(problem)
    bar = tqdm(total=max_calls, disable=not progress, desc="estimate", unit="call", unit_scale=True)
    with problem.metered(max_calls) as meter, torch.no_grad(), bar:
        meter.forward_calls += first_look.calls + len(first_look.rows)
        # One of the work, whether or not a key is read (the answer must not depend on who does it), and one of the problem.
        meter.forward_calls += 2 * FINGERPRINT_CALLS
        units = {"engine": engine, "folder": folder, "progress": False}
        work = _Engine(problem, first_look.units.problem, meter, bar, max_calls, target_cv, posterior_draws, seed, units)
        # Everything in it has seeds of its own, so a second try finds the units of the first, and the same bits.
        fields = tried_twice(problem, work.run, "The estimate")
    made = RiskEstimate(
        **fields, **problem.cost(meter), seconds=time.perf_counter() - started, seed=seed, problem=problem.name,
        settings={"max_calls": max_calls, "target_cv": target_cv},
    )  # fmt: skip
    return last_look(made, problem, first_look, torch.cat(work.met))


class _Engine:
    """The state of one call of `estimate`."""

    def __init__(
        self, shown: RiskProblem, problem: RiskProblem, meter: Meter, bar: Any, max_calls: int, target_cv: float | None,
        rows: int, seed: int, units: dict[str, Any],
    ) -> None:  # fmt: skip
        # Work is done in units that keep their slope; what is shown has the margin that was asked about.
        self.shown, self.problem, self.meter, self.bar, self.units = shown, problem, meter, bar, units
        self.identity = fingerprint(unmetered(problem))
        self.max_calls, self.target_cv = max_calls, target_cv
        self.rows = min(rows, max_calls // 50)
        self.planned = min(max_calls, PLANNED if target_cv is None else PLANNED_FOR_TARGET)
        self.most_rows = max(200, LARGEST_BATCH // problem.transport.dimension)
        self.seeds = child_seeds(seed, 4)
        self.met: list[torch.Tensor] = []  # margins, for the last look

    def say(self, what: str) -> None:
        """Move the bar to where the meter is."""
        self.bar.set_postfix_str(what)
        self.bar.update(self.meter.calls - self.bar.n)

    def run(self) -> dict[str, Any]:
        """The fields of the estimate."""
        problem, device = self.problem, self.problem.device
        self.met = []  # a second try starts afresh
        with seeded(self.seeds[0], device):
            pilot = self.draw_prior(int(PILOT * self.planned))
            if float((pilot.margin >= 0).double().mean()) >= COMMON:
                return self.count(pilot)
            smooth = has_gradient(problem)
            found = search(problem, pilot, int(SEARCH * self.planned)) if smooth else None
        self.say("SMC")
        guess = (
            -10.0 if found is None or not len(found.u) else float(torch.special.log_ndtr(-found.u.norm(dim=-1).min()))
        )
        plan = second.plan(int((CLIMBS if smooth else BLIND_CLIMBS) * self.planned), guess)
        runs = plan_units(self.identity, "engine-SMC", [plan] * second.RUNS, seed=self.seeds[1])
        climbs = second.gather(run_units(runs, second.climb, problem, sound=second.is_climb, **self.units), device)
        self.say("fitting")
        with seeded(self.seeds[2], device):
            if found is None:
                best = pilot.u[pilot.margin.topk(len(pilot.u) // 10).indices]
                found = search_rays(problem, torch.cat([best, climbs.trail]), climbs.final, int(SEARCH * self.planned))
            evidence = first_evidence(problem, pilot, climbs, found)
            if evidence is None:
                return self.nothing(pilot, climbs)
            until = min(int(EXPLORED * self.planned), self.max_calls - self.max_calls // 4)
            mixture, rounds, _ = adapt(
                problem, evidence, self.meter, draws=min(int(ROUND * self.planned), self.most_rows), until=until
            )
        self.say("drawing")
        results, weights = self.draw(mixture)
        self.met.append(weights.margin.to(pilot.margin))
        final = Points.of(climbs.final)
        agreement = compare_routes(weights, climbs, plan["particles"], -log_tilt(mixture, final, mixture.shares))
        status, remedy = verdict(weights, climbs, agreement, _bound(pilot))
        pilot_hits = int((pilot.margin >= 0).sum()), len(pilot.u)
        if status is Status.NO_HITS and pilot_hits[0]:
            return {"method": "plain Monte Carlo (nothing else met the event again)", **counted(*pilot_hits)}
        answer = better_route(weights, climbs) if weights.hits else smc_alone(weights, climbs)
        if answer is weights and not status.believable:
            answer = weights._replace(**carried(weights.log_prob, weights.std_error, weights.k_hat, weights.ess))
        posterior = {}
        if weights.hits and self.rows >= 4:
            rows = posterior_rows(results, self.rows)
            rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).to(rows.device)]
            posterior = posterior_of(self.shown, problem.from_normal(rows.to(device)))
        self.say("done")
        whole = weights.draws // 4 * 4
        return {
            "method": _method(weights, answer),
            "log_prob": answer.log_prob, "std_error": answer.std_error, "status": status, "remedy": remedy,
            "evidence": {
                "k_hat": weights.k_hat, "ess": weights.ess, "hits": float(weights.hits), "draws": float(weights.draws),
                "places": rounds[-1].places if rounds else math.nan, "smc_log10_p": climbs.log_prob / LOG10,
                "smc_error": agreement.smc_error, "smc_runs": float(climbs.finished), "sigmas_apart": agreement.sigmas,
                "uncovered": agreement.uncovered,
            },
            "posterior": posterior,
            "stats": {"log_weight": to_chains(weights.log_weight[:whole]), "margin": to_chains(weights.margin[:whole])},
            "history": {"rounds": {name: np.array([getattr(r, name) for r in rounds]) for name in Round._fields}},
            "hits": pilot_hits if status is Status.NO_HITS else None,
        }  # fmt: skip

    def draw_prior(self, draws: int) -> Pilot:
        """Draws of the prior."""
        u = torch.randn(draws, self.problem.transport.dimension, dtype=torch.float64, device=self.problem.device)
        margin = self.problem.margin_of_normal(u.to(self.problem.dtype))
        if wrong := int(torch.isnan(margin).sum()):
            raise PreflightError(undefined_margins(wrong, draws))
        self.met.append(margin)
        return Pilot(u, margin)

    def count(self, pilot: Pilot) -> dict[str, Any]:
        """Plain counting, for events that the prior meets often."""
        hits, draws = int((pilot.margin >= 0).sum()), len(pilot.u)
        rows = [pilot.u[pilot.margin >= 0][: self.rows]]
        while (left := self.meter.left - self.rows) > 0:
            if self.target_cv is not None and math.sqrt((1 - hits / draws) / hits) <= self.target_cv:
                break
            more = self.draw_prior(min(left, CHUNK // 10))
            if sum(map(len, rows)) < self.rows:
                rows.append(more.u[more.margin >= 0][: self.rows])
            hits, draws = hits + int((more.margin >= 0).sum()), draws + len(more.u)
            self.say("counting")
        x = self.problem.from_normal(torch.cat(rows)[: self.rows // 4 * 4])
        posterior = posterior_of(self.shown, x) if len(x) >= 4 else {}
        return {"method": "plain Monte Carlo (the event is common)", "posterior": posterior, **counted(hits, draws)}

    def draw(self, mixture: Mixture) -> tuple[list[dict[str, Any]], Weights]:
        """Chunks of the last proposal until the target or the calls are reached."""
        left = self.meter.left - self.rows
        usual = CHUNK if self.target_cv is None else self.planned // CHUNKS
        sizes = chunks(left, min(usual, self.most_rows, -(-left // CHUNKS)))
        name = name_of(mixture)
        told = [{"draws": n, "mixture": name} for n in sizes]
        plan = plan_units(self.identity, "engine-draws", told, seed=self.seeds[3])
        # Waves are as large on one worker as on many: when to stop must not depend on who works.
        wave = WAVE if self.target_cv is not None else len(plan)
        results: list[dict[str, Any]] = []
        while len(results) < len(plan):
            some = plan[len(results) : len(results) + wave]
            results += run_units(some, chunk, (self.problem, mixture), sound=is_chunk, **self.units)
            weights = weigh(results, len(mixture.laws))
            self.say("drawing")
            if self.target_cv is not None and weights.std_error <= self.target_cv and weights.ess > SMALLEST_ESS:
                break
        return results, weights

    def nothing(self, pilot: Pilot, climbs: second.Climbs) -> dict[str, Any]:
        """Neither route met the event."""
        flat = (
            f", and every margin met is {float(pilot.margin[0]):.3g}, so nothing led anywhere"
            if climbs.values == 1
            else ""
        )
        hits = int((pilot.margin >= 0).sum()), len(pilot.u)
        return {
            "method": METHOD, "log_prob": math.nan, "std_error": math.nan,
            "status": Status.NO_HITS, "hits": hits,
            "remedy": (
                f"Neither searches nor SMC met a catastrophe{flat}: it cannot be reached under this input law, or max_calls is too "
                f"small. Only P < {_bound(pilot)} is known, from the prior's draws."
            ),
            "evidence": {"smc_runs": float(climbs.finished), "best_pilot_margin": float(pilot.margin.max())},
        }  # fmt: skip


def _method(weights: Weights, answer: Weights) -> str:
    if not weights.hits:
        return "SMC alone" if math.isfinite(answer.log_prob) else METHOD
    of_weights = answer.log_prob == weights.log_prob or math.isnan(answer.log_prob)
    return METHOD if of_weights else "SMC, its importance weights being too uneven"


def _bound(pilot: Pilot) -> str:
    hits = int((pilot.margin >= 0).sum())
    return decades(clopper_pearson(hits, len(pilot.u), 0.9)[1] / LOG10)
