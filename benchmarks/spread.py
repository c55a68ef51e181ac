"""Statistics over seeds: errors against a known log p, coverage, calls."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import ppl_risk as pr
from ppl_risk.risk_estimate import LOG10


def over_seeds(estimate: Callable[[int], pr.RiskEstimate], truth: float, seeds: int) -> dict[str, object]:
    """Run an estimator under seeds 0..n-1; RMSE and bias of p in units of p, median |log10 error|, coverage, cost."""
    found = [estimate(seed) for seed in range(seeds)]
    log_probs = np.array([e.log_prob for e in found])
    ratio = np.exp(np.nan_to_num(log_probs, nan=-np.inf) - truth)
    covered = [low <= truth <= high for low, high in (e.interval(0.9) for e in found)]
    errors = np.abs(log_probs - truth) / LOG10
    khat = np.array([e.evidence.get("k_hat", np.nan) for e in found])
    believed = [e.status.believable for e in found]
    wrong = [bool(ok and not error < np.log10(2)) for ok, error in zip(believed, errors, strict=True)]
    return {
        "rel. RMSE": f"{np.sqrt(np.mean((ratio - 1) ** 2)):.3f}",
        "rel. bias": f"{ratio.mean() - 1:+.3f}",
        "median abs. log10 error": "-" if np.isnan(errors).all() else f"{np.nanmedian(errors):.3f}",
        "90 % intervals cover": f"{np.mean(covered):.0%}",
        "calls": f"{max(e.calls for e in found):,}",
        "seconds": f"{np.median([e.seconds for e in found]):.2f}",
        "k-hat": "-" if np.isnan(khat).all() else f"{np.nanmedian(khat):.2f}",
        "OK": f"{np.mean(believed):.0%}",
        "OK and off by > 2": f"{sum(wrong)}",
    }
