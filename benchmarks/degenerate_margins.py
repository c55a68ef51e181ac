r"""Margins that are no margins, or nearly none, through every call: none may be believed wrongly.

A score s = w . x is standard normal and the catastrophe meant is s > 4, p = Phi(-4) = 3.2e-5. Each entry of `MARGINS` is what a
person might return for that: a flag, a label, a probability without its threshold, a clamped or saturated or rounded score, a
score without gradient. What a call makes of it is one word: `refused` (an error or status REFUSED, in words), `doubted` (a status
that is not believed), `right` (believed and within a factor of 2), `WRONG` (believed and not).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy.stats import norm
from torch import Tensor

import ppl_risk as pr
from benchmarks.results import table
from ppl_risk.risk_estimate import LOG10

TITLE = "Degenerate margins: what every call makes of a margin that is none"
LEVEL, INPUTS = 4.0, 4
FACTOR = math.log(2.0)
Z = LEVEL


def _two_classes(s: Tensor) -> Tensor:
    return torch.stack([torch.zeros_like(s), s - Z], -1)


def _votes(s: Tensor) -> Tensor:
    """Seven checks of which 4 fail where s > 4."""
    return sum((s > level).to(s) for level in (1.0, 2.0, 3.0, Z, 4.5, 5.0, 5.5))  # pyright: ignore[reportReturnType]


MARGINS: dict[str, Callable[[Tensor], Tensor]] = {
    "flag, bool": lambda s: s > Z,
    "flag, int 0/1": lambda s: (s > Z).int(),
    "flag, float 0/1": lambda s: (s > Z).to(s),
    "flag - 0.5": lambda s: (s > Z).to(s) - 0.5,
    "flag, -1/+1": lambda s: torch.where(s > Z, 1.0, -1.0).to(s),
    "label, argmax": lambda s: _two_classes(s).argmax(-1),
    "label, argmax.float()": lambda s: _two_classes(s).argmax(-1).to(s),
    "label of 5 classes, float": lambda s: (s.abs() > 1).to(s) + (s.abs() > 2).to(s) + (s > 3).to(s) + (s > Z).to(s),
    "count of failed checks": _votes,
    "count - 3.5": lambda s: _votes(s) - 3.5,
    "probability, sigmoid": lambda s: torch.sigmoid(s - Z),
    "probability, softmax": lambda s: _two_classes(s).softmax(-1)[:, 1],
    "probability - 0.5": lambda s: torch.sigmoid(s - Z) - 0.5,
    "constant 0": lambda s: 0 * s,
    "constant 3": lambda s: 0 * s + 3,
    "constant -1": lambda s: 0 * s - 1,
    "relu(s - t)": lambda s: (s - Z).relu(),
    "(s - t).clamp(0, 1)": lambda s: (s - Z).clamp(0.0, 1.0),
    "distance, no threshold": lambda s: (s - Z).abs(),
    "wrong sign": lambda s: Z - s,
    "hinge, clamp(max=0)": lambda s: (s - Z).clamp(max=0.0),
    "-relu(t - s)": lambda s: -(Z - s).relu(),
    "squared hinge": lambda s: -(Z - s).relu().square(),
    "saturated, tanh(20 (s - t))": lambda s: (20 * (s - Z)).tanh(),
    "saturated, sigmoid(4 s) - c": lambda s: torch.sigmoid(4 * s) - (1 - math.exp(-4 * Z)),
    "rounded to 0.1": lambda s: (10 * (s - Z)).floor() / 10,
    "whole steps": lambda s: (s - Z).floor(),
    "plateau below the event": lambda s: torch.where(s > Z, s - Z + 1, (s - Z).clamp(max=-1.5)),
    "detached": lambda s: (s - Z).detach(),
    "NumPy inside": lambda s: torch.as_tensor(s.detach().cpu().numpy() - Z).to(s),
    "NaN gradient": lambda s: torch.where(s < 0, s - Z, (s.sqrt().square() - Z).nan_to_num(-Z)),
    "NaN beyond the event": lambda s: torch.where(s > Z + 0.5, torch.nan, s - Z),
    "+inf on the event": lambda s: torch.where(s > Z, torch.inf, s - Z),
    "-inf off the event": lambda s: (s - Z + 1).relu().log(),
}

CALLS: dict[str, Callable[[pr.RiskProblem, int], pr.RiskEstimate]] = {
    "estimate": lambda p, seed: pr.estimate(p, max_calls=10_000, seed=seed, progress=False),
    "run_smc": lambda p, seed: pr.run_smc(p, particles=400, posterior_draws=0, seed=seed, progress=False),
    "monte_carlo": lambda p, seed: pr.monte_carlo(p, calls=50_000, posterior_draws=0, seed=seed, progress=False),
    "fit_svi": lambda p, seed: pr.fit_svi(
        p, pr.guides.Network(), steps=150, posterior_draws=0, seed=seed, progress=False
    ),
}


def problem_of(margin: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float32) -> pr.RiskProblem:
    """The score, and what is returned for it."""
    law = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(INPUTS, dtype=dtype), 1.0), 1)
    return pr.RiskProblem(lambda x: margin(x.sum(-1) / math.sqrt(INPUTS)), law, name="margin")


def outcome(
    problem: pr.RiskProblem, call: Callable[[pr.RiskProblem, int], pr.RiskEstimate], truth: float, seed: int = 0
) -> str:
    """One word, and with it the number in decades where there is one. `truth` is log p of the event meant, nats."""
    try:
        found = call(problem, seed)
    except pr.RiskError:
        return "refused"
    if found.status is pr.Status.REFUSED:
        return "refused"
    number = "" if math.isnan(found.log_prob) else f" {found.log_prob / LOG10:.2f}"
    if not found.status.believable:
        return f"doubted{number} {found.status.name}"
    return ("right" if abs(found.log_prob - truth) < FACTOR else "WRONG") + number


def finding(problem: pr.RiskProblem) -> str:
    """What `check` says: the first error, else its notes, else ok."""
    found = pr.check(problem)
    worst = [f for f in found.findings if f.level == ("note" if found.ok else "error")]
    return ("note: " if found.ok else "error: ") + ", ".join(f.check for f in worst) if worst else "ok"


def run() -> str:
    """The text of the section."""
    truth = float(norm.logsf(LEVEL))
    rows, words = [], []
    for name, margin in MARGINS.items():
        for dtype in (torch.float32, torch.float64):
            problem = problem_of(margin, dtype)
            row: dict[str, object] = {"margin": name, "type": str(dtype)[6:], "check": finding(problem)}
            row |= {called: outcome(problem, call, truth) for called, call in CALLS.items()}
            words += [str(row[called]).split()[0] for called in CALLS]
            rows.append(row)
    counts = ", ".join(f"{words.count(word)} {word}" for word in ("right", "doubted", "refused", "WRONG"))
    return (
        f"{len(MARGINS)} margins, two floating types, {len(CALLS)} calls: {counts}. Meant is s > {LEVEL:g}, log10 p = "
        f"{truth / LOG10:.2f}.\n\n{table(rows)}"
    )
