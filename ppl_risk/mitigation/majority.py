r"""When most of s independent trials are good, their median is: exact binomial tails, and epsilon certified on clean rows.

A trial is bad with probability at most q, independently of the others given the input. The lower median of s values lies
between two good ones unless ceil(s/2) or more are bad, so

    Pr[median off] <= Pr[Binomial(s, q) >= ceil(s/2)]   (Hoeffding: <= exp(-2 s (1/2 - q)^2)),

and the exact tail lets q be larger for the same s: at s = 25 and one failure in 1000, .20 rather than .13.

Ours; the paper bounds the same event.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from scipy.optimize import brentq
from scipy.stats import binom

from ppl_risk.mitigation.card import Premise
from ppl_risk.mitigation.wanted import number, whole
from ppl_risk.risk_estimate import clopper_pearson

#: One-sided, of each certificate and of each refusal.
CONFIDENCE = 0.99
#: A quarter: a median would still hold were twice as many trials bad as presumed.
LARGEST_SHARE = 0.25


def log_failure(repeats: int, bad: float) -> float:
    """Log probability (nats) that at least ceil(repeats/2) of the trials are bad.

    Example:
        >>> round(math.exp(log_failure(25, 0.1)), 10)
        1.621e-07

    """
    return float(binom.logsf(math.ceil(repeats / 2) - 1, repeats, min(bad, 1.0)))


def largest_bad_share(repeats: int, failure: float) -> float:
    """The largest q, 1/4 at most, for which the median of so many trials fails with at most this probability.

    The cap leaves a factor of two on epsilon; further trials then make failures rarer, not the bars narrower.

    Raises:
        RiskError: unless repeats >= 1 and 0 < failure < 1/2.

    Example:
        >>> round(largest_bad_share(25, 1e-3), 3)
        0.221

    """
    whole("repeats", repeats, least=1)
    number("failure", failure, 0.0, 0.5)
    goal = math.log(failure)
    if log_failure(repeats, LARGEST_SHARE) <= goal:
        return LARGEST_SHARE
    return float(brentq(lambda q: log_failure(repeats, q) - goal, 1e-12, LARGEST_SHARE, xtol=1e-14))  # pyright: ignore[reportArgumentType]


class Share(NamedTuple):
    """Misses among clean rows, and one-sided bounds on their probability, each at the confidence of this file."""

    misses: int
    rows: int
    low: float
    high: float


def share_of(misses: int, rows: int, confidence: float = CONFIDENCE) -> Share:
    """Clopper-Pearson bounds, each one-sided.

    Example:
        >>> round(share_of(0, 1000).high, 5)
        0.00459

    """
    low, high = clopper_pearson(misses, rows, 2 * confidence - 1)
    return Share(misses, rows, math.exp(low), math.exp(high))


def epsilon_premise(misses: int, rows: int, epsilon: float) -> Premise:
    """Whether clean rows certify that the model is off on at most a share epsilon, refute it, or leave it open.

    Example:
        >>> print(epsilon_premise(7, 5000, 1e-4))
        [FAILS] epsilon <= 0.0001: 7 of 5,000 clean rows off, so at least 0.00047 with 99 % confidence

    """
    found, name = share_of(misses, rows), f"epsilon <= {epsilon:g}"
    seen = f"{misses:,} of {rows:,} clean rows off"
    if found.high <= epsilon:
        return Premise(name, True, f"{seen}, at most {found.high:.2g} with 99 % confidence")
    if found.low > epsilon:
        return Premise(name, False, f"{seen}, so at least {found.low:.2g} with 99 % confidence")
    need = math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-epsilon))
    more = (
        f"{need:,} rows without a miss would certify it" if misses == 0 else "more rows would tell, or a larger epsilon"
    )
    return Premise(name, None, f"{seen}, which leaves it open; {more}")
