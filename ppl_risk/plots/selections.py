"""Pictures of what is tracked: a selection, the search for its rank, and what tracking moved."""

from __future__ import annotations

import math
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppl_risk.arguments import checked, of_type
from ppl_risk.diagnostics.tracking import Tracking
from ppl_risk.plots.estimates import INK, SOUND, clean
from ppl_risk.rank_search import RankSearch
from ppl_risk.risk_estimate import LOG10
from ppl_risk.selection import Selection


@checked(selection=of_type(Selection, hint="ppl_risk.select makes one."))
def plot_selection(selection: Selection, ax: Axes | None = None) -> Axes:
    """Share of each layer's matrix that the first k directions hold; a dot where the rank cuts."""
    ax = ax or plt.subplots(figsize=(6, 3.6), layout="constrained")[1]
    for index, layer in enumerate(selection.layers):
        held = np.concatenate([[0.0], layer.shares.cumsum(0).cpu().numpy()])
        many = len(selection.layers) > 10
        colour = plt.get_cmap("viridis")(index / max(1, len(selection.layers) - 1)) if many else f"C{index}"
        label = layer.name if not many or index in (0, len(selection.layers) - 1) else None
        ax.plot(held, color=colour, lw=1 if many else 1.8, label=label)
        rank = selection.rank_of(layer)
        ax.plot(rank, held[min(rank, len(held) - 1)], "o", color=colour, ms=4 if many else 6)
    ax.set_ylim(0, 1.02)
    ax.set_xlim(0, 4 * max(4, selection.rank))
    ax.set_xlabel("directions")
    ax.set_ylabel("share explained")
    ax.set_title(f"{selection.source}, rank {selection.rank}", fontsize=10)
    ax.legend(frameon=False, fontsize=8)
    clean(ax)
    return ax


@checked(search=of_type(RankSearch, hint="ppl_risk.choose_rank makes one."))
def plot_ranks(search: RankSearch, ax: Axes | None = None) -> Axes:
    """log10 p of the guide's tail against rank, with two standard errors; the chosen rank is marked."""
    ax = ax or plt.subplots(figsize=(6, 3.4), layout="constrained")[1]
    seen = {rank: e for rank, e in search.estimates.items() if math.isfinite(e.log10_prob)}
    values = np.array([e.log10_prob for e in seen.values()])
    errors = np.array([2 * e.std_error / LOG10 for e in seen.values()])
    ax.errorbar(list(seen), values, errors, fmt="o-", color=INK, capsize=3, lw=1.5)
    for rank in search.estimates.keys() - seen.keys():
        ax.annotate("not seen", (rank, 0.02), xycoords=("data", "axes fraction"), ha="center", fontsize=8, rotation=90)
    ax.axvline(search.rank, color=SOUND, lw=6, alpha=0.25)
    ax.set_xscale("log", base=2)
    ax.set_xticks(list(search.estimates), [str(r) for r in search.estimates])
    ax.set_xlabel("directions tracked a layer")
    ax.set_ylabel("log10 P, the guide's own tail")
    clean(ax)
    return ax


@checked(tracking=of_type(Tracking, hint="ppl_risk.diagnostics makes one."))
def plot_tracking(tracking: Tracking, most: int = 6) -> Figure:
    """How far each layer moved the tail, and how inputs move with the directions that moved it most.

    Inputs whose number is a square are shown as an image (or already are one); others as bars.
    """
    shown = tracking.directions[:most]
    figure = plt.figure(figsize=(9, 5.4), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=[1, 1.1])
    top, bottom = halves
    axes = top.subplots(1, 2)
    layers = tracking.layers[:10]
    _bars(axes[0], [m.layer for m in layers], [m.decades for m in layers], [m.error for m in layers])
    axes[0].set_title(f"one layer at {tracking.high} instead of {tracking.low} directions", fontsize=10)
    names = [f"{m.layer}, {m.direction}" for m in shown]
    _bars(axes[1], names, [m.decades for m in shown], [m.error for m in shown])
    axes[1].set_title("one direction more", fontsize=10)
    panels = bottom.subplots(1, max(1, len(shown)), squeeze=False)[0]
    for ax, moved in zip(panels, shown, strict=False):
        assert moved.direction is not None
        image = _as_image(tracking.inputs[moved.layer, moved.direction])
        limit = float(np.abs(image).max()) or 1.0
        if image.ndim == 2:
            ax.imshow(image, cmap="RdBu_r", vmin=-limit, vmax=limit)
            ax.axis("off")
        else:
            ax.bar(range(len(image)), image, color=INK)
            ax.set_xlabel("input", fontsize=8)
        ax.set_title(f"{moved.layer}, {moved.direction}", fontsize=8)
    bottom.suptitle("what the inputs do along these directions", fontsize=10)
    return figure


def _bars(ax: Axes, names: list[str], values: list[float], errors: list[float]) -> None:
    ax.barh(range(len(names)), values, xerr=errors, color=["C0" if v >= 0 else "C3" for v in values], height=0.6)
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.invert_yaxis()
    ax.axvline(0, color=INK, lw=0.8)
    ax.set_xlabel("decades")
    clean(ax)


def _as_image(values: np.ndarray) -> np.ndarray:
    """Two-dimensional where the input is, or where its number is a square of at least 16."""
    flat = values.squeeze()
    if flat.ndim == 3:  # channels first: their mean
        return flat.mean(0)
    side = math.isqrt(flat.size)
    if flat.ndim == 1 and side * side == flat.size and side >= 4:
        return flat.reshape(side, side)
    return flat
