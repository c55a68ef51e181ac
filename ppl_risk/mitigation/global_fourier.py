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
from jaxtyping import Bool, Float
from torch import Tensor

from ppl_risk.errors import RiskError
from ppl_risk.mitigation.advice import advise
from ppl_risk.mitigation.card import GuaranteeCard, Premise
from ppl_risk.mitigation.fourier_series import FourierSeries, characters
from ppl_risk.mitigation.heavy_hashing import HeavyPremise, find_by_hashing
from ppl_risk.mitigation.heavy_prefix import find_by_prefix
from ppl_risk.mitigation.majority import share_of
from ppl_risk.mitigation.mitigated import BlackBox, Mitigated, Oracle

#: Labelled rows: inputs (m, n) of +-1 and labels (m,).
Samples = tuple[Float[Tensor, "m n"], Float[Tensor, " m"]]
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
        if not (0 < self.tau <= 1 and 0 < self.delta < 1 and 0 <= self.flip_rate < 0.5):
            raise RiskError(
                f"Wanted tau in (0, 1], delta in (0, 1), flip_rate in [0, 0.5); got {self.tau}, {self.delta}, {self.flip_rate}."
            )
        if self.epsilon is not None and not 0 <= self.epsilon < self.tau / 4:
            raise RiskError(f"epsilon must be in [0, tau / 4) = [0, {self.tau / 4:g}), got {self.epsilon}.")
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
        if samples is not None:
            _require_bits(*samples)
            n = samples[0].shape[1]
        assert n is not None
        oracle, generator = Oracle(model), torch.Generator().manual_seed(seed)
        if self.search == "hashing":
            sets, _ = find_by_hashing(oracle, self.premise(n), self.delta, generator)
        else:
            sets = find_by_prefix(oracle, n, self.tau, self.delta, generator)
        probes = 1 - 2 * torch.randint(0, 2, (self.probes, n), generator=generator).double()
        answers = oracle(probes)
        if self.values == "samples":
            assert samples is not None
            x, y = samples[0].double(), samples[1].double()
            values = _least_squares(x, y, sets) / (1 - 2 * self.flip_rate)
        else:
            values = answers @ characters(probes, sets) / self.probes
        return Mitigated(
            FourierSeries(sets, values, sign=self.sign), self._card(oracle, sets, values, (probes, answers), samples)
        )

    def _card(
        self, oracle: Oracle, sets: Tensor, values: Tensor, seen: tuple[Tensor, Tensor], samples: Samples | None
    ) -> GuaranteeCard:
        n, k, rows = sets.shape[1], len(sets), 0 if samples is None else len(samples[0])
        premises = [self._few(k), self._close(FourierSeries(sets, values), *seen)]
        error = math.inf
        if self.values == "model":
            premises.append(
                Premise("values from clean rows", False, "they are read off the model, and tell it apart from others")
            )
        elif samples is not None:
            x, y = samples[0].double(), samples[1].double()
            premises.append(self._labels(FourierSeries(sets, values), x, y))
            residual = (y - (1 - 2 * self.flip_rate) * (characters(x, sets) @ values)).square().mean()
            error = math.sqrt(float(residual) * k / max(rows - k, 1)) / (1 - 2 * self.flip_rate)
            if self.sign:
                # |series - h| <= sum |error of c_S|, about sqrt(k) error, and five times that is still below 1.
                error = 0.0 if 5 * math.sqrt(k) * error < 1 else 2.0
        return GuaranteeCard(
            method=f"GlobalFourier(tau={self.tau:g}, delta={self.delta:g}, search={self.search!r}) on {n} bits",
            covers=self._covers(),
            premises=tuple(premises),
            error_bar=error,
            failure_probability=1.0 if self.values == "model" else self.delta,
            queries=oracle.queries,
            samples=rows,
            remedy=f"{'Take the values from clean rows' if self.values == 'model' else 'Give a smaller tau'}, or relearn.",
            advice=advise("parities", n, samples=rows, epsilon=self.epsilon, tau=self.tau, failure=self.delta),
            details={"coefficients": float(k), "sum of squares": float(values.square().sum())},
        )

    def _covers(self) -> str:
        if self.values == "model":
            return "nothing: the values depend on the model, and so on whoever planted what is in it"
        near = "g = h within the bars" if self.sign else "root mean square of g - h about the bars"
        return f"but for the failure probability the law of g depends on the clean rows only, not on the model; {near}"

    def _few(self, k: int) -> Premise:
        name = f"every coefficient of the truth is 0 or >= {self.tau:g}"
        if k == 0:
            return Premise(name, False, "the model has no coefficient as large as tau / 2")
        if k > self.most:
            return Premise(name, False, f"{k} sets were found, and at most {self.most} can be that heavy")
        return Premise(
            name, None, f"{k} sets found of at most {self.most}; a gap in the spectrum is not visible from outside"
        )

    def _close(self, series: FourierSeries, x: Tensor, y: Tensor) -> Premise:
        """Model against answer on fresh points: where h is the series (or its sign), this is the model's own loss."""
        g = series(x)
        if bool((y.abs() == 1).all()):
            allowed = self.tau / 8 if self.epsilon is None else self.epsilon
            share = share_of(int((torch.where(g >= 0, 1.0, -1.0) != y).sum()), len(y))
            holds = True if share.high <= allowed else False if share.low > allowed else None
            told = f"{share.misses:,} of {share.rows:,} fresh answers differ from the mitigated ones, at most {share.high:.2g}"
            return Premise(f"epsilon <= {allowed:.3g}", holds, told)
        allowed = self.tau**2 / 16 if self.epsilon is None else 4 * self.epsilon
        error = (y - g).square()
        mean, spread = float(error.mean()), float(error.std()) / math.sqrt(len(y))
        holds = True if mean + 3 * spread <= allowed else False if mean - 3 * spread > allowed else None
        return Premise(
            f"E (f - h)^2 <= {allowed:.3g}", holds, f"{mean:.3g} +- {spread:.1g} against the mitigated answers"
        )

    def _labels(self, series: FourierSeries, x: Tensor, y: Tensor) -> Premise:
        name = "clean labels are the series, but for flips"
        if not bool((y.abs() == 1).all()):
            return Premise(name, None, "labels are not +-1, so what is left is not tested")
        share = share_of(int((torch.where(series(x) >= 0, 1.0, -1.0) != y).sum()), len(y))
        told = f"{share.misses:,} of {share.rows:,} labels differ from the sign of the answer, flips {self.flip_rate:g}"
        return Premise(name, share.low <= self.flip_rate, told)


def _least_squares(x: Tensor, y: Tensor, sets: Bool[Tensor, "k n"]) -> Tensor:
    """Coefficients by least squares on the characters found: error from what the series leaves, not from all of y."""
    if len(sets) == 0:
        return y[:0]
    if len(x) < 2 * len(sets):
        raise RiskError(f"{len(sets)} coefficients want at least {2 * len(sets)} clean rows, got {len(x)}.")
    return torch.linalg.lstsq(characters(x, sets), y[:, None]).solution[:, 0].round(decimals=DECIMALS)


def _require_bits(x: Tensor, y: Tensor) -> None:
    if x.dim() != 2 or y.shape != x.shape[:1] or len(x) == 0:
        raise RiskError(f"Samples are rows (m, n) and labels (m,), got {tuple(x.shape)} and {tuple(y.shape)}.")
    if not bool((x.abs() == 1).all()):
        raise RiskError(
            "GlobalFourier works on inputs of +-1, and the rows of the samples hold other numbers. Map bits to +-1."
        )
