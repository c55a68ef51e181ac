"""Finding the event: a few draws of the prior, searches along gradients or rays, and the climbs of the second route."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ppl_risk.engine.climbs import Climbs
from ppl_risk.engine.fitting import Evidence
from ppl_risk.engine.places import INDEPENDENT, MAX_RANK, gram_distances, separate, subspace
from ppl_risk.engine.search import Found, nearest_catastrophes, unit_normals
from ppl_risk.problem import RiskProblem

#: Searches by gradient, the steps of each, and how many start from the best draws instead of any.
STARTS, STEPS, BEST_STARTS = 40, 12, 8
#: Radii of a search along a ray, and how far out it goes.
RAY_STEP, RAY_END = 0.5, 8.0
#: Hits at which the normal of the boundary is asked for.
ANCHORS = 96
#: Searched points this much further out than the nearest do not matter: e^{-r^2/2} there is below 1e-4 of its value.
MARGIN_OF_DISTANCE = 2.0
#: The same along rays, which meet the event anywhere and not where it is nearest.
MARGIN_OF_RAYS = 0.75
#: Below this many hits of SMC, points made from the searched ones stand beside them.
FEW, COPIES = 40, 8
#: Directions of the searched normals smaller than this share of the largest are rounding.
SMALLEST_PART = 0.05
#: Searched points from which the directions are taken from them alone.
ENOUGH_FOUND = 8


class Pilot(NamedTuple):
    """Draws of the prior with their margins."""

    u: Tensor
    margin: Tensor


def search(problem: RiskProblem, pilot: Pilot, calls: int) -> Found:
    """Nearest catastrophes by gradients: from the best draws of the pilot, from any, and from any at twice the length.

    Further out other parts of the margin lead than near the middle: a place that few draws point to is found from there.
    """
    best = pilot.margin.topk(min(BEST_STARTS, len(pilot.u))).indices
    others = pilot.u[: STARTS - len(best)]
    starts = torch.cat([pilot.u[best], others[::2], 2 * others[1::2]])
    return nearest_catastrophes(problem, starts, steps=STEPS, calls=calls)


def search_rays(
    problem: RiskProblem, trail: Float[Tensor, "n d"], hits: Float[Tensor, "m d"], calls: int
) -> Found:  # fmt: skip
    """First catastrophes along rays, where there is no gradient to follow: in the directions of particles, and in any.

    SMC forgets places on its way up, one resampling after the other; its early levels still knew them. In many dimensions the rays
    stay within the few along which the catastrophes known lie.
    """
    basis = torch.eye(trail.shape[1], dtype=trail.dtype, device=trail.device)
    if trail.shape[1] > MAX_RANK:
        if len(hits) < MAX_RANK:
            return Found(trail[:0], None)
        weight = torch.full((len(hits),), 1 / len(hits), dtype=hits.dtype, device=hits.device)
        basis = subspace(None, weight, hits, weight)
    radii = torch.arange(1.0, RAY_END + RAY_STEP, RAY_STEP, dtype=trail.dtype, device=trail.device)
    number = max(2, calls // len(radii))
    some = trail[torch.randperm(len(trail), device=trail.device)[: 8 * number]] @ basis
    seen = torch.nn.functional.normalize(some, dim=-1)
    labels = separate(gram_distances(seen), seen)
    # One ray for each place, as many again in the directions of other particles, and the rest in any direction.
    first = torch.stack([seen[(labels == k).nonzero()[0, 0]] for k in labels.unique().tolist()])
    anywhere = torch.nn.functional.normalize(
        torch.randn(number, basis.shape[1], dtype=trail.dtype, device=trail.device), dim=-1
    )
    rays = torch.cat([first, seen[: len(first)], anywhere])[:number] @ basis.mT
    points = rays[:, None] * radii[:, None]
    hit = (problem.margin_of_normal(points.flatten(0, 1).to(problem.dtype)) >= 0).view(len(rays), len(radii))
    reached = hit.any(-1)
    return Found(points[reached, hit[reached].long().argmax(-1)], None)


def first_evidence(problem: RiskProblem, pilot: Pilot, climbs: Climbs, found: Found) -> Evidence | None:
    """What is known before the first proposal; None where nothing has been hit."""
    hits = torch.cat([pilot.u[pilot.margin >= 0], climbs.final])
    weight = torch.ones(len(hits), dtype=torch.float64, device=hits.device)
    some = hits[torch.randperm(len(hits), device=hits.device)[:ANCHORS]]
    anchors, normals = some, None
    if found.normal is not None:
        anchors, normals = with_normals(problem, some)
        if not len(anchors) and not len(
            found.u
        ):  # the margin is flat in the event: places without normals, as for steps
            anchors, normals, found = some, None, Found(found.u, None)
    # Directions chosen by SMC's own particles would be those along which these, being few, happen to spread.
    apart = INDEPENDENT if len(found.u) < ENOUGH_FOUND else 0.0
    trust = torch.full((len(anchors),), apart, dtype=torch.float64, device=hits.device)
    if len(found.u):
        further = MARGIN_OF_RAYS if found.normal is None else MARGIN_OF_DISTANCE
        near = found.u.norm(dim=-1) < found.u.norm(dim=-1).min() + further
        normal = None if found.normal is None else found.normal[near]
        anchors, trust = torch.cat([anchors, found.u[near]]), torch.cat([trust, trust.new_ones(int(near.sum()))])
        normals = None if normals is None or normal is None else torch.cat([normals, normal])
        if len(hits) < FEW:
            made, chance = _typical(found.u[near], normal)
            hits, weight = torch.cat([hits, made]), torch.cat([weight, chance])
    if not len(anchors):
        return None
    seen = torch.cat([pilot.u, climbs.seen])
    outcome = torch.cat([pilot.margin >= 0, climbs.hit])
    return Evidence(hits, weight / weight.sum(), anchors, normals, seen, outcome, trust, INDEPENDENT)


def with_normals(problem: RiskProblem, u: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "m d"], Float[Tensor, "m d"]]:
    """The points at which the boundary has a normal, and the normals. Spends two calls a point."""
    if not len(u):
        return u, u
    normal = unit_normals(problem.margin_and_gradient(u.to(problem.dtype))[1])
    steep = normal.abs().sum(-1) > 0
    return u[steep], normal[steep]


def _typical(u: Tensor, normal: Tensor | None) -> tuple[Float[Tensor, "m d"], Float[Tensor, " m"]]:
    """Nearest points are not typical ones: noise across the normals is put back. With weights Pr[N(0, 1) > distance], sum `FEW`."""
    chance = torch.special.log_ndtr(-u.norm(dim=-1))
    u, chance = u.repeat(COPIES, 1), (chance - chance.max()).exp().repeat(COPIES)
    if normal is not None:
        _, size, rows = torch.linalg.svd(normal, full_matrices=False)
        across = rows[:MAX_RANK][size[:MAX_RANK] > SMALLEST_PART * size[0]].mT
        noise = torch.randn_like(u)
        u = u + noise - (noise @ across) @ across.mT
    return u, FEW * chance / chance.sum()
