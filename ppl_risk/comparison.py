"""Several estimates of one problem side by side: which to believe, and why the others differ."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import scipy.stats

from ppl_risk.arguments import checked
from ppl_risk.errors import ArgumentError, RiskError
from ppl_risk.identity import same_problem
from ppl_risk.risk_estimate import LOG10, RiskEstimate, Status

#: Believable estimates further apart than this many joint standard errors contradict each other.
AGREEMENT = 3.0
COLUMNS = ("log10 p", "90 % interval", "ELBO", "k-hat", "ESS", "calls", "seconds", "status")


@dataclass(frozen=True, repr=False)
class Comparison:
    """What `compare` returns; printing it gives a table and the verdict.

    Attributes:
        estimates: name -> estimate. truth: reference log_prob in nats, or None. truth_error: its standard error.
    """

    estimates: Mapping[str, RiskEstimate]
    truth: float | None = None
    truth_error: float = 0.0

    @property
    def believable(self) -> dict[str, RiskEstimate]:
        """Those whose own diagnostics hold."""
        return {name: e for name, e in self.estimates.items() if e.status.believable}

    @property
    def conflicts(self) -> list[tuple[str, str]]:
        """Pairs of believable estimates that contradict each other, and of one with a proved bound that it exceeds."""
        bounds = {name: e for name, e in self.estimates.items() if e.status.is_bound}
        return [
            (a, b)
            for (a, left), (b, right) in combinations(self.believable.items(), 2)
            if abs(left.log_prob - right.log_prob) > AGREEMENT * math.hypot(_spread(left), _spread(right))
        ] + [
            (a, b)
            for a, left in self.believable.items()
            for b, right in bounds.items()
            if left.log_prob - AGREEMENT * _spread(left) > right.log_prob
        ]

    @property
    def best(self) -> str | None:
        """The most precise believable estimate, or None where there is none or they contradict each other."""
        if self.conflicts or not self.believable:
            return None
        return min(self.believable, key=lambda name: _error(self.believable[name]))

    def rows(self) -> list[dict[str, str]]:
        """The table, one dict a row, as text."""
        return [{"": name} | _row(e) | self._truth_cell(e) for name, e in self.estimates.items()]

    def to_dataframe(self) -> Any:
        """The table as a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame(self.rows()).set_index("")

    def _truth_cell(self, estimate: RiskEstimate) -> dict[str, str]:
        if self.truth is None:
            return {}
        if math.isinf(self.truth):
            return {"off by": "-" if math.isnan(estimate.log_prob) else "truth is 0"}
        gap = (estimate.log_prob - self.truth) / LOG10
        return {"off by": "-" if math.isnan(gap) or estimate.status.is_bound else f"{gap:+.2f}"}

    def verdict(self) -> str:
        """Which answer to believe, and for each of the others why it differs."""
        lines = []
        if self.best is not None:
            best = self.estimates[self.best]
            others = [name for name in self.believable if name != self.best]
            lines.append(f"Believe {self.best}: log10 p = {best.log10_prob:.2f}." + _agreement(others))
        elif self.conflicts:
            pairs = "; ".join(f"{a} and {b}" for a, b in self.conflicts)
            lines.append(
                f"Believe none: {pairs} contradict each other though each finds itself sound. One of them misses part of the "
                "event. Run SMC with more particles, or fit a mixture: input=Mixture()."
            )
        else:
            lines.append("Believe none: no estimate passes its own diagnostics.")
        lines += [_why(name, e, self._reference()) for name, e in self.estimates.items() if name != self.best]
        return "\n".join(line for line in lines if line)

    def _reference(self) -> float | None:
        if self.best is not None:
            return self.estimates[self.best].log_prob
        return self.truth

    def __repr__(self) -> str:
        """Table and verdict."""
        table = render(self.rows())
        if self.truth is not None:
            spread = f" +- {self.truth_error / LOG10:.3f}" if self.truth_error else " (exact)"
            table += f"\ntruth: log10 p = {self.truth / LOG10:.2f}{spread}"
        return f"{table}\n\n{self.verdict()}"

    def _repr_html_(self) -> str:
        """For notebooks."""
        verdict = html.escape(self.verdict()).replace("\n", "<br>")
        return f"{self.to_dataframe().to_html()}<p>{verdict}</p>"


