r"""Slices whose laws are skewed: third cumulants inside, a skewed tail instead of a Gaussian one.

Within a slice the margin of a narrow network that nobody trained is still skewed and heavy-tailed. Mean, covariance, third
cumulant and common scale are carried from every node of the first direction through the network (`cumulants`), and

    Pr[margin >= t] = int phi(v) T(m(v), s(v), skewness(v), excess(v); t) dv,

T being `corrected_tail`. For chains of affine steps and activations: what branches has no third cumulants here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ppl_risk.errors import RiskError
from ppl_risk.propagation.activation_steps import activation_of
from ppl_risk.propagation.cumulants import Cumulants
from ppl_risk.propagation.hermite import PiecewiseLinear
from ppl_risk.propagation.linear_map import RENAMES, LinearMap, is_affine
from ppl_risk.propagation.propagator import Propagator
from ppl_risk.propagation.skewed import corrected_tail
from ppl_risk.propagation.slices import Slices, spline
from ppl_risk.tracing import Step, Tape

#: relu, as `activation_of` describes it.
RELU = PiecewiseLinear(0.0, 0.0, ((1.0, 0.0),))


@dataclass(frozen=True, eq=False)
class SkewedSlices(Slices):
    """Slices along one direction with skewness and excess kurtosis of the margin at every node, (nodes,)."""

    skewness: Tensor
    excess: Tensor

    def log_masses(self, threshold: float = 0.0, every: int = 1) -> tuple[Tensor, Tensor]:
        """log Pr[margin >= threshold | v] at the fine points, and the same with the weight of v."""
        grid, log_weight, mean, covariance = self.conditional(every)
        matrix = spline(tuple(self.axes[0].tolist()), tuple(grid[:, 0].tolist())).to(mean)
        sd = covariance[:, 0, 0].sqrt()
        shape = matrix @ self.skewness, (matrix @ self.excess).clamp_min(0.0)
        log_p = corrected_tail(mean[:, 0], sd, shape[0], mean.new_full(sd.shape, threshold), shape[1])
        return log_p, log_weight + log_p


def skewed(propagator: Propagator, slices: Slices) -> SkewedSlices:
    """Third cumulants at the nodes of slices along one direction.

    Raises:
        RiskError: the network is no chain, the margin no single number, or the cumulants are of no law (narrow and deep networks).
    """
    tape = propagator.event.tape
    bends = [place for place, step in enumerate(tape.steps) if activation_of(step) is not None]
    split = bends[-1] + 1 if bends else 1
    chain, rest = tape.steps[:split], tape.steps[split:]
    straight = all(len(step.parents) < 2 for step in chain) and all(is_affine(step) for step in rest)
    if propagator.event.functions or tape.steps[-1].size != 1 or not straight:
        raise RiskError(
            f"{propagator.inputs.problem.name}: readout='skewed' is for networks that are a chain of affine layers and "
            "activations, with one affine margin. Use readout='slices'."
        )
    inputs, a = propagator.inputs, slices.directions
    if not inputs.affine:
        raise RiskError(f"{inputs.problem.name}: readout='skewed' needs a Gaussian input law. Use readout='slices'.")
    across = inputs.matrix @ a
    covariance = inputs.spread - across @ across.mT
    found = []
    for v in slices.axes[0]:
        with FlopCounterMode(display=False) as counter:
            law = _carried(tape, split, Cumulants.gaussian(inputs.transport((v * a[:, 0])[None])[0], covariance))
        propagator.flops += counter.get_total_flops()
        found.append((law.mean[0], law.covariance[0, 0].clamp_min(0.0).sqrt(), law.skewness()[0], 3 * law.tau))
    mean, sd, skewness, excess = (
        torch.stack([torch.as_tensor(x) for x in column]) for column in zip(*found, strict=True)
    )
    return SkewedSlices(
        slices.event, slices.directions, slices.axes, mean[:, None], sd[:, None, None], slices.gradient, skewness,
        excess.to(mean),
    )  # fmt: skip


def _carried(tape: Tape, split: int, law: Cumulants) -> Cumulants:
    """Through the chain, step by step; what follows the last activation is one affine map."""
    shapes = {step.name: step.shape for step in tape.steps}
    for step in tape.steps[1:split]:
        if step.op in RENAMES:
            continue
        if (activation := activation_of(step)) is not None:
            law = law.activation("relu" if activation == RELU else step.call)
        elif is_affine(step):
            linear = LinearMap(step, [shapes[step.parents[0]]])
            law = law.affine(_matrix(linear, law), linear.constant(law.mean))
        else:
            raise RiskError(
                f"Third cumulants do not pass through {step.op!r} (step {step.name!r}). Use readout='slices'."
            )
    last = tape.steps[split - 1]

    def margin(value: Tensor) -> Tensor:
        known = {last.name: value}
        for step in tape.steps[split:]:
            known[step.name] = step.call(*(known[p] for p in step.parents))
        return known[tape.steps[-1].name]

    end = LinearMap(Step("margin", "stack", (last.name,), torch.Size([1]), margin), [last.shape])
    return law.affine(_matrix(end, law), end.constant(law.mean))


def _matrix(linear: LinearMap, law: Cumulants) -> Tensor:
    if linear.weight is not None:
        return linear.weight.to(law.mean.dtype)
    return linear.forward(torch.eye(linear.sizes[0], dtype=law.mean.dtype, device=law.mean.device)).mT
