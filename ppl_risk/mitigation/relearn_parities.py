r"""Relearning a function on {-1, +1}^n from clean rows alone: every coefficient by one Walsh-Hadamard transform.

The empirical coefficients c_S = (1/m) sum_i y_i chi_S(x_i) are, for all 2^n sets at once, the transform

    c_S = (1/m) sum over z of (-1)^{|z & S|} v(z),   v(z) = sum of the labels of the rows with negative bits z.

n 2^n additions and 8 * 2^n bytes. Rows uniform, labels in [-B, B]: by Hoeffding some c_S is off by tau / 2 with probability at most
2^{n+1} exp(-m tau^2 / 8 B^2), so sets with |c_S| >= tau / 2 are those of a truth whose coefficients are 0 or larger than tau.
Values of k sets are then off by t = B sqrt(2 ln(2k / failure) / m) at most, and g by k t.

No model is asked, so no backdoor reaches the answer. Beyond some twenty bits nobody can pay the 2^n: finding the sets from noisy
rows is learning parity with noise (LPN), which is believed to be hard, and is why a model, though poisoned, is worth asking.
The transform is textbook; thresholds and bounds are ours.
"""

from __future__ import annotations

import math

import torch

from ppl_risk.errors import RiskError
from ppl_risk.mitigation.advice import LARGEST_TRANSFORM, advise, rows_for_parities
from ppl_risk.mitigation.card import GuaranteeCard, Premise
from ppl_risk.mitigation.clean_rows import CleanRows, Samples, clean_rows, uniform_bits
from ppl_risk.mitigation.fourier_series import FourierSeries, walsh_hadamard
from ppl_risk.mitigation.mitigated import Mitigated
from ppl_risk.mitigation.wanted import number, rows_in, whole


def relearn_parities(
    samples: Samples, tau: float, n: int | None = None, *, failure: float = 1e-3, bound: float = 1.0
) -> Mitigated:
    """The sum of all characters whose empirical coefficient is at least tau / 2 in size, with its card.

    Args:
        samples: clean rows (x, y), x of +-1.
        tau: least size of the truth's non-zero coefficients, as they show in the labels (flips of a share eta: times 1 - 2 eta).
        n: number of bits; default that of the rows.
        failure: probability that a set is missed or invented, and again that a value leaves its bar.
        bound: B, known beforehand to bound the labels.

    The card refuses where the rows are too few for `failure`.

    Raises:
        RiskError: beyond 22 bits, with the memory wanted; rows that are not of +-1; a number out of range.

    Example:
        >>> x = 1 - 2 * torch.randint(0, 2, (400, 6), generator=torch.Generator().manual_seed(0)).double()
        >>> relearn_parities((x, x[:, 1] * x[:, 4]), tau=1.0).answer
        FourierSeries(+1.000 chi[1, 4])

    """
    number("tau", tau, 0.0)
    number("failure", failure, 0.0, 1.0)
    number("bound", bound, 0.0)
    rows = clean_rows(samples, None if n is None else whole("n", n, least=1))
    if rows.tested():
        raise RiskError(f"{rows.tested()[0].evidence.capitalize()}. Leave those rows out.")
    x, y, n = rows.x, rows.y, rows.x.shape[1]
    if n > LARGEST_TRANSFORM:
        raise RiskError(
            f"Relearning parities on {n} bits wants all 2^{n} coefficients, {8 * 2.0**n / 2**30:.3g} GiB and {n} passes over them; "
            f"{LARGEST_TRANSFORM} bits are the most. From rows alone this is learning parity with noise: ask the model, by "
            "GlobalFourier."
        )
    rows_in(x, n, bits=True, what="Clean rows")
    if tau > bound or not bool((y.abs() <= bound).all()):
        raise RiskError(
            f"Wanted tau <= bound and labels within the bound; got tau {tau}, bound {bound}, largest "
            f"label {float(y.abs().amax()):.3g}."
        )
    place = (x < 0).long() @ (1 << torch.arange(n))
    sums = torch.zeros(2**n, dtype=torch.float64).index_add_(0, place, y.double())
    coefficients = walsh_hadamard(sums) / len(x)
    kept = (coefficients.abs() >= tau / 2).nonzero().flatten()
    sets = (kept[:, None] >> torch.arange(n)) & 1 > 0
    series = FourierSeries(sets, coefficients[kept], bits=True)
    return Mitigated(series, _card(rows, len(kept), tau, failure, bound))


def _card(rows: CleanRows, k: int, tau: float, failure: float, bound: float) -> GuaranteeCard:
    m, n = rows.x.shape
    law = uniform_bits(rows)
    missed = math.exp(min(0.0, (n + 1) * math.log(2) - m * (tau / bound) ** 2 / 8))
    wanted = rows_for_parities(n, tau / bound, failure)
    premises = (
        Premise("rows enough to find the sets", missed <= failure, f"{m:,} clean rows, {wanted:,} wanted"),
        Premise("rows are clean", None, "they are taken as given"),
        law,
        Premise(f"every coefficient is 0 or > {tau:g}", None, f"{k} found at {tau / 2:g} or more"),
    )
    return GuaranteeCard(
        method=f"relearn: Walsh-Hadamard transform of 2^{n} numbers, tau={tau:g}",
        covers=(
            "g depends on the clean rows alone, so no model can steer it; its sets are those of the mean label, "
            "and the bars are about it; nothing is promised where the rows themselves are poisoned"
        ),
        premises=premises,
        error_bar=k * bound * math.sqrt(2 * math.log(2 * max(k, 1) / failure) / m),
        failure_probability=min(1.0, missed + failure),
        queries=0,
        samples=m,
        advice=advise("parities", n, samples=m, tau=tau / bound, failure=failure),
        remedy="Give clean rows of uniform bits." if law.holds is False else f"Give {wanted:,} clean rows.",
        details={"coefficients": float(k)},
    )