def named_estimates(call: str, name: str, value: Any) -> dict[str, RiskEstimate]:
    """Estimates by name from whatever holds them: a dict, a `Comparison`, a list, or one of them.

    Raises:
        ArgumentError: anything else.
    """
    if isinstance(value, Comparison):
        return dict(value.estimates)
    if isinstance(value, RiskEstimate):
        value = [value]
    if isinstance(value, list | tuple):
        named: dict[str, Any] = {}
        for estimate in value:
            label = str(getattr(estimate, "method", type(estimate).__name__))
            again = sum(key == label or key.startswith(f"{label} #") for key in named)
            named[f"{label} #{again + 1}" if again else label] = estimate
        value = named
    if not isinstance(value, Mapping):
        raise ArgumentError(
            f"{call}: {name} must be a dict of estimates, {{'smc': run_smc(problem)}}, or a list, got {type(value).__name__}."
        )
    for key, estimate in value.items():
        if not isinstance(estimate, RiskEstimate):
            raise ArgumentError(f"{call}: {name}[{key!r}] must be a RiskEstimate, got {type(estimate).__name__}.")
    return {str(key): estimate for key, estimate in value.items()}


def as_comparison(call: str, name: str, value: Any) -> Comparison:
    """A `Comparison` of whatever `named_estimates` takes."""
    return value if isinstance(value, Comparison) else Comparison(named_estimates(call, name, value))


def one_estimate(call: str, name: str, value: Any) -> RiskEstimate:
    """One estimate; of several the error asks which.

    Raises:
        ArgumentError: none, or more than one.
    """
    found = named_estimates(call, name, value)
    if len(found) != 1:
        raise ArgumentError(f"{call} takes one estimate, got {len(found)}: pick one of {', '.join(found)}.")
    return next(iter(found.values()))


@checked(estimates=named_estimates)
def compare(estimates: Mapping[str, RiskEstimate], truth: Any = None) -> Comparison:
    """Put estimates of one problem side by side.

    Args:
        estimates: name -> estimate. truth: reference answer in nats (a float, or anything with log_prob), if known.

    Raises:
        RiskError: no estimates, or estimates of different problems. Problems are told apart by their fingerprints, whatever their
            names; by names only where an estimate has no fingerprint.

    Example:
        >>> from ppl_risk import RiskEstimate
        >>> compare({"a": RiskEstimate("by hand", -7.0, 0.1), "b": RiskEstimate("by hand", -7.1, 0.2)}).best
        'a'
    """
    if not isinstance(estimates, Mapping):
        raise RiskError(
            f"compare takes estimates by name, for example compare({{'smc': run_smc(problem)}}), got {type(estimates).__name__}."
        )
    if not estimates:
        raise RiskError("compare needs at least one estimate, for example compare({'smc': run_smc(problem)}).")
    _of_one_problem(estimates)
    if truth is None or isinstance(truth, int | float):
        return Comparison(dict(estimates), None if truth is None else float(truth))
    if not hasattr(truth, "log_prob"):
        raise ArgumentError(f"compare: truth must be a number in nats or hold log_prob, got {type(truth).__name__}.")
    return Comparison(dict(estimates), float(truth.log_prob), float(getattr(truth, "std_error", 0.0)))


