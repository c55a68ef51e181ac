"""Plain Monte Carlo: hits over draws, with the exact binomial interval. Right always, useful where p is not small."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ppl_risk.arguments import checked
from ppl_risk.errors import PreflightError, RiskError, undefined_margins
from ppl_risk.posterior import posterior_of
from ppl_risk.preflight import last_look, require_sound
from ppl_risk.problem import RiskProblem
from ppl_risk.randomness import seeded
from ppl_risk.risk_estimate import LOG10, RiskEstimate, Status, clopper_pearson, decades

#: Margins kept for the survival curve.
KEPT = 200_000
#: Fewer hits than this leave a relative error above a fifth, and factors of 2 within 3 standard errors.
SMALLEST_HITS = 20


@checked()
@torch.no_grad()
def monte_carlo(
    problem: RiskProblem, *, calls: int = 100_000, posterior_draws: int = 1000, seed: int = 0, progress: bool = True
) -> RiskEstimate:
    """Count catastrophes among `calls` independent inputs.

    p = hits / calls; interval by Clopper and Pearson; std_error of log p is sqrt((1 - p) / hits), nats.

    Args:
        problem: the problem. calls: draws. posterior_draws: catastrophic inputs kept at most (they pass once more through
            the network for their activations). seed: reproduces the run. progress: show a bar.

    Raises:
        PreflightError: the problem is not sound, or a margin is NaN. RiskError: calls below 1.

    Example:
        >>> law = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> monte_carlo(RiskProblem(lambda x: x[:, 0], law), calls=1000, progress=False).hits[1]
        1000
    """
    if calls < 1:
        raise RiskError(f"calls must be at least 1, got {calls}.")
    started = time.perf_counter()
    first_look = require_sound(problem)
    hits, margins, caught, caught_count = 0, [], [], 0
    batches = [problem.batch_size] * (calls // problem.batch_size)
    batches += [rest] if (rest := calls % problem.batch_size) else []
    with problem.metered() as meter, seeded(seed, problem.device), tqdm(
        total=calls, disable=not progress, desc="Monte Carlo", unit="call", unit_scale=True
    ) as bar:  # fmt: skip
        for rows in batches:
            x = problem.sample(rows)
            margin = problem.margin(x)
            if wrong := int(torch.isnan(margin).sum()):
                raise PreflightError(undefined_margins(wrong, rows))
            hit = margin >= 0
            hits += int(hit.sum())
            if caught_count < posterior_draws:
                caught.append(x[hit][: posterior_draws - caught_count])
                caught_count += len(caught[-1])
            if sum(map(len, margins)) < KEPT:
                margins.append(margin.cpu().numpy())
            bar.update(rows)
        posterior = posterior_of(problem, torch.cat(caught)) if caught else {}
    estimate = RiskEstimate(
        method="Monte Carlo", **counted(hits, calls), **problem.cost(meter), seconds=time.perf_counter() - started,
        seed=seed, problem=problem.name, posterior=posterior, survival=survival_of(np.concatenate(margins)),
        settings={"calls": calls},
    )  # fmt: skip
    return last_look(estimate, problem, first_look, torch.as_tensor(np.concatenate(margins)))


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
