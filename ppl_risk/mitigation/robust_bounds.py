r"""How far a mean of medians can be off: deviation, bias under corruption, and what an adversary can move.

Good values lie in [-w, w] around their centre, each value is bad with probability p, groups have k values (odd), m = N // k.

    deviation      w sqrt(2 ln(2 / failure) / m), which is w sqrt(2 k ln(2 / failure) / N) where k divides N
    uniform bias   w p / (1 - p), good values uniform on the bars
    stability      2 w p k C(k-1, (k-1)/2) / 2^(k-1) = 2 w p sqrt(2 k / pi) (1 + O(1/k)), good values of any law on the bars

The deviation is Hoeffding's for m medians inside the bars. Uniform bias: worst is all bad values on one side; with B of them in a
group the median has mean w B / (k + 1 - B), and as b C(k, b) / (k + 1 - b) = C(k, b - 1) its mean over groups with a good majority
is w p / (1 - p) Pr[B <= (k - 3) / 2] / Pr[B <= (k - 1) / 2]. Stability: the median exceeds t where Bin(k, s) > k / 2, s between
(1 - p) S(t) and (1 - p) S(t) + p whatever the adversary does, S(t) the share of good values above t; the derivative of that
probability in s is greatest at s = 1/2; integrate over t in [-w, w].

Not the paper's: arXiv 2411.03279 is only known to us, from secondary accounts, to say that the rate is slower than without an
adversary. The bias does not vanish as N grows. Where good values are skewed their median differs from their mean even at p = 0;
only stability, the distance between two outputs, is promised then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ppl_risk.mitigation.robust_mean import Tail, checked_group, group_failure, group_size
from ppl_risk.mitigation.wanted import number, whole


@dataclass(frozen=True)
class MedianBars:
    """Bounds on the error of one mean of medians, in the units of the values.

    Attributes:
        group: k.
        groups: m.
        deviation: |output - its expectation| over the groups with a good majority.
        uniform_bias: |that expectation - centre|, for good values uniform on the bars only.
        stability: |E under one adversary - E under another|, for any good values inside the bars, of medians clipped to the bars.
        failure: that a group has a bad majority, or that the deviation is exceeded.

    """

    group: int
    groups: int
    deviation: float
    uniform_bias: float
    stability: float
    failure: float

    @property
    def uniform_error(self) -> float:
        """|output - mean| for uniform good values."""
        return self.deviation + self.uniform_bias

    @property
    def between_adversaries(self) -> float:
        """|one output - another| under two adversaries, for any good values; fails with twice `failure` at most."""
        return 2 * self.deviation + self.stability


def mean_of_medians_bars(
    count: int,
    corruption: float,
    *,
    width: float = 1.0,
    failure: float = 1e-6,
    group: int | None = None,
    tail: Tail = "hoeffding",
) -> MedianBars:
    """Error bars of `mean_of_medians(values, corruption, failure=failure, group=group, tail=tail)`.

    Args:
        count: N.
        corruption: p.
        width: w, half the range of the good values.
        failure: admitted for each of the two ways to fail.
        group: k; by default `group_size`.
        tail: of `group_size`.

    Raises:
        RiskError: if N is too small for p, or the width is not positive.

    Example:
        >>> bars = mean_of_medians_bars(30_000, 0.01)
        >>> f"{bars.group} {bars.deviation:.3f} {bars.uniform_bias:.4f} {bars.stability:.4f} {bars.failure:.1e}"
        '43 0.204 0.0101 0.1053 1.8e-06'

    """
    number("width, the half-width of the good values,", width, 0.0)
    number("The failure probability", failure, 0.0, 1.0)
    number("Corruption", corruption, 0.0, 0.5, with_low=True)
    whole("count", count, least=1)
    size = group_size(count, corruption, failure, tail=tail) if group is None else group
    checked_group(size, count)
    return MedianBars(
        group=size,
        groups=count // size,
        deviation=deviation(count, size, width=width, failure=failure),
        uniform_bias=width * corruption / (1 - corruption),
        stability=stability(corruption, size, width=width),
        failure=min(group_failure(count, corruption, size, tail=tail) + failure, 1.0),
    )


def deviation(count: int, group: int, *, width: float = 1.0, failure: float = 1e-6) -> float:
    """w sqrt(2 ln(2 / failure) / (N // k)): exceeded by the mean of medians inside the bars with probability at most `failure`.

    Example:
        >>> round(deviation(30_000, 331, failure=0.05), 3)
        0.286

    """
    return width * math.sqrt(2 * math.log(2 / failure) / (count // group))


def stability(corruption: float, group: int, *, width: float = 1.0) -> float:
    """2 w p k C(k-1, (k-1)/2) / 2^(k-1), at most 2 w: how far an adversary moves E median, for any good values inside the bars.

    Example:
        >>> round(stability(0.01, 43), 4), round(2 * 0.01 * math.sqrt(2 * 43 / math.pi), 4)
        (0.1053, 0.1046)

    """
    half = (group - 1) / 2
    log_steepest = math.log(group) + math.lgamma(group) - 2 * math.lgamma(half + 1) - (group - 1) * math.log(2)
    return 2 * width * min(corruption * math.exp(log_steepest), 1.0)
