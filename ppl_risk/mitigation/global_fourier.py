r"""Global mitigation where the truth has few, heavy Fourier coefficients: sets from queries, values from clean rows.

Premise: h: {-1, +1}^n -> [-1, 1] has every coefficient 0 or at least tau in size, and the model f is close to h: a share of at
most epsilon <= tau / 8 of the inputs is answered differently (both +-1), or E (f - h)^2 <= tau^2 / 16. Then the heavy sets of f
are those of h, whichever backdoor was planted, and

    g = sum over heavy S of c_S chi_S, with c_S from clean rows alone,

has a law that depends on the clean data only but for delta: total variation to the canonical law <= Pr[sets wrong] <= delta.

The theorem (global mitigation of tau-heavy truths, Goldreich-Levin on f, values of the coefficients estimated apart) is the
paper's, as reported by a public reading note. That values must come from clean rows for the law not to leak f, the thresholds,
the constants, the search by hashing and the least-squares values are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from ppl_risk.errors import RiskError
from ppl_risk.mitigation.advice import advise
from ppl_risk.mitigation.card import GuaranteeCard, Premise
from ppl_risk.mitigation.clean_rows import CleanRows, Samples, clean_rows, uniform_bits
from ppl_risk.mitigation.fourier_evidence import close_to_model, few_and_heavy, labels_are_the_series, values_error
from ppl_risk.mitigation.fourier_series import FourierSeries, characters
from ppl_risk.mitigation.heavy_hashing import HeavyPremise, find_by_hashing
from ppl_risk.mitigation.heavy_prefix import find_by_prefix
from ppl_risk.mitigation.mitigated import BlackBox, Mitigated, Oracle
from ppl_risk.mitigation.wanted import coins, number, rows_in, whole

#: To which values are rounded: the last bits of a fit depend on where it lies in memory, and the law of g must not.
DECIMALS = 9


@dataclass(frozen=True)
class GlobalFourier:
    """The mitigator of tau-heavy truths.

    Args:
        tau: least size of the truth's non-zero coefficients.
        delta: probability that the sets found are not the truth's.
        epsilon: share of inputs on which the model may be off; None presumes tau / 8, or E (f - h)^2 <= tau^2 / 16. A smaller
            one costs fewer queries; it must stay below tau / 4.
        flip_rate: share of the clean labels that are flipped, if known; the values are divided by 1 - 2 flip_rate.
        search: "hashing", or "prefix" (the classical search, tens of times the queries).
        values: "samples", or "model", which leaks the model: the card then refuses. It is there to be caught.
        sign: answer with the sign of the series.
        probes: fresh queries that hold the answer against the model it came from.

    Raises:
        RiskError: if a number is out of range.

    Example:
        >>> x = 1 - 2 * torch.randint(0, 2, (500, 8), generator=torch.Generator().manual_seed(0)).double()
        >>> g = GlobalFourier(tau=1.0, delta=1e-3).mitigate(lambda x: x[:, 0] * x[:, 3], samples=(x, x[:, 0] * x[:, 3]))
        >>> g.answer
        FourierSeries(+1.000 chi[0, 3])

    """

    tau: float
    delta: float = 1e-3
    epsilon: float | None = None
    flip_rate: float = 0.0
    search: Literal["hashing", "prefix"] = "hashing"
    values: Literal["samples", "model"] = "samples"
    sign: bool = False
    probes: int = 2000

    def __post_init__(self) -> None:
        number("tau", self.tau, 0.0, 1.0, with_high=True)
        number("delta", self.delta, 0.0, 1.0)
        number("flip_rate", self.flip_rate, 0.0, 0.5, with_low=True)
        whole("probes", self.probes, least=2)
        if self.epsilon is not None:
            number("epsilon, below tau / 4,", self.epsilon, 0.0, self.tau / 4, with_low=True)
        if self.search not in ("hashing", "prefix") or self.values not in ("samples", "model"):
            raise RiskError(
                f'Wanted search "hashing" or "prefix", values "samples" or "model"; got {self.search}, {self.values}.'
            )

    @property
    def most(self) -> int:
        """Heavy sets that h can have: sum of squares at most 1."""
        return max(1, math.floor(1 / self.tau**2 + 1e-9))

    def premise(self, n: int) -> HeavyPremise:
        """What the search presumes of f on n bits; without epsilon, the weaker of the two readings in each number."""
        light, energy = (self.tau / 4, self.tau / 2) if self.epsilon is None else (2 * self.epsilon, 4 * self.epsilon)
        return HeavyPremise(n, self.most, self.tau - light, light, energy, self.tau)

    def mitigate(
        self, model: BlackBox, samples: Samples | None = None, *, seed: int = 0, n: int | None = None
    ) -> Mitigated:
        """The mitigated model, a `FourierSeries`, with its card.

        Args:
            model: (batch, n) of +-1.0 to (batch,), in [-1, 1].
            samples: clean rows (x, y); their number sets the accuracy of g.
            seed: of the mitigator's coins. Draw it after the model is fixed and keep it from whoever made the model.
            n: number of bits, where there are no samples.

        Raises:
            RiskError: for rows that are not of +-1, or no samples where values want them.

        """
        if samples is None and (self.values == "samples" or n is None):
            raise RiskError(
                "GlobalFourier takes the values of the coefficients from clean rows: give samples=(x, y). Values taken from the "
                'model leak it; GlobalFourier(values="model").mitigate(f, n=...) does so all the same, and its card refuses.'
            )
        rows = None if samples is None else clean_rows(samples, n)
        if rows is not None:
            n = rows.x.shape[1]
            rows_in(rows.x, n, bits=True, what="Clean rows of GlobalFourier")
            if not len(rows.x):
                raise RiskError("No clean row can be used: every one holds NaN or infinity, in x or in its label.")
        n = whole("n", n, least=1)
        oracle, generator = Oracle(model), coins(seed)
        if self.search == "hashing":
            sets, _ = find_by_hashing(oracle, self.premise(n), self.delta, generator)
        else:
            sets = find_by_prefix(oracle, n, self.tau, self.delta, generator)
        probes = 1 - 2 * torch.randint(0, 2, (self.probes, n), generator=generator).double()
        answers = oracle(probes)
        if self.values == "samples":
            assert rows is not None
            values = _least_squares(rows.x, rows.y, sets) / (1 - 2 * self.flip_rate)
        else:
            values = answers @ characters(probes, sets) / self.probes
        return Mitigated(
            FourierSeries(sets, values, sign=self.sign, bits=True),
            self._card(oracle, sets, values, (probes, answers), rows),
        )

    def _card(
        self, oracle: Oracle, sets: Tensor, values: Tensor, seen: tuple[Tensor, Tensor], rows: CleanRows | None
    ) -> GuaranteeCard:
        n, k, series, scale = sets.shape[1], len(sets), FourierSeries(sets, values), 1 - 2 * self.flip_rate
        error, errors, tested = math.inf, torch.zeros(k, dtype=torch.float64), []
        if self.values == "model" or rows is None:
            told = "they are read off the model, and tell it apart from others"
            tested.append(Premise("values from clean rows", False, told))
        else:
            plain = bool((rows.y.abs() == 1).all())
            left = (rows.y - scale * (characters(rows.x, sets) @ values)) / scale
            error, errors = values_error(rows.x, left, sets, self.delta, (1 - scale**2) / scale**2 if plain else 0.0)
            tested.append(labels_are_the_series(series, rows, self.flip_rate, self.delta, self.sign))
            tested += [*rows.tested(), uniform_bits(rows)]
            if self.sign:
                # |series - h| <= sum |error of c_S| <= sqrt(k) error, and below 1 the sign is that of h.
                error = 0.0 if math.sqrt(k) * error < 1 else 2.0
        few = few_and_heavy(values, errors, self.tau, self.most, self.delta)
        promised = self.values == "samples" and math.isfinite(error)
        return GuaranteeCard(
            method=f"GlobalFourier(tau={self.tau:g}, delta={self.delta:g}, search={self.search!r}) on {n} bits",
            covers=self._covers(),
            premises=(few, close_to_model(series, *seen, self.tau, self.epsilon), *tested),
            error_bar=error,
            # The sets, and the values.
            failure_probability=min(1.0, 2 * self.delta) if promised else 1.0,
            queries=oracle.queries,
            samples=0 if rows is None else rows.given,
            remedy=self._remedy([few, *tested]),
            advice=advise(
                "parities", n, samples=0 if rows is None else len(rows.x), epsilon=self.epsilon, tau=self.tau,
                failure=self.delta,
            ),
            everywhere=self.sign,
            details={"coefficients": float(k), "sum of squares": float(values.square().sum())},
        )  # fmt: skip

    def _remedy(self, premises: list[Premise]) -> str:
        failed = " ".join(p.name for p in premises if p.holds is False)
        if self.values == "model":
            return "Take the values from clean rows, or relearn."
        if "uniform bits" in failed or "finite" in failed:
            return "Give clean rows of uniform bits with finite labels."
        if "labels" in failed and "coefficient" not in failed:
            return "Give the flip rate that the labels have, labels of +-1 where a sign is answered, a smaller tau, or relearn."
        return "Give a smaller tau, or relearn."

    def _covers(self) -> str:
        if self.values == "model":
            return "nothing: the values depend on the model, and so on whoever planted what is in it"
        near = "g = h within the bars" if self.sign else "the root mean square of g - h is within the bars"
        return f"but for the failure probability the law of g depends on the clean rows only, not on the model; {near}"


def _least_squares(x: Tensor, y: Tensor, sets: Bool[Tensor, "k n"]) -> Tensor:
    """Coefficients by least squares on the characters found: error from what the series leaves, not from all of y."""
    if len(sets) == 0:
        return y[:0]
    if len(x) < 2 * len(sets):
        raise RiskError(f"{len(sets)} coefficients want at least {2 * len(sets)} clean rows, got {len(x)}.")
    return torch.linalg.lstsq(characters(x, sets), y[:, None]).solution[:, 0].round(decimals=DECIMALS)
