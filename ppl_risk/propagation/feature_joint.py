r"""Activations as sums of independent features: y = m + sum_j z_j a_j + Gaussian rest, carried from the input or from one layer on.

Every feature is one column of a factor that no sketch mixes: through an affine map a_j -> W a_j exactly, through an activation by
the gain E f' at the Gaussian of the same mean and variance (Stein), what that misses of the variance going to the rest. Gains are
taken where the failures lie: the features' law is tilted by exp(s_j z_j) with s = A' theta of the dominating point theta, the
network propagated there, theta found anew, a few times over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ppl_risk.errors import RiskError
from ppl_risk.propagation.event import Event
from ppl_risk.propagation.features import FeatureLaw
from ppl_risk.propagation.interpret import carry
from ppl_risk.propagation.linear_map import LinearMap
from ppl_risk.propagation.low_rank import LowRankJoint
from ppl_risk.propagation.saddlepoint import LEAST, Quantiles, Sums, dominating_point, log_all_at_least
from ppl_risk.tracing import Step, Tape

#: Rounds of tilting, and how far in standard deviations one may move all features together.
ROUNDS, REACH = 5, 9.0
#: Numbers that a read-out holds at once.
ROOM = 2_000_000


class FeatureJoint(LowRankJoint):
    """The low-rank family with `features` columns that pass every affine map as they are; only the others are sketched."""

    def __init__(self, name: str, mean: Tensor, factor: Tensor, rank: int) -> None:
        rest = factor.new_zeros(*factor.shape[:2], 0)
        super().__init__(name, mean, torch.zeros_like(mean), rest, rank)
        self.features = factor.shape[2]
        self.factor = factor

    def affine(self, name: str, parents: Sequence[str], linear: LinearMap, keep: set[str]) -> None:
        """The features' columns exactly, the rest as the low-rank family has it."""
        rows, read = self._columns([old for old in self.places if old in keep]), self._columns(parents)
        known = self.factor[:, :, : self.features]
        moved = torch.cat([known[:, rows], linear.forward(known[:, read].mT).mT], 1)
        self.factor = self.factor[:, :, self.features :]
        super().affine(name, parents, linear, keep)
        self.factor = torch.cat([moved, self.factor], 2)


def tape_from(tape: Tape, layer: str) -> Tape:
    """What follows one named layer, with the layer's value as the input; the tape itself where `layer` is "".

    Raises:
        RiskError: no such layer, or a later step that reads something before it.
    """
    if not layer:
        return tape
    if layer not in tape.sites:
        raise RiskError(f"There is no layer {layer!r}; there are: {', '.join(tape.sites) or 'none'}.")
    start = tape[tape.sites[layer]]
    steps, known = [Step(start.name, "input", (), start.shape, lambda value: value)], {start.name}
    for step in tape.steps[tape.steps.index(start) + 1 :]:
        if known.isdisjoint(step.parents):
            continue
        if not known.issuperset(step.parents):
            raise RiskError(
                f"Step {step.name!r} reads layer {layer!r} and what comes before it, so a law of that layer alone does not give "
                "the margin. Name a layer that everything passes through, or use the input."
            )
        steps.append(step)
        known.add(step.name)
    if steps[-1].name != tape.steps[-1].name:
        raise RiskError(f"The margin does not follow from layer {layer!r} alone. Name another layer, or use the input.")
    return Tape(tuple(steps))


