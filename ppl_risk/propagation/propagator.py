"""The laws of one problem: its event, its input law and the family, with what every read-out asks of them."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ppl_risk.propagation.event import Event
from ppl_risk.propagation.input_law import InputLaw
from ppl_risk.propagation.interpret import Look, carry
from ppl_risk.propagation.linear_map import LinearMap, is_affine


@dataclass
class Propagator:
    """One problem's tape, event and input law, with a family: what every read-out shares. `flops` is what its laws took."""

    event: Event
    inputs: InputLaw
    family: str
    rank: int
    flops: float = 0.0
    flops_of_one: float = 0.0

    @property
    def exact(self) -> bool:
        """Whether the event's layer is Gaussian: affine steps of a Gaussian input, every covariance kept."""
        bends = any(not is_affine(step) for step in self.event.tape.steps[1:])
        return self.inputs.affine and self.family != "mean_field" and not bends

    def laws(
        self,
        centres: Float[Tensor, "batch d"],
        directions: Float[Tensor, "d k"],
        drift: Tensor | None = None,
        look: Look | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mean (batch, m), covariance (batch, m, m) and drift of the event's layer for u ~ N(centre, I - A A^T)."""
        tape = self.event.tape
        counting = not self.flops_of_one
        with FlopCounterMode(display=False) if counting else nullcontext() as counter:
            joint = self.inputs.start(self.family, self.rank, centres, directions, tape.steps[0], drift)
            last = carry(tape, joint, look).law_of(tape.steps[-1].name)
        if counter is not None:
            # Counting slows a pass down, and every law of a batch costs the same.
            self.flops_of_one = counter.get_total_flops() / len(centres)
        self.flops += self.flops_of_one * len(centres)
        return last.mean, last.covariance(), joint.drift_of(tape.steps[-1].name)

    @torch.no_grad()
    def at(
        self, centres: Float[Tensor, "batch d"], directions: Float[Tensor, "d k"], look: Look | None = None
    ) -> tuple[Tensor, Tensor, Float[Tensor, "batch d"]]:
        """Mean and covariance of the event's layer, and the gradient of log Pr[event] in the centre (means only)."""
        with torch.enable_grad():
            drift = torch.zeros_like(centres).requires_grad_()
            with torch.no_grad():
                mean, covariance, moved = self.laws(centres, directions, drift, look)
            if moved is None or not moved.requires_grad:
                return mean, covariance, torch.zeros_like(centres)
            total = self.event.log_prob(mean.detach() + moved, covariance.detach()).sum()
            gradient = torch.autograd.grad(total, drift, allow_unused=True)[0]
        gradient = torch.zeros_like(centres) if gradient is None else gradient
        return mean, covariance, torch.nan_to_num(gradient)

    def widest(self) -> Float[Tensor, " d"]:
        """The direction of u that moves the first layer most."""
        tape, matrix = self.event.tape, self.inputs.matrix
        name = tape.steps[0].name
        for step in tape.steps[1:]:
            if step.parents == (name,) and is_affine(step):
                matrix = LinearMap(step, [tape[name].shape]).forward(matrix.mT).mT
                break
        return torch.linalg.svd(matrix, full_matrices=False)[2][0]
