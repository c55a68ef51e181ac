"""A guide: a joint law over the sites of an activation model, made of independent groups of sites.

Inside a group every correlation that the group's law has is carried; between groups none. The groups are what a family
is: one per site (mean-field, block), one for all (low-rank, full), the input alone (the network carries the rest).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import Distribution

from ppl_risk.activations import INPUT, Site
from ppl_risk.guides.laws import Law, LawFamily


class Group(nn.Module):
    """Sites that share one law, on coordinates (value - centre) / spread laid end to end."""

    centre: Tensor
    spread: Tensor

    def __init__(self, sites: Sequence[Site], family: LawFamily) -> None:
        super().__init__()
        self.names = [site.name for site in sites]
        self.shapes = [site.shape for site in sites]
        sizes = [site.shape.numel() for site in sites]
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        self.parts = {s.name: slice(end - size, end) for s, size, end in zip(sites, sizes, ends, strict=True)}
        self.register_buffer("centre", torch.cat([s.centre.reshape(-1) for s in sites]))
        self.register_buffer("spread", torch.cat([s.spread.reshape(-1) for s in sites]))
        self.law: Law = family.bind(ends[-1], self.centre.device)

    def flatten(self, values: Mapping[str, Tensor]) -> Float[Tensor, "*batch n"]:
        """Site values laid end to end, standardised."""
        flat = [values[n].flatten(-len(s)) if len(s) else values[n][..., None] for n, s in self._named()]
        return (torch.cat(flat, -1) - self.centre) / self.spread

    def unflatten(self, z: Float[Tensor, "*batch n"]) -> dict[str, Tensor]:
        """Site values from standardised coordinates."""
        # One split: its gradient is one concatenation, where each slice would fill a whole tensor with zeros.
        parts = (self.centre + self.spread * z).split([s.numel() for s in self.shapes], -1)
        return {n: part.reshape(*z.shape[:-1], *s) for part, (n, s) in zip(parts, self._named(), strict=True)}

    def _named(self) -> list[tuple[str, torch.Size]]:
        return list(zip(self.names, self.shapes, strict=True))

    def log_volume(self) -> Tensor:
        """Log determinant of the standardisation."""
        return self.spread.log().sum()

    def log_prob(self, values: Mapping[str, Tensor]) -> Float[Tensor, "*batch"]:
        """Log density of site values, nats."""
        density: Tensor = self.law.log_prob(self.flatten(values))
        return density - self.log_volume()


class Placed(dist.Delta):
    """A Delta at a value that was just drawn: its density is known without comparing the value with itself."""

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density given at construction."""
        return self.log_density  # pyright: ignore[reportReturnType] - pyro declares a float, and it is a Tensor


class Guide(PyroModule):
    """Product of groups, as a Pyro guide.

    `guide(*args)` samples every site inside Pyro; `sample` and `log_prob` do so outside. Parameters exist after
    `__init__`, under names that do not depend on where the guide lives; nothing enters Pyro's global store.
    """

    def __init__(self, groups: Sequence[tuple[Sequence[Site], LawFamily]]) -> None:
        # Local parameters, here and in every call: two guides of one family would otherwise share Pyro's global store.
        with pyro.settings.context(module_local_params=True):
            super().__init__()
        self.groups = nn.ModuleList([Group(sites, family) for sites, family in groups])

    def parts(self) -> list[Group]:
        """The groups."""
        return list(self.groups)  # pyright: ignore[reportReturnType] - torch's ModuleList does not say what it holds

    def site_names(self) -> set[str]:
        """Every site."""
        return {name for group in self.parts() for name in group.names}

    def __call__(self, *args: object, **kwargs: object) -> dict[str, Tensor]:
        """Sample every site inside Pyro; the arguments of the model are accepted and ignored."""
        with pyro.settings.context(module_local_params=True):
            return super().__call__(*args, **kwargs)

    def forward(self, *_args: object, **_kwargs: object) -> dict[str, Tensor]:
        """Sample every site."""
        values: dict[str, Tensor] = {}
        for index, group in enumerate(self.parts()):
            z = pyro.sample(f"_group_{index}", group.law.pathwise(), infer={"is_auxiliary": True})
            # The change of variables belongs to the density of the sites; it is booked on the first.
            density = -group.log_volume()
            for name, value in group.unflatten(z).items():
                event = len(group.shapes[group.names.index(name)])
                lead = value.shape[: value.dim() - event]
                values[name] = pyro.sample(name, Placed(value, log_density=density.expand(lead), event_dim=event))
                density = torch.zeros_like(density)
        return values

    @torch.no_grad()
    def sample(self, draws: int) -> dict[str, Float[Tensor, "draws ..."]]:
        """Independent draws of every site."""
        values: dict[str, Tensor] = {}
        for group in self.parts():
            values |= group.unflatten(group.law.distribution().sample((draws,)))
        return values

    def log_prob(self, values: Mapping[str, Float[Tensor, "batch ..."]]) -> Float[Tensor, " batch"]:
        """Log density of site values, nats."""
        return torch.stack([group.log_prob(values) for group in self.parts()]).sum(0)

    def fit(self, values: Mapping[str, Float[Tensor, "draws ..."]]) -> None:
        """Forward KL: set every group to the maximum-likelihood fit of the draws."""
        for group in self.parts():
            group.law.fit(group.flatten(values).detach())

    def marginal(self, name: str) -> Distribution:
        """The law of one site's standardised coordinates; for the input these are the standard normals u."""
        for group in self.parts():
            if name in group.parts:
                return group.law.marginal(group.parts[name])
        raise KeyError(name)

    def input_law(self) -> Distribution:
        """The guide's law of u, a proposal for importance sampling, without gradients."""
        with torch.no_grad():
            return self.marginal(INPUT)
