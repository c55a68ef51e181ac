r"""The Pyro model: the activations of a network as latent variables.

The network runs as it is; forward hooks turn the outputs of the named layers into sample sites. In both coordinate
systems the input is u ~ N(0, I), x = T(u), and the catastrophe enters as the factor log sigmoid(margin / temperature).

- *activation coordinates*: a_l ~ Normal(f_l(a_{l-1}), sigma_l) is itself the latent; a guide must carry every
  correlation it wants.
- *noise coordinates*: eps_l ~ N(0, I), a_l = f_l(a_{l-1}) + sigma_l eps_l; the network carries the correlations.

sigma_l is `resolution` times the layer's own spread; the exact network is resolution -> 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor

from ppl_risk.arguments import checked
from ppl_risk.errors import PreflightError, RiskError, undefined_margins
from ppl_risk.normal import SphericalNormal
from ppl_risk.one_pass import refusal
from ppl_risk.problem import RiskProblem
from ppl_risk.randomness import seeded

INPUT = "input"
COORDINATES = ("activation", "noise")
#: What an infinite margin stands for in the smoothed event, in spreads of the margin.
INFINITE = 100.0


@dataclass(frozen=True)
class Site:
    """One latent: its shape without batch, and where its prior draws lie (centre and spread, of that shape)."""

    name: str
    shape: torch.Size
    centre: Tensor
    spread: Tensor


class ActivationModel:
    """A risk problem as a Pyro model `model(temperature)`; a leading batch of rows is a batch of particles.

    Args:
        problem: the problem, cut at its layers.
        coordinates: "activation" or "noise".
        resolution: sigma_l as a fraction of the root mean square spread of layer l. In noise coordinates 0 is the exact
            network, with the input as the only latent.
        pilot: draws from which spreads are read; they are booked on the meters of the problem.
        seed: reproduces the pilot.

    Raises:
        RiskError: unknown coordinates; a resolution of 0 in activation coordinates; a layer that does not return one
            row per input row.

    Example:
        >>> net = torch.nn.Linear(2, 1)
        >>> law = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> list(ActivationModel(RiskProblem(net, law, lambda y: y[:, 0])).sites)
        ['input', 'network']
    """

    @checked()
    def __init__(
        self,
        problem: RiskProblem,
        coordinates: str = "activation",
        *,
        resolution: float = 0.1,
        pilot: int = 512,
        seed: int = 0,
    ) -> None:
        if coordinates not in COORDINATES:
            raise RiskError(f"coordinates must be one of {COORDINATES}, got {coordinates!r}.")
        if resolution < 0 or (resolution == 0 and coordinates == "activation"):
            raise RiskError(
                f"resolution must be positive in activation coordinates, got {resolution}: with sigma = 0 the activations "
                "are no latents. Use coordinates='noise' for the exact network."
            )
        self.problem = problem
        self.coordinates = coordinates
        self.resolution = resolution
        with seeded(seed, problem.device):
            u = torch.randn(pilot, problem.transport.dimension, device=problem.device)
            # Without a resolution the input is the only latent, and no layer has to be a site.
            values, margin = problem.activations(problem.from_normal(u), {} if resolution == 0 else None)
        if wrong := int(torch.isnan(margin).sum()):
            raise PreflightError(undefined_margins(wrong, pilot))
        for name, value in values.items():
            if not value.is_floating_point():
                raise refusal({name: f"returns {value.dtype}"})
        if resolution == 0:
            values = {}
        self.pilot: dict[str, Tensor] = {INPUT: u} | values
        finite = margin[torch.isfinite(margin)]
        self.margin_spread = float(finite.std()) if len(finite) > 1 else 1.0
        self.sigma = {name: resolution * _rms_spread(value) for name, value in values.items()}
        self.sites = self._sites(values)

    def _sites(self, values: Mapping[str, Tensor]) -> dict[str, Site]:
        def standard(name: str, shape: torch.Size) -> Site:
            zeros = torch.zeros(shape, device=self.problem.device)
            return Site(name, shape, zeros, torch.ones_like(zeros))

        sites = {INPUT: standard(INPUT, torch.Size([self.problem.transport.dimension]))}
        for name, value in values.items():
            if self.coordinates == "activation":
                # A unit that never moves (dead, or a constant) still has the spread of its resolution.
                spread = (value.var(0) + self.sigma[name] ** 2).sqrt()
                sites[name] = Site(name, value.shape[1:], value.mean(0), spread)
            elif self.resolution > 0:
                sites[noise_of(name)] = standard(noise_of(name), value.shape[1:])
        return sites

    def __call__(self, temperature: float = 0.0) -> Float[Tensor, "*batch"]:
        """Sample every site; temperature 0 leaves the catastrophe out (the unconditioned law). Returns the margin."""
        dimension = self.problem.transport.dimension
        zeros = torch.zeros(dimension, device=self.problem.device)
        u = pyro.sample(INPUT, SphericalNormal(zeros, 1.0, 1))
        lead = u.shape[:-1]
        x = self.problem.from_normal(_without_nan(u))
        margin = self.problem.run(x.reshape(-1, *self.problem.transport.event_shape), self._visitor(lead)).reshape(lead)
        pyro.deterministic("margin", margin, event_dim=0)
        if temperature > 0:
            # An infinite margin has a side and no slope.
            sided = torch.where(margin.isinf(), margin.sign() * INFINITE * self.margin_spread, margin)
            pyro.factor("catastrophe", torch.nn.functional.logsigmoid(sided / temperature))
        return margin

    def _visitor(self, lead: torch.Size) -> Callable[[str, Tensor], Tensor] | None:
        if self.resolution == 0:
            return None

        def visit(name: str, output: Tensor) -> Tensor:
            mean = output.reshape(*lead, *output.shape[1:])
            event = mean.dim() - len(lead)
            sigma = self.sigma[name]
            if self.coordinates == "activation":
                value = pyro.sample(name, SphericalNormal(mean, sigma, event))
            else:
                # Expanded over the event only: a particle batch enters through the plate or the replayed value.
                standard = SphericalNormal(mean.new_zeros(mean.shape[len(lead) :]), 1.0, event)
                value = mean + sigma * pyro.sample(noise_of(name), standard)
            return value.reshape(output.shape)

        return visit

    def draws_given(self, u: Float[Tensor, "draws d"]) -> dict[str, Float[Tensor, "draws ..."]]:
        """Every site drawn from its law given the input rows u."""
        with torch.no_grad(), pyro.plate("draws", len(u)):
            conditioned = poutine.condition(self, data={INPUT: u})
            trace: Any = poutine.trace(poutine.block(conditioned, expose=list(self.sites))).get_trace()
        return {name: trace.nodes[name]["value"] for name in self.sites}

    def prior_draws(self, draws: int) -> dict[str, Float[Tensor, "draws ..."]]:
        """Independent draws of every site from the unconditioned law, (draws, *shape)."""
        return self.draws_given(torch.randn(draws, self.problem.transport.dimension, device=self.problem.device))

    def log_joint(
        self, values: Mapping[str, Float[Tensor, "batch ..."]], temperature: float = 0.0
    ) -> Float[Tensor, " batch"]:
        """log p(values, catastrophe) of a batch of site values, nats, row by row."""
        return log_density(self, values, temperature)


def _without_nan(u: Tensor) -> Tensor:
    """The same numbers; a gradient of the network with respect to them that is NaN counts as 0."""
    if not u.requires_grad:
        return u
    u = u.clone()
    u.register_hook(lambda gradient: gradient.nan_to_num(0.0, 0.0, 0.0))
    return u


def noise_of(layer: str) -> str:
    """The site of a layer's noise."""
    return f"{layer}.noise"


