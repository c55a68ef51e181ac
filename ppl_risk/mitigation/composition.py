r"""Mitigation meets tail risk: P(catastrophe) of poisoned, mitigated and relearned models, on natural and on attacked inputs.

Natural inputs follow the law; one estimator with one seed serves all models, so plain draws are the same for each (common random
numbers). Attacked inputs are natural ones with the trigger put on. What the guarantee alone gives, from a model h of the truth,
the bars b and the failure probability of the card, is

    P_natural(C(g)) <= P(C(h + t) for some |t| <= b) + failure,   and the same for attacked inputs x', each fixed before the coins.

on average over the mitigator's coins: one draw of them serves all inputs, so that failures come together, and by Markov a share r
of the inputs is off with probability at most failure / r.

A poisoned model of trigger share eps costs plain Monte Carlo 3 / eps draws before it shows anything; the bound needs none of it.
Ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ppl_risk.crude_monte_carlo import monte_carlo
from ppl_risk.errors import RiskError, undefined_margins
from ppl_risk.mitigation.card import GuaranteeCard
from ppl_risk.mitigation.mitigated import BlackBox, Mitigated
from ppl_risk.mitigation.wanted import function, rows_in, tensor_of, whole
from ppl_risk.problem import RiskProblem
from ppl_risk.randomness import seeded
from ppl_risk.risk_estimate import RiskEstimate, Status, clopper_pearson, decades

#: Of the interval whose upper end stands for the probability that the truth is within the bars: 99.5 % one-sided.
PROMISED = 0.99

#: From one problem and a seed to an estimate.
Estimator = Callable[[RiskProblem, int], RiskEstimate]
Detector = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Attacked:
    """Catastrophes among attacked inputs, and the exact 95 % interval of their probability."""

    hits: int
    draws: int

    @property
    def interval(self) -> tuple[float, float]:
        """Clopper and Pearson."""
        low, high = clopper_pearson(self.hits, self.draws, 0.95)
        return math.exp(low), math.exp(high)

    def __str__(self) -> str:
        """Hits of draws, and the interval."""
        low, high = self.interval
        return f"{self.hits:,} of {self.draws:,} ({low:.2g} to {high:.2g})"


@dataclass(frozen=True, repr=False)
class Composition:
    """What `compare_risk` returns; printing it gives the table.

    Attributes:
        natural: estimate of P(catastrophe) under the input law, by model.
        attacked: catastrophes on attacked inputs, by model.
        promised: bound on the natural probability from each card alone, on average over the mitigator's coins, where there is a
            model of the truth and a card whose bar holds at each input and whose premises do not fail; it is as sure as the
            estimate behind it, whose upper end it takes (99.5 % one-sided).

    """

    natural: dict[str, RiskEstimate]
    attacked: dict[str, Attacked]
    promised: dict[str, float]

    def __str__(self) -> str:
        """One line a model."""
        head = f"{'model':<16} {'natural inputs':<34} {'promised':<12} attacked inputs"
        note = (
            ["promised: on average over the mitigator's coins, if what its card assumes is so"] if self.promised else []
        )
        return "\n".join([head, *(self._line(name) for name in self.natural), *note])

    __repr__ = __str__

    def _line(self, name: str) -> str:
        low, high = self.natural[name].interval(0.9)
        number = decades(self.natural[name].log10_prob)
        none = self.natural[name].status is Status.NO_HITS
        found = f"< {math.exp(high):.1e}" if none else f"{number} ({math.exp(low):.1e} to {math.exp(high):.1e})"
        promise = f"<= {self.promised[name]:.2g}" if name in self.promised else ""
        return f"{name:<16} {found:<34} {promise:<12} {self.attacked.get(name, '')}".rstrip()


class _WithinBars(nn.Module):
    """The largest margin of the truth's answer moved by up to the bar, for detectors that are monotone in it."""

    def __init__(self, truth: BlackBox, detector: Detector, bar: float) -> None:
        super().__init__()
        self.truth, self.detector, self.bar = truth, detector, bar
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        y = self.truth(x)
        return torch.maximum(self.detector(y + self.bar), self.detector(y - self.bar))


