"""The unrestricted class: laws of finite support. Fitted layer by layer it is plain Monte Carlo, whatever the network.

The maximum-likelihood law of finite support is the empirical one, its push-forward through a layer is again empirical, and
its tail is the share of support points that are catastrophes (the identity test of ARC's *Estimating Tail Risk in Neural
Networks*, 2024: all extrapolation comes from the restriction of the class).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from ppl_risk.activations import Site
from ppl_risk.errors import RiskError


@dataclass(frozen=True)
class Empirical:
    """Every law of finite support; for `fit_layerwise` alone, because it has no density.

    Example:
        >>> Empirical().label
        'empirical'
    """

    coordinates: str = field(init=False, default="activation")
    resolution: float = field(init=False, default=1e-3)
    label: str = field(init=False, default="empirical")

    def bind(self, sites: Mapping[str, Site]) -> EmpiricalGuide:
        """The guide over these sites."""
        return EmpiricalGuide(sites)


class EmpiricalGuide:
    """Rows of site values, each of the same weight."""

    def __init__(self, sites: Mapping[str, Site]) -> None:
        self.names = list(sites)
        self.support: dict[str, Tensor] = {}

    def fit(self, values: Mapping[str, Float[Tensor, "draws ..."]]) -> None:
        """Maximum likelihood: the draws themselves."""
        self.support = {name: values[name] for name in self.names}

    def site_names(self) -> set[str]:
        """Every site."""
        return set(self.names)

    def parts(self) -> list[object]:
        """No Gaussian groups."""
        return []

    def sample(self, draws: int) -> dict[str, Float[Tensor, "draws ..."]]:
        """Rows of the support, with replacement."""
        rows = len(next(iter(self.support.values())))
        index = torch.randint(rows, (draws,))
        return {name: value[index.to(value.device)] for name, value in self.support.items()}

    def log_prob(self, values: Mapping[str, Tensor]) -> Tensor:
        """There is none."""
        raise RiskError("A law of finite support has no density. Use it in fit_layerwise, or another family.")

    def input_law(self) -> torch.distributions.Distribution:
        """There is none that importance sampling could use."""
        raise RiskError("A law of finite support proposes nothing new. Use another family in fit_svi.")
