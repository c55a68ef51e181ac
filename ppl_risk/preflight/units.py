r"""In which units to look for the event: those of the margin, or those in front of its last sigmoid, tanh, softmax or clamp.

Where margin = g(w) with g monotone and g(c) = 0, `saturation.unsaturated` knows w and c. Searches and levels need slopes that are
of a size between the law and the event, so w is taken where the slope of g at c and that at the law's own draws differ by more
than `UNEVEN`. And where g takes only a few values around c it has run out of digits: the event begins where rounding puts it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_risk.errors import RiskError
from ppl_risk.problem import RiskProblem
from ppl_risk.saturation import unsaturated
from ppl_risk.saturation.watched import Chain, Watch, chain_of, rises

#: Ratio of slopes, either way, from which the other units are taken.
UNEVEN = 100.0
#: Points on each side of c, how far out in spreads of w, and different values of g below which it has no digits there.
POINTS, NEAR, FEWEST_VALUES = 32, 0.1, 8


class Units(NamedTuple):
    """The problem in the units to work in, whether the margin is rounded off at its threshold, and the rows this took."""

    problem: RiskProblem
    coarse: bool
    calls: int


def units_of(problem: RiskProblem, watch: Watch, margin: Tensor) -> Units:
    """Units to work in, from one batch of margins that ran under `watch`."""
    calls = chain_of(watch, margin)
    if not calls:
        return Units(problem, False, 0)
    with problem.metered() as meter:
        try:
            found = unsaturated(problem)
        except (RuntimeError, TypeError, RiskError):
            found = None
    same = Units(problem, False, meter.calls)
    if found is None:
        return same
    found.__dict__["_row_cost"] = problem._row_cost  # a row costs the same; looking once more would be a row unbooked
    try:
        w = Chain(calls, rises=tuple(rises(call) for call in calls)).before().flatten()
        w = w[torch.isfinite(w)]
        spread, c = float(w.std()), found.bound
        if not (math.isfinite(spread) and spread > 0):
            return same
        at_law, at_event, coarse = _slopes(Chain(calls), w, c, NEAR * spread)
    except (RiskError, RuntimeError, TypeError):
        return same
    even = at_law <= UNEVEN * at_event and at_event <= UNEVEN * at_law
    return Units(problem if even and not coarse else found, coarse, meter.calls)


def _slopes(g: Chain, w: Tensor, c: float, step: float) -> tuple[float, float, bool]:
    """Slopes of g at the law's draws (median) and at the event (the flatter side of c), and whether g is a few values there."""
    out = torch.linspace(0.0, step, POINTS + 1, dtype=w.dtype, device=w.device)
    above, below = g.on_number(c + out), g.on_number(c - out)
    at_event = min(float((side[-1] - side[0]).abs()) for side in (above, below)) / step
    at_law = float((g.on_number(w + step) - g.on_number(w - step)).abs().median()) / (2 * step)
    return at_law, at_event, max(len(above.unique()), len(below.unique())) < FEWEST_VALUES
