"""A last look, when a method is done: the rows that preflight ran first are run once more.

A network that counts its calls, warms up or adapts answers otherwise at the end than at the start. Nothing can tell beforehand,
and every number then mixes two networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_risk.parallel.chain import tried_twice
from ppl_risk.preflight.checks import TOLERANCE
from ppl_risk.preflight.margins import saturated
from ppl_risk.preflight.units import Units
from ppl_risk.problem import RiskProblem
from ppl_risk.risk_estimate import RiskEstimate, Status

SATURATED_REMEDY = (
    "Near the threshold the margin takes a few values only: it saturates. Return what stands in front of its last sigmoid, tanh or "
    "softmax (the logit) and put the threshold there, or use double precision."
)


class FirstLook(NamedTuple):
    """What preflight saw first: rows (n, *event), their margins (n,), the calls that preflight took, the units to work in."""

    rows: Tensor
    margin: Tensor
    calls: int
    units: Units


@contextmanager
def unseen_by_meters(problem: RiskProblem) -> Iterator[None]:
    """Calls inside the block are booked nowhere."""
    meters, problem._meters = problem._meters, []
    try:
        yield
    finally:
        problem._meters = meters


def last_look(estimate: RiskEstimate, problem: RiskProblem, first: FirstLook, met: Tensor) -> RiskEstimate:
    """The estimate as it may be shown: refused where the first rows have other margins by now, doubted where the margin saturates.

    The rows are run in one batch as they were, so that rounding agrees; what is tolerated is what `check` tolerates between
    batches, 1e-4 of the margins' spread. No meter sees them.

    Args:
        estimate: what the method found. problem: the problem. first: what `require_sound` returned.
        met: margins that the method met, those near the event among them.
    """
    with unseen_by_meters(problem), torch.no_grad():
        now = tried_twice(problem, lambda: problem.margin(first.rows.clone()), "The last look")
    finite = first.margin[torch.isfinite(first.margin)].double()
    scale = max(float(finite.std()), float(finite.abs().max()) * 1e-2, 1e-300) if len(finite) > 1 else 1.0
    apart = (now != first.margin) & ~((now - first.margin).abs() <= TOLERANCE * scale)
    if not bool(apart.any()):
        # In the network's own precision: some methods keep margins in double.
        scale = float(finite.abs().max()) if len(finite) else 1.0
        coarse = first.units.coarse or (first.units.problem is problem and saturated(met.to(first.margin), scale))
        doubted = coarse and estimate.status.believable
        return replace(estimate, status=Status.SATURATED, remedy=SATURATED_REMEDY) if doubted else estimate
    return replace(
        estimate,
        log_prob=math.nan,
        std_error=math.nan,
        hits=None,
        status=Status.REFUSED,
        remedy=(
            f"The network changed while it was asked: of the first {len(now)} inputs {int(apart.sum())} have other margins now "
            "than at the start. It keeps state from call to call (a counter, a cache, running statistics); make the answer "
            "depend on the input alone."
        ),
    )
