"""Which correlation matters: what tracking each layer, and each direction of it, did to the guide's own tail.

Between two ranks r < r' of one selection: from the guide of rank r', every layer alone goes back to r, then every direction
beyond r of the layers that mattered most is dropped alone. (Raised alone from r, a layer shows little: the tail needs all of
them at once.) All on the same draws of inputs and noise, and at the rarest threshold that the draws still see (what is
learned there carries on to rarer ones); the change is in log10 Pr_guide[margin >= threshold].
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ppl_risk.activations import ActivationModel
from ppl_risk.errors import RiskError
from ppl_risk.guides import Selected
from ppl_risk.problem import RiskProblem
from ppl_risk.randomness import seeded
from ppl_risk.selection import LayerSelection, Selection

#: Hits under the richer guide that the threshold leaves; guides are compared row by row, so these are enough.
SEEN = 200


@dataclass(frozen=True)
class Moved:
    """One layer (direction None) or one direction: decades by which tracking it moves the tail, and their standard error."""

    layer: str
    direction: int | None
    decades: float
    error: float


@dataclass(frozen=True, repr=False)
class Tracking:
    """What `what_tracking_moved` returns; printing it names the layers and directions, `plots.plot_tracking` shows them.

    Attributes:
        low, high: the two ranks. log10_low, log10_high: tails at the threshold under either guide.
        layers, directions: sorted by how much they matter, the most first.
        inputs: (layer, direction) -> how inputs move with the direction, of the shape of one input, in standard deviations.
        units: (layer, direction) -> the same for what the layer reads.
    """

    low: int
    high: int
    log10_low: float
    log10_high: float
    layers: list[Moved]
    directions: list[Moved]
    inputs: dict[tuple[str, int], np.ndarray]
    units: dict[tuple[str, int], np.ndarray]

    def __repr__(self) -> str:
        """Layers, then the directions that moved most with the units they read."""
        lines = [
            f"Tracking {self.high} directions a layer instead of {self.low} moves the tail from 10^{self.log10_low:.2f} to "
            f"10^{self.log10_high:.2f} at the rarest threshold that the draws see."
        ]
        lines += [f"  layer {m.layer:<18} {_change(m)}" for m in self.layers]
        for m in self.directions[:5]:
            assert m.direction is not None
            loading = self.units[m.layer, m.direction]
            top = np.argsort(-np.abs(loading.reshape(-1)))[:4]
            read = ", ".join(f"{i} ({loading.reshape(-1)[i]:+.2f})" for i in top)
            lines.append(f"  {m.layer}, direction {m.direction:<4} {_change(m)}   reads units {read}")
        return "\n".join(lines)


def what_tracking_moved(
    problem: RiskProblem,
    selection: Selection,
    low: int,
    high: int,
    *,
    draws: int = 40_000,
    most_layers: int = 3,
    seed: int = 0,
    progress: bool = True,
) -> Tracking:
    """Name the layers and directions whose tracking moved the guide's tail most between two ranks.

    Args:
        problem: the problem. selection: its directions. low, high: ranks, low < high.
        draws: of the guides, shared by all. most_layers: layers whose single directions are tried. seed: reproduces.

    Raises:
        RiskError: ranks that do not grow.

    Example:
        >>> from ppl_risk.selection import select; from ppl_risk.zoo import load_model
        >>> problem = load_model("linear_gaussian", log10_prob=-2)
        >>> what_tracking_moved(problem, select(problem, draws=500), 0, 2, draws=2000, progress=False).layers[0].direction
    """
    if not 0 <= low < high:
        raise RiskError(f"Two ranks with 0 <= low < high are needed, got {low} and {high}.")
    trial = _Trial(problem, draws, seed)
    margin = trial.margin(selection.at(high))
    # The event itself where it can be seen, else the rarest threshold that can.
    threshold = min(0.0, float(margin.topk(min(SEEN, draws)).values[-1]))
    rich, poor = margin >= threshold, trial.margin(selection.at(low)) >= threshold
    layers = []
    for layer in tqdm(selection.layers, disable=not progress, desc="layers"):
        back = trial.margin(selection.at(high, **{layer.name: low}))
        layers.append(_moved(layer.name, None, back >= threshold, rich))
    layers.sort(key=lambda m: -abs(m.decades))
    directions, inputs, units = [], {}, {}
    for name in tqdm([m.layer for m in layers[:most_layers]], disable=not progress, desc="directions"):
        layer = selection.layer(name)
        for k in range(low, layer.kept(high)):
            without = trial.margin(_without_direction(selection.at(high), layer, k))
            directions.append(_moved(name, k, without >= threshold, rich))
            inputs[name, k], units[name, k] = trial.reads(layer, k)
    directions.sort(key=lambda m: -abs(m.decades))
    share = [max(float(h.float().mean()), 0.5 / draws) for h in (poor, rich)]
    return Tracking(low, high, math.log10(share[0]), math.log10(share[1]), layers, directions, inputs, units)


class _Trial:
    """Margins under guides that differ in their selection alone: the draws of inputs and of noise are shared."""

    def __init__(self, problem: RiskProblem, draws: int, seed: int) -> None:
        self.problem, self.draws, self.seed = problem, draws, seed
        self.sites = ActivationModel(problem, resolution=1e-3, pilot=256, seed=seed).sites
        with seeded(seed, problem.device):
            self.u = torch.randn(draws, problem.transport.dimension, device=problem.device)
        self.read: dict[str, Tensor] = {}
        with torch.no_grad():
            self.x = problem.from_normal(self.u[:4000])
            problem.run(self.x, read=self._keep)

    def _keep(self, name: str, value: Tensor) -> Tensor:
        self.read[name] = value.clone()
        return value

    @torch.no_grad()
    def margin(self, selection: Selection) -> Tensor:
        guide: Any = Selected(selection).bind(self.sites)
        with seeded(self.seed + 1, self.problem.device):
            guide.fit_layers(self.u[:4000], pushed=False)
            noise = torch.randn(self.draws, guide.normals() - self.u.shape[1], device=self.u.device)
        z = torch.cat([self.u, noise], 1)
        return torch.cat(self.problem.in_batches(z, lambda rows: guide.margin_of_normals(self.problem, rows)))

    def reads(self, layer: LayerSelection, k: int) -> tuple[np.ndarray, np.ndarray]:
        """How inputs, and what the layer reads, move with one standard deviation of a functional."""
        z = self.read[layer.name].flatten(1) @ layer.functionals[:, k]
        z = (z - z.mean()) / z.std().clamp(min=1e-12)
        shown = []
        for value in (self.x, self.read[layer.name]):
            flat = value.flatten(1).float()
            shown.append((((flat - flat.mean(0)).mT @ z) / len(z)).reshape(value.shape[1:]).cpu().numpy())
        return shown[0], shown[1]


def _without_direction(selection: Selection, layer: LayerSelection, dropped: int) -> Selection:
    """The selection without one direction of one layer."""
    order = [k for k in range(layer.kept(selection.rank)) if k != dropped]
    rest = replace(
        layer, functionals=layer.functionals[:, order], patterns=layer.patterns[:, order], shares=layer.shares[order]
    )
    layers = tuple(rest if x.name == layer.name else x for x in selection.layers)
    return replace(selection, layers=layers, ranks={layer.name: len(order)})


def _moved(layer: str, direction: int | None, before: Tensor, after: Tensor) -> Moved:
    """Change of log10 of the share of hits; the error counts only rows that one guide hits and the other does not."""
    old, new = (max(float(h.sum()), 0.5) for h in (before, after))
    discordant = float((before != after).sum())
    error = math.sqrt(max(discordant, 1.0)) / min(old, new) / math.log(10.0)
    return Moved(layer, direction, math.log10(new / old), error)


def _change(moved: Moved) -> str:
    return f"{moved.decades:+.2f} +- {moved.error:.2f} decades"
