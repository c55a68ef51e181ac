"""Plain Monte Carlo: hits over draws, with the exact binomial interval. Right always, useful where p is not small."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ppl_risk.arguments import checked
from ppl_risk.errors import PreflightError, RiskError, undefined_margins
from ppl_risk.parallel import Unit, chunks, fits, run_chain, tried_twice
from ppl_risk.posterior import posterior_of
from ppl_risk.preflight import last_look, require_sound
from ppl_risk.problem import RiskProblem
from ppl_risk.randomness import seeded
from ppl_risk.risk_estimate import LOG10, RiskEstimate, Status, clopper_pearson, decades

#: Margins kept for the survival curve.
KEPT = 200_000
#: Steps at most that a folder keeps of one call.
STEPS = 100
#: Fewer hits than this leave a relative error above a fifth, and factors of 2 within 3 standard errors.
SMALLEST_HITS = 20


@checked()
@torch.no_grad()
def monte_carlo(
    problem: RiskProblem,
    *,
    calls: int = 100_000,
    posterior_draws: int = 1000,
    seed: int = 0,
    progress: bool = True,
    folder: str | Path | None = None,
) -> RiskEstimate:
    """Count catastrophes among `calls` independent inputs.

    p = hits / calls; interval by Clopper and Pearson; std_error of log p is sqrt((1 - p) / hits), nats.

    Args:
        problem: the problem. calls: draws. posterior_draws: catastrophic inputs kept at most (they pass once more through
            the network for their activations). seed: reproduces the run. progress: show a bar.
        folder: keeps what is finished, so that the same call goes on from there with the same bits.

    Raises:
        PreflightError: the problem is not sound, or a margin is NaN. RiskError: calls below 1.
        UnitFailedError: the network failed twice on the same inputs.

    Example:
        >>> law = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> monte_carlo(RiskProblem(lambda x: x[:, 0], law), calls=1000, progress=False).hits[1]
        1000
    """
    if calls < 1:
        raise RiskError(f"calls must be at least 1, got {calls}.")
    started = time.perf_counter()
    first_look = require_sound(problem)
    sizes = chunks(calls, problem.batch_size)
    each = -(-len(sizes) // STEPS)
    batches = [sizes[start : start + each] for start in range(0, len(sizes), each)]
    with problem.metered() as meter, seeded(seed, problem.device), tqdm(
        total=calls, disable=not progress, desc="Monte Carlo", unit="call", unit_scale=True
    ) as bar:  # fmt: skip

        def step(index: int, before: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
            seen, caught = (sum(len(r[name]) for r in before) for name in ("margin", "caught"))
            found = _draw(problem, batches[index], max(0, posterior_draws - caught), max(0, KEPT - seen))
            bar.update(sum(map(sum, batches[: index + 1])) - bar.n)
            return found

        parts = [{"calls": calls, "posterior_draws": posterior_draws, "rows": rows} for rows in batches]
        results = run_chain(problem, "Monte Carlo", parts, step, seed=seed, folder=folder, sound=_is_drawn)
        x = torch.cat([r["caught"] for r in results]).to(problem.device)
        posterior = tried_twice(problem, lambda: posterior_of(problem, x), "The posterior of Monte Carlo")
    hits, margin = sum(r["hits"] for r in results), torch.cat([r["margin"] for r in results])
    estimate = RiskEstimate(
        method="Monte Carlo", **counted(hits, calls), **problem.cost(meter), seconds=time.perf_counter() - started,
        seed=seed, problem=problem.name, posterior=posterior, survival=survival_of(margin.double().numpy()),
        settings={"calls": calls},
    )  # fmt: skip
    return last_look(estimate, problem, first_look, margin)


def _draw(problem: RiskProblem, batches: Sequence[int], wanted: int, kept: int) -> dict[str, Any]:
    """Hits among some batches of draws, margins until `kept` are there, and the first `wanted` catastrophes."""
    hits, margins, caught = 0, [], []
    for rows in batches:
        x = problem.sample(rows)
        margin = problem.margin(x)
        if wrong := int(torch.isnan(margin).sum()):
            raise PreflightError(undefined_margins(wrong, rows))
        hit = margin >= 0
        hits += int(hit.sum())
        caught.append(x[hit][:wanted])
        wanted -= len(caught[-1])
        margins.append(margin.cpu() if kept > 0 else margin[:0].cpu())
        kept -= rows
    return {"hits": hits, "margin": torch.cat(margins), "caught": torch.cat(caught)}


def _is_drawn(unit: Unit, result: dict[str, Any]) -> bool:
    numbers = {"hits": "int", "margin": "float n"}
    caught = result.get("caught")
    return isinstance(caught, Tensor) and fits({n: v for n, v in result.items() if n != "caught"}, numbers)


def counted(hits: int, calls: int) -> dict[str, Any]:
    """The fields of an estimate that counts: number, error, verdict and evidence."""
    status, remedy = _verdict(hits, calls)
    return {
        "log_prob": math.log(hits / calls) if hits else math.nan,
        "std_error": math.sqrt((1 - hits / calls) / hits) if hits else math.nan,
        "status": status, "remedy": remedy, "hits": (hits, calls),
        "evidence": {"hits": float(hits), "draws": float(calls)},
    }  # fmt: skip


def _verdict(hits: int, calls: int) -> tuple[Status, str]:
    if hits == 0:
        bound = decades(clopper_pearson(0, calls, 0.9)[1] / LOG10)
        return Status.NO_HITS, (
            f"No catastrophe in {calls:,} draws. This is not P = 0: P < {bound} with 95 % confidence. Use ppl_risk.run_smc or "
            "ppl_risk.fit_svi, or raise calls."
        )
    if hits < SMALLEST_HITS:
        return Status.LOW_ESS, (
            f"Only {hits} catastrophes in {calls:,} draws: the interval holds, the number is rough. Use ppl_risk.run_smc or "
            f"ppl_risk.fit_svi, or calls={calls * -(-SMALLEST_HITS // hits) * 2:,}."
        )
    return Status.OK, ""


def survival_of(margins: np.ndarray, points: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """(thresholds, log Pr[margin > threshold]) of equally weighted margins, at ranks spaced evenly in log p."""
    ordered = np.sort(margins)[::-1]
    ranks = np.unique(np.geomspace(1, len(ordered), points).astype(int))
    return ordered[ranks - 1].astype(float)[::-1].copy(), np.log(ranks / len(ordered))[::-1].copy()
