"""Preflight: the mistakes that torch lets through in silence, each of which gives a number that looks fine.

NaN weights give P = 0, train mode gives a random answer, a detector that returns one number for the batch gives one
answer for all rows. Every finding says what, where, and what to do. The rows spent here, and those of the last look that follows
an estimate, are not booked on estimates; `estimate` alone books them, because its limit on calls includes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ppl_risk.arguments import checked
from ppl_risk.errors import PreflightError, RiskError
from ppl_risk.parallel.chain import tried_twice
from ppl_risk.preflight.checks import CHECKS
from ppl_risk.preflight.last_look import FirstLook, last_look, unseen_by_meters
from ppl_risk.preflight.layers import sites
from ppl_risk.preflight.margins import CONFIRM, LOOK, NO_SLOPE, look_at, slope_fault
from ppl_risk.preflight.reachability import reachable
from ppl_risk.preflight.units import Units, units_of
from ppl_risk.problem import RiskProblem
from ppl_risk.randomness import seeded
from ppl_risk.saturation.watched import Watch

#: Rows that `require_sound` runs where nothing is suspicious.
PREFLIGHT_CALLS = 94 + LOOK


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
    return Preflight(problem.name, tuple(_examine(problem, seed, draws)[0]))


def require_sound(problem: RiskProblem, *, slope: bool = False, proof: bool = False) -> FirstLook:
    """What every estimator does first; what it returns goes to `last_look` at the end.

    Args:
        problem: the problem.
        slope: whether the method is nothing without the margin's gradient.
        proof: whether the method proves: a margin that is never negative is then an answer and no mistake.

    Raises:
        PreflightError: a check failed, with the text of the first failure.
    """
    findings, first = tried_twice(problem, lambda: _examine(problem, 0, 0), "The preflight")
    for finding in findings:
        # What was looked at and is never negative may be proved; what could not be looked at may not.
        if finding.level == "error" and not (proof and finding.check == "margin" and first is not None):
            raise PreflightError(f"[{problem.name}: {finding.check}] {finding.message}")
    if slope and (fault := _slope(problem)):
        raise PreflightError(
            f"[{problem.name}: gradient] {NO_SLOPE[fault]}: there is nothing for gradients to follow. ppl_risk.estimate, "
            "run_smc and monte_carlo do without."
        )
    assert first is not None  # there is one where no check failed
    return first


def _examine(problem: RiskProblem, seed: int, draws: int) -> tuple[list[Finding], FirstLook | None]:
    """Run the checks in order; the later ones need what the earlier ones establish. With `draws`, the pilot of `check` too."""
    findings: list[Finding] = []
    first: FirstLook | None = None

    def margins(problem: RiskProblem) -> tuple[str, str]:
        nonlocal first
        found, first = _first_look(problem)
        return found

    pilot: tuple[tuple[str, Any], ...] = (
        ("layers", sites), ("gradient", _gradient), ("reachable", lambda problem: reachable(problem, draws)),
    )  # fmt: skip
    with unseen_by_meters(problem), torch.no_grad():
        for name, test in (*CHECKS, ("margin", margins), *(pilot if draws else ())):
            with seeded(seed, _seeding_device(problem)):
                level, message = _outcome(test, problem)
            findings.append(Finding(name, level, message))
            if level == "error":
                break
    return findings, first


def _first_look(problem: RiskProblem) -> tuple[tuple[str, str], FirstLook]:
    """The finding on a few margins, on more of them where none is negative; and the rows, to be run once more at the end."""
    x = problem.sample(LOOK)
    with Watch() as watch:
        margin = problem.run(x.clone())
    more, level, message = 0, *look_at(margin)
    if level == "error":
        more = CONFIRM
        level, message = look_at(torch.cat([margin, problem.margin(problem.sample(CONFIRM))]))
    units = Units(problem, False, 0) if level == "error" else units_of(problem, watch, margin)
    return (level, message), FirstLook(x, margin.detach(), PREFLIGHT_CALLS + more + units.calls, units)


def _slope(problem: RiskProblem) -> str:
    with unseen_by_meters(problem), seeded(0, problem.device):
        return slope_fault(problem)


def _gradient(problem: RiskProblem) -> tuple[str, str]:
    fault = slope_fault(problem)
    if not fault:
        return "ok", "the margin has one"
    return "note", f"{NO_SLOPE[fault]}: fit_svi cannot use it; estimate, run_smc and monte_carlo can."


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


__all__ = [
    "PREFLIGHT_CALLS", "Finding", "FirstLook", "Preflight", "check", "last_look", "require_sound",
]  # fmt: skip
