r"""Pictures of mitigation: risk before and after, the trials behind one answer, and the rays that they were read off.

At one input x* a local mitigator has s trials, each an extrapolation v = sum_j l_j f(x* + rho_j (x1 - x*)) to rho = 0. A trial is
*far off* as `Mitigated.examine` counts it,

    |v - g(x*)| > delta Lambda + bar,   Lambda the magnification of the trial,

which is further than a good one can be from a good answer. Only the truth, where it is given, says whether the answer is one.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from torch import Tensor

from ppl_risk.arguments import checked, of_type
from ppl_risk.errors import RiskError
from ppl_risk.mitigation.composition import Composition
from ppl_risk.mitigation.local_answer import LocalAnswer, Trials
from ppl_risk.mitigation.mitigated import BlackBox, Mitigated
from ppl_risk.plots.estimates import BAD, INK, SOUND, WEAK, clean
from ppl_risk.risk_estimate import LOG10

#: Good trials are blue; far off ones, as failures everywhere, red.
GOOD = "C0"
#: Room for the natural, promised and attacked lanes of one model.
LANE = 0.24
#: Points that a ray is drawn through, and how far beyond what is good it is followed, in spans of the good.
DRAWN, BEYOND = 65, 0.35


@checked(composition=of_type(Composition))
def plot_composition(composition: Composition, truth: Any = None, ax: Axes | None = None) -> Axes:
    """log10 P(catastrophe) of every model: on natural inputs, as its card promises, and on attacked inputs.

    A dot is an estimate with its 90 % interval, amber where it is not to be believed alone; a diamond the attacked share with its
    95 % interval. An arrow stands where only an upper bound is known: below it anything is possible. `truth` (nats, or what has a
    `log_prob`) is a line.

    Example:
        >>> from ppl_risk.mitigation import compare_risk, plain
        >>> law = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> ax = plot_composition(compare_risk({"f": lambda x: x[:, 0]}, law, lambda y: y - 1, estimator=plain(1000)))
        >>> [tick.get_text() for tick in ax.get_yticklabels()]
        ['f']

    """
    names = list(composition.natural)
    ax = ax or plt.subplots(figsize=(7, 0.8 * len(names) + 1.7), layout="constrained")[1]
    told = composition.promised
    for row, name in enumerate(names):
        estimate = composition.natural[name]
        low, high = (bound / LOG10 for bound in estimate.interval())
        colour = SOUND if estimate.status.believable else WEAK
        known = math.isfinite(estimate.log_prob) and not estimate.status.is_bound
        _lane(ax, row - LANE, estimate.log10_prob if known else None, low, high, colour, "o")
        if name in told:
            _lane(ax, float(row), None, -math.inf, _log10(told[name]), INK, "")
        if name in composition.attacked:
            found = composition.attacked[name]
            low, high = (_log10(bound) for bound in found.interval)
            at = _log10(found.hits / found.draws) if found.hits else None
            _lane(ax, row + LANE, at, low, high, BAD, "D")
    key = [ax.plot([], [], "o", color=SOUND, ms=7, label="natural inputs")[0]]
    if told:
        key += [ax.plot([], [], "|", color=INK, ms=11, mew=2, label="natural inputs, promised by the card")[0]]
    if composition.attacked:
        key += [ax.plot([], [], "D", color=BAD, ms=6, label="attacked inputs")[0]]
    if truth is not None:
        nats = float(getattr(truth, "log_prob", truth))
        key += [ax.axvline(nats / LOG10, color=INK, lw=1, ls="--", zorder=0, label="truth")]
    # Above the axes: what is inside them is all data.
    ax.legend(
        handles=key, frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.2
    )
    for edge in range(1, len(names)):
        ax.axhline(edge - 0.5, color="#e6e8eb", lw=0.8, zorder=0)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.margins(x=0.08)
    ax.set_xlabel("log10 P(catastrophe)")
    clean(ax)
    return ax


@torch.no_grad()
@checked(mitigated=of_type(Mitigated, hint="A mitigator's mitigate(model) makes one."))
def plot_trials(
    mitigated: Mitigated, x: Float[Tensor, "*one n"], truth: BlackBox | None = None, ax: Axes | None = None
) -> Axes:
    """The values of a local mitigator's trials at one input, sorted, as distances from its answer; the band is the bar.

    The scale is linear within the bar and logarithmic beyond it. Red trials are far off. As long as fewer than half of them are
    bad, the middle one (dotted) is good; the title says how many were presumed to be, and whether what is seen refutes that.

    Args:
        mitigated: of LocalAffine or LocalPolynomial; one that refuses is drawn too.
        x: one input, (n,) or (1, n).
        truth: rows to one number a row, drawn as a line.
        ax: where to draw.

    Raises:
        RiskError: another mitigator, or more than one input.

    Example:
        >>> from ppl_risk.mitigation import Ball, LocalAffine
        >>> g = LocalAffine(Ball(3), epsilon=0.02, delta=0.0).mitigate(lambda x: x.sum(-1))
        >>> plot_trials(g, torch.zeros(3)).get_title()
        '0 % of 25 trials far off, 22 % presumed'

    """
    seen = _seen(mitigated, x)
    ax = ax or plt.subplots(figsize=(5.2, 3.8), layout="constrained")[1]
    away = (seen.trials.values - seen.answer).numpy()
    order = np.argsort(away)
    rank, away, far = np.arange(1, len(away) + 1), away[order], seen.far.numpy()[order]
    scale = seen.bar or max(1e-9, 1e-9 * abs(seen.answer))
    ax.axhspan(-seen.bar, seen.bar, color=GOOD, alpha=0.15, lw=0, label=f"bar, ±{seen.bar:.2g}")
    ax.axhline(0, color=INK, lw=1, label="answer")
    for which, colour, label in ((~far, GOOD, "trials"), (far, BAD, "far off")):
        if which.any():
            ax.plot(rank[which], away[which], "o", color=colour, ms=4, lw=0, label=label)
    if truth is not None:
        ax.axhline(float(truth(x.reshape(1, -1))) - seen.answer, color=SOUND, lw=1.6, ls="--", label="truth")
    ax.axvline((len(away) + 1) // 2, color=INK, lw=0.8, ls=":")
    ax.set_yscale("symlog", linthresh=scale)
    edge = max(3 * scale, 3 * float(np.abs(away).max()))
    ax.set_ylim(-edge, edge)
    _sparse(ax, scale, edge)
    refuted = ", REFUTED" if seen.refuted else ""
    share, presumed = 100 * far.mean(), 100 * seen.presumed
    ax.set_title(f"{share:.0f} % of {len(far)} trials far off, {presumed:.0f} % presumed{refuted}", fontsize=10)
    ax.set_xlabel("trials, sorted")
    ax.set_ylabel("value of a trial − answer")
    ax.legend(frameon=False, fontsize=8, loc="best")
    clean(ax)
    return ax


@torch.no_grad()
@checked(mitigated=of_type(Mitigated, hint="A mitigator's mitigate(model) makes one."))
def plot_rays(
    mitigated: Mitigated, x: Float[Tensor, "*one n"], truth: BlackBox | None = None, ax: Axes | None = None
) -> Axes:
    """What homothetic trials saw: the model at the points asked (dots), and each trial's way from there to the input, at 0.

    A point at rho is x* + rho (x1 - x*). Red rays end far off; those that leave the picture do too. Queries that serve the
    picture alone are put to the model again.

    Args:
        mitigated: of LocalAffine or LocalPolynomial; one that refuses is drawn too.
        x: one input, (n,) or (1, n), that has homothetic trials.
        truth: rows to one number a row, its value a diamond at 0.
        ax: where to draw.

    Raises:
        RiskError: another mitigator, more than one input, or one whose trials are antipodal or along lines.

    Example:
        >>> from ppl_risk.mitigation import Ball, LocalAffine
        >>> g = LocalAffine(Ball(3), epsilon=0.02, delta=0.0).mitigate(lambda x: x.sum(-1))
        >>> len([line for line in plot_rays(g, torch.full((3,), 0.5)).lines if len(line.get_xdata()) == DRAWN])
        25

    """
    seen = _seen(mitigated, x)
    answer = seen.by
    if not bool((seen.trials.magnified == answer.ray.amplification).all()):
        raise RiskError(
            "plot_rays(mitigated, x): the trials at this input are not homothetic, so there are no rays to draw. Take an input "
            'nearer to the edge, or LocalAffine(variant="homothety").'
        )
    ax = ax or plt.subplots(figsize=(5.2, 3.8), layout="constrained")[1]
    rho, start = np.array(answer.ray.nodes), x.double().reshape(1, -1)
    points = start + torch.as_tensor(rho)[:, None, None] * (answer.anchors - start)
    told = answer.oracle(points.flatten(0, 1)).reshape(len(rho), -1).numpy()
    along = np.linspace(0.0, 1.0, DRAWN)
    # Lagrange polynomials of the nodes.
    own = np.eye(len(rho), dtype=bool)
    factors = np.where(own, 1.0, along[:, None, None] - rho) / np.where(own, 1.0, rho[:, None] - rho)
    rays = factors.prod(-1) @ told
    far = seen.far.numpy()
    for ray, asked, bad in zip(rays.T, told.T, far, strict=True):
        ax.plot(along, ray, color=BAD if bad else GOOD, lw=0.8, alpha=0.6, zorder=1 + bool(bad))
        ax.plot(rho, asked, "o", color=BAD if bad else GOOD, ms=3.5, zorder=2 + bool(bad))
    ax.plot(0, seen.answer, "_", color=INK, ms=16, mew=2.4, zorder=4, label="answer")
    if truth is not None:
        ax.plot(0, float(truth(x.reshape(1, -1))), "D", color=SOUND, ms=7, mec="white", zorder=5, label="truth")
    good = np.concatenate([rays[:, ~far].ravel(), [seen.answer]])
    room = BEYOND * max(float(np.ptp(good)), seen.bar, 1e-9)
    ax.set_ylim(good.min() - room, good.max() + room)
    ax.set_xlim(-0.03, 1.03)
    ax.set_xlabel("rho: 0 is the input, 1 a uniform point")
    ax.set_ylabel("model")
    ax.legend(frameon=False, fontsize=8, loc="best")
    clean(ax)
    return ax


class _Seen(NamedTuple):
    by: LocalAnswer
    trials: Trials
    answer: float
    bar: float
    far: Tensor
    refuted: bool
    presumed: float


def _seen(mitigated: Mitigated, x: Tensor) -> _Seen:
    """One input examined, and which of its trials are far off."""
    answer = mitigated.answer
    if not isinstance(answer, LocalAnswer):
        raise RiskError(f"{mitigated.card.method} has no trials to show; LocalAffine and LocalPolynomial have.")
    rows = x.double().reshape(-1, x.shape[-1])
    if len(rows) != 1:
        raise RiskError(f"The trials of one input are shown at a time, (n,) or (1, n); got {tuple(x.shape)}.")
    found, told = answer.trials(rows), answer.examine(rows)
    trials, centre, bar = Trials(found.values[0], found.magnified[0]), float(told.answer), float(told.bar)
    return _Seen(answer, trials, centre, bar, told.far[0], bool(told.refuted), answer.ray.bad)


def _log10(p: float) -> float:
    return math.log10(p) if p > 0 else -math.inf


def _lane(ax: Axes, y: float, at: float | None, low: float, high: float, colour: str, marker: str) -> None:
    """A marker with its interval, or a bar at the bound with an arrow below it."""
    if at is None:
        if math.isfinite(high):
            ax.plot(high, y, "|", color=colour, ms=11, mew=2)
            arrow = {"arrowstyle": "<-", "color": colour, "lw": 1.6}
            ax.annotate("", (high, y), (-28, 0), textcoords="offset points", arrowprops=arrow)
        return
    if math.isfinite(low) and math.isfinite(high):
        ax.plot([low, high], [y, y], color=colour, lw=3, solid_capstyle="round", alpha=0.4)
    ax.plot(at, y, marker, color=colour, ms=7 if marker == "o" else 6)


def _sparse(ax: Axes, scale: float, edge: float) -> None:
    """Ticks at 0 and at a few decades beyond the bar: symlog labels every one."""
    decades = [10.0**k for k in range(math.ceil(math.log10(scale) + 0.3), math.floor(math.log10(edge)) + 1)]
    shown: Any = decades[:: max(1, math.ceil(len(decades) / 4))]
    ax.set_yticks([*(-t for t in reversed(shown)), 0.0, *shown])
    ax.yaxis.set_minor_locator(plt.NullLocator())
