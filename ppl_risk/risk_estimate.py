"""What an answer is: log P with its uncertainty, cost, status and a remedy; printing it explains it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import scipy.stats

LOG10 = math.log(10.0)
#: What no sampling interval speaks of.
COVERS = "sampling error only; not: a wrong input law, a wrong detector"
#: What a proof does not speak of.
PROVED_OF = "every input, in exact arithmetic; not: a wrong input law, a wrong detector, rounding"

#: P above which no number stands as `OK`: nearly always the margin lacks its threshold or has the wrong sign.
NEARLY_CERTAIN = 0.999
CERTAIN_REMEDY = (
    "Is the sign of the margin right, and the threshold subtracted? Catastrophe is margin >= 0. If it is meant, turn the sign and "
    "estimate the rare rest."
)


class Status(Enum):
    """What an estimate knows about itself. Only `OK` is a number to believe."""

    OK = "the diagnostics of the method hold"
    NO_HITS = "no catastrophe was seen: there is an upper bound and no estimate"
    ALL_HITS = "every draw, or nearly every one, is a catastrophe: a wrong margin is likelier than that"
    KHAT_HIGH = "the importance weights have too heavy a tail"
    LOW_ESS = "too few draws carry the estimate"
    NOT_CONVERGED = "the optimiser had not settled"
    RUNS_DISAGREE = "independent runs are too far apart"
    ROUTES_DISAGREE = "two independent routes give different answers: places may be missing"
    ONE_ROUTE = "only one route finished, and nothing checks it"
    DEGENERATE = "the particles stopped moving, or had nothing to move by"
    SATURATED = "the margin has no digits left where the event begins: the number is that of its rounding"
    MODEL_ONLY = "the tail of the guide, not of the network: nothing here checks it"
    PROVED = "proved, not sampled"
    BOUNDED = "a proved upper bound, not the probability"
    VACUOUS = "the bound says nothing"
    REFUSED = "the method does not apply"

    @property
    def believable(self) -> bool:
        """Whether the number may be used as it stands."""
        return self in (Status.OK, Status.PROVED)

    @property
    def is_bound(self) -> bool:
        """Whether the number is a bound on P, never to be averaged or ranked with estimates of it."""
        return self in (Status.BOUNDED, Status.VACUOUS)


@dataclass(frozen=True, repr=False)
class RiskEstimate:
    """log Pr[margin >= 0], in nats, with everything needed to judge it.

    Attributes:
        method: how it was made, in a few words.
        log_prob: nats; nan where the method has no number, an upper bound where `status.is_bound`.
        std_error: standard error of log_prob, nats (nan where the method has none).
        status: what the estimate knows about itself, and `remedy`, one sentence on what to do. An `OK` with P > 0.999 becomes
            `ALL_HITS`, whichever method says so: sampling cannot tell a certain catastrophe from a wrong margin.
        forward_calls, gradient_calls: rows through the network, and gradients of rows.
        flops, seconds: cost. training_flops: what training the network took, where known. seed: what reproduces it.
        hits: (hits, draws) of plain counting, for an exact binomial interval.
        dof: degrees of freedom of a Student interval over independent runs.
        evidence: named diagnostics (k_hat, ess, acceptance, ...).
        posterior: draws given catastrophe, name -> (chain, draw, *shape).
        stats: per-draw arrays (chain, draw). history: group -> name -> array over steps or levels.
        settings: what the method was told, as JSON. elbo: nats. guide: the fitted guide.
        survival: (thresholds, log Pr[margin > threshold]), where the method passes through them.
        fingerprint: of the problem (`identity.fingerprint`), whose name is for people; "" where it is not known.

    Example:
        >>> print(f"{RiskEstimate('by hand', math.log(1e-6), 0.1).prob:.1e}")
        1.0e-06
    """

    method: str
    log_prob: float
    std_error: float = math.nan
    status: Status = Status.OK
    remedy: str = ""
    forward_calls: int = 0
    gradient_calls: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    training_flops: float | None = None
    seed: int | None = None
    problem: str = ""
    hits: tuple[int, int] | None = None
    dof: float | None = None
    elbo: float | None = None
    evidence: Mapping[str, float] = field(default_factory=dict)
    posterior: Mapping[str, np.ndarray] = field(default_factory=dict)
    stats: Mapping[str, np.ndarray] = field(default_factory=dict)
    history: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    survival: tuple[np.ndarray, np.ndarray] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    guide: Any = None
    fingerprint: str = ""

    def __post_init__(self) -> None:
        """No certain catastrophe is believed without a proof."""
        if self.status is Status.OK and self.log_prob > math.log(NEARLY_CERTAIN):
            object.__setattr__(self, "status", Status.ALL_HITS)
            object.__setattr__(self, "remedy", " ".join(filter(None, [self.remedy, CERTAIN_REMEDY])))

    @property
    def prob(self) -> float:
        """P(catastrophe); nan where there is no number; underflows to 0.0 below 1e-308, where log_prob does not."""
        return math.inf if self.log_prob >= 709 else math.exp(self.log_prob)

    @property
    def log10_prob(self) -> float:
        """Decades."""
        return self.log_prob / LOG10

    @property
    def calls(self) -> int:
        """Forward and gradient calls together: one gradient of one row counts as one more call."""
        return self.forward_calls + self.gradient_calls

    @property
    def training_ratio(self) -> float | None:
        """FLOPs of this estimate over those that trained the network; None where the latter are unknown."""
        return None if self.training_flops is None else self.flops / self.training_flops

    def interval(self, level: float = 0.9) -> tuple[float, float]:
        """Interval for log_prob, in nats, that covers with probability `level`.

        Counting gives Clopper and Pearson's exact binomial interval; otherwise log_prob +- t std_error, with Student's
        t over `dof` independent runs where there are such. nan where the method has no error bar.
        """
        tail = (1 - level) / 2
        if self.hits is not None:
            return clopper_pearson(*self.hits, level)
        if self.status is Status.PROVED:
            return self.log_prob, self.log_prob
        if self.status.is_bound:
            return -math.inf, self.log_prob
        quantile = scipy.stats.t.isf(tail, self.dof) if self.dof is not None else scipy.stats.norm.isf(tail)
        low, high = self.log_prob - quantile * self.std_error, self.log_prob + quantile * self.std_error
        return float(low), min(0.0, float(high)) if high == high else float(high)

    def __repr__(self) -> str:
        """The explanation."""
        return str(self)

    def __str__(self) -> str:
        """Probability, interval, verdict with its evidence, cost, and what the interval does not cover."""
        low, high = (bound / LOG10 for bound in self.interval())
        if math.isnan(self.log_prob):
            known = f"P(catastrophe) < {decades(high)} with 95 % confidence" if math.isfinite(high) else "no number"
            head = known + (": an upper bound, not an estimate" if math.isfinite(high) else "")
        elif self.status is Status.PROVED:
            head = f"P(catastrophe) = {decades(self.log10_prob)}, proved"
        elif self.status.is_bound:
            head = f"P(catastrophe) <= {decades(self.log10_prob)}, proved: an upper bound, not an estimate"
        else:
            span = f"   90 % interval [{decades(low)}, {decades(high)}]" if math.isfinite(high) else ""
            head = f"P(catastrophe) = {decades(self.log10_prob)}   (log10 {self.log10_prob:.2f}){span}"
        verdict = "BELIEVE" if self.status.believable else "DO NOT BELIEVE"
        verdict = "BELIEVE THE BOUND" if self.status is Status.BOUNDED else verdict
        share = "" if self.training_ratio is None else f" ({self.training_ratio:.2g} of training)"
        lines = [head, f"  verdict   {verdict}: {self.status.name}, {self.status.value}"]
        if self.remedy:
            lines.append(f"  remedy    {self.remedy}")
        if self.evidence:
            lines.append("  evidence  " + ", ".join(f"{k.replace('_', ' ')} {v:.3g}" for k, v in self.evidence.items()))
        if self.elbo is not None:
            lines.append(f"  ELBO      {self.elbo / LOG10:.2f} decades (lower bound on the smoothed event)")
        lines += [
            f"  method    {self.method}" + (f" on {self.problem}" if self.problem else ""),
            f"  cost      {self.forward_calls:,} forward and {self.gradient_calls:,} gradient calls, "
            f"{'FLOPs unknown' if math.isnan(self.flops) else f'{self.flops:.1e} FLOPs{share}'}, {self.seconds:.1f} s",
            f"  covers    {PROVED_OF if self.status.is_bound or self.status is Status.PROVED else COVERS}",
        ]
        return "\n".join(lines)

    def to_datatree(self) -> Any:
        """The estimate as an `xarray.DataTree` that ArviZ reads (groups: see `ppl_risk.storage`)."""
        from ppl_risk.storage import to_datatree

        return to_datatree(self)

    def to_arviz(self) -> Any:
        """What the installed ArviZ takes, for example `arviz.summary(estimate.to_arviz())`."""
        from ppl_risk.storage import to_arviz

        return to_arviz(self)

    def save(self, path: str) -> None:
        """Write `result.json` and `posterior.nc` into the folder `path`; each file appears whole or not at all."""
        from ppl_risk.storage import save

        save(self, path)

    @staticmethod
    def load(path: str) -> RiskEstimate:
        """Read back what `save` wrote (all but the guide)."""
        from ppl_risk.storage import load

        return load(path)


def clopper_pearson(hits: int, draws: int, level: float) -> tuple[float, float]:
    """Exact binomial interval for log p (Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404); one-sided at 0 and n."""
    tail = (1 - level) / 2
    low = -math.inf if hits == 0 else math.log(scipy.stats.beta.ppf(tail, hits, draws - hits + 1))
    high = 0.0 if hits == draws else math.log(scipy.stats.beta.isf(tail, hits + 1, draws - hits))
    return low, high


def decades(log10_prob: float) -> str:
    """A probability for people, from its log10, also where it underflows: 3.2e-412."""
    if math.isnan(log10_prob):
        return "unknown"
    if log10_prob == -math.inf:
        return "0"
    exponent = math.floor(log10_prob)
    mantissa = 10 ** (log10_prob - exponent)
    if round(mantissa, 1) >= 10:
        mantissa, exponent = 1.0, exponent + 1
    return f"{mantissa:.1f}e{exponent:+03d}"
