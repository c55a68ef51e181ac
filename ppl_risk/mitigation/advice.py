r"""Relearn or mitigate: one sentence.

With n inputs, degree d and p = C(n + d, d) monomials:

| what is at hand | advice | why |
| --- | --- | --- |
| affine or polynomial, at least 4p clean rows | relearn | least squares errs by label noise; mitigation by Lambda delta |
| epsilon >= 1 / (2 (d + 1)) | relearn | half the trials may be bad, (1 + d e^c) epsilon >= 1/2 at every c > 0 |
| fewer queries allowed than the mitigator asks | relearn | no median, no proof |
| parities, n <= 22, m >= 8 ln(2^{n+1} / failure) / tau^2 rows | relearn | one transform of 2^n numbers finds every set |
| parities otherwise | mitigate | from rows alone it is learning parity with noise, LPN: 2^{O(n)} or n^{set size} |
| all else | mitigate | the number of queries does not grow with p |

Lambda is the magnification of `rays`, about 2n/c for d = 1 and (4n/c)^d / 2 beyond. The rule for 4p rows is read off our
measurements for d = 1 and carried over to d > 1; none of this table is the paper's.
"""

from __future__ import annotations

import math
from typing import Literal

from ppl_risk.errors import RiskError
from ppl_risk.mitigation.majority import largest_bad_share
from ppl_risk.mitigation.rays import ray_of
from ppl_risk.mitigation.wanted import number, whole

#: Clean rows a coefficient from which relearning won in every measured case.
ROWS_PER_COEFFICIENT = 4
#: Bits up to which the transform of all 2^n coefficients is done.
LARGEST_TRANSFORM = 22

Problem = Literal["affine", "polynomial", "parities"]


def rows_for_parities(n: int, tau: float, failure: float) -> int:
    """m with 2^{n+1} exp(-m tau^2 / 8) <= failure: no empirical coefficient of labels in [-1, 1] is off by tau / 2 (Hoeffding).

    Example:
        >>> rows_for_parities(20, 0.5, 1e-3)
        687

    """
    return math.ceil(8 * ((n + 1) * math.log(2) - math.log(failure)) / tau**2)


def bars_of(n: int, degree: int, epsilon: float, delta: float, *, repeats: int = 25, failure: float = 1e-3) -> float:
    """Lambda delta of the local mitigator with so many trials; infinite where epsilon is too large for it.

    Example:
        >>> round(bars_of(200, 1, 0.02, 0.01), 2)
        1.73

    """
    if delta == 0 or epsilon == 0:
        return delta
    try:
        return ray_of(n, degree, epsilon, largest_bad_share(repeats, failure)).amplification * delta
    except RiskError:
        return math.inf


def advise(
    problem: Problem,
    n: int,
    *,
    degree: int = 1,
    samples: int = 0,
    epsilon: float | None = None,
    delta: float | None = None,
    tau: float = 0.5,
    failure: float = 1e-3,
    queries: int | None = None,
    needed: int | None = None,
    bars: float | None = None,
) -> str:
    """One sentence that begins with "Relearn" or "Mitigate", and why.

    Args:
        problem: what the truth is.
        n: inputs or bits. degree: of a polynomial. tau: least coefficient of parities.
        samples: clean labelled rows at hand.
        epsilon: share of inputs on which the model may be off by more than delta; None where unknown.
        delta: what it may be off elsewhere.
        failure: probability that the promise may break.
        queries: how many are allowed, None for any number. needed: how many the mitigator asks in all.
        bars: its error bar; default Lambda delta.

    Raises:
        RiskError: for an unknown problem, or a number out of range.

    Example:
        >>> advise("affine", 10, samples=50)
        'Relearn: 50 clean rows are at least 4 for each of 11 coefficients, and least squares on them errs by label noise alone.'

    """
    if problem not in ("affine", "polynomial", "parities"):
        raise RiskError(f'problem must be "affine", "polynomial" or "parities", got {problem!r}.')
    degree = 1 if problem == "affine" else degree
    for name, count, least in (("n", n, 1), ("degree", degree, 1), ("samples", samples, 0)):
        whole(name, count, least=least)
    number("tau", tau, 0.0, 1.0, with_high=True)
    number("failure", failure, 0.0, 1.0)
    for name, value, high in (("epsilon", epsilon, 1.0), ("delta", delta, math.inf)):
        if value is not None:
            number(name, value, 0.0, high, with_low=True)
    for name, count in (("queries", queries), ("needed", needed)):
        if count is not None:
            whole(name, count, least=0)
    if bars is not None and not bars >= 0:
        raise RiskError(f"bars must be 0 or positive, got {bars}.")
    scarce = queries is not None and needed is not None and queries < needed
    short = f"Relearn: the mitigator asks {needed:,} queries and {queries:,} are allowed." if scarce else ""
    if problem == "parities":
        return _parities(n, samples, epsilon, tau, failure, short)
    p = math.comb(n + degree, degree)
    known = epsilon is not None and delta is not None
    width = bars if bars is not None else bars_of(n, degree, epsilon or 0.0, delta or 0.0) if known else None
    against = "" if width is None else f", where mitigation has bars of {width:.3g}"
    if samples >= ROWS_PER_COEFFICIENT * p:
        return (
            f"Relearn: {samples:,} clean rows are at least {ROWS_PER_COEFFICIENT} for each of {p:,} coefficients, and least "
            f"squares on them errs by label noise alone{against}."
        )
    if epsilon is not None and epsilon >= 1 / (2 * (degree + 1)):
        return f"Relearn: at epsilon = {epsilon:g} half the trials of a mitigator may be bad, so that no median of them is safe."
    if short:
        return short
    few = f"{samples:,} clean rows are fewer than {ROWS_PER_COEFFICIENT} for each of {p:,} coefficients"
    if degree == 1:
        return (
            f"Mitigate: {few}, and the mitigator's queries do not grow with n; hold a robust refit of "
            f"{ROWS_PER_COEFFICIENT * p:,} queries beside it, which is often closer and proves nothing of any one input."
        )
    wide = "" if width is None else f"; its bars are {width:.3g}, so gather rows if that is too wide"
    return f"Mitigate: {few}, and a trial asks {degree + 1} queries however many coefficients there are{wide}."


def _parities(n: int, samples: int, epsilon: float | None, tau: float, failure: float, short: str) -> str:
    if n <= LARGEST_TRANSFORM and samples >= (wanted := rows_for_parities(n, tau, failure)):
        return (
            f"Relearn: {samples:,} clean rows are at least the {wanted:,} from which a Walsh-Hadamard transform of 2^{n} "
            f"numbers finds every coefficient of {tau:g}."
        )
    if epsilon is not None and epsilon >= tau / 4:
        return f"Relearn: at epsilon = {epsilon:g} a backdoor can plant coefficients of {2 * epsilon:g}, half of tau or more."
    if short:
        return short
    if n > LARGEST_TRANSFORM:
        return f"Mitigate: from rows alone this is learning parity with noise, a transform of 2^{n} numbers or harder."
    return f"Mitigate: {samples:,} clean rows are fewer than the {wanted:,} that a transform of 2^{n} numbers wants."
