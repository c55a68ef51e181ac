"""Every public call on one network of the matrix, and what came of it, judged by plain draws."""

from __future__ import annotations

import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ppl_risk as pr
from benchmarks.operators.case import Case
from ppl_risk.risk_estimate import LOG10, RiskEstimate

#: Rows behind a threshold and, other rows, behind the truth.
THRESHOLD_ROWS, TRUTH_ROWS, CHUNK = 200_000, 1_000_000, 50_000
#: Decades beyond which OK is wrong whatever its interval says: a factor of 2. Decades beyond which it is wrong where its own
#: interval at this level, widened by so many standard errors of the truth, does not hold the truth.
FACTOR, DECADES, LEVEL, SIGMAS = math.log10(2), 0.15, 0.999, 4.0
#: Seconds after which a call is stopped.
PATIENCE = 90

CALLS: dict[str, Callable[[pr.RiskProblem], Any]] = {
    "check": pr.check,
    "monte_carlo": lambda p: pr.monte_carlo(p, calls=50_000, posterior_draws=50, progress=False),
    "estimate": lambda p: pr.estimate(p, max_calls=12_000, posterior_draws=50, progress=False),
    "run_smc": lambda p: pr.run_smc(p, particles=500, posterior_draws=50, progress=False),
    "fit_svi": lambda p: pr.fit_svi(p, pr.guides.Network(), steps=200, posterior_draws=50, progress=False),
    "select": lambda p: pr.select(p, rank=2, draws=500),
    "fit_layerwise": lambda p: pr.fit_layerwise(p, pr.guides.Full(), draws=1000, particles=200, progress=False),
    "propagate": lambda p: pr.propagate(p, "full", posterior_draws=0),
    "certify": lambda p: pr.certify(p, inputs=10, progress=False),
}


class SlowError(Exception):
    """A call that took longer than `PATIENCE`."""


@contextmanager
def patience(seconds: int) -> Iterator[None]:
    """Stop what takes longer."""

    def stop(*_: object) -> None:
        raise SlowError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@torch.no_grad()
def scores(case: Case, rows: int, seed: int) -> np.ndarray:
    """Scores of plain draws, each chunk on a network of its own: some count their calls."""
    torch.manual_seed(seed)
    inputs = [case.law.sample((CHUNK,)) for _ in range(rows // CHUNK)]
    found = []
    for x in inputs:
        network = case.network()
        weight = next((w for w in getattr(network, "parameters", lambda: iter(()))() if w.is_floating_point()), None)
        value: Tensor = case.score(network((x if weight is None else x.to(weight.dtype)).clone()))
        found.append(value.double().numpy())
    return np.concatenate(found)


def problem_of(case: Case) -> tuple[pr.RiskProblem, float, float]:
    """The problem, log10 of its probability by plain draws, and the standard error of that in decades."""
    drawn = np.sort(scores(case, THRESHOLD_ROWS, 1))
    cut = float(drawn[-round(case.tail * len(drawn))])
    hits = float((scores(case, TRUTH_ROWS, 2) >= cut).sum())
    score = case.score
    problem = pr.RiskProblem(case.network(), case.law, lambda y: score(y) - cut, name=case.name)
    return problem, math.log10(hits / TRUTH_ROWS), 1 / math.sqrt(hits) / LOG10


def judged(result: Any, call: str, truth: float, error: float, refuse: bool) -> dict[str, Any]:
    """What an answer amounts to: right, WRONG, doubt, holds, UNSOUND, vacuous, model, ok."""
    if not isinstance(result, RiskEstimate):
        fine = getattr(result, "ok", True)
        notes = [f.message for f in getattr(result, "findings", ()) if f.level == "error"]
        return {"outcome": "ok" if fine else "refused", "note": " ".join(notes)[:300]}
    value, status = result.log10_prob, result.status.name
    found: dict[str, Any] = {
        "status": status, "log10_prob": value if math.isfinite(value) else None, "note": result.remedy[:300],
        "forward_calls": result.forward_calls,
    }  # fmt: skip
    if call == "certify":
        if status == "VACUOUS":
            return found | {"outcome": "vacuous"}
        if status == "REFUSED":
            return found | {"outcome": "refused"}
        return found | {"outcome": "holds" if value > truth - SIGMAS * error else "UNSOUND"}
    if status == "MODEL_ONLY":
        return found | {"outcome": "model"}
    if status == "REFUSED":
        return found | {"outcome": "refused"}
    if not result.status.believable:
        return found | {"outcome": "doubt"}
    gap = abs(value - truth)
    low, high = (end / LOG10 for end in result.interval(LEVEL))
    inside = low - SIGMAS * error <= truth <= high + SIGMAS * error
    wrong = refuse or not (gap <= DECADES or (gap <= FACTOR and inside))
    return found | {"outcome": "WRONG" if wrong else "right"}


def tried(case: Case, problem: pr.RiskProblem, call: str, truth: float, error: float) -> dict[str, Any]:
    """One call on one network: its outcome, seconds, and what it said."""
    started = time.perf_counter()
    try:
        with patience(PATIENCE), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = judged(CALLS[call](problem), call, truth, error, case.refuse)
    except pr.RiskError as error_:
        outcome = {"outcome": "refused", "note": str(error_)[:300]}
    except SlowError:
        outcome = {"outcome": "slow"}
    except Exception as error_:  # a traceback is what is being counted
        outcome = {"outcome": "TRACEBACK", "note": f"{type(error_).__name__}: {error_}"[:300]}
    return {"case": case.name, "call": call, **outcome, "seconds": round(time.perf_counter() - started, 2)}


def row_of(case: Case) -> list[dict[str, Any]]:
    """Every call on one network, and what the truth is."""
    torch.set_num_threads(1)
    problem, truth, error = problem_of(case)
    known = {"truth": truth, "truth_error": error}
    found = []
    for call in CALLS:
        fresh = pr.RiskProblem(case.network(), case.law, problem.detector, name=case.name)
        found.append(tried(case, fresh, call, truth, error) | known)
    return found
