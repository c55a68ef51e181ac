"""Pictures of estimates, in log10 because people read decades. Each takes an optional axes and returns what it drew on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppl_risk.arguments import checked
from ppl_risk.comparison import Comparison, as_comparison, named_estimates, one_estimate
from ppl_risk.diagnostics.correlations import busiest_units, layer_correlation, layer_draws
from ppl_risk.errors import RiskError
from ppl_risk.importance.pareto import USABLE
from ppl_risk.importance.sampling import SMALLEST_ESS
from ppl_risk.risk_estimate import LOG10, RiskEstimate, Status

SOUND, WEAK, BAD, INK = "#1b7f5c", "#c98a12", "#b3392f", "#2b2f36"


def _colour(status: Status) -> str:
    if status.believable:
        return SOUND
    return BAD if status in (Status.NO_HITS, Status.KHAT_HIGH, Status.REFUSED, Status.DEGENERATE) else WEAK


@checked(comparison=as_comparison)
def plot_estimates(comparison: Comparison, ax: Axes | None = None) -> Axes:
    """log10 p of every estimate with its 90 % interval, the truth as a line; an arrow where only a bound is known."""
    ax = ax or plt.subplots(figsize=(7, 0.5 * len(comparison.estimates) + 1.4), layout="constrained")[1]
    names = list(comparison.estimates)
    for row, name in enumerate(names):
        estimate = comparison.estimates[name]
        low, high = (bound / LOG10 for bound in estimate.interval())
        colour = _colour(estimate.status)
        if math.isnan(estimate.log_prob) or estimate.status.is_bound:
            if math.isfinite(high):
                # A bar at the bound with an arrow below it: anything down there is possible.
                ax.plot(high, row, "|", color=colour, ms=12, mew=2)
                arrow = {"arrowstyle": "<-", "color": colour, "lw": 2}
                ax.annotate("", (high, row), (-32, 0), textcoords="offset points", arrowprops=arrow)
            text = estimate.status.name
        else:
            if math.isfinite(low):
                ax.plot([low, high], [row, row], color=colour, lw=3, solid_capstyle="round", alpha=0.5)
            ax.plot(estimate.log10_prob, row, "o", color=colour, ms=7)
            text = "" if estimate.status.believable else estimate.status.name
        at = estimate.log10_prob if math.isfinite(estimate.log10_prob) else high
        if text and math.isfinite(at):
            ax.annotate(text, (at, row), (6, 7), textcoords="offset points", fontsize=8, color=colour)
        elif text:
            ax.annotate(text, (0.02, row), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=colour)
    if comparison.truth is not None and math.isfinite(comparison.truth):
        ax.axvline(comparison.truth / LOG10, color=INK, lw=1, ls="--", label="truth", zorder=0)
        ax.legend(loc="best", frameon=False)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.margins(x=0.15)
    ax.set_xlabel("log10 P(catastrophe), 90 % interval")
    clean(ax)
    return ax


@checked(estimates=named_estimates)
def plot_survival(estimates: Mapping[str, RiskEstimate], ax: Axes | None = None) -> Axes:
    """Survival curve log10 Pr[margin > t] up to the event at t = 0, for estimates that pass through it."""
    ax = ax or plt.subplots(figsize=(6, 3.6), layout="constrained")[1]
    drawn = False
    for index, (name, estimate) in enumerate(estimates.items()):
        # A run that got lost on the way has a curve that would hide the others; so has a guide's own law.
        lost = math.isnan(estimate.log_prob) and estimate.hits is None
        if estimate.survival is None or lost or estimate.status is Status.MODEL_ONLY:
            continue
        thresholds, log_prob = estimate.survival
        # Counting is drawn as points on top, a run of levels as a line.
        style = {"marker": "o", "ms": 3.5, "lw": 0, "zorder": 3} if estimate.hits is not None else {"lw": 2}
        ax.plot(thresholds, log_prob / LOG10, color=f"C{index}", label=name, **style)
        drawn = True
    if not drawn:
        raise RiskError("None of these estimates has a survival curve; run_smc and monte_carlo have.")
    ax.axvline(0, color=INK, lw=1, ls="--")
    ax.annotate(
        "catastrophe", (0, 1), (4, -10), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=8
    )
    ax.set_xlabel("margin threshold t")
    ax.set_ylabel("log10 Pr[margin > t]")
    ax.legend(frameon=False)
    clean(ax)
    return ax


@checked(estimates=named_estimates)
def plot_correlations(estimates: Mapping[str, RiskEstimate], most: int = 12) -> Figure:
    """Correlations between units of all layers given catastrophe, one panel an estimate, on the same units.

    A guide is shown by its own law, SMC by its posterior; the units are those that vary most in the last estimate.
    """
    draws = {name: layer_draws(estimate) for name, estimate in estimates.items()}
    shared = set.intersection(*(set(d) for d in draws.values()))
    reference = list(draws.values())[-1]
    units = busiest_units({layer: v for layer, v in reference.items() if layer in shared}, most)
    figure, axes = plt.subplots(
        1, len(draws), figsize=(3.6 * len(draws) + 0.8, 3.9), layout="constrained", squeeze=False
    )  # fmt: skip
    for ax, (name, values) in zip(axes[0], draws.items(), strict=True):
        found = layer_correlation(values, units)
        image = ax.imshow(found.matrix, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
        starts = [start for _, start in found.layers] + [len(found.matrix)]
        for start in starts[1:-1]:
            ax.axhline(start - 0.5, color=INK, lw=0.8)
            ax.axvline(start - 0.5, color=INK, lw=0.8)
        middles = [(a + b - 1) / 2 for a, b in pairwise(starts)]
        names = [layer for layer, _ in found.layers]
        ax.set_xticks(middles, names, fontsize=8)
        ax.set_yticks(middles, names, fontsize=8)
        ax.tick_params(length=0)
        ax.set_title(name, fontsize=10)
    figure.colorbar(image, ax=axes[0], label="correlation given catastrophe", shrink=0.85)
    return figure


@checked(comparison=as_comparison)
def plot_lights(comparison: Comparison, ax: Axes | None = None) -> Axes:
    """Traffic lights of the diagnostics: k-hat, effective draws, relative error, status."""
    ax = ax or plt.subplots(figsize=(5.4, 0.42 * len(comparison.estimates) + 1.0), layout="constrained")[1]
    columns = ("k-hat", "ESS", "relative error", "status")
    for row, estimate in enumerate(comparison.estimates.values()):
        lights = (
            _light(estimate.evidence.get("k_hat", math.nan), 0.5, USABLE, smaller=True),
            _light(estimate.evidence.get("ess", math.nan), 4 * SMALLEST_ESS, SMALLEST_ESS, smaller=False, form=".0f"),
            _light(estimate.std_error, 0.1, 0.5, smaller=True),
            (_colour(estimate.status), estimate.status.name),
        )
        for column, (colour, text) in enumerate(lights):
            ax.plot(column, row, "o", ms=11, color=colour)
            ax.annotate(text, (column, row), (10, 0), textcoords="offset points", va="center", fontsize=8, color=INK)
    ax.set_xticks(range(len(columns)), columns)
    ax.xaxis.tick_top()
    ax.set_yticks(range(len(comparison.estimates)), list(comparison.estimates))
    ax.set_xlim(-0.4, len(columns) - 0.1)
    ax.set_ylim(len(comparison.estimates) - 0.4, -0.6)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def _light(value: float, good: float, limit: float, *, smaller: bool, form: str = ".2f") -> tuple[str, str]:
    if math.isnan(value):
        return "#d5d8dc", "-"
    if value == -math.inf:
        return SOUND, "light"
    sign = 1 if smaller else -1
    colour = SOUND if sign * value <= sign * good else WEAK if sign * value <= sign * limit else BAD
    return colour, format(value, form)


@checked(comparison=as_comparison)
def plot_overview(comparison: Comparison) -> Figure:
    """One page: estimates, survival curves where there are such, and lights."""
    rows = len(comparison.estimates)
    curves = any(e.survival is not None and not math.isnan(e.log_prob) for e in comparison.estimates.values())
    height = 0.42 * rows + 1.6
    figure, axes = plt.subplots(
        3 if curves else 2, 1, figsize=(8, 2 * height + (3.4 if curves else 0)), layout="constrained",
        height_ratios=[height, 3.4, height] if curves else [1, 1],
    )  # fmt: skip
    plot_estimates(comparison, axes[0])
    if curves:
        plot_survival(comparison.estimates, axes[1])
    plot_lights(comparison, axes[-1])
    return figure


@checked(estimate=one_estimate)
def plot_fit(estimate: RiskEstimate, ax: Axes | None = None) -> Axes:
    """The ELBO over the steps of a fit."""
    loss: Any = estimate.history.get("svi_history", {}).get("loss")
    if loss is None:
        raise RiskError(f"{estimate.method} was not fitted by SVI, so it has no ELBO to show.")
    ax = ax or plt.subplots(figsize=(6, 3), layout="constrained")[1]
    elbo = -np.asarray(loss) / LOG10
    ax.plot(elbo, color="C0", lw=0.8)
    ax.axhline(estimate.log10_prob, color=INK, ls="--", lw=1)
    ax.annotate("corrected log10 p", (0, estimate.log10_prob), (4, 4), textcoords="offset points", fontsize=8)
    tail = elbo[len(elbo) // 5 :]
    if np.isfinite(tail).any():
        ax.set_ylim(float(np.nanmin(tail)) - 1, max(float(np.nanmax(elbo)), estimate.log10_prob) + 2)
    ax.set_xlabel("step (a scout goes first where the coordinates are activations)")
    ax.set_ylabel("ELBO, decades")
    clean(ax)
    return ax


def clean(ax: Axes) -> None:
    """No frame above and right, a light grid."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="x", color="#e6e8eb", lw=0.8)
    ax.set_axisbelow(True)
