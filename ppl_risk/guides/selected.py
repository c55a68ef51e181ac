r"""`Selected`: across layers only a few functionals of what each layer reads are carried; the rest enters as independent noise.

The network runs as it is. Where a layer that the selection names reads h, it is given the carried part of h plus noise (see
`ppl_risk.guides.residual`); nobody else sees the change, so residual streams and detectors that read several layers keep
their joint law. With Gaussian noise the conditional has a density of constant covariance,

    a_l | earlier ~ Normal(W_l (mu + A (z - B^T mu)) + b_l, W_l K D K^T W_l^T + sigma_l^2 I).

Rank 0 presumes independence of all that any layer reads; full rank is the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.transforms import ReshapeTransform

from ppl_risk.activations import INPUT, Site, log_density
from ppl_risk.errors import RiskError
from ppl_risk.guides.guide import Group, Guide
from ppl_risk.guides.laws import LawFamily, Normal
from ppl_risk.guides.residual import CarriedInput
from ppl_risk.problem import RiskProblem
from ppl_risk.selection import Selection
from ppl_risk.selection.affine import linear_part

MARGINALS = ("normal", "empirical")


@dataclass(frozen=True)
class Selected:
    """Only the selected directions are carried across layers.

    Args:
        selection: what `ppl_risk.select` returned. marginals: of the rest, "normal" or "empirical" (quantiles of the draws;
            no density, so for `fit_layerwise` alone). input: law of the input given catastrophe. resolution: sigma_l.

    Example:
        >>> from ppl_risk.selection import select; from ppl_risk.zoo import load_model
        >>> Selected(select(load_model("linear_gaussian"), rank=2, draws=200)).label
        'selected(trained, 2)'
    """

    selection: Selection
    marginals: str = "normal"
    input: LawFamily = Normal()
    resolution: float = 0.1
    coordinates: str = field(init=False, default="activation")

    def __post_init__(self) -> None:
        """Unknown marginals are a mistake worth an error at once."""
        if self.marginals not in MARGINALS:
            raise RiskError(f"marginals must be one of {MARGINALS}, got {self.marginals!r}.")

    @property
    def label(self) -> str:
        """A few words for tables."""
        return f"selected({self.selection.source}, {self.selection.rank})"

    def bind(self, sites: Mapping[str, Site]) -> SelectedGuide:
        """The guide over these sites."""
        return SelectedGuide(self, sites)


class SelectedGuide(Guide):
    """The guide of `Selected`: one group, the input, and the network for the rest."""

    def __init__(self, family: Selected, sites: Mapping[str, Site]) -> None:
        selection = family.selection
        if selection.problem is None:
            raise RiskError("This selection belongs to no problem; read it with Selection.load(path, problem).")
        unknown = [layer.name for layer in selection.layers if layer.name not in sites]
        if unknown:
            raise RiskError(f"The selection names {unknown}, which are no sites here: {', '.join(sites)}.")
        super().__init__([([sites[INPUT]], family.input)])
        self.family = family
        self.problem: RiskProblem = selection.problem
        self.sites = dict(sites)
        self.layers = [layer.name for layer in selection.layers]
        self.inputs = nn.ModuleList(
            [CarriedInput(x.functionals[:, : selection.rank_of(x)].clone(), family.marginals) for x in selection.layers]
        )
        self.matrices = {x.name: linear_part(self.problem.cut[x.name.split("#")[0]], x.shape) for x in selection.layers}

    def carried(self) -> dict[str, CarriedInput]:
        """Layer -> the law of what it reads."""
        return dict(zip(self.layers, self.inputs, strict=True))  # pyright: ignore[reportReturnType] - ModuleList is untyped

    @property
    def group(self) -> Group:
        """The input, which stands apart."""
        return self.parts()[0]

    def site_names(self) -> set[str]:
        """Every site."""
        return set(self.sites)

    @torch.no_grad()
    def fit_layers(self, u: Float[Tensor, "draws d"], *, pushed: bool) -> None:
        """Forward KL on the unconditioned law: each layer fitted to what it reads, u ~ N(0, I) being given.

        `pushed`: to draws that have passed through the guide of the layers before; else to draws of the true network.
        """
        layers = self.carried()

        def read(name: str, value: Tensor) -> Tensor:
            if name not in layers:
                return value
            flat = value.flatten(1)
            layers[name].fit(flat)
            if not pushed:
                return value
            return (layers[name].carried(flat) + layers[name].noise(torch.randn_like(flat))).reshape(value.shape)

        self.problem.run(self.problem.from_normal(u), read=read)

    @torch.no_grad()
    def fit(self, values: Mapping[str, Float[Tensor, "draws ..."]]) -> None:
        """Forward KL: input law and every layer fitted to draws of all sites."""
        self.group.law.fit(self.group.flatten(values))
        layers = self.carried()

        def read(name: str, value: Tensor) -> Tensor:
            if name in layers:
                layers[name].fit(value.flatten(1))
            return value

        def replace(name: str, value: Tensor) -> Tensor:
            return values[name].to(value.dtype) if name in values else value

        self.problem.run(self.problem.from_normal(values[INPUT]), replace, read)

    def normals(self) -> int:
        """Standard normals that one draw of the guide's own law takes."""
        return self.group.law.dimension + sum(len(x.centre) for x in self.carried().values())

    def margin_of_normals(self, problem: RiskProblem, z: Float[Tensor, "batch k"]) -> Float[Tensor, " batch"]:
        """Margins under the guide's own law, from standard normals; the input law is the problem's."""
        layers = self.carried()
        sizes = [self.group.law.dimension, *(len(x.centre) for x in layers.values())]
        u, *noises = z.split(sizes, 1)
        drawn = dict(zip(layers, noises, strict=True))

        def read(name: str, value: Tensor) -> Tensor:
            if name not in layers:
                return value
            flat = value.flatten(1)
            return (layers[name].carried(flat) + layers[name].noise(drawn[name].to(flat.dtype))).reshape(value.shape)

        return problem.run(problem.from_normal(u), read=read)

    def forward(self, *_args: object, **_kwargs: object) -> dict[str, Tensor]:
        """Sample every site."""
        return self._draw(self.group.law.pathwise())

    def _draw(self, input_law: Distribution) -> dict[str, Tensor]:
        if self.family.marginals != "normal":
            raise RiskError("Empirical marginals have no density; use Selected(selection, marginals='normal') here.")
        u = pyro.sample(INPUT, input_law)
        lead = u.shape[:-1]
        values = {INPUT: u}
        layers = self.carried()

        def read(name: str, value: Tensor) -> Tensor:
            if name not in layers:
                return value
            flat, layer = value.flatten(1), layers[name]
            shift = layer.shift * layer.unit
            return (layer.carried(flat) + shift - (shift @ layer.functionals) @ layer.leak.mT).reshape(value.shape)

        def visit(name: str, output: Tensor) -> Tensor:
            site = self.sites[name]
            values[name] = pyro.sample(name, self._conditional(name, output.reshape(*lead, *output.shape[1:]), site))
            return values[name].reshape(output.shape)

        x = self.problem.from_normal(u)
        self.problem.run(x.reshape(-1, *self.problem.transport.event_shape), visit, read)
        return values

    def _conditional(self, name: str, mean: Tensor, site: Site) -> Distribution:
        """The law of one site given the earlier ones, around the network's output on the carried input."""
        sigma = self.family.resolution * float(site.spread.square().mean().sqrt())
        event = len(site.shape)
        if name not in self.layers:
            return dist.Normal(mean, sigma).to_event(event)
        root = self.matrices[name] @ self.carried()[name].root()
        covariance = root @ root.mT + sigma**2 * torch.eye(len(root), device=root.device, dtype=root.dtype)
        flat = mean.flatten(-event) if event > 1 else mean
        law = dist.MultivariateNormal(flat, scale_tril=torch.linalg.cholesky(covariance))
        if event == 1:
            return law
        return dist.TransformedDistribution(law, [ReshapeTransform(flat.shape[-1:], site.shape)])

    @torch.no_grad()
    def sample(self, draws: int) -> dict[str, Float[Tensor, "draws ..."]]:
        """Independent draws of every site."""
        with poutine.block(), pyro.plate("draws", draws, dim=-1):
            return self()

    def log_prob(self, values: Mapping[str, Float[Tensor, "batch ..."]]) -> Float[Tensor, " batch"]:
        """Log density of site values, nats."""
        scored: Callable[..., object] = lambda: self._draw(self.group.law.distribution())  # noqa: E731
        with pyro.settings.context(module_local_params=True):
            return log_density(scored, values)
