r"""Control by deferral: a weaker, trusted model answers where a suspicion score is above a threshold.

The threshold t is set on m natural inputs, so that a share `budget` of them is deferred:

    t = s_(m - k), the (m - k)-th smallest score, k = floor(budget m),   Pr[s(x) > t] ~ Beta(k + 1, m - k)

for a continuous score, whose upper quantile is the Clopper-Pearson bound for k of m; ties only lower the share. What is bounded is
the cost, the share of natural inputs that get the weaker answer. Of attacked inputs nothing is promised: a trigger that the score
does not see passes, and the score was written without knowing the trigger.

Deferring to a trusted model is a strategy of AI control (arXiv 2312.06942); the threshold and its bound are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ppl_risk.errors import RiskError
from ppl_risk.mitigation.card import GuaranteeCard, Premise
from ppl_risk.mitigation.mitigated import BlackBox, Mitigated, Oracle
from ppl_risk.mitigation.wanted import function, number, rows_in, tensor_of
from ppl_risk.risk_estimate import clopper_pearson

#: One-sided, of the share that is deferred.
CONFIDENCE = 0.975


class Deferred(nn.Module):
    """The model's answer, or the trusted one's where suspicion is above the threshold."""

    def __init__(self, oracle: Oracle, trusted: Oracle, suspicion: Callable[..., Tensor], threshold: float) -> None:
        super().__init__()
        self.oracle, self.trusted, self.suspicion, self.threshold = oracle, trusted, suspicion, threshold
        self.training = False

    def forward(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, " batch"]:
        """The answers; the trusted model is asked only where it answers."""
        answers = self.oracle(x)
        above = _scores(self.suspicion, x, answers) > self.threshold
        if not bool(above.any()):
            return answers
        return answers.masked_scatter(above, self.trusted(x[above]))


def defer_to_trusted(
    model: BlackBox,
    trusted: BlackBox,
    suspicion: Callable[[Tensor, Tensor], Tensor],
    budget: float,
    *,
    natural: Float[Tensor, "m n"],
) -> Mitigated:
    """Answer by the trusted, weaker model where suspicion is above a threshold; at most a share `budget` of `natural` is.

    Args:
        model: the untrusted model. trusted: the weaker one.
        suspicion: (x (rows, n), the untrusted answers (rows,)) to scores (rows,), larger for worse.
        budget: share of natural inputs that may be deferred, in [0, 1).
        natural: inputs from the input law, none of them attacked.

    Raises:
        RiskError: budget outside [0, 1), no natural rows, scores that are not one finite number a row.

    Example:
        >>> x = torch.linspace(0, 1, 100)[:, None]
        >>> g = defer_to_trusted(lambda x: 0 * x[:, 0], lambda x: 1 + 0 * x[:, 0], lambda x, y: x[:, 0], 0.1, natural=x)
        >>> g(x).sum().item()
        10.0

    """
    natural = rows_in(natural, what="Natural inputs")
    m = len(natural)
    number("budget", budget, 0.0, 1.0, with_low=True)
    function("suspicion", suspicion, "(x, answers) to scores")
    if m == 0:
        raise RiskError("Wanted at least one natural row, got none.")
    oracle, weaker = Oracle(model, gradients=True), Oracle(trusted, gradients=True)
    with torch.no_grad():
        scores = _scores(suspicion, natural, oracle(natural))
    # Rounded so that .29 of 100 is 29, which floor(.29 * 100) is not.
    k = math.floor(round(budget * m, 9))
    threshold = float(scores.sort().values[m - k - 1])
    passed = int((scores > threshold).sum())
    most = math.exp(clopper_pearson(k, m, 2 * CONFIDENCE - 1)[1])
    card = GuaranteeCard(
        method=f"control: defer to a trusted model where suspicion is above {threshold:.4g}",
        covers=(
            f"nothing on attacked inputs; of natural ones at most {most:.3g} are deferred, with {CONFIDENCE:.1%} confidence in "
            "the draw of the natural rows"
        ),
        premises=(
            Premise("an attacked input scores above the threshold", None, "a trigger that suspicion overlooks passes"),
            Premise("the trusted model is not poisoned", None, "taken as given"),
        ),
        error_bar=math.inf,
        failure_probability=1.0,
        queries=oracle.queries,
        queries_per_input=1,
        details={"threshold": threshold, "deferred": passed / m, "deferred at most": most},
    )
    return Mitigated(Deferred(oracle, weaker, suspicion, threshold), card)


def _scores(suspicion: Callable[..., Tensor], x: Tensor, answers: Tensor) -> Tensor:
    # Copies: it may write into what it is given.
    scores = tensor_of("Suspicion", suspicion(x.clone(), answers.clone())).double()
    if scores.shape != answers.shape or not bool(torch.isfinite(scores).all()):
        raise RiskError(
            f"suspicion must return one finite number a row: {tuple(answers.shape)} wanted, got {tuple(scores.shape)}."
        )
    return scores
