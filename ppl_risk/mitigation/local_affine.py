r"""Local mitigation where the truth is affine on a convex set: two answers on a ray through x* give the one at x*.

    x1 uniform on X,  x2 = x* + rho (x1 - x*),  v = (f(x2) - rho f(x1)) / (1 - rho),  g(x*) = median of v over s trials.

This is degree 1 of `local_polynomial`, with two more kinds of trial (`local_answer`): antipodal, which magnifies nothing, for
inputs deep inside X, and along lines, for inputs outside it. Bars are delta (1 + rho) / (1 - rho), about 2 n delta / c for
rho = e^{-c/n}; a factor n cannot be avoided from the model alone, since a model may tilt by n delta at one corner of X and be
within delta nearly everywhere else.

Where errors inside the cutoff are independent noise rather than chosen, the mean of medians of groups of k trials averages them:

    bar = A delta (2 q sqrt(2 k / pi) + sqrt(2 k log(2 / failure) / N)),  A the magnification, q a trial's share of bad ones.

Basic and advanced theorems are the paper's (O(s) queries; random noise within the bars), as reported by a public reading note;
the constructions, constants and this bar are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ppl_risk.errors import RiskError
from ppl_risk.mitigation.advice import advise
from ppl_risk.mitigation.clean_rows import Samples, clean_rows
from ppl_risk.mitigation.domains import Domain
from ppl_risk.mitigation.local_answer import Kind, LocalAnswer
from ppl_risk.mitigation.local_card import line_bar, local_model, require_local
from ppl_risk.mitigation.majority import largest_bad_share
from ppl_risk.mitigation.mitigated import BlackBox, Mitigated, Oracle
from ppl_risk.mitigation.rays import Ray, ray_of
from ppl_risk.mitigation.robust_mean import group_size

_KINDS: dict[str, tuple[Kind, ...]] = {
    "auto": ("antipodal", "homothety", "line"),
    "homothety": ("homothety",),
    "antipodal": ("antipodal",),
    "line": ("line",),
}


@dataclass(frozen=True)
class LocalAffine:
    """The local mitigator of affine truths.

    Args:
        domain: the convex set of the inputs, under the uniform law.
        epsilon: share of the set on which the model may be off by more than delta.
        delta: cutoff: how far the model may be off elsewhere, in units of the answer.
        repeats: trials s.
        failure: probability, for one input, that the answer leaves its bars.
        variant: kind of trial; "auto" takes for each input the one that is right for it.
        noise: "adversarial" (the basic mitigator: one median), or "independent" (the advanced one: mean of medians).

    Raises:
        RiskError: if a number is out of range, or epsilon is too large for the repeats.

    Example:
        >>> import torch; from ppl_risk.mitigation import Ball
        >>> g = LocalAffine(Ball(3), epsilon=0.02, delta=0.0).mitigate(lambda x: 1.0 + x.sum(-1))
        >>> bool((g(torch.full((1, 3), 0.5)) - 2.5).abs().max() < 1e-9)
        True

    """

    domain: Domain
    epsilon: float
    delta: float
    repeats: int = 25
    failure: float = 1e-3
    variant: Literal["auto", "homothety", "antipodal", "line"] = "auto"
    noise: Literal["adversarial", "independent"] = "adversarial"

    def __post_init__(self) -> None:
        require_local(self.domain, self.epsilon, self.delta, self.repeats, self.failure)
        if self.variant not in tuple(_KINDS) or self.noise not in ("adversarial", "independent"):
            raise RiskError(
                f"Wanted variant one of {', '.join(_KINDS)} and noise adversarial or independent; got {self.variant}, {self.noise}."
            )
        if self.variant == "line" and self.noise == "independent":
            raise RiskError(
                "No bar is known for means of trials along lines. Take variant homothety, or noise adversarial."
            )

    @property
    def ray(self) -> Ray:
        """Points and weights of a homothetic trial.

        For one median, the smallest rho at which it fails with at most `failure` (and q is at most 1/4); for the mean of medians,
        that of the smallest bar.

        """
        worst = largest_bad_share(self.repeats, self.failure)
        if self.noise == "adversarial":
            return self._ray(worst)
        # Down to where a trial is bad as rarely as one answer is, up to where a median of all would just hold.
        shares = np.geomspace(min(2.5 * self.epsilon, worst), worst, 40)
        return min((self._ray(float(q)) for q in shares), key=lambda ray: self._noise_bar(ray)[0])

    def mitigate(
        self,
        model: BlackBox,
        samples: Samples | None = None,
        *,
        seed: int = 0,
    ) -> Mitigated:
        """The mitigated model: (batch, n) to (batch,), with its card.

        Args:
            model: (batch, n) to (batch,).
            samples: clean rows (x, y), (m, n) and (m,), on which epsilon is certified or refuted; None leaves it assumed.
            seed: of the mitigator's coins. Draw it after the model is fixed and keep it from whoever chooses the inputs.

        """
        ray, n = self.ray, self.domain.n
        rows = None if samples is None else clean_rows(samples, n)
        bar, group = self._noise_bar(ray) if self.noise == "independent" else (None, None)
        oracle = Oracle(model)

        def answer_of(seed: int) -> LocalAnswer:
            return LocalAnswer(
                oracle, self.domain, ray, self.repeats, self.delta,
                seed=seed, failure=self.failure, kinds=_KINDS[self.variant], groups_of=group,
            )  # fmt: skip

        width = ray.amplification * self.delta if bar is None else bar
        if self.variant == "line":
            width = line_bar(n, self.repeats, self.epsilon, self.delta, self.failure)
        advice = advise(
            "affine", n, samples=0 if rows is None else len(rows.x), epsilon=self.epsilon, delta=self.delta,
            failure=self.failure, bars=width,
        )  # fmt: skip
        method = f"LocalAffine(variant={self.variant!r}, noise={self.noise!r}) on {type(self.domain).__name__}({n})"
        return local_model(method, answer_of, seed, 1, self.epsilon, rows, advice, noise_bar=bar)

    def _ray(self, bad: float) -> Ray:
        """rho^-n + 1 = q / epsilon."""
        if not bad > 2 * self.epsilon:
            raise RiskError(
                f"epsilon {self.epsilon:g} is too large: a trial asks two points, and may go wrong with probability {bad:.3g} only "
                f"for {self.repeats} repeats and failure {self.failure:g}. More repeats allow more; or relearn from clean rows."
            )
        return ray_of(self.domain.n, 1, self.epsilon, bad)

    def _noise_bar(self, ray: Ray) -> tuple[float, int]:
        """The bar of the mean of medians, and its group size."""
        try:
            k = group_size(self.repeats, ray.bad, self.failure, tail="binomial")
        except RiskError:
            return math.inf, self.repeats
        spread = math.sqrt(2 * k * math.log(2 / self.failure) / self.repeats)
        return ray.amplification * self.delta * min(1.0, 2 * ray.bad * math.sqrt(2 * k / math.pi) + spread), k
