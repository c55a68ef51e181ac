r"""What the `make_truth.py` scripts share: thresholds, three independent estimates, the record. Not a model itself.

- counting: catastrophes among plain draws, with the binomial interval of Clopper and Pearson;
- importance: guides fitted from several seeds, their importance draws pooled, so p = mean of all weights;
- particles: rare-event SMC, interval from its independent runs.

The truth is the estimate with the smallest standard error; the others check it.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ppl_risk import RiskProblem, fit_svi, run_smc
from ppl_risk.guides import FullNormal, Network
from ppl_risk.guides.laws import LawFamily
from ppl_risk.importance.pareto import USABLE, effective_sample_size, pareto_khat
from ppl_risk.importance.sampling import log_mean_and_error
from ppl_risk.randomness import seeded
from ppl_risk.risk_estimate import clopper_pearson

#: Rows that stay in the cache of one core.
BATCH = 2000
COUNTING_SEED = 1


class Answer(NamedTuple):
    """log p and its standard error in nats, the method, its draws, what to know about it, and its seed."""

    log_prob: float
    error: float
    method: str
    draws: int
    remarks: str
    seed: int = 0

    def __str__(self) -> str:
        """One line for the record."""
        found = f"p = {math.exp(self.log_prob):.4e}, standard error of log p {self.error:.4f}"
        return f"{self.method}: {found} ({self.remarks})"


@torch.no_grad()
def plain_margins(problem: RiskProblem, draws: int) -> torch.Tensor:
    """Margins of plain draws; seed the caller's random state."""
    return torch.cat([problem.run(problem.sample(BATCH)) for _ in range(draws // BATCH)])


def find_thresholds(at: Callable[[float], RiskProblem]) -> dict[str, float]:
    """Thresholds t with Pr[margin of at(0) >= t] about 1e-2, 1e-4 and 1e-6.

    The first is a quantile of plain draws, the others are read off the survival curve of rare-event SMC.
    """
    with seeded(0, torch.device("cpu")):
        margin = plain_margins(at(0.0), 4_000_000).numpy()
    often, seldom = (float(np.quantile(margin, 1 - share)) for share in (1e-2, 1e-4))
    beyond = seldom + 1.1 * (seldom - often)  # a tail that thins no slower than an exponential is below 1e-6 there
    found = run_smc(at(beyond), particles=20_000, runs=8, posterior_draws=0, seed=0, progress=False)
    if found.survival is None or not found.log_prob < math.log(1e-6):
        raise RuntimeError(f"The climb to {beyond:.3g} does not pass 1e-6: {found}")
    grid, log_prob = found.survival
    rare = {name: float(np.interp(-math.log(float(name)), -log_prob, grid)) + beyond for name in ("1e-4", "1e-6")}
    return {name: round(value, 3) for name, value in {"1e-2": often, **rare}.items()}


def thresholds_in(file: Path, at: Callable[[float], RiskProblem]) -> None:
    """Find the thresholds and write them, unless they are there."""
    if not file.exists():
        file.write_text(json.dumps(find_thresholds(at), indent=2) + "\n")
        print(file, file.read_text(), flush=True)


@torch.no_grad()
def counting(problems: Sequence[RiskProblem], draws: int) -> list[Answer]:
    """Plain Monte Carlo for problems that differ in their threshold only: the same draws serve all."""
    first = problems[0]
    with seeded(0, first.device):
        x = first.sample(16)
        offsets = [float((p.run(x) - first.run(x)).mean()) for p in problems]
    bars = -torch.tensor(offsets)[:, None]
    hits, dimension = torch.zeros(len(problems), dtype=torch.long), first.transport.dimension
    generator, u = torch.Generator().manual_seed(COUNTING_SEED), torch.empty(BATCH, dimension)
    batches = draws // BATCH
    for _ in range(batches):
        hits += (first.run(first.from_normal(u.normal_(generator=generator))) >= bars).sum(1)
    return [_counted(int(total), batches * BATCH) for total in hits]


def _counted(total: int, count: int) -> Answer:
    low, high = (math.exp(bound) for bound in clopper_pearson(total, count, 0.95))
    remarks = f"{total:,} catastrophes in {count:,} draws, 95 % interval [{low:.4e}, {high:.4e}], seed {COUNTING_SEED}"
    log_prob, error = (math.log(total / count), math.sqrt((1 - total / count) / total)) if total else (math.nan,) * 2
    return Answer(log_prob, error, "plain Monte Carlo", count, remarks, COUNTING_SEED)


def importance(problem: RiskProblem, draws: int, seeds: int, law: LawFamily | None = None) -> Answer:
    """Importance sampling from guides fitted by fit_svi, pooled over seeds 0, 1, ...

    Raises:
        RuntimeError: the weights have too heavy a tail for a reference.
    """
    law = FullNormal() if law is None else law
    fits = [
        fit_svi(problem, Network(input=law), draws=draws, posterior_draws=0, seed=seed, progress=False)
        for seed in range(seeds)
    ]
    weights = torch.cat([torch.as_tensor(fit.stats["log_weight"]).flatten() for fit in fits])
    log_prob, error = log_mean_and_error(weights)
    k_hat, ess = pareto_khat(weights), effective_sample_size(weights)
    if not k_hat < USABLE:
        raise RuntimeError(f"k-hat {k_hat:.2f} >= {USABLE}: the weights have too heavy a tail for a reference.")
    apart = ", ".join(f"{fit.prob:.4e}" for fit in fits)
    remarks = (
        f"{len(weights):,} draws, seeds 0 to {seeds - 1} apart: {apart}; "
        f"pooled k-hat {k_hat:.2f}, effective draws {ess:,.0f}"
    )
    method = f"importance sampling from fit_svi(guides.Network(input={law!r}))"
    return Answer(log_prob, error, method, len(weights), remarks)


def particles(problem: RiskProblem, count: int = 4000, runs: int = 8) -> Answer:
    """Rare-event SMC."""
    found = run_smc(problem, particles=count, runs=runs, posterior_draws=0, seed=0, progress=False)
    low, high = (math.exp(bound) for bound in found.interval(0.95))
    remarks = (
        f"{runs} runs of {count:,} particles, {found.forward_calls:,} forward and {found.gradient_calls:,} gradient "
        f"calls, 95 % interval [{low:.4e}, {high:.4e}], seed 0, status {found.status.name}"
    )
    return Answer(found.log_prob, found.std_error, found.method, found.forward_calls, remarks)


def entry(parameters: Mapping[str, object], answers: Sequence[Answer]) -> dict[str, Any]:
    """One entry of truth.json; the truth is the answer with the smallest standard error."""
    truth = min((a for a in answers if math.isfinite(a.error)), key=lambda a: a.error)
    checks = [f"the truth itself: {truth}"]
    for other in answers:
        if other is not truth:
            z = (other.log_prob - truth.log_prob) / math.hypot(other.error, truth.error)
            checks.append(f"{other}; {z:+.1f} joint standard errors from the truth")
    print(parameters, *checks, sep="\n  ", flush=True)
    return {
        "parameters": dict(parameters),
        "log_prob": truth.log_prob,
        "standard_error": truth.error,
        "method": truth.method,
        "seed": truth.seed,
        "draws": truth.draws,
        "checks": checks,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def entries_of_reader(
    problem: Callable[..., RiskProblem],
    rarities: Sequence[str],
    parameters: Mapping[str, object],
    *,
    draws: int,
    guides: int = 8,
) -> list[dict[str, Any]]:
    """Entries of a digit reader at each rarity: all three methods, with 250,000 importance draws from each guide."""
    problems = [problem(rarity=rarity, **parameters) for rarity in rarities]
    return [
        entry({**parameters, "rarity": rarity}, [counted, importance(each, 250_000, guides), particles(each)])
        for rarity, each, counted in zip(rarities, problems, counting(problems, draws), strict=True)
    ]


def write_entries(folder: Path, entries: list[dict[str, Any]]) -> None:
    """Write truth.json."""
    (folder / "truth.json").write_text(json.dumps({"entries": entries}, indent=2) + "\n")