def _rms_spread(value: Tensor) -> float:
    return max(math.sqrt(float(value.var(0).mean())), 1e-6)


def log_density(
    model: Callable[..., object], values: Mapping[str, Float[Tensor, "batch ..."]], *args: object
) -> Float[Tensor, " batch"]:
    """Sum of per-site log densities of any Pyro model written for one leading batch dimension, row by row."""
    trace: Any = poutine.trace(poutine.condition(model, data=dict(values))).get_trace(*args)
    trace.compute_log_prob()
    rows = next(iter(values.values())).shape[0]
    total = torch.zeros((), device=next(iter(values.values())).device)
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site["infer"].get("_deterministic"):
            term = site["log_prob"]
            if term.shape != (rows,):
                raise RiskError(
                    f'Site "{name}" has log density of shape {tuple(term.shape)} for {rows} rows, wanted ({rows},). A sum '
                    "without dim=-1 or a missing .to_event is silent in Pyro and scales the loss with the batch."
                )
            total = total + term
    return total


@torch.no_grad()
def check_batching(
    model: Callable[..., object], values: Mapping[str, Float[Tensor, "batch ..."]], *args: object
) -> None:
    """Hold one batch of five rows against five single rows; Pyro itself accepts a model that mixes them.

    Raises:
        RiskError: the model is not written for a leading batch dimension.
    """
    rows = {name: value[:5] for name, value in values.items()}
    together = log_density(model, rows, *args)
    alone = torch.cat(
        [log_density(model, {n: v[i : i + 1] for n, v in rows.items()}, *args) for i in range(len(together))]
    )
    gap = float((together - alone).abs().max())
    if not gap <= 1e-3 * (1.0 + float(alone.abs().max())):
        raise RiskError(
            f"The model gives other log densities for {len(together)} rows at once than one by one (difference {gap:.2g} "
            "nats): somewhere a reduction lacks dim=-1, or rows influence each other."
        )
