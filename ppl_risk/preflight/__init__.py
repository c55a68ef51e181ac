"""Preflight: the mistakes that torch lets through in silence, each of which gives a number that looks fine.

NaN weights give P = 0, train mode gives a random answer, a detector that returns one number for the batch gives one
answer for all rows. Every finding says what, where, and what to do. The rows spent here are not booked on estimates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ppl_risk.arguments import checked
from ppl_risk.errors import PreflightError, RiskError
from ppl_risk.preflight.checks import CHECKS
from ppl_risk.preflight.layers import sites
from ppl_risk.preflight.reachability import reachable
from ppl_risk.problem import RiskProblem
from ppl_risk.randomness import seeded

#: Rows that `require_sound` runs, for estimators that book them.
PREFLIGHT_CALLS = 94


@dataclass(frozen=True)
class Finding:
    """One check: `level` is "ok", "note" (worth knowing) or "error" (any number would be wrong)."""

    check: str
    level: str
    message: str


@dataclass(frozen=True, repr=False)
class Preflight:
    """What `check` found; printing it lists every check."""

    problem: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """No error was found."""
        return all(f.level != "error" for f in self.findings)

    def __repr__(self) -> str:
        """One line a check."""
        mark = {"ok": "ok   ", "note": "note ", "error": "ERROR"}
        return "\n".join(
            [f"preflight of {self.problem}"] + [f"  {mark[f.level]} {f.check:<14} {f.message}" for f in self.findings]
        )


@checked()
def check(problem: RiskProblem, *, draws: int = 2000, seed: int = 0) -> Preflight:
    """Try a problem before spending on it: devices, mode, finite weights, shapes, determinism, reachability.

    Args:
        problem: the problem. draws: pilot draws of the reachability check. seed: reproduces them.

    Example:
        >>> law = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> check(RiskProblem(lambda x: x.sum(-1) - 1.0, law)).ok
        True
    """
    return Preflight(problem.name, tuple(_examine(problem, seed, draws)))


def require_sound(problem: RiskProblem) -> None:
    """What every estimator does first.

    Raises:
        PreflightError: a check failed, with the text of the first failure.
    """
    for finding in _examine(problem, 0, 0):
        if finding.level == "error":
            raise PreflightError(f"[{problem.name}: {finding.check}] {finding.message}")


def _examine(problem: RiskProblem, seed: int, draws: int) -> list[Finding]:
    """Run the checks in order; the later ones need what the earlier ones establish."""
    findings: list[Finding] = []
    meters, problem._meters = problem._meters, []
    try:
        with torch.no_grad():
            for name, test in CHECKS:
                with seeded(seed, _seeding_device(problem)):
                    level, message = _outcome(test, problem)
                findings.append(Finding(name, level, message))
                if level == "error":
                    return findings
            if draws:
                for name, look in (("layers", sites), ("reachable", lambda p: reachable(p, draws))):
                    with seeded(seed, problem.device):
                        findings.append(Finding(name, *_outcome(look, problem)))
    finally:
        problem._meters = meters
    return findings


def _outcome(test: Callable[[RiskProblem], str | tuple[str, str]], problem: RiskProblem) -> tuple[str, str]:
    """Level and message of a check; an error that says what to do is a finding."""
    try:
        found = test(problem)
    except RiskError as error:
        return "error", str(error)
    return found if isinstance(found, tuple) else ("ok", found)


def _seeding_device(problem: RiskProblem) -> torch.device:
    first = next(problem.parameters(), None)
    return torch.device("cpu") if first is None else first.device