def _of_one_problem(estimates: Mapping[str, RiskEstimate]) -> None:
    known: dict[str, str] = {}
    for name, estimate in estimates.items():
        if not isinstance(estimate, RiskEstimate):
            raise RiskError(f"compare takes estimates by name; {name!r} is a {type(estimate).__name__}.")
        if estimate.fingerprint and not any(same_problem(estimate.fingerprint, other) for other in known):
            known[estimate.fingerprint] = f"{name} (of {estimate.problem or 'a problem'} {estimate.fingerprint[:8]})"
    if len(known) > 1:
        raise RiskError(
            f"These are estimates of different problems: {', '.join(known.values())}. Their weights, input laws or "
            "detectors differ, whatever their names."
        )
    names = {e.problem for e in estimates.values() if e.problem}
    if len(names) > 1 and any(e.problem and not e.fingerprint for e in estimates.values()):
        raise RiskError(f"These are estimates of different problems: {', '.join(sorted(names))}.")


def _spread(estimate: RiskEstimate) -> float:
    """The standard error; over few runs that of a normal law which is as wide, `AGREEMENT` errors out, as Student's."""
    if estimate.dof is None:
        return estimate.std_error
    return estimate.std_error * float(scipy.stats.t.isf(scipy.stats.norm.sf(AGREEMENT), estimate.dof)) / AGREEMENT


def _error(estimate: RiskEstimate) -> float:
    spread = _spread(estimate)
    return math.inf if math.isnan(spread) else spread


def _row(estimate: RiskEstimate) -> dict[str, str]:
    low, high = (bound / LOG10 for bound in estimate.interval())
    unknown = math.isnan(estimate.log_prob) or estimate.status.is_bound
    number = "-" if unknown else f"{estimate.log10_prob:.2f}"
    if unknown and math.isfinite(high):
        interval = f"< {high:.2f}" if math.isnan(estimate.log_prob) else f"<= {high:.2f}"
    else:
        interval = f"[{low:.2f}, {high:.2f}]" if math.isfinite(high) else "-"
    cells = (
        number, interval, "-" if estimate.elbo is None else f"{estimate.elbo / LOG10:.1f}",
        _figure(estimate, "k_hat", ".2f"), _figure(estimate, "ess", ".0f"), f"{estimate.calls:,}",
        f"{estimate.seconds:.1f}", estimate.status.name,
    )  # fmt: skip
    return dict(zip(COLUMNS, cells, strict=True))


def _figure(estimate: RiskEstimate, name: str, form: str) -> str:
    value = estimate.evidence.get(name, math.nan)
    return "-" if not math.isfinite(value) else format(value, form)


def _agreement(others: list[str]) -> str:
    if not others:
        return " Nothing else confirms it: a second route (run_smc, or another family) would."
    return f" It is the most precise of those that pass their diagnostics; {', '.join(others)} agree{'s' * (len(others) == 1)}."


def _why(name: str, estimate: RiskEstimate, reference: float | None) -> str:
    if estimate.status.believable:
        return ""
    away = ""
    if (
        not estimate.status.is_bound
        and reference is not None
        and math.isfinite(reference)
        and math.isfinite(estimate.log_prob)
    ):
        gap = (estimate.log_prob - reference) / LOG10
        away = f" ({abs(gap):.1f} decades {'above' if gap > 0 else 'below'})" if abs(gap) >= 0.05 else ""
    text = f"{name}{away}: {estimate.status.name}, {estimate.status.value}."
    if estimate.status is Status.MODEL_ONLY:
        text += " The gap is what the law leaves out: correlations, or a tail that is not Gaussian."
    return f"{text} {estimate.remedy}".rstrip()


def render(rows: list[dict[str, str]]) -> str:
    """Rows of text as a table for the terminal; the first column to the left, the others to the right."""
    columns = list(rows[0])
    widths = {c: max(len(c), *(len(row[c]) for row in rows)) for c in columns}
    first = columns[0]

    def line(row: Mapping[str, str]) -> str:
        return "  ".join(row[c].ljust(widths[c]) if c == first else row[c].rjust(widths[c]) for c in columns).rstrip()

    rule = "-" * (sum(widths.values()) + 2 * (len(columns) - 1))
    return "\n".join([line({c: c for c in columns}), rule, *map(line, rows)])
