"""Which units of which layers move together, given catastrophe: in a guide's own law, and in a posterior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ppl_risk.activations import INPUT
from ppl_risk.errors import RiskError
from ppl_risk.randomness import seeded
from ppl_risk.risk_estimate import RiskEstimate


class LayerCorrelation(NamedTuple):
    """Correlation matrix over chosen units, the layer of each block with its first row, and the units themselves."""

    matrix: np.ndarray
    layers: list[tuple[str, int]]
    units: dict[str, np.ndarray]


def layer_draws(estimate: RiskEstimate, draws: int = 2000) -> dict[str, np.ndarray]:
    """Layer -> (draws, units): of the guide's own law where it has the activations, else of the corrected posterior.

    Raises:
        RiskError: the estimate holds neither.
    """
    guide = estimate.guide
    if guide is not None and any(name in guide_names(guide) for name in estimate.posterior if name != "x"):
        with seeded(0):
            values = guide.sample(draws)
        return {name: v.flatten(1).cpu().numpy() for name, v in values.items() if name != INPUT}
    skip = {"x", "margin"}
    values = {name: v.reshape(-1, *v.shape[2:]) for name, v in estimate.posterior.items() if name not in skip}
    if not values:
        raise RiskError(f"{estimate.method} holds no posterior draws of activations. Run it with posterior_draws=1000.")
    return {name: v.reshape(len(v), -1) for name, v in values.items()}


def guide_names(guide: Any) -> set[str]:
    """Sites of a guide; what else an estimate may have been read off (a propagated law, a law of features) has none."""
    return guide.site_names() if hasattr(guide, "site_names") else set()


def busiest_units(draws: Mapping[str, np.ndarray], most: int = 12) -> dict[str, np.ndarray]:
    """The units of each layer whose activation varies most."""
    return {name: np.sort(np.argsort(-v.var(0))[:most]) for name, v in draws.items()}


def layer_correlation(
    draws: Mapping[str, np.ndarray], units: Mapping[str, Sequence[int] | np.ndarray]
) -> LayerCorrelation:
    """Correlations between the chosen units of all layers; units that never move have none and are shown as 0."""
    columns, layers, start = [], [], 0
    for name, chosen in units.items():
        columns.append(draws[name][:, np.asarray(chosen)])
        layers.append((name, start))
        start += len(chosen)
    together = np.concatenate(columns, 1).astype(float)
    centred = together - together.mean(0)
    spread = centred.std(0)
    scaled = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-12)
    return LayerCorrelation(scaled.T @ scaled / len(scaled), layers, {n: np.asarray(u) for n, u in units.items()})
