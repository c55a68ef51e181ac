"""Maximising the ELBO: what one step changes, and all of it as numbers and tensors, so that a fit can stop and go on.

The step size is constant, then falls while the guide settles; the parameters end at their average over the last half of that
part (Polyak and Juditsky 1992, doi:10.1137/0330046). The temperature falls geometrically to its final value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import Trace_ELBO
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor

from ppl_risk.activations import ActivationModel, check_batching
from ppl_risk.errors import PreflightError, RiskError, undefined_margins
from ppl_risk.guides.guide import Guide
from ppl_risk.one_pass import differentiate

#: Last share of the steps, at constant temperature and falling step size, on which convergence is judged.
SETTLING = 0.3


class Ascent:
    """A guide on its way up the ELBO.

    Args:
        model: the problem as a Pyro model. guide: where it starts; its parameters change in place.
        steps, particles: of the whole way, and vectorised particles of each step. learning_rate: of clipped Adam.
        start, final: temperatures, in units of the margin's spread.

    Attributes:
        losses, norms: -ELBO in nats and gradient norm of each step (steps,), nan where it is still to come.
    """

    def __init__(
        self, model: ActivationModel, guide: Guide, *, steps: int, particles: int, learning_rate: float, start: float,
        final: float,
    ) -> None:  # fmt: skip
        for group in guide.parts():
            group.law.pathwise()  # a law without gradients says so, before Pyro does
        check_batching(model, guide.sample(5), model.margin_spread)
        self.model, self.guide, self.steps, self.particles = model, guide, steps, particles
        self.start, self.final = start, final
        self.elbo = Trace_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=0)
        self.parameters = [p for p in guide.parameters() if p.requires_grad]
        self.optimiser = ClippedAdam(self.parameters, lr=learning_rate, clip_norm=10.0)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda step: _step_size(step / max(steps, 1)))
        self.average, self.averaged = [torch.zeros_like(p) for p in self.parameters], 0
        self.losses, self.norms = np.full(steps, np.nan), np.full(steps, np.nan)

    def advance(self, steps: Sequence[int]) -> None:
        """Some steps of the way, by number and in order."""
        for step in steps:
            temperature = _temperature(step, self.steps, self.model.margin_spread, self.start, self.final)
            # `check_batching` has validated the shapes; validating every value costs a fifth of a step.
            with pyro.validation_enabled(False):
                loss = self.elbo.differentiable_loss(self.model, self.guide, temperature)
            self.model.problem.count_gradients(self.particles)
            self.losses[step] = float(loss.detach())
            # Only the guide's gradients: the weights of the network stay out of it.
            gradients = differentiate(loss, self.parameters, allow_unused=True, materialize_grads=True)
            self.norms[step] = math.sqrt(sum(float(g.square().sum()) for g in gradients))
            if not math.isfinite(self.losses[step]) or not math.isfinite(self.norms[step]):
                if step >= (1 - SETTLING) * self.steps:
                    self._refuse_undefined()
                continue  # such a step is left out, and the convergence check sees it
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient
            self.optimiser.step()
            self.schedule.step()
            if step >= (1 - SETTLING / 2) * self.steps:
                self.averaged += 1
                for total, parameter in zip(self.average, self.parameters, strict=True):
                    total += (parameter.detach() - total) / self.averaged

    def _refuse_undefined(self) -> None:
        """Where steps fail to the last: margins that are NaN are the problem's fault, and no further step mends them.

        Raises:
            PreflightError: the margin is NaN at some of 64 draws of the guide.
        """
        margin = self.model.problem.margin_of_normal(self.guide.sample(64)["input"].detach())
        if wrong := int(torch.isnan(margin).sum()):
            raise PreflightError(f"Fitting met margins that are NaN: {undefined_margins(wrong, 64)}")

    @torch.no_grad()
    def arrive(self) -> None:
        """Set the parameters to their average."""
        if self.averaged:
            for total, parameter in zip(self.average, self.parameters, strict=True):
                parameter.copy_(total)

    def save(self) -> dict[str, Any]:
        """All that steps change, copied."""
        optimiser = self.optimiser.state_dict()
        (group,) = optimiser["param_groups"]
        return {
            "guide": [t.detach().clone() for t in self.guide.state_dict().values()],
            "moments": [_copied(optimiser["state"].get(place, {})) for place in range(len(self.parameters))],
            "learning_rate": group["lr"], "scheduled": self.schedule.last_epoch,
            "average": [t.clone() for t in self.average], "averaged": self.averaged,
            "losses": self.losses.copy(), "norms": self.norms.copy(),
        }  # fmt: skip

    @torch.no_grad()
    def load(self, state: Mapping[str, Any]) -> None:
        """Go back to where `save` was called, bit for bit.

        Raises:
            RiskError: a tensor of another shape. What is no state at all raises whatever its reading does.
        """
        kept = [*self.guide.state_dict().values(), *self.average]
        for tensor, value in zip(kept, [*state["guide"], *state["average"]], strict=True):
            _fill(tensor, value)
        saved = self.optimiser.state_dict()
        saved["state"] = {place: _copied(moments) for place, moments in enumerate(state["moments"]) if moments}
        for parameter, moments in zip(self.parameters, state["moments"], strict=True):
            for name in ("exp_avg", "exp_avg_sq") if moments else ():
                _fill(torch.empty_like(parameter), moments[name])
        saved["param_groups"][0]["lr"] = state["learning_rate"]
        self.optimiser.load_state_dict(saved)
        self.schedule.last_epoch, self.averaged = state["scheduled"], state["averaged"]
        self.losses[:], self.norms[:] = state["losses"], state["norms"]

    def bytes(self) -> int:
        """What one `save` takes."""
        return sum(4 * t.numel() * t.element_size() for t in self.guide.state_dict().values())


def _fill(tensor: Tensor, value: Tensor) -> None:
    """Copy without the broadcasting that would hide a value of another shape."""
    if tensor.shape != value.shape:
        raise RiskError(f"A kept fit has shape {tuple(value.shape)} where {tuple(tensor.shape)} is wanted.")
    tensor.copy_(value)


def _copied(moments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in moments.items()}


def _temperature(step: int, steps: int, spread: float, start: float, final: float) -> float:
    """Geometric from `start` to `final`, in units of the margin's spread, then constant while the guide settles."""
    annealed = max(1, round((1 - SETTLING) * steps))
    return (spread or 1e-12) * start * (final / start) ** min(1.0, step / annealed)


def _step_size(share: float) -> float:
    """Constant, then falling geometrically to a fiftieth over the settling part."""
    return 50.0 ** -max(0.0, (share - (1 - SETTLING)) / SETTLING)
