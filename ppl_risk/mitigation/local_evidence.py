r"""What clean rows say of a local mitigator's premises: the share epsilon, the class of the truth, the bars themselves.

| premise | what refutes it |
| --- | --- |
| epsilon | more rows off by more than delta than a share epsilon explains (`majority`) |
| the truth is a polynomial of degree <= d | no such polynomial is within delta of the labels |
| answers keep their bars | half of the rows off by more than their bar; one row, with two of five independent sets of coins |

*Class.* Where some polynomial p of the class has |p(x_i) - y_i| <= delta for all m rows, least squares has a residual of at most
delta in root mean square; a larger one proves that none has, whatever the noise of the labels inside delta.

*Bars.* The promise fails for one row with probability at most `failure`; for given coins and one of four further sets with
4 failure^2. Of at most 1 / (4 failure) rows none does but for a probability `failure`, so a true promise is refused no more
often than it is broken. Half of the rows off with the given coins alone, one row of one among it, is refused too: it has
probability 2 failure at most (Markov). Both are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ppl_risk.mitigation.card import Premise
from ppl_risk.mitigation.clean_rows import CleanRows, distinct
from ppl_risk.mitigation.local_answer import LocalAnswer
from ppl_risk.mitigation.majority import epsilon_premise
from ppl_risk.mitigation.monomials import monomial_index, monomials

#: Most multiplications of a fit, and most rows that are answered to see the bars.
LARGEST_FIT, ANSWERED = 2**32, 100
#: Further sets of coins for a row that is missed.
AGAIN = 4
#: Rounding of a label's own, of a fit, and of an answer for each time that it is magnified.
OWN, FITTED, MAGNIFIED = 1e-9, 1e-11, 1e-13


def epsilon_from_rows(
    answer: LocalAnswer, rows: CleanRows | None, epsilon: float, *, certifies: bool = True
) -> Premise:
    """Epsilon certified, refuted or left open by clean rows: a miss is an answer off by more than delta; repeats count once.

    Args:
        answer: of the mitigator.
        rows: clean rows.
        epsilon: as declared.
        certifies: whether the rows may be from the law of the inputs; others certify nothing.

    """
    if rows is None:
        return Premise(f"epsilon <= {epsilon:g}", None, "no clean rows were given to certify it")
    if not len(rows.x):
        return Premise(f"epsilon <= {epsilon:g}", None, "no clean row can be compared")
    # Each row's own rounding: one huge label excuses no other row.
    slack = answer.delta + OWN * rows.y.abs() + FITTED * rows.y.abs().median()
    off = ~((answer.oracle(rows.x) - rows.y).abs() <= slack)
    count, missed = distinct(rows.x, off)
    found = epsilon_premise(missed, count, epsilon)
    if found.holds is False and answer.delta < rows.y_rounding * float(rows.y.abs().median()):
        return Premise(found.name, False, f"{found.evidence}; delta is below the rounding of the labels' own type")
    if found.holds and not certifies:
        return Premise(found.name, None, f"{found.evidence}, were they draws from the law")
    return found


def truth_in_class(rows: CleanRows | None, degree: int, delta: float) -> Premise:
    """Whether some polynomial of the degree is within delta of the labels."""
    name = f"the truth is a polynomial of degree <= {degree}"
    if rows is None or not len(rows.x):
        return Premise(name, None, "not visible from outside")
    m, n = rows.x.shape
    p = math.comb(n + degree, degree)
    if m <= p or m * p * p > LARGEST_FIT:
        return Premise(name, None, f"{m:,} rows do not show it: {p:,} coefficients may fit them")
    largest = float(rows.y.abs().max()) or 1.0
    y, x = rows.y / largest, rows.x - rows.x.mean(0)
    x = x / (float(x.abs().max()) or 1.0)
    a = monomials(x, monomial_index(n, degree)) if degree else torch.ones(m, 1, dtype=torch.float64)
    left = (y - a @ torch.linalg.lstsq(a, y[:, None], driver="gelsd").solution[:, 0]).square().mean().sqrt()
    far, size = largest * float(left), largest * float(y.square().mean().sqrt())
    if far <= delta + max(FITTED, 16 * rows.y_rounding) * size:
        return Premise(name, None, f"not refuted: the labels of {m:,} rows are {far:.2g} from one, root mean square")
    return Premise(
        name, False, f"the labels of {m:,} rows are at least {far:.3g} from each of them, and delta is {delta:g}"
    )


def bars_on_rows(
    answer: LocalAnswer, again: Callable[[int], LocalAnswer], rows: CleanRows, bar: float | None, failure: float
) -> Premise | None:
    """Whether the answers keep their bars on some of the rows.

    Args:
        answer: of the mitigator.
        again: makes the same answer with the coins of a seed.
        rows: clean rows of the set.
        bar: of every row; None takes each row's own.
        failure: of one row.

    """
    x, y = _chosen(answer, rows, min(ANSWERED, max(1, int(1 / (AGAIN * max(failure, 1e-9))))))
    if not len(x):
        return None
    size = max(float(rows.y.abs().median()), float(answer.at_anchors.abs().median()))
    slack = answer.delta + max(OWN, 16 * rows.y_rounding) * y.abs() + MAGNIFIED * answer.ray.amplification * size
    once = _excess(answer, x, y, bar) - slack
    missed = ~(once <= 0)
    name, of = "answers keep their bars on the clean rows", f"of {len(x):,} rows"
    if not bool(missed.any()):
        return Premise(name, True, f"0 {of} answered are off by more than their bar")
    twice = torch.full((int(missed.sum()),), 2 * int(missed.sum()) >= len(x))
    for k in range(0 if bool(twice.all()) else AGAIN):
        twice |= ~(_excess(again(k), x[missed], y[missed], bar) - slack[missed] <= 0)
    if not bool(twice.any()):
        return Premise(
            name, None, f"{int(missed.sum())} {of} are off by more than their bar, with one set of coins only"
        )
    worst = float((answer(x[missed][twice]) - y[missed][twice]).abs().max())
    return Premise(name, False, f"{int(twice.sum())} {of} are off by more, by up to {worst:.3g}")


def _chosen(answer: LocalAnswer, rows: CleanRows, most: int) -> tuple[Tensor, Tensor]:
    """Rows spread over those given, and a few of the most extreme labels: a choice that knows no coins."""
    suited = answer.suits(rows.x).any(0)
    x, y = rows.x[suited], rows.y[suited]
    if len(x) <= most:
        return x, y
    extreme = (y - y.median()).abs().topk(most // 10).indices
    spread = torch.linspace(0, len(x) - 1, most - len(extreme), dtype=torch.float64).long()
    index = torch.cat([extreme, spread]).unique()
    return x[index], y[index]


def _excess(answer: LocalAnswer, x: Float[Tensor, "k n"], y: Float[Tensor, " k"], bar: float | None) -> Tensor:
    """How far answers are beyond their bars; negative inside."""
    if bar is not None:
        return (answer(x) - y).abs() - bar
    found = answer.examine(x)
    return (found.answer - y).abs() - found.bar
