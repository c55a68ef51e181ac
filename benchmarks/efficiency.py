r"""What an estimator is worth: error against a known answer, calls, coverage; from runs that differ in their seed only.

With p_i the estimates of the runs, a run without one counting as p_i = 0,

    relative MSE = mean (p_i / p - 1)^2,    efficiency = [(1 - p) / p] / (relative MSE x mean calls),

the second being the calls that plain Monte Carlo needs for the same error over those that were spent; bias is counted, as the
MSE has it. FAIL: relative RMSE at least 0.7, or median |log10 error| at least 0.3 (a factor of 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LARGEST_RMSE, LARGEST_LOG10_ERROR = 0.7, 0.3


@dataclass(frozen=True)
class Score:
    """Figures of one estimator on one problem.

    Attributes:
        runs: how many; missing: how many of them gave no number.
        rmse, bias: of p, in units of p. median_error: median |log10 error|, a missing run counting as infinite.
        calls: mean. efficiency: see above.
        coverage: share of intervals that hold the truth, among the runs that gave one (nan: none did).
        reported: median of the reported relative standard errors (nan: none).
    """

    runs: int
    missing: int
    rmse: float
    bias: float
    median_error: float
    calls: float
    efficiency: float
    coverage: float
    reported: float

    @property
    def failed(self) -> bool:
        """Whether the figures are those of a method that does not work here."""
        return not (self.rmse < LARGEST_RMSE and self.median_error < LARGEST_LOG10_ERROR)

    def __str__(self) -> str:
        """RMSE / efficiency / coverage, with FAIL where it is one."""
        if self.missing == self.runs:
            return "FAIL (no number)"
        covered = "-" if math.isnan(self.coverage) else f"{self.coverage:.0%}"
        text = f"{self.rmse:.3f} / {self.efficiency:.2g} / {covered}"
        missing = f", {self.missing} of {self.runs} without a number" if self.missing else ""
        return f"FAIL ({text}{missing})" if self.failed else text + missing


def score(
    log_probs: Sequence[float],
    truth: float,
    calls: Sequence[float],
    intervals: Sequence[tuple[float, float] | None] | None = None,
    std_errors: Sequence[float] | None = None,
    *,
    slack: float = 1e-4,
) -> Score:
    """Figures from runs.

    Args:
        log_probs: nats, one a run; nan where the run gave no number.
        truth: nats.
        calls: one a run; a gradient of a row is one call more.
        intervals: 95 % intervals for log p, nats; None or nan where a run gave none.
        std_errors: reported standard errors of log p; nan where a run gave none.
        slack: added to an interval on both sides, nats, and the smallest error that counts: margins are in single precision, so no
            truth is sharper than that, and an exact answer is worth as much as one within it.

    Example:
        >>> found = score([math.log(1e-3), math.log(3e-3)], math.log(2e-3), [100, 100])
        >>> round(found.rmse, 3), round(found.efficiency, 3)
        (0.5, 19.96)
    """
    found, spent = np.asarray(log_probs, dtype=float), np.asarray(calls, dtype=float)
    if not len(found) or len(found) != len(spent):
        raise ValueError(f"Wanted one log p and one count of calls a run, got {len(found)} and {len(spent)}.")
    missing = np.isnan(found)
    ratio = np.exp(np.minimum(np.where(missing, -np.inf, found) - truth, 300.0))
    square = float(np.mean((ratio - 1) ** 2))
    error = np.where(missing, np.inf, np.abs(np.where(missing, 0.0, found) - truth)) / math.log(10.0)
    known = [pair for pair in intervals or () if pair is not None and not any(map(math.isnan, pair))]
    errors = [e for e in std_errors or () if math.isfinite(e)]
    mean_calls = float(spent.mean())
    work = max(square, slack**2) * mean_calls
    return Score(
        runs=len(found),
        missing=int(missing.sum()),
        rmse=math.sqrt(square),
        bias=float(ratio.mean() - 1),
        median_error=float(np.median(error)),
        calls=mean_calls,
        efficiency=math.expm1(-truth) / work if work > 0 else math.inf,
        coverage=float(np.mean([low - slack <= truth <= high + slack for low, high in known])) if known else math.nan,
        reported=float(np.median(errors)) if errors else math.nan,
    )
