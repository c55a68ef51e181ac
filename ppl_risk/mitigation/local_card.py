r"""The card of a local mitigator: what it promises for one input, and its premises, tested as far as clean rows allow.

Bars of trials along lines (`variant="line"`) are their own. For an input of X both points of a line are uniform, each depth
-n log(distance / chord) is Exp(1), and where both lie on one side a trial magnifies by

    M = coth(|E1 - E2| / (2 n)),   |E1 - E2| ~ Exp(1),

on two sides by less. At most B of s trials are bad but for half the failure probability, B from Binomial(s, 2 epsilon), and the
(floor(s/2) + B + 1)-th smallest M is above its quantile, that of a Beta law, but for the other half.

The promise (off by more than the bars with negligible probability, for every input) is the paper's; the bars, the exact failure
probability and the tests are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from scipy.stats import beta, binom

from ppl_risk.errors import RiskError
from ppl_risk.mitigation.card import GuaranteeCard, Premise
from ppl_risk.mitigation.clean_rows import CleanRows, uniform_on
from ppl_risk.mitigation.domains import Domain
from ppl_risk.mitigation.local_answer import LocalAnswer
from ppl_risk.mitigation.local_evidence import bars_on_rows, epsilon_from_rows, truth_in_class
from ppl_risk.mitigation.majority import log_failure
from ppl_risk.mitigation.mitigated import Mitigated
from ppl_risk.mitigation.wanted import number, whole
from ppl_risk.randomness import child_seeds

#: What the bars are of.
PROMISE = (
    "for each input of the set, fixed before the coins, g is within the bars of the truth, wherever the model is off"
)
#: Beyond this the answers of double precision are noise.
LARGEST_AMPLIFICATION = 1e9


def require_local(domain: Any, epsilon: Any, delta: Any, repeats: Any, failure: Any) -> None:
    """What every local mitigator is made of.

    Raises:
        RiskError: for anything but a `Domain`, or a number out of range.

    """
    if not isinstance(domain, Domain):
        raise RiskError(f"domain must be a set such as Ball(20), got {domain!r}.")
    number("epsilon", epsilon, 0.0, 0.5)
    number("delta", delta, 0.0, with_low=True)
    whole("repeats", repeats, least=1)
    number("failure", failure, 0.0, 0.5)


def line_bar(n: int, repeats: int, epsilon: float, delta: float, failure: float) -> float:
    """The bar of one median of trials along lines, for one input of the set; infinite where too many trials may be bad.

    Example:
        >>> round(line_bar(20, 25, 1e-3, 0.01, 1e-3), 2)
        2.46

    """
    rank = repeats // 2 + int(binom.isf(failure / 2, repeats, min(2 * epsilon, 1.0)))
    if rank >= repeats:
        return math.inf
    # The (rank + 1)-th smallest M is at the (s - rank)-th smallest |E1 - E2|.
    apart = -math.log1p(-float(beta.ppf(failure / 2, repeats - rank, rank + 1)))
    return delta / math.tanh(apart / (2 * n))


def local_model(
    method: str,
    answer_of: Callable[[int], LocalAnswer],
    seed: int,
    degree: int,
    epsilon: float,
    rows: CleanRows | None,
    advice: str,
    *,
    noise_bar: float | None = None,
) -> Mitigated:
    """The mitigated model with its card.

    Args:
        method: its name.
        answer_of: from a seed to the answer with those coins.
        seed: of the coins.
        degree: of the truth, at most.
        epsilon: share of the set on which the model may be off.
        rows: clean rows, if there are any.
        advice: whether to relearn instead.
        noise_bar: the narrower bar where errors inside the cutoff are presumed to be independent noise.

    """
    answer = answer_of(seed)
    ray, only_lines = answer.ray, answer.kinds == ("line",)
    bar = ray.amplification * answer.delta if noise_bar is None else noise_bar
    failure = math.exp(log_failure(answer.repeats, ray.bad)) if noise_bar is None else answer.failure
    if only_lines:
        bar = line_bar(answer.domain.n, answer.repeats, epsilon, answer.delta, answer.failure)
        failure = answer.failure if math.isfinite(bar) else 1.0
    law = [uniform_on(answer.domain, rows)] if rows is not None and len(rows.x) else []
    premises = [
        truth_in_class(rows, degree, answer.delta),
        epsilon_from_rows(answer, rows, epsilon, certifies=all(p.holds is not False for p in law)),
        Premise("fewer than half of the trials are bad", ray.bad < 0.5, f"each with probability at most {ray.bad:.3g}"),
        *_precise(answer),
    ]
    if noise_bar is not None:
        premises.append(Premise("errors inside the cutoff are independent and symmetric about 0", None, "not tested"))
    if rows is not None:
        premises += [*rows.tested(), *law]
        again = lambda k: answer_of(child_seeds(abs(seed), k + 1)[k])  # noqa: E731 - made only where a row is missed
        kept = bars_on_rows(answer, again, rows, bar, failure) if len(rows.x) else None
        premises += [kept] if kept is not None else []
    return Mitigated(
        answer,
        GuaranteeCard(
            method=method,
            covers=PROMISE,
            premises=tuple(premises),
            error_bar=bar,
            failure_probability=failure,
            queries=answer.oracle.queries,
            queries_per_input=answer.queries_per_input,
            samples=0 if rows is None else rows.given,
            remedy=_remedy(premises),
            advice=advice,
            details={"rho": ray.nodes[0], "amplification": ray.amplification, "bad share": ray.bad},
        ),
    )


def _precise(answer: LocalAnswer) -> list[Premise]:
    """Failed premises on rounding, which trials magnify like any other error."""
    ray, found = answer.ray, []
    if ray.amplification > LARGEST_AMPLIFICATION:
        found.append(Premise("double precision suffices", False, f"errors are magnified {ray.amplification:.1e} times"))
    rounding = answer.oracle.rounding * float(answer.at_anchors.abs().median())
    if answer.delta < rounding and answer.oracle.rounding > 1e-12:
        told = f"it answers in single precision or less, to {rounding:.1g}, and delta is {answer.delta:g}"
        found.append(Premise("the model's own rounding is within delta", False, told))
    return found


def _remedy(premises: list[Premise]) -> str:
    failed = " ".join(p.name for p in premises if p.holds is False)
    if "rounding" in failed:
        return "Give a delta above the model's rounding, or a model in double precision."
    if "finite" in failed or "draws from" in failed:
        return "Give clean rows drawn from the uniform law on the set, with finite labels."
    if "keep their bars" in failed and "epsilon" not in failed and "polynomial" not in failed:
        return (
            "Draw another seed and keep it secret; where that fails too, the truth is of another class: take a polynomial of a "
            "higher degree, a larger delta, or relearn from clean rows."
        )
    if "polynomial" in failed:
        return "Take a class that holds the truth (LocalPolynomial of a higher degree), a larger delta, or relearn from clean rows."
    return "Certify a larger epsilon on clean rows and give that, or relearn from clean rows."
