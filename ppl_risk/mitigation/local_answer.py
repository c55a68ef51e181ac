r"""Answers at x* from answers elsewhere: s trials, one value each, the median or the mean of medians of them.

A trial's kind is where its points lie:

| kind | points for x1 uniform on X | where right |
| --- | --- | --- |
| homothety | x* + rho_j (x1 - x*) | any x* of X |
| antipodal | x1 and x* - alpha (x1 - x*), alpha the depth of x* | x* so central that alpha^-n is small: nothing is magnified |
| line | x1 and a fresh point of the line through x* and x1, of density |t|^{n-1} | x* outside X: each point is uniform |

The error bar of an input is exact for its trials: their magnifications are known and at most B of the s are bad, but for
`failure`, so the median is within delta times the (floor(s/2) + B + 1)-th smallest magnification. Ours.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from scipy.stats import binom
from torch import Tensor, nn

from ppl_risk.errors import RiskError
from ppl_risk.mitigation.domains import Domain
from ppl_risk.mitigation.mitigated import Oracle
from ppl_risk.mitigation.rays import Ray
from ppl_risk.mitigation.robust_mean import mean_of_medians
from ppl_risk.mitigation.wanted import coins as coins_of
from ppl_risk.mitigation.wanted import rows_in

#: Numbers held at once.
NUMBERS = 2**23


#: Of a trial; the table at the head of the file.
Kind = Literal["homothety", "antipodal", "line"]


class Examined(NamedTuple):
    """Of each input: the answer, its bar, which trials are far off, and whether there are too many of them for the premise.

    A trial is far off where it is more than delta times its own magnification and the bar away from the answer. `refuted` says
    that more are than q explains (one chance in a million); with fewer than some 80 trials it never does, and a corruption
    that turns nearly all trials makes them agree on the wrong answer. Clean rows certify; trials only warn.
    """

    answer: Tensor
    bar: Tensor
    far: Tensor
    refuted: Tensor

    @property
    def outlying(self) -> Tensor:
        """Share of the trials far off, for each input."""
        return self.far.double().mean(-1)


class Trials(NamedTuple):
    """Values of the trials and their magnifications, (batch, s) each."""

    values: Tensor
    magnified: Tensor


class LocalAnswer(nn.Module):
    """The function that a local mitigator returns; homothety alone unless told otherwise.

    Args:
        oracle: the poisoned model.
        domain: the set X.
        ray: points and weights of a homothetic trial.
        repeats: trials.
        delta: cutoff.
        seed: of the points x1.
        failure: of the bars, for one input.
        kinds: what trials may be; of several, each input has the first that is right: antipodal, homothety, line.
        groups_of: trials a group, for the mean of the groups' medians; None is one median.

    """

    anchors: Tensor
    at_anchors: Tensor
    coins: Tensor

    def __init__(
        self,
        oracle: Oracle,
        domain: Domain,
        ray: Ray,
        repeats: int,
        delta: float,
        *,
        seed: int,
        failure: float = 1e-3,
        kinds: tuple[Kind, ...] = ("homothety",),
        groups_of: int | None = None,
    ) -> None:
        super().__init__()
        generator = coins_of(seed)
        self.oracle, self.domain, self.ray, self.repeats, self.delta = oracle, domain, ray, repeats, delta
        self.failure, self.kinds, self.groups_of = failure, kinds, groups_of
        self.register_buffer("anchors", domain.sample(repeats, generator))
        self.register_buffer("coins", torch.rand(2, repeats, generator=generator, dtype=torch.float64))
        self.register_buffer("at_anchors", oracle(self.anchors))
        self.training = False

    @property
    def queries_per_input(self) -> int:
        """Those that one more input costs."""
        own = len(self.ray.nodes) - (self.ray.nodes[-1] == 1.0)
        return self.repeats * (own if "homothety" in self.kinds else 1)

    def forward(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, " batch"]:
        """The answers, float64."""
        return torch.cat([self._centre(self.trials(part).values) for part in self._parts(x)])

    def examine(self, x: Float[Tensor, "batch n"]) -> Examined:
        """Answers with their bars, and what the spread of the trials says of the premise at each input."""
        parts = [self._examine(part) for part in self._parts(x)]
        return Examined(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def suits(self, x: Float[Tensor, "batch n"]) -> Bool[Tensor, "kinds batch"]:
        """For which inputs each of the kinds allowed is right."""
        inside = self.domain.contains(x, 1e-6)
        # The density of an antipodal point is at most alpha^-n, as that of the nearest homothetic one is rho^-n.
        central = inside & (self.domain.depth(x) >= self.ray.nodes[0])
        right = {"antipodal": central, "homothety": inside, "line": torch.ones_like(inside)}
        return torch.stack([right[kind] for kind in self.kinds])

    def trials(self, x: Float[Tensor, "batch n"]) -> Trials:
        """One value a trial, from points that suit the input.

        Raises:
            RiskError: for inputs that none of the kinds allowed is right for.

        """
        suited, shape = self.suits(x), (len(x), self.repeats)
        values, magnified = (torch.zeros(shape, dtype=torch.float64, device=x.device) for _ in range(2))
        left = torch.ones(len(x), dtype=torch.bool, device=x.device)
        for kind, right in zip(self.kinds, suited, strict=True):
            rows = left & right
            if bool(rows.any()):
                values[rows], magnified[rows] = _TRIALS[kind](self, x[rows])
            left &= ~rows
        if bool(left.any()):
            raise RiskError(
                f"{int(left.sum())} of {len(x)} inputs lie where trials of kind {' or '.join(self.kinds)} are not right: outside "
                f'{self.domain}, or too near its edge. For an affine truth LocalAffine(variant="auto") takes any input.'
            )
        return Trials(values, magnified)

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return rows_in(x, self.domain.n).double().split(max(1, NUMBERS // (self.repeats * self.domain.n)))

    def _centre(self, values: Tensor) -> Tensor:
        if self.groups_of is None:
            return values.median(dim=-1).values
        return mean_of_medians(values, corruption=self.ray.bad, group=self.groups_of)

    def _ask(self, points: Tensor) -> Tensor:
        return self.oracle(points.reshape(-1, points.shape[-1])).reshape(points.shape[:-1])

    def _homothetic(self, x: Tensor) -> Trials:
        """At rho = 1 the point is x1 itself, whatever the input: its answer is already there."""
        total = torch.zeros(len(x), self.repeats, dtype=torch.float64, device=x.device)
        for rho, weight in zip(self.ray.nodes, self.ray.weights, strict=True):
            asked = self.at_anchors if rho == 1.0 else self._ask(x[:, None] + rho * (self.anchors - x[:, None]))
            total = total + weight * asked
        return Trials(total, torch.full_like(total, self.ray.amplification))

    def _antipodal(self, x: Tensor) -> Trials:
        alpha = self.domain.depth(x)[:, None]
        mirrored = self._ask(x[:, None] - alpha[..., None] * (self.anchors - x[:, None]))
        return Trials((mirrored + alpha * self.at_anchors) / (1 + alpha), torch.ones_like(mirrored))

    def _along_lines(self, x: Tensor) -> Trials:
        """t of the second point has density |t|^{n-1} on the chord; t = 0 is x*, t = 1 is x1."""
        n, shape = self.domain.n, (len(x), self.repeats, self.domain.n)
        starts = x[:, None].expand(shape).reshape(-1, n)
        away = (self.anchors - x[:, None]).reshape(-1, n)
        low, high = (end.reshape(shape[:2]) for end in self.domain.chord(starts, away))
        # The part of the chord behind x* and the part before it, or only one where x* is outside.
        back, front = (-low).clamp_min(0.0), high.clamp_min(0.0)
        # An input that is itself one of the points x1 has no line: its value is the answer there.
        back, front = torch.where(back.isinf(), 1.0, back), torch.where(front.isinf(), 1.0, front)
        least = torch.where(low > 0, low, torch.zeros_like(low))
        share = 1 / (1 + ((back.clamp_min(1e-300).log() - front.clamp_min(1e-300).log()) * n).exp())
        ahead = self.coins[0] < share
        far = torch.where(ahead, front, back)
        near = torch.where(ahead, least / front.clamp_min(1e-300), torch.zeros_like(front))
        level = (self.coins[1] + (1 - self.coins[1]) * near**n) ** (1 / n)
        t = torch.where(ahead, far, -far) * level
        asked = self._ask(x[:, None] + t[..., None] * (self.anchors - x[:, None]))
        step = torch.where((t - 1).abs() < 1e-12, torch.full_like(t, 1e-12), t - 1)
        return Trials((t * self.at_anchors - asked) / step, (t.abs() + 1) / step.abs())

    def _examine(self, x: Tensor) -> Examined:
        found, half = self.trials(x), self.repeats // 2
        answer = self._centre(found.values)
        # A hair above `failure`: where the share of bad trials was chosen for exactly that, rounding must not add one.
        rank = half + int(binom.isf(self.failure * (1 + 1e-6), self.repeats, min(self.ray.bad, 1.0)))
        ranked = found.magnified.sort(dim=-1).values
        bar = self.delta * ranked[:, rank] if rank < self.repeats else torch.full_like(answer, math.inf)
        slack = 1e-9 * found.magnified * (1 + answer.abs()[:, None])
        away = (found.values - answer[:, None]).abs() > self.delta * found.magnified + bar[:, None] + slack
        too_many = int(binom.isf(1e-6, self.repeats, min(self.ray.bad, 1.0)))
        return Examined(answer, bar, away, away.sum(-1) > too_many)


#: How each kind of trial is made.
_TRIALS = {
    "antipodal": LocalAnswer._antipodal,
    "homothety": LocalAnswer._homothetic,
    "line": LocalAnswer._along_lines,
}
