r"""Two tests of a mitigator's promise: that two poisoned models give one law, and that one which leaks is caught.

*Upper bound, coupled.* Both sides run with the same coins. Whatever the coupling, TV <= Pr[outputs differ], and the number that
differ among n independent runs is binomial: Clopper-Pearson's upper bound is exact. 0 of 1000: TV <= .0037 with 97.5 % confidence.

*Upper bound, uncoupled.* For any output o, TV <= max(Pr_1[not o], Pr_2[not o]); o is the commonest output of a pilot, the bounds
are taken on fresh runs, at half the error each. It says something only where one output carries nearly all the mass.

*Lower bound.* A distinguisher D guesses which side made an output. Trained on one half of the runs and tried on the other, where
a fair coin chooses the side,

    #correct ~ Binomial(n, (1 + advantage) / 2),   advantage = Pr_1[D says 1] - Pr_2[D says 1] <= TV,

so that twice Clopper-Pearson's lower bound, less one, is a lower bound on the total variation. D is a threshold on one number of
the output; by default that number is Fisher's projection, the difference of the means over the pooled covariance (shrunk to its
diagonal where outputs hold many numbers), learned on the training half.

That the output law must not depend on the poisoned model is the paper's definition of security; both tests are ours.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ppl_risk.errors import RiskError
from ppl_risk.mitigation.wanted import function, number, one_number, whole
from ppl_risk.randomness import child_seeds
from ppl_risk.risk_estimate import clopper_pearson

#: One run of a side: a seed to its output, a tensor, a hashable, or a tuple or list of such.
Side = Callable[[int], Any]

#: Numbers in an output beyond which correlations are not learned.
LARGEST_COVARIANCE = 1000


@dataclass(frozen=True)
class TotalVariation:
    """What a two-sample test found.

    Attributes:
        runs: of each side. differing: pairs that differ, or runs off the commonest output (the larger number).
        bound: TV <= bound with this confidence.
        coupled: whether both sides had the same coins.
        resolution: to which floats were rounded.

    Example:
        >>> print(TotalVariation(1000, 0, 0.00368, 0.975, True, 1e-9))
        total variation <= 0.0037 with 97.5 % confidence: 0 of 1,000 coupled runs differ, to 1e-09

    """

    runs: int
    differing: int
    bound: float
    confidence: float
    coupled: bool
    resolution: float

    def __str__(self) -> str:
        """One line."""
        told = "coupled runs differ" if self.coupled else "uncoupled runs leave the commonest output"
        return (
            f"total variation <= {self.bound:.2g} with {100 * self.confidence:g} % confidence: "
            f"{self.differing:,} of {self.runs:,} {told}, {f'to {self.resolution:g}' if self.resolution else 'to the last bit'}"
        )


@dataclass(frozen=True)
class Advantage:
    """What a distinguisher reached.

    Attributes:
        runs: on which it was tried. correct: of them.
        advantage: 2 correct / runs - 1.
        bound: the true advantage, and so TV, is at least this with the confidence.

    Example:
        >>> print(Advantage(1000, 990, 0.98, 0.963, 0.975))
        advantage 0.98, at least 0.963 with 97.5 % confidence: 990 of 1,000 outputs told apart; total variation is no less

    """

    runs: int
    correct: int
    advantage: float
    bound: float
    confidence: float

    def __str__(self) -> str:
        """One line."""
        return (
            f"advantage {self.advantage:.3g}, at least {self.bound:.3g} with {100 * self.confidence:g} % confidence: "
            f"{self.correct:,} of {self.runs:,} outputs told apart; total variation is no less"
        )


def fingerprint(output: Any, resolution: float) -> Hashable:
    """What two outputs share if and only if they are the same once floats are rounded to multiples of the resolution.

    Example:
        >>> fingerprint(torch.tensor([0.1, -0.0]).double(), 1e-9) == fingerprint(torch.tensor([0.1 + 1e-16, 0.0]).double(), 1e-9)
        True

    """
    if isinstance(output, float):
        output = torch.tensor(output, dtype=torch.float64)
    if isinstance(output, Tensor):
        plain = output.detach().cpu().contiguous()
        if plain.is_floating_point():
            if not bool(torch.isfinite(plain).all()):
                raise RiskError(
                    "An output holds NaN or infinity, which agrees with nothing: no two runs can be compared."
                )
            # Adding 0 makes -0 the same as 0; numbers too large to be divided by the resolution stay as they are.
            rounded = plain.double() if resolution == 0 else (plain.double() / resolution).round()
            plain = (plain if resolution == 0 else torch.where(torch.isfinite(rounded), rounded, plain.double())) + 0
        return str(plain.dtype), tuple(plain.shape), plain.numpy().tobytes()
    if isinstance(output, tuple | list):
        return tuple(fingerprint(part, resolution) for part in output)
    if not isinstance(output, Hashable):
        raise RiskError(f"Outputs must be tensors, hashable, or tuples of such, got {type(output).__name__}.")
    return output


def total_variation_test(
    first: Side,
    second: Side,
    *,
    runs: int = 1000,
    confidence: float = 0.975,
    coupled: bool = True,
    resolution: float = 1e-9,
    seed: int = 0,
) -> TotalVariation:
    """An exact upper bound on the total variation between the output laws of two sides.

    Args:
        first: seed to output, e.g. the sets and coefficients of a mitigated model, or its values on fixed probes.
        second: the other side, from a model poisoned differently.
        runs: of each side; uncoupled, a tenth as many again choose the commonest output.
        confidence: one-sided.
        coupled: give both sides the same seeds. The bound is on the law all the same, and far tighter.
        resolution: floats are rounded to multiples of it, and the bound is on the law of what is left; 0 for every bit. The last
            bits of a least-squares fit depend on where it lies in memory, whoever poisoned the model.
        seed: of the seeds.

    Raises:
        RiskError: runs < 1, resolution < 0, confidence outside (1/2, 1), outputs that cannot be compared.

    Example:
        >>> print(total_variation_test(lambda seed: seed % 2, lambda seed: seed % 2))
        total variation <= 0.0037 with 97.5 % confidence: 0 of 1,000 coupled runs differ, to 1e-09

    """
    _require(first, second, runs, confidence, seed)
    number("resolution", resolution, 0.0, with_low=True)
    print_of = partial(fingerprint, resolution=resolution)
    if coupled:
        differing = sum(print_of(first(s)) != print_of(second(s)) for s in child_seeds(seed, runs))
        return TotalVariation(runs, differing, _upper(differing, runs, confidence), confidence, True, resolution)
    pilot = max(1, runs // 10)
    seeds = child_seeds(seed, pilot + 2 * runs)
    common = Counter(print_of(first(s)) for s in seeds[:pilot]).most_common(1)[0][0]
    sides = ((first, seeds[pilot : pilot + runs]), (second, seeds[pilot + runs :]))
    off = max(sum(print_of(side(s)) != common for s in own) for side, own in sides)
    return TotalVariation(runs, off, _upper(off, runs, (1 + confidence) / 2), confidence, False, resolution)


def distinguisher_advantage(
    first: Side,
    second: Side,
    statistic: Callable[[Any], float] | None = None,
    *,
    runs: int = 1000,
    confidence: float = 0.975,
    seed: int = 0,
) -> Advantage:
    """An exact lower bound on how well outputs of the two sides are told apart, with independent coins.

    Args:
        first: seed to output. second: the other side.
        statistic: one number from an output; default the learned projection of outputs that are tensors of one shape.
        runs: outputs in training, half of each side; as many again are drawn to be told apart.
        confidence: one-sided.
        seed: of the seeds and of the coin that chooses the side.

    Raises:
        RiskError: runs < 4, confidence outside (1/2, 1), outputs without one number and no statistic.

    Example:
        >>> draw = lambda mean: lambda s: mean + torch.randn(3, generator=torch.Generator().manual_seed(s))
        >>> print(distinguisher_advantage(draw(0.0), draw(5.0), runs=200))
        advantage 1, at least 0.963 with 97.5 % confidence: 200 of 200 outputs told apart; total variation is no less

    """
    _require(first, second, runs, confidence, seed, least=4)
    seeds = child_seeds(seed, 2 * runs + 1)
    half = runs // 2
    numbers = _flat if statistic is None else lambda output: _flat(one_number("statistic", statistic(output)))
    ones = _stack([numbers(first(s)) for s in seeds[:half]])
    twos = _stack([numbers(second(s)) for s in seeds[half : 2 * half]])
    direction = _direction(ones, twos)
    cut, sign = _threshold(ones @ direction, twos @ direction)
    coin = torch.randint(0, 2, (runs,), generator=torch.Generator().manual_seed(seeds[-1])).bool()
    tried = zip(seeds[runs : 2 * runs], coin.tolist(), strict=True)
    fresh = _stack([numbers((first if heads else second)(s)) for s, heads in tried], ones.shape[1])
    correct = int((((fresh @ direction) * sign > cut * sign) == coin).sum())
    low = math.exp(clopper_pearson(correct, runs, 2 * confidence - 1)[0])
    return Advantage(runs, correct, 2 * correct / runs - 1, max(0.0, 2 * low - 1), confidence)


def _require(first: Any, second: Any, runs: Any, confidence: Any, seed: Any, least: int = 1) -> None:
    function("first", first, "a seed to an output")
    function("second", second, "a seed to an output")
    whole("runs", runs, least=least)
    number("confidence", confidence, 0.5, 1.0)
    whole("seed", seed, least=0)


def _upper(hits: int, draws: int, confidence: float) -> float:
    return math.exp(clopper_pearson(hits, draws, 2 * confidence - 1)[1])


def _flat(output: Any) -> Float[Tensor, " numbers"]:
    """All numbers of an output, in one row."""
    if isinstance(output, tuple | list) and output:
        return torch.cat([_flat(part) for part in output])
    if isinstance(output, Tensor | int | float):
        flat = torch.as_tensor(output, dtype=torch.float64).detach().flatten()
        if not bool(torch.isfinite(flat).all()):
            raise RiskError("An output holds NaN or infinity: nothing can be learned from it. Give a statistic of it.")
        return flat
    raise RiskError(f"An output of type {type(output).__name__} is not made of numbers: give a statistic of it.")


def _stack(rows: list[Tensor], width: int | None = None) -> Float[Tensor, "rows numbers"]:
    if len({len(row) for row in rows} | ({width} if width is not None else set())) != 1:
        raise RiskError("Outputs hold different numbers of numbers: give a statistic of them.")
    return torch.stack(rows)


def _direction(ones: Float[Tensor, "half k"], twos: Float[Tensor, "half k"]) -> Float[Tensor, " k"]:
    """Pooled covariance into the difference of means; errors of coefficients from the same queries are strongly correlated."""
    gap, k = ones.mean(0) - twos.mean(0), ones.shape[1]
    centred = torch.cat([ones - ones.mean(0), twos - twos.mean(0)])
    spread = centred.square().mean(0)
    floor = 1e-12 * float(spread.amax()) if bool((spread > 0).any()) else 1.0
    if k > LARGEST_COVARIANCE:
        return gap / spread.clamp_min(floor)
    share = k / (k + len(centred))
    covariance = (1 - share) * centred.mT @ centred / len(centred) + torch.diag(share * spread + floor)
    return torch.linalg.solve(covariance, gap)


def _threshold(ones: Float[Tensor, " half"], twos: Float[Tensor, " half"]) -> tuple[float, float]:
    """Cut between two training values where the distribution functions are farthest apart, and which side is the first."""
    values, order = torch.cat([ones, twos]).sort()
    step = torch.cat([torch.ones_like(ones), -torch.ones_like(twos)])[order].cumsum(0)[:-1]
    # Between equal values there is no cut.
    step = torch.where(values[1:] > values[:-1], step, torch.zeros_like(step))
    at = int(step.abs().argmax())
    return float((values[at] + values[at + 1]) / 2), -1.0 if float(step[at]) > 0 else 1.0
