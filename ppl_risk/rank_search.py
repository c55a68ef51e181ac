"""How many directions to carry: the smallest rank from which on the guide's tail stops moving, with the evidence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ppl_risk.arguments import checked
from ppl_risk.errors import RiskError
from ppl_risk.guides import Selected
from ppl_risk.layerwise import fit_layerwise
from ppl_risk.problem import RiskProblem
from ppl_risk.risk_estimate import LOG10, RiskEstimate
from ppl_risk.selection import Selection, select


@dataclass(frozen=True, repr=False)
class RankSearch:
    """What `choose_rank` returns; printing it shows every rank that was tried, `plots.plot_ranks` draws it.

    Attributes:
        selection: cut at the chosen rank. estimates: rank -> layerwise estimate. tolerance: decades that count as standing
            still, beyond two joint standard errors. settled: whether any rank before the last qualified.
    """

    selection: Selection
    estimates: dict[int, RiskEstimate]
    tolerance: float
    settled: bool

    @property
    def rank(self) -> int:
        """The chosen rank."""
        return self.selection.rank

    @property
    def estimate(self) -> RiskEstimate:
        """The estimate at the chosen rank."""
        return self.estimates[self.rank]

    def __repr__(self) -> str:
        """One line a rank, and what follows."""
        lines = [f"{'rank':>6}  {'log10 p':>8}  {'moved by':>8}  {'of training':>11}"]
        before = math.nan
        for rank, estimate in self.estimates.items():
            ratio = estimate.training_ratio
            cost = "-" if ratio is None else f"{ratio:.3f}"
            moved = estimate.log10_prob - before
            lines.append(
                f"{rank:>6}  {estimate.log10_prob:>8.2f}  {'' if math.isnan(moved) else f'{moved:+.2f}':>8}  {cost:>11}"
                + ("  <- chosen" if rank == self.rank else "")
            )
            before = estimate.log10_prob
        verdict = (
            f"Rank {self.rank}: from there on the tail moves by no more than {self.tolerance:g} decades and its noise."
            if self.settled
            else "The tail was still moving at the largest rank: try larger ones, or another source."
        )
        return "\n".join([*lines, verdict])


@checked()
def choose_rank(
    problem: RiskProblem,
    selection: Selection | None = None,
    *,
    ranks: Sequence[int] | None = None,
    tolerance: float = 0.05,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> RankSearch:
    """Fit at growing ranks until the tail stands still twice in a row, and take the smallest rank that agrees with the last.

    Args:
        problem: the problem. selection: its directions, default `select(problem)`.
        ranks: to try, growing; default 1, 2, 4, ... up to the widest layer.
        tolerance: decades. seed: the same for every rank, so that they differ by rank alone.
        progress: show bars. options: passed to `fit_layerwise`.

    Raises:
        RiskError: fewer than two ranks, or ranks that do not grow.

    Example:
        >>> from ppl_risk.zoo import load_model
        >>> choose_rank(load_model("linear_gaussian", log10_prob=-2), draws=20_000, progress=False).rank
        1
    """
    selection = select(problem, seed=seed) if selection is None else selection
    widest = max(layer.width for layer in selection.layers)
    if ranks is None:
        ranks = [2**k for k in range(max(1, widest - 1).bit_length() + 1)]
    if len(ranks) < 2 or any(b <= a for a, b in pairwise(ranks)):
        raise RiskError(f"ranks must be at least two and grow, got {list(ranks)}.")
    found: dict[int, RiskEstimate] = {}
    still = 0
    for rank in ranks:
        found[rank] = fit_layerwise(problem, Selected(selection.at(rank)), seed=seed, progress=progress, **options)
        tried = list(found.values())
        still = still + 1 if len(tried) > 1 and _agree(tried[-2], tried[-1], tolerance) else 0
        if still == 2:
            break
    last = found[max(found)]
    chosen = max(found)
    for rank in sorted(found, reverse=True):
        if not _agree(found[rank], last, tolerance):
            break
        chosen = rank
    return RankSearch(selection.at(chosen), found, tolerance, chosen != max(found))


def _agree(a: RiskEstimate, b: RiskEstimate, tolerance: float) -> bool:
    """Whether two tails differ by no more than the tolerance and two joint standard errors; an unseen tail agrees with none."""
    noise = 2 * math.hypot(a.std_error, b.std_error) / LOG10
    return abs(a.log10_prob - b.log10_prob) <= tolerance + (noise if noise == noise else 0.0)