@dataclass(frozen=True)
class Nodes:
    """Values (batch, axes) of what the read-out conditions on: the common factor if there is one, then some features' own e_j."""

    at: Tensor
    coactive: bool
    sliced: tuple[int, ...] = ()

    def normals(self, law: FeatureLaw) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of every u_j there; 0, to rounding, for a sliced one."""
        w = self.at[:, 0] if self.coactive else self.at.new_zeros(len(self.at))
        mean, sd = law.normals(w + law.factor_shift)
        for place, j in enumerate(self.sliced, start=int(self.coactive)):
            one = torch.zeros_like(mean[0]).index_fill(0, torch.tensor([j], device=mean.device), 1.0)
            mean = mean + one * (sd[:, j] * self.at[:, place])[:, None]
            sd = sd * (1 - one) + LEAST * one
        return mean, sd


@dataclass(frozen=True)
class Carrier:
    """One law of features, an event, and the rank of the rest: from nodes to sums of features at the event's layer."""

    law: FeatureLaw
    event: Event
    rank: int

    @property
    def quantiles(self) -> Quantiles:
        """Of all features, the residual's last."""
        return self.law.everything()[1]

    def sums(self, nodes: Nodes, tilt: Float[Tensor, "batch j"]) -> Sums:
        """What is left to 0 of every number, as sums of features, with the gains of the law tilted by exp(tilt z)."""
        directions, quantiles = self.law.everything()
        mean, sd = nodes.normals(self.law)
        z = quantiles.tilted(tilt, mean, sd)
        wide = z.variance.clamp_min(LEAST**2).sqrt()
        tape = self.event.tape
        start = self.law.bias + z.mean @ directions.mT
        joint = carry(tape, FeatureJoint(tape.steps[0].name, start, directions * wide[:, None], self.rank))
        assert isinstance(joint, FeatureJoint)
        last = joint.law_of(tape.steps[-1].name)
        count = directions.shape[1]
        weights = last.factor[:, :, :count] / wide[:, None]
        others = last.factor[:, :, count:]
        rest = torch.diag_embed(last.diagonal) + others @ others.mT
        gap = self.event._gap(last.mean - (weights @ z.mean[..., None])[..., 0], 0.0)
        return Sums(gap, self.event.sign * weights, rest, mean, sd)

    @torch.no_grad()
    def settled(self, nodes: Nodes, tilt: Tensor | None = None, rounds: int = ROUNDS) -> tuple[Sums, Tensor]:
        """Sums with gains taken at the dominating point of each node, and the tilt (batch, J) that says where."""
        mean, sd = nodes.normals(self.law)
        quantiles = self.quantiles
        tilt = torch.zeros_like(mean) if tilt is None else tilt
        wide = quantiles.tilted(torch.zeros_like(mean), mean, sd).variance.clamp_min(LEAST**2).sqrt()
        for last in range(rounds):
            sums = self.sums(nodes, tilt)
            towards = tilt_of(sums, point_of(self.event, quantiles, sums))
            far = (towards * wide).norm(dim=-1, keepdim=True)
            towards = towards * (REACH / far.clamp_min(REACH))
            # Half steps: whole ones swing between failure modes.
            tilt = towards if last == 0 else (tilt + towards) / 2
        return self.sums(nodes, tilt), tilt


def tilt_of(sums: Sums, theta: Tensor) -> Float[Tensor, "batch j"]:
    """s = A' theta."""
    return (theta[:, None] @ sums.weights)[:, 0]


@torch.no_grad()
def point_of(event: Event, quantiles: Quantiles, sums: Sums) -> Float[Tensor, "batch k"]:
    """The dominating point of "all >= 0"; of "any >= 0", that of the likeliest number alone."""
    if event.every or sums.start.shape[1] == 1:
        return dominating_point(quantiles, sums)
    found, bound = [], []
    for i in range(sums.start.shape[1]):
        one = Sums(
            sums.start[:, i : i + 1], sums.weights[:, i : i + 1], sums.rest[:, i : i + 1, i : i + 1], sums.mean, sums.sd
        )
        theta = dominating_point(quantiles, one)
        bound.append(log_all_at_least(quantiles, one, theta))
        found.append(theta[:, 0])
    best = torch.stack(bound, -1).argmax(-1, keepdim=True)
    return torch.zeros_like(sums.start).scatter(-1, best, torch.stack(found, -1).gather(-1, best))


@torch.no_grad()
def log_event(event: Event, quantiles: Quantiles, sums: Sums) -> Float[Tensor, " batch"]:
    """log Pr[event] for every law, nats; any = sum_i Pr[i-th and none before]."""
    rows = max(1, ROOM // (sums.weights.shape[1] * sums.weights.shape[2] * (1 + quantiles.knots.shape[1] // 4)))
    parts = []
    for chosen in torch.arange(len(sums.start), device=sums.start.device).split(rows):
        some = sums.rows(chosen)
        if event.every:
            parts.append(log_all_at_least(quantiles, some, dominating_point(quantiles, some)))
            continue
        each = []
        for last in range(some.start.shape[1]):
            sign = some.start.new_ones(last + 1)
            sign[:last] = -1.0
            turned = some.first(last + 1).turned(sign)
            each.append(log_all_at_least(quantiles, turned, dominating_point(quantiles, turned)))
        parts.append(torch.stack(each).logsumexp(0).clamp_max(0.0))
    return torch.cat(parts)


def log_event_near(carrier: Carrier, nodes: Nodes, tilt: Tensor, theta: Tensor) -> Float[Tensor, " batch"]:
    """log Pr[event] with the gains' tilt and theta given: differentiable in the law of features."""
    sums = carrier.sums(nodes, tilt)
    return log_all_at_least(carrier.quantiles, sums, theta, gaussian=True, every=carrier.event.every)


def moved(law: FeatureLaw, shift: Tensor, factor_shift: Tensor, turn: Tensor) -> FeatureLaw:
    """The law with shifted features and directions V + R turn."""
    return replace(law, shift=shift, factor_shift=factor_shift, directions=law.directions + law.residual @ turn)
