"""The card of a local mitigator: what it promises for one input, and its premises, tested as far as clean rows allow.

The promise (off by more than the bars with negligible probability, for every input) is the paper's; the bars, the exact failure
probability and the tests are ours.
"""

from __future__ import annotations

import math

from torch import Tensor

from ppl_risk.errors import RiskError
from ppl_risk.mitigation.card import GuaranteeCard, Premise
from ppl_risk.mitigation.local_answer import LocalAnswer
from ppl_risk.mitigation.majority import epsilon_premise, log_failure

#: Beyond this the answers of double precision are noise.
LARGEST_AMPLIFICATION = 1e9


def local_card(
    method: str,
    answer: LocalAnswer,
    degree: int,
    epsilon: float,
    samples: tuple[Tensor, Tensor] | None,
    advice: str,
    *,
    noise_bar: float | None = None,
) -> GuaranteeCard:
    """The card; `noise_bar` is the narrower bar where errors inside the cutoff are presumed to be independent noise."""
    ray = answer.ray
    premises = [
        Premise(f"the truth is a polynomial of degree <= {degree}", None, "not visible from outside"),
        epsilon_from_samples(answer, samples, epsilon),
        Premise("fewer than half of the trials are bad", ray.bad < 0.5, f"each with probability at most {ray.bad:.3g}"),
    ]
    if ray.amplification > LARGEST_AMPLIFICATION:
        premises.append(
            Premise("double precision suffices", False, f"errors are magnified {ray.amplification:.1e} times")
        )
    if noise_bar is not None:
        premises.append(Premise("errors inside the cutoff are independent and centred", None, "not tested"))
    return GuaranteeCard(
        method=method,
        covers="for each input of the set, fixed before the coins, g is within the bars of the truth, wherever the model is off",
        premises=tuple(premises),
        error_bar=ray.amplification * answer.delta if noise_bar is None else noise_bar,
        failure_probability=math.exp(log_failure(answer.repeats, ray.bad)) if noise_bar is None else answer.failure,
        queries=answer.oracle.queries,
        queries_per_input=answer.queries_per_input,
        samples=0 if samples is None else len(samples[0]),
        remedy="Certify a larger epsilon on clean rows and give that, or relearn from clean rows.",
        advice=advice,
        details={"rho": ray.nodes[0], "amplification": ray.amplification, "bad share": ray.bad},
    )


def epsilon_from_samples(answer: LocalAnswer, samples: tuple[Tensor, Tensor] | None, epsilon: float) -> Premise:
    """Epsilon certified, refuted or left open by clean rows: a miss is an answer off by more than delta.

    Raises:
        RiskError: for samples that are not rows (m, n) and labels (m,).

    """
    if samples is None:
        return Premise(f"epsilon <= {epsilon:g}", None, "no clean rows were given to certify it")
    x, y = samples
    if x.dim() != 2 or y.shape != x.shape[:1] or len(x) == 0:
        raise RiskError(f"Samples are rows (m, n) and labels (m,), got {tuple(x.shape)} and {tuple(y.shape)}.")
    # Rounding must not turn an exact answer into a miss where delta is 0.
    slack = answer.delta + 1e-9 * float(y.abs().max().clamp_min(1.0))
    return epsilon_premise(int(((answer.oracle(x) - y.double()).abs() > slack).sum()), len(x), epsilon)