def plain(calls: int = 100_000) -> Estimator:
    """Plain Monte Carlo as an estimator: the same draws for every model at one seed.

    Example:
        >>> problem = RiskProblem(lambda x: x[:, 0], torch.distributions.MultivariateNormal(torch.zeros(1), torch.eye(1)))
        >>> plain(1000)(problem, 0).hits[1]
        1000

    """
    whole("calls", calls, least=1)
    return lambda problem, seed: monte_carlo(problem, calls=calls, seed=seed, posterior_draws=0, progress=False)


def compare_risk(
    models: Mapping[str, BlackBox],
    inputs: Distribution,
    detector: Detector,
    *,
    attack: Callable[[Tensor], Tensor] | None = None,
    truth: BlackBox | None = None,
    estimator: Estimator | None = None,
    attacked_draws: int = 1000,
    seed: int = 0,
) -> Composition:
    """P(catastrophe) of several models under one law, and how often an attacker gets one.

    Args:
        models: name -> rows to one number a row; poisoned, mitigated, relearned.
        inputs: the law of natural inputs.
        detector: answers to margins; catastrophe where >= 0. The promised column presumes it is monotone in the answer.
        attack: puts the trigger on rows; None leaves the column out.
        truth: a model of the truth (one that was relearned will do), for the promised column.
        estimator: from (problem, seed) to an estimate; default plain Monte Carlo of 100,000 calls.
        attacked_draws: attacked inputs, the same for every model.
        seed: of the estimator and of the attacked inputs.

    Raises:
        RiskError: for arguments of other types, attacked inputs or margins that are not finite, or not one a row.

    Example:
        >>> law = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> found = compare_risk({"f": lambda x: x[:, 0]}, law, lambda y: y - 1, attack=lambda x: x + 9, estimator=plain(1000))
        >>> print(found.attacked["f"])
        1,000 of 1,000 (1 to 1)

    """
    if not isinstance(models, Mapping) or not models:
        raise RiskError(f"models must be a mapping from names to models, at least one, got {type(models).__name__}.")
    for name, model in models.items():
        function(f"The model {name!r}", model, "rows to one number a row")
    function("detector", detector, "answers to margins")
    for role, part in (("attack", attack), ("truth", truth), ("estimator", estimator)):
        if part is not None:
            function(role, part, "as the docstring says")
    whole("attacked_draws", attacked_draws, least=1)
    whole("seed", seed, 0, 2**64 - 1)
    estimate = plain() if estimator is None else estimator
    natural = {name: estimate(RiskProblem(model, inputs, detector, name=name), seed) for name, model in models.items()}
    attacked: dict[str, Attacked] = {}
    if attack is not None:
        with seeded(seed, torch.device("cpu")), torch.no_grad():
            x = rows_in(attack(inputs.sample((attacked_draws,))), what="Attacked inputs")
            if len(x) != attacked_draws:
                raise RiskError(f"attack must return a row for each of {attacked_draws:,} rows, got {len(x):,}.")
            # A copy for each: a model may write into what it is given.
            attacked = {
                name: Attacked(_hits(name, detector(model(x.clone())), attacked_draws), attacked_draws)
                for name, model in models.items()
            }
    promised: dict[str, float] = {}
    for name, model in models.items():
        if truth is not None and isinstance(model, Mitigated) and _promises(model.card):
            within = _WithinBars(truth, detector, model.card.error_bar)
            reached = estimate(RiskProblem(within, inputs, name=f"{name}, within its bars"), seed)
            promised[name] = min(1.0, math.exp(reached.interval(PROMISED)[1]) + model.card.failure_probability)
    return Composition(natural, attacked, promised)


def _promises(card: GuaranteeCard) -> bool:
    """Whether a bound on a probability follows: a finite bar of each input, and no premise that fails."""
    return card.status is not Status.REFUSED and card.everywhere and math.isfinite(card.error_bar)


def _hits(name: str, margin: Any, draws: int) -> int:
    """Margins that are catastrophes; one that is NaN is none of anything."""
    margin = tensor_of("Margins", margin)
    if margin.numel() != draws:
        raise RiskError(
            f"{name!r}: {draws:,} attacked inputs have margins of shape {tuple(margin.shape)}; one number an input is wanted."
        )
    undefined = int((~torch.isfinite(margin)).sum())
    if undefined:
        raise RiskError(f"{name!r} on attacked inputs: {undefined_margins(undefined, draws)}")
    return int((margin >= 0).sum())
