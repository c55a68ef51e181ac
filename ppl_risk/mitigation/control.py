r"""Control: use a model that is not trusted, without looking inside, by asking again or by deferring to a weaker one.

| strategy | answer | what an attack does to it |
| --- | --- | --- |
| `resample`, same context | aggregate of s answers at x | a deterministic trigger fires s times in s: success stays 1 |
| `resample`, moved input | the same, each from inputs that hide x | success falls to Pr[Bin(s, q) >= s/2] |
| `defer_to_trusted` | the trusted model's, where suspicion passes a threshold | whatever stays below the threshold passes |

Asking again about the same context is not a random self-reduction: that the s errors are independent is an assumption about the
model, and a trigger is a function of the context. It holds only where the input is moved, and an answer at x is put together from
answers at points whose laws do not depend on x, as for a parity of x and a uniform r,

    h(x) = h(x r) h(r),   Pr[trial wrong] <= q = 2 epsilon.

Resampling and deferring are strategies of AI control (arXiv 2312.06942, 2504.10374); random self-reduction against backdoors is the
paper's, arXiv 2411.03279. Cards, thresholds and their bounds are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ppl_risk.errors import RiskError
from ppl_risk.mitigation.card import GuaranteeCard, Premise
from ppl_risk.mitigation.majority import log_failure
from ppl_risk.mitigation.mitigated import BlackBox, Mitigated, Oracle
from ppl_risk.mitigation.wanted import coins, function, number, one_each, rows_in, tensor_of, whole

#: Answers (times, rows) to one answer a row.
Aggregate = Literal["median", "mean", "majority"] | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Reduction:
    """One trial of a random self-reduction: points to ask instead of x, and the answer at x from the answers there.

    Args:
        points: number of points a trial asks.
        move: (x (rows, n), generator) to (points, rows, n). Draws of shape (n,), shared by the rows, keep the answer to a row
            from depending on its batch.
        combine: answers (points, rows) to (rows,).

    Example:
        >>> PARITY.combine(torch.tensor([[1.0, -1.0], [-1.0, -1.0]])).tolist()
        [-1.0, 1.0]

    """

    points: int
    move: Callable[[Tensor, torch.Generator], Tensor]
    combine: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        whole("points of a Reduction", self.points, least=1)
        function("move", self.move, "(x, generator) to (points, rows, n)")
        function("combine", self.combine, "answers (points, rows) to (rows,)")


def _hide(x: Tensor, generator: torch.Generator) -> Tensor:
    r = 1 - 2 * torch.randint(0, 2, (x.shape[-1],), generator=generator).to(x)
    return torch.stack([x * r, r.expand_as(x)])


#: h(x) = h(x r) h(r) for a parity h and uniform r; each of the two points is uniform on {-1, +1}^n.
PARITY = Reduction(2, _hide, lambda answers: answers.prod(0))


class Resampled(nn.Module):
    """The aggregate of several answers of a model; its coins are fixed by the seed, so that it is a function."""

    def __init__(
        self, oracle: Oracle, reduction: Reduction | None, times: int, aggregate: Aggregate, seed: int
    ) -> None:
        super().__init__()
        self.oracle, self.reduction, self.times, self.aggregate, self.seed = oracle, reduction, times, aggregate, seed
        self.training = False

    def forward(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, " batch"]:
        """The answers.

        Raises:
            RiskError: where the reduction moves x to another shape than it says.

        """
        generator = coins(self.seed)
        answers = torch.stack([self._trial(x, generator) for _ in range(self.times)])
        if not isinstance(self.aggregate, str):
            return one_each("aggregate", self.aggregate(answers), len(x))
        if self.aggregate == "mean":
            return answers.mean(0)
        return answers.median(0).values if self.aggregate == "median" else answers.mode(0).values

    def _trial(self, x: Tensor, generator: torch.Generator) -> Tensor:
        if self.reduction is None:
            return self.oracle(x)
        moved = tensor_of("Moved inputs", self.reduction.move(x.clone(), generator))
        if moved.shape != (self.reduction.points, *x.shape):
            raise RiskError(
                f"The reduction must move rows {tuple(x.shape)} to {(self.reduction.points, *x.shape)}, got {tuple(moved.shape)}."
            )
        answers = self.oracle(moved.flatten(0, 1)).reshape(self.reduction.points, len(x))
        return one_each("combine", self.reduction.combine(answers), len(x))


def resample(
    model: BlackBox,
    perturb: Reduction | Callable[[Tensor, torch.Generator], Tensor] | None = None,
    times: int = 5,
    aggregate: Aggregate = "median",
    *,
    wrong: float | None = None,
    error_bar: float = 0.0,
    probes: Float[Tensor, "k n"] | None = None,
    seed: int = 0,
) -> Mitigated:
    """Ask the model several times and aggregate; the card promises nothing unless the input is moved.

    Args:
        model: the untrusted model, (batch, n) to (batch,).
        perturb: None asks about the same context; a callable (x, generator) -> x' asks about a moved one and takes the answer as
            it is; a `Reduction` puts the answer together.
        times: trials, s.
        aggregate: "median", "mean", "majority" (the most frequent answer), or a callable (times, rows) -> (rows,).
        wrong: with perturb, q: at every x a trial is off by more than `error_bar` with at most this probability. Then median and
            (at `error_bar` 0) majority are off with probability Pr[Bin(s, q) >= ceil(s/2)] at most.
        probes: inputs on which the model is asked twice: the card refuses where it repeats itself to the last bit.
        seed: of the moves. Draw it after the model is fixed and keep it secret.

    Raises:
        RiskError: times < 1, wrong outside [0, 1], an unknown aggregate, probes that are no rows.

    Example:
        >>> f = lambda x: torch.where((x[:, :3] > 0).all(-1), -x.prod(-1), x.prod(-1))   # a backdoored parity
        >>> x = torch.ones(1, 20)
        >>> resample(f, times=25)(x).item(), resample(f, PARITY, times=25)(x).item()
        (-1.0, 1.0)

    """
    whole("times", times, least=1)
    number("error_bar", error_bar, 0.0, with_low=True)
    if wrong is not None:
        number("wrong", wrong, 0.0, 1.0, with_low=True, with_high=True)
    coins(seed)
    if not (callable(aggregate) or aggregate in ("median", "mean", "majority")):
        raise RiskError(f'aggregate must be "median", "mean", "majority" or a callable, got {aggregate!r}.')
    oracle = Oracle(model, gradients=True)
    if perturb is None or isinstance(perturb, Reduction):
        reduction = perturb
    else:
        function("perturb", perturb, "a Reduction, or (x, generator) to moved inputs")
        reduction = Reduction(1, lambda x, generator: perturb(x, generator)[None], lambda answers: answers[0])
    points = 1 if reduction is None else reduction.points
    # Of real answers the most frequent is the one that is repeated, right or wrong: it has no bar but 0.
    exact = aggregate == "majority" and error_bar == 0
    bounded = reduction is not None and wrong is not None and (aggregate == "median" or exact)
    if reduction is None:
        covers = "nothing: a trigger is a function of the context, and fires however often the same context is put"
        premises = (_independent(oracle, probes),)
    elif bounded:
        covers = "at every x, whatever was planted, g is within the bars but for the failure probability"
        premises = (
            Premise(f"a trial is off with probability <= {wrong:g}", None, "taken as given; 2 epsilon for PARITY"),
        )
    else:
        covers = "nothing: no bound q on a wrong trial was given, or the aggregate is no median, nor a majority of exact answers"
        premises = (Premise("fewer than half the trials are off at every x", None, "taken as given"),)
    card = GuaranteeCard(
        method=f"control: {times} answers {'to the same context' if reduction is None else 'to moved inputs'}",
        covers=covers,
        premises=premises,
        error_bar=error_bar if bounded else math.inf,
        failure_probability=math.exp(log_failure(times, wrong)) if bounded and wrong is not None else 1.0,
        queries=oracle.queries,
        queries_per_input=times * points,
        remedy="Move the input, by a Reduction.",
    )
    return Mitigated(Resampled(oracle, reduction, times, aggregate, seed), card)


def _independent(oracle: Oracle, probes: Tensor | None) -> Premise:
    name = "errors of repeated answers are independent"
    if probes is None:
        return Premise(name, None, "cannot be seen without a trigger; a deterministic model repeats every error")
    probes = rows_in(probes, what="Probes")
    if not len(probes):
        raise RiskError("probes hold no row to ask twice.")
    with torch.no_grad():
        same = int((oracle(probes) == oracle(probes)).sum())
    told = f"{same:,} of {len(probes):,} inputs asked twice were answered alike to the last bit"
    return Premise(name, False if same == len(probes) else None, told)
