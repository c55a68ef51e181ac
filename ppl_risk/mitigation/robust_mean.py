r"""Robust means: one number from N values of which each is bad with probability at most p < 1/2.

    mean of medians     N / k groups of k (odd), median of each, mean of the medians
    median of means     blocks of b, mean of each, median of the means; one bad value spoils its block
    trimmed mean        g least and g largest left out, Pr[Bin(N, p) > g] <= failure

A group's median leaves the range of the good values only where bad ones are its majority, so k is the smallest odd one with
(N / k) exp(-2 k (1/2 - p)^2) <= failure. Where N is too small for any, a mean of medians is refused.

Whose it is: that the mixture (2/3) U + (1/3) Q breaks medians of means and leaves means of medians standing, at a slower rate, is
from Goldwasser et al., arXiv 2411.03279, as read from secondary accounts. The rule for k, the trim and every bound are derived
here; other estimators are classical. What the output is off by: `robust_bounds`.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import binom
from torch import Tensor

from ppl_risk.errors import RiskError
from ppl_risk.mitigation.wanted import coins, number, tensor_of, whole

#: How the chance of a bad majority is bounded: exp(-2 k (1/2 - p)^2), or by the binomial law itself.
Tail = Literal["hoeffding", "binomial"]


def mean_of_medians(
    values: Float[Tensor, "*batch n"],
    corruption: float,
    *,
    failure: float = 1e-6,
    group: int | None = None,
    seed: int | None = None,
    tail: Tail = "hoeffding",
) -> Float[Tensor, "*batch"]:
    """Mean over N // k groups of the median of k values, over the last axis; what is left over is dropped.

    Args:
        values: any leading batch dimensions; all rows are grouped alike.
        corruption: p, the largest chance that a value is bad.
        failure: admitted probability that the median of any group leaves the range of the good values.
        group: k, odd; by default `group_size`.
        seed: deals the values to groups at random; by default in the order given, which is as good where each is bad
            independently of the others.
        tail: of `group_size`.

    Raises:
        RiskError: if N values are too few, or a value is not finite.

    Example:
        >>> values = torch.cat([torch.full((900,), 1.0), torch.full((100,), 1e9)]).double()
        >>> mean_of_medians(values, corruption=0.1, seed=0)
        tensor(1., dtype=torch.float64)

    """
    values = finite_values(values)
    _check(corruption, failure)
    count = values.shape[-1]
    size = group_size(count, corruption, failure, tail=tail) if group is None else group
    return _blocks(values, checked_group(size, count), seed).median(-1).values.mean(-1)


def median_of_means(
    values: Float[Tensor, "*batch n"], block: int, *, seed: int | None = None
) -> Float[Tensor, "*batch"]:
    """Median over N // b blocks of the mean of b values; a block is good with probability (1 - p)^b only.

    Raises:
        RiskError: unless 1 <= b <= N, or if a value is not finite.

    Example:
        >>> median_of_means(torch.tensor([0.0, 2.0, 4.0, 6.0, 8.0, 1e6]), block=2)
        tensor(5., dtype=torch.float64)

    """
    values = finite_values(values)
    if not 1 <= whole("block", block) <= values.shape[-1]:
        raise RiskError(f"A block must be of 1 to {values.shape[-1]} values, as many as there are; got {block}.")
    return median(_blocks(values, block, seed).mean(-1))


def median(values: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """The middle value, or halfway between the middle two.

    Example:
        >>> median(torch.tensor([[3.0, 1.0, 2.0, 1e9], [0.0, 0.0, 0.0, 0.0]]))
        tensor([2.5000, 0.0000], dtype=torch.float64)

    """
    values = finite_values(values)
    count = values.shape[-1]
    low = values.kthvalue((count + 1) // 2).values
    return low if count % 2 else (low + values.kthvalue(count // 2 + 1).values) / 2


def trimmed_mean(
    values: Float[Tensor, "*batch n"], corruption: float, *, failure: float = 1e-6
) -> Float[Tensor, "*batch"]:
    """Mean without the g least and g largest, where more than g are bad with probability at most `failure`.

    Raises:
        RiskError: if that leaves nothing, or a value is not finite.

    Example:
        >>> trimmed_mean(torch.tensor([1e9, 4.0, -1e9, 2.0, 3.0]), corruption=0.1, failure=0.1)
        tensor(3., dtype=torch.float64)

    """
    values = finite_values(values)
    _check(corruption, failure)
    count = values.shape[-1]
    cut = int(binom.isf(failure, count, corruption)) if corruption > 0 else 0
    if 2 * cut >= count:
        raise RiskError(
            f"Of {count} values more than {(count - 1) // 2} may be bad with probability above {failure:g} at corruption "
            f"{corruption:g}: nothing is left to average. Take more values, a larger `failure`, or the median."
        )
    return values.sort(-1).values[..., cut : count - cut].mean(-1)


def group_size(count: int, corruption: float, failure: float = 1e-6, *, tail: Tail = "hoeffding") -> int:
    """The smallest odd k <= N at which `group_failure` is at most `failure`.

    Raises:
        RiskError: if no k does, naming a number of values that is enough for one group.

    Example:
        >>> group_size(3000, 1 / 3), group_size(30_000, 1 / 3), group_size(30_000, 0.01, tail="binomial")
        (291, 331, 13)

    """
    _check(corruption, failure)
    if whole("count", count) < 1:
        raise RiskError(f"Groups need at least one value, got {count}.")
    _require_tail(tail)
    # No larger k is ever needed: dividing by k helps, and the binomial tail is below Hoeffding's.
    enough = math.ceil(math.log(max(count / failure, 1.0)) / (2 * (0.5 - corruption) ** 2)) | 1
    sizes = np.arange(1, min(enough, count) + 1, 2)
    fits = _log_group_failure(count, corruption, sizes, tail) <= math.log(failure)
    if not fits.any():
        least = math.ceil(-math.log(failure) / (2 * (0.5 - corruption) ** 2)) | 1
        raise RiskError(
            f"{count} values are too few: at corruption {corruption:g} even the median of all may be bad with probability above "
            f"{failure:g}. Take at least {least} values, a larger `failure`, or `group={(count - 1) | 1}` without that promise."
        )
    return int(sizes[fits.argmax()])


def group_failure(count: int, corruption: float, group: int, *, tail: Tail = "hoeffding") -> float:
    """Bound on the probability that bad values are the majority of any of N / k groups: (N / k) exp(-2 k (1/2 - p)^2).

    "binomial" has Pr[Bin(k, p) > k / 2] for the exponential, which allows several times smaller groups at small p; it wants values
    that are bad independently. Hoeffding's also holds for a fixed set of at most p N, dealt to groups at random by `seed`.

    Example:
        >>> f"{group_failure(30_000, 0.01, 43):.1e} {group_failure(30_000, 0.01, 43, tail='binomial'):.1e}"
        '7.5e-07 6.0e-30'

    """
    _check(corruption, 0.5)
    whole("count", count, least=1)
    whole("group", group, least=1)
    _require_tail(tail)
    return math.exp(min(float(_log_group_failure(count, corruption, np.array([group]), tail)[0]), 0.0))


def finite_values(values: Tensor) -> Tensor:
    """The values in float64.

    Raises:
        RiskError: if there are none, or one is not finite.

    """
    values = tensor_of("Values", values).double()
    if values.dim() < 1 or not values.shape[-1]:
        raise RiskError(f"A mean needs at least one value along the last axis, got shape {tuple(values.shape)}.")
    if not bool(torch.isfinite(values).all()):
        raise RiskError("Some values are NaN or infinite: count them as what they are before a robust mean hides them.")
    return values


def _log_group_failure(count: int, corruption: float, sizes: np.ndarray, tail: Tail) -> np.ndarray:
    one = -2 * sizes * (0.5 - corruption) ** 2 if tail == "hoeffding" else binom.logsf(sizes // 2, sizes, corruption)
    return math.log(count) - np.log(sizes) + one


def _blocks(values: Tensor, size: int, seed: int | None) -> Tensor:
    """(..., N) to (..., N // size, size)."""
    count = values.shape[-1]
    used = count // size * size
    if seed is not None:
        order = torch.randperm(count, generator=coins(seed))[:used]
        values = values[..., order.to(values.device)]
    return values[..., :used].unflatten(-1, (used // size, size))


def checked_group(group: int, count: int) -> int:
    """The size of a group.

    Raises:
        RiskError: unless odd and of 1 to `count` values.

    """
    if not 1 <= whole("group", group) <= count or group % 2 == 0:
        raise RiskError(f"A group must be odd and of 1 to {count} values, as many as there are; got {group}.")
    return group


def _require_tail(tail: str) -> None:
    if tail not in ("hoeffding", "binomial"):
        raise RiskError(f'tail must be "hoeffding" or "binomial", got {tail!r}.')


def _check(corruption: float, failure: float) -> None:
    number("Corruption (no mean stands a bad majority)", corruption, 0.0, 0.5, with_low=True)
    if not 0 < number("failure", failure) < 1:
        raise RiskError(f"The failure probability must be between 0 and 1, got {failure:g}.")
