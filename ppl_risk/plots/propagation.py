"""Pictures of propagated laws: where along a slice the failures lie, and whole tails side by side. In log10, as everywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from ppl_risk.arguments import checked
from ppl_risk.comparison import named_estimates, one_estimate
from ppl_risk.errors import RiskError
from ppl_risk.plots.estimates import BAD, INK, SOUND, clean
from ppl_risk.propagation import PropagatedLaw
from ppl_risk.propagation.slices import Slices
from ppl_risk.risk_estimate import LOG10, RiskEstimate, Status

#: What inputs do is grey, what the slices say is blue, failures are red.
INPUTS, SLICED = "#b9c0c8", "C0"
#: Every so-manieth fine point where two directions are sliced, how many points are drawn, decades of Pr[event | v] shown.
SKIPPED, DRAWN, DECADES = 4, 400, 12.0


@torch.no_grad()
@checked(estimate=one_estimate)
def plot_slices(estimate: RiskEstimate, ax: Axes | None = None) -> Axes:
    """Above: the margin given the sliced direction v, and what one Gaussian presumes of it. Below: where the failures lie.

    A margin of one number is shown by its mean and two standard deviations, of several by log10 Pr[event | v]. Dots are the
    nodes that were propagated; the lower axes are `ax.child_axes[0]`. A second direction is averaged over.

    Raises:
        RiskError: the estimate has no slices.

    Example:
        >>> import ppl_risk as pr
        >>> ax = plot_slices(pr.propagate(pr.load_model("linear_gaussian"), "full", trust=False))
        >>> ax.get_ylabel(), len(ax.child_axes)
        ('margin', 1)
    """
    law = estimate.guide
    if not isinstance(law, PropagatedLaw) or law.slices is None:
        raise RiskError(
            f"plot_slices(estimate): the estimate ({estimate.method}) has no slices to show. Draw one of "
            "pr.propagate(problem, readout='slices') as it comes back, not loaded from a file."
        )
    ax = ax or plt.subplots(figsize=(7, 4.8), layout="constrained")[1]
    slices, axis = law.slices, law.slices.axes[0].cpu()
    v, mean, covariance, log_p, log_mass = _along(slices)
    if not bool(log_mass.isfinite().any()):
        raise RiskError(f"plot_slices(estimate): {estimate.method} sees no failure anywhere along v; use run_smc.")
    # One Gaussian for input and layer: a straight line (least squares over the inputs), and the same spread everywhere.
    share = torch.softmax(-0.5 * v.square(), 0)
    ones = torch.stack([torch.ones_like(v), v], 1)
    straight = ones @ torch.linalg.solve((ones * share[:, None]).mT @ ones, (ones * share[:, None]).mT @ mean)
    away = mean - straight
    spread = torch.einsum("n,nkl->kl", share, covariance + away[..., None] * away[:, None, :])
    if mean.shape[-1] == 1:
        bound = float(slices.event.bounds(0.0, 1)[0])
        shown, straight = (slices.event.sign * (x[:, 0] - bound) for x in (mean, straight))
        _margin(ax, v, shown, covariance[:, 0, 0].sqrt(), straight, float(spread.clamp_min(0.0).sqrt()))
        ax.set_ylabel("distance past the bound" if slices.event.functions else "margin")
    else:
        jitter = 1e-9 * spread.diagonal().amax() * torch.eye(len(spread), dtype=spread.dtype)
        presumed = slices.event.log_prob(straight, (spread + jitter).expand(len(v), -1, -1)) / LOG10
        shown = log_p / LOG10
        _event(ax, v, shown, presumed, float(torch.logsumexp(log_mass, 0)) / LOG10)
    height = np.interp(axis.numpy(), v.numpy(), shown.numpy())
    ax.plot(axis, height, "o", color=SLICED, ms=6, mec="white", zorder=4, label="propagated nodes")
    ax.legend(frameon=False, fontsize=8, loc="best")
    ax.tick_params(labelbottom=False)
    clean(ax)
    _where(ax, v, log_mass)
    # A layout sees what hangs below only from the second drawing on.
    figure: Any = ax.get_figure(root=True)
    figure.draw_without_rendering()
    return ax


@checked(estimates=named_estimates)
def plot_tails(estimates: Mapping[str, RiskEstimate], truth: Any = None, ax: Axes | None = None) -> Axes:
    """log10 Pr[margin > t] of several estimates, refused or not; Monte Carlo as dots, one Gaussian as dashes.

    `plot_survival` leaves out what no one should believe; this one is for seeing why. `truth` (nats, or what has a `log_prob`) is
    a diamond at the event, t = 0.

    Raises:
        RiskError: an estimate without a survival curve.

    Example:
        >>> import ppl_risk as pr
        >>> made = pr.propagate(pr.load_model("linear_gaussian"), "full", trust=False)
        >>> [line.get_label() for line in plot_tails({"slices": made}, truth=-6 * LOG10).lines[:2]]
        ['slices', 'truth']
    """
    without = [n for n, e in estimates.items() if e.survival is None and not isinstance(e.guide, PropagatedLaw)]
    known = [e.survival[0] for e in estimates.values() if e.survival is not None]
    # Counting reaches far below what anyone asks about; where curves are, they say how far to look.
    curves = [e.survival[0] for e in estimates.values() if e.survival is not None and e.hits is None] or known
    if without or not known:
        raise RiskError(
            f"plot_tails(estimates): {', '.join(without) or 'none of them'} {'has' if without else 'with'} no survival curve. "
            "run_smc, monte_carlo and propagate with readout='slices' have one; at least one of those is needed."
        )
    ax = ax or plt.subplots(figsize=(6.4, 3.8), layout="constrained")[1]
    low, high = min(float(t.min()) for t in curves), max(float(t.max()) for t in known)
    floor = 0.0
    for index, (name, estimate) in enumerate(estimates.items()):
        thresholds, log_prob = estimate.survival or _one_law(estimate.guide, np.linspace(low, high, 65))
        seen = np.isfinite(log_prob)
        style: dict[str, Any] = {"color": f"C{index}", "lw": 2}
        if estimate.hits is not None:
            style = {"marker": "o", "ms": 4, "lw": 0, "zorder": 4, "color": INK}
        elif estimate.survival is None or estimate.status is Status.REFUSED:
            style |= {"lw": 1.6, "ls": "--"}
        label = f"{name}, refused" if estimate.status is Status.REFUSED else name
        ax.plot(thresholds[seen], log_prob[seen] / LOG10, label=label, **style)
        if estimate.survival is not None and seen.any():
            floor = min(floor, float(log_prob[seen].min()))
    if truth is not None:
        nats = float(getattr(truth, "log_prob", truth))
        ax.plot(0, nats / LOG10, "D", color=SOUND, ms=7, mec="white", zorder=5, label="truth")
        floor = min(floor, nats)
    ax.axvline(0, color=INK, lw=1, ls=":")
    ax.set_xlim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    ax.set_ylim(floor / LOG10 - 0.6, 0.3)
    ax.set_xlabel("margin threshold t (catastrophe: t = 0)")
    ax.set_ylabel("log10 Pr[margin > t]")
    ax.legend(frameon=False, fontsize=8, loc="lower left")
    clean(ax)
    return ax


def _one_law(law: PropagatedLaw, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Survival as the event's layer has it, one Gaussian without slices."""
    with torch.no_grad():
        return thresholds, np.array([float(law.event.log_prob(*law.prior[:2], float(t))) for t in thresholds])


