r"""Rounds of importance sampling that improve the proposal, each refitted to all draws so far.

Draws of all rounds are weighted against the mixture of all rounds' proposals (deterministic mixture weights; Cornuet et al.
2012, doi:10.1111/j.1467-9469.2011.00756.x), truncated at sqrt(n) times their mean (Ionides 2008,
doi:10.1198/106186008X320456). They serve the fit only; the estimate is made from fresh draws of the last proposal and stays
unbiased.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_risk.engine.explore import with_normals
from ppl_risk.engine.fitting import Evidence, fit_mixture
from ppl_risk.importance.gated import Gated, Points
from ppl_risk.importance.mixture import Mixture
from ppl_risk.importance.pareto import effective_sample_size
from ppl_risk.importance.sampling import log_mean_and_error
from ppl_risk.problem import Meter, RiskProblem

#: Shares of all narrow gates together at first, when a place may have been found and not yet weighed, and later.
FIRST_NARROW, NARROW = 0.4, 0.05
FIRST_INFLATION, INFLATION = 1.3, 1.1
#: Effective hits from which the fit relies on its own draws alone.
PLENTY = 300.0
NORMALS = 48
#: A round whose draws vary less than this (relative to the mean), or improve by less than a tenth, is the last.
GOOD, PATIENCE, GAIN = 0.7, 2, 0.9


class Round(NamedTuple):
    """One round: relative spread of its weights, effective hits of all rounds, log p, places."""

    spread: float
    ess: float
    log_prob: float
    places: float


class _Archive:
    """Draws of all rounds, and the tilt of every round's proposal at each, computed once."""

    def __init__(self) -> None:
        self.rounds: list[tuple[Mixture, Tensor]] = []
        self.points: list[Points] = []
        self.margin: list[Tensor] = []
        self.tilts: list[list[Tensor]] = []

    def add(self, mixture: Mixture, points: Points, shares: Tensor, margin: Tensor) -> None:
        """Draws of a new round."""
        for known, tilts in zip(self.points, self.tilts, strict=True):
            tilts.append(log_tilt(mixture, known, shares))
        self.rounds.append((mixture, shares))
        self.points.append(points)
        self.margin.append(margin)
        self.tilts.append([log_tilt(old, points, of) for old, of in self.rounds])

    def newest(self) -> Tensor:
        """Log weights of the last round against its own proposal."""
        return torch.where(self.margin[-1] >= 0, -self.tilts[-1][-1], -torch.inf)

    def log_weight(self) -> Tensor:
        """Log weights of all rounds against all proposals."""
        sizes = [len(margin) for margin in self.margin]
        parts = []
        for tilts, margin in zip(self.tilts, self.margin, strict=True):
            mixed = [tilt + math.log(n / sum(sizes)) for tilt, n in zip(tilts, sizes, strict=True)]
            parts.append(torch.where(margin >= 0, -torch.stack(mixed).logsumexp(0), -torch.inf))
        return torch.cat(parts)


def log_tilt(mixture: Mixture, points: Points, shares: Tensor) -> Tensor:
    """log q(u) - log N(u; 0, I) of a mixture in the proportions really drawn."""
    return (mixture.log_tilts(points) + shares.log()).logsumexp(-1)


def spread_of(log_weight: Tensor) -> float:
    """Standard deviation of the weights over their mean; infinite where all are zero."""
    log_mean, std_error = log_mean_and_error(log_weight)
    return std_error * math.sqrt(len(log_weight)) if math.isfinite(log_mean) else math.inf


def adapt(
    problem: RiskProblem, evidence: Evidence, meter: Meter, *, draws: int, until: int
) -> tuple[Mixture, list[Round], Evidence]:
    """Refit the proposal round by round.

    Args:
        evidence: what exploration found. meter: counts calls. draws: of each round. until: calls on the meter at which to stop.
    """
    scout = evidence
    mixture = fit_mixture(evidence, inflate=FIRST_INFLATION, narrow=FIRST_NARROW)
    archive, rounds, best, idle = _Archive(), [], math.inf, 0
    while meter.calls + draws + 2 * NORMALS <= until:
        drawn = mixture.sample(draws)
        margin = problem.margin_of_normal(drawn.points.u.to(problem.dtype))
        archive.add(mixture, drawn.points, drawn.shares, margin)
        spread = spread_of(archive.newest())
        log_weight = archive.log_weight()
        hit = torch.isfinite(log_weight)
        ess = effective_sample_size(log_weight)
        total = log_mean_and_error(log_weight)[0]
        rounds.append(Round(spread, ess, total, float(sum(isinstance(law, Gated) for law in mixture.laws) // 2)))
        idle = idle + 1 if spread > GAIN * best else 0
        best = min(best, spread)
        if len(rounds) >= 2 and (spread < GOOD or (idle >= PATIENCE and ess > PLENTY / 3)):
            break
        evidence = _extended(problem, scout, evidence, archive, log_weight, hit, ess)
        mixture = fit_mixture(
            evidence,
            inflate=INFLATION if ess > PLENTY / 3 else FIRST_INFLATION,
            narrow=FIRST_NARROW / 2 if len(rounds) < 2 else NARROW,
        )
    return mixture, rounds, evidence


def _extended(
    problem: RiskProblem,
    scout: Evidence,
    evidence: Evidence,
    archive: _Archive,
    log_weight: Tensor,
    hit: Tensor,
    ess: float,
) -> Evidence:
    """Evidence of all rounds; while these are few, beside what exploration found."""
    u = torch.cat([p.u for p in archive.points])
    outcome = torch.cat(archive.margin) >= 0
    seen, outcome = torch.cat([scout.seen, u]), torch.cat([scout.hit, outcome])
    if not bool(hit.any()):
        return evidence._replace(seen=seen, hit=outcome)
    weight = log_weight[hit].softmax(0)
    weight = weight.clamp(max=math.sqrt(len(weight)) / len(weight))
    weight = weight / weight.sum()
    drawn = u[hit]
    anchors, normals = evidence.anchors, evidence.normals
    chosen = torch.multinomial(weight, min(NORMALS, int((weight > 0).sum())))
    if normals is not None:
        new, new_normals = with_normals(problem, drawn[chosen])
        anchors, normals = torch.cat([anchors, new]), torch.cat([normals, new_normals])
    else:
        anchors = torch.cat([anchors, drawn[chosen]])
    of_anchors = torch.cat([evidence.trust, evidence.trust.new_ones(len(anchors) - len(evidence.anchors))])
    trust = 1.0 if ess > PLENTY else ess / (ess + len(scout.hits) / 4)
    hits, weight = torch.cat([drawn, scout.hits]), torch.cat([trust * weight, (1 - trust) * scout.weight])
    independence = trust + (1 - trust) * scout.independence
    return Evidence(hits[weight > 0], weight[weight > 0], anchors, normals, seen, outcome, of_anchors, independence)
