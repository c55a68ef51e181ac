r"""What a Fourier series, the model it came from and clean rows say of the premises of `GlobalFourier`.

| premise | what refutes it |
| --- | --- |
| every coefficient of the truth is 0 or >= tau | none, or too many sets found; a value below tau by more than its errors explain |
| model and truth are close | fresh answers of the model against the series |
| clean labels are the series, but for flips | more or fewer flips than declared; a residual above what flips leave |
| rows are uniform bits, labels +-1 where a sign is answered | the rows themselves |

A truth h = +-1 whose labels are flipped with probability eta leaves a residual of 1 - (1 - 2 eta)^2 around
(1 - 2 eta) h; more says that the series is not all of h. Each test refuses a true premise at a share of `delta` at most. Ours.
"""

from __future__ import annotations

import math

import torch
from scipy.stats import f as f_law
from scipy.stats import norm
from torch import Tensor

from ppl_risk.mitigation.card import Premise
from ppl_risk.mitigation.clean_rows import CleanRows
from ppl_risk.mitigation.fourier_series import FourierSeries, characters
from ppl_risk.mitigation.majority import share_of

#: Rounding of a value.
ROUNDED = 1e-6


def few_and_heavy(values: Tensor, errors: Tensor, tau: float, most: int, delta: float) -> Premise:
    """As many sets as a truth can have, none of a value below tau beyond its standard error."""
    name, k = f"every coefficient of the truth is 0 or >= {tau:g}", len(values)
    if k == 0:
        return Premise(name, False, "the model has no coefficient as large as tau / 2")
    if k > most:
        return Premise(name, False, f"{k} sets were found, and at most {most} can be that heavy")
    short = tau - values.abs() - float(norm.isf(min(delta, 1e-3) / (4 * k))) * errors
    if bool((short > ROUNDED).any()):
        worst = int(short.argmax())
        return Premise(name, False, f"one of {k} is {float(values[worst]):.3g} +- {float(errors[worst]):.2g}")
    told = f"{k} sets found of at most {most}, none below tau by more than its error; smaller ones are not visible"
    return Premise(name, None, told)


def close_to_model(series: FourierSeries, x: Tensor, y: Tensor, tau: float, epsilon: float | None) -> Premise:
    """Model against answer on fresh points: where h is the series (or its sign), this is the model's own loss."""
    g = series(x)
    if bool((y.abs() == 1).all()):
        allowed = tau / 8 if epsilon is None else epsilon
        share = share_of(int((torch.where(g >= 0, 1.0, -1.0) != y).sum()), len(y))
        holds = True if share.high <= allowed else False if share.low > allowed else None
        told = (
            f"{share.misses:,} of {share.rows:,} fresh answers differ from the mitigated ones, at most {share.high:.2g}"
        )
        return Premise(f"epsilon <= {allowed:.3g}", holds, told)
    allowed = tau**2 / 16 if epsilon is None else 4 * epsilon
    error = (y - g).square()
    mean, spread = float(error.mean()), float(error.std()) / math.sqrt(len(y))
    holds = True if mean + 3 * spread <= allowed else None if mean - 3 * spread <= allowed else False
    return Premise(f"E (f - h)^2 <= {allowed:.3g}", holds, f"{mean:.3g} +- {spread:.1g} against the mitigated answers")


def labels_are_the_series(series: FourierSeries, rows: CleanRows, flips: float, delta: float, sign: bool) -> Premise:
    """Signs that differ against the flips declared, both ways, and what the series leaves of the labels."""
    name, y, g = "clean labels are the series, but for flips", rows.y, series(rows.x)
    plain = bool((y.abs() == 1).all())
    if sign and not plain:
        return Premise(name, False, "the sign of a series is answered, and labels are not +-1")
    refused = min(delta, 0.01) / 4
    left = (y - (1 - 2 * flips) * g).square() - (1 - (1 - 2 * flips) ** 2)
    if sign:
        left = left * 0
    beyond, spread = float(left.mean()), float(left.std()) / math.sqrt(len(y)) if len(y) > 1 else math.inf
    found = f"residual {max(float((y - (1 - 2 * flips) * g).square().mean()), 0.0):.3g} mean square"
    if not plain:
        return Premise(name, None, f"labels are not +-1; {found}, noise of labels or coefficients that are missing")
    share = share_of(int((torch.where(g >= 0, 1.0, -1.0) != y).sum()), len(y), 1 - refused)
    told = f"{share.misses:,} of {share.rows:,} labels differ from the sign of the answer, flips {flips:g}"
    if not share.low <= flips <= share.high:
        return Premise(name, False, f"{told}; between {share.low:.2g} and {share.high:.2g} are")
    if beyond > float(norm.isf(refused)) * spread + ROUNDED:
        return Premise(name, False, f"{told}; {found}, more than flips leave: the series is not all of the truth")
    return Premise(name, True, told)


def values_error(x: Tensor, left: Tensor, sets: Tensor, delta: float, known: float = 0.0) -> tuple[float, Tensor]:
    """The root mean square of g - h that is exceeded with probability delta at most, and standard errors of the values.

    With A the characters of m rows and a residual of sigma^2 a row, the values err by N(0, sigma^2 (A'A)^-1):
    norm(error)^2 <= sigma^2 k F / (least eigenvalue of A'A), F the quantile of Fisher's law of k and m - k.

    Args:
        x: rows.
        left: residuals of the labels (m,).
        sets: of the series.
        delta: chance to be beyond.
        known: mean square that flips leave, which few rows may show too little of.

    """
    m, k = len(x), len(sets)
    if k == 0:
        return math.inf, left[:0]
    a = characters(x, sets)
    gram = a.mT @ a
    least = float(torch.linalg.eigvalsh(gram)[0])
    if m <= k or least <= 1e-9 * m:
        return math.inf, torch.full((k,), math.inf, dtype=torch.float64)
    sigma = max(float(left.square().sum()) / (m - k), known)
    wide = math.sqrt(sigma * k * float(f_law.isf(delta, k, m - k)) / least)
    return wide, (sigma * torch.linalg.inv(gram).diagonal()).sqrt()