def _along(slices: Slices) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """v (n,), mean (n, k), covariance (n, k, k), log Pr[event | v] and log mass (n,); a second direction averaged over."""
    every = SKIPPED if len(slices.axes) > 1 else 1
    grid, log_weight, mean, covariance = (x.cpu() for x in slices.conditional(every))
    n, k = len(slices.points()[0][::every]), mean.shape[-1]
    grid = grid.reshape(n, -1, grid.shape[-1])
    share = torch.softmax(-0.5 * grid[0, :, 1:].square().sum(-1), 0)
    log_p = slices.event.log_prob(mean, covariance).reshape(n, -1)
    mass = torch.logsumexp(log_weight.reshape(n, -1) + log_p, 1)
    mean, covariance = mean.reshape(n, -1, k), covariance.reshape(n, -1, k, k)
    centre = torch.einsum("j,njk->nk", share, mean)
    apart = mean - centre[:, None]
    covariance = torch.einsum("j,njkl->nkl", share, covariance + apart[..., None] * apart[..., None, :])
    return grid[:, 0, 0], centre, covariance, torch.logsumexp(log_p + share.log(), 1), mass


def _margin(ax: Axes, v: Tensor, mean: Tensor, sd: Tensor, straight: Tensor, same: float) -> None:
    """Mean and bands of a margin of one number, counted from where the catastrophe begins."""
    skip = max(1, len(v) // DRAWN)
    v, mean, sd, straight = (x[::skip] for x in (v, mean, sd, straight))
    for many, shade in ((2, 0.15), (1, 0.25)):
        label = {1: "±1 sd", 2: "±2 sd"}[many]
        ax.fill_between(v, mean - many * sd, mean + many * sd, color=SLICED, alpha=shade, lw=0, label=label)
    ax.plot(v, mean, color=SLICED, lw=2, label="mean given v")
    ax.plot(v, straight, color=INK, lw=1.2, ls="--", label="one Gaussian: mean, ±2 sd")
    for side in (-2, 2):
        ax.plot(v, straight + side * same, color=INK, lw=0.7, ls=":")
    ax.axhline(0, color=BAD, lw=1.4)
    _label(ax, "catastrophe above this line", -10)


def _event(ax: Axes, v: Tensor, log_p: Tensor, presumed: Tensor, answer: float) -> None:
    """log10 Pr[event | v], and what one Gaussian makes of it."""
    ax.plot(v, log_p, color=SLICED, lw=2, label="Pr[event | v]")
    ax.plot(v, presumed, color=INK, lw=1.2, ls="--", label="one Gaussian layer")
    ax.axhline(0, color=BAD, lw=1.4)
    _label(ax, "certain", 3)
    ax.set_ylim(answer - DECADES, 1.2)
    ax.set_ylabel("log10 Pr[event | v]")


def _label(ax: Axes, text: str, up: int) -> None:
    """At the red line, on the left."""
    place: Any = ("axes fraction", "data")
    ax.annotate(text, (0.01, 0), (0, up), xycoords=place, textcoords="offset points", fontsize=8, color=BAD)


def _where(ax: Axes, v: Tensor, log_mass: Tensor) -> None:
    """Below: the density of all inputs along v, and of those that fail."""
    below = ax.inset_axes((0.0, -0.42, 1.0, 0.36), sharex=ax)
    failing = torch.softmax(log_mass, 0) / float(v[1] - v[0])
    inputs = torch.exp(-0.5 * v.square()) / math.sqrt(2 * math.pi)
    below.fill_between(v, inputs, color=INPUTS, alpha=0.7, lw=0, label="all inputs")
    below.fill_between(v, failing, color=BAD, alpha=0.6, lw=0, label="those that fail")
    below.set_ylim(0, 1.1 * float(torch.maximum(failing, inputs).max()))
    below.set_yticks([])
    below.set_ylabel("density", fontsize=9)
    below.set_xlabel("v, the input along the sliced direction, in standard deviations")
    below.legend(frameon=False, fontsize=8, loc="upper left")
    clean(below)
