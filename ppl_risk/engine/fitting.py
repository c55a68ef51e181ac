r"""From what is known of an event to a proposal: the prior, a normal and a ring over all, two gates for each place.

Means and covariances are the weighted moments of the hits along the few directions of `places.subspace`, drawn towards the prior
by a few pseudo-observations; boundaries are those of `boundary.fit_boundary`; shares are those of least variance, above
floors that keep every component alive.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from scipy.spatial import KDTree
from torch import Tensor

from ppl_risk.engine.boundary import fit_boundary, optimal
from ppl_risk.engine.places import gram_distances, separate, subspace
from ppl_risk.importance.gated import Gate, Gated, Points, Tilted
from ppl_risk.importance.mixture import Mixture
from ppl_risk.importance.ring import Ring
from ppl_risk.importance.shares import best_shares

#: Smallest shares: of the prior, of the normal and the ring over all, of all wide gates together.
DEFENSIVE, OVERALL, WIDE = 0.05, 0.01, 0.05
SMALLEST_SCALE, LARGEST_SCALE = 0.1, 2.5
#: Observations of the prior that are mixed into every covariance.
PSEUDO = 3.0
#: A ring needs this many dimensions to run round.
RING_DIMENSIONS = 8
#: Its staircase ends three steps below the boundary, so these are not made too small.
RING_ROUGHNESS = 0.08


class Evidence(NamedTuple):
    """What is known of an event.

    hits (n, d) with weights (n,), sum 1; anchors (m, d), a few hits with the unit normals of the boundary there (None where
    the margin has no gradient); seen (k, d), all points near the event, and whether each is a hit; for how many independent
    ones each anchor counts (m,), and each hit.
    """

    hits: Tensor
    weight: Tensor
    anchors: Tensor
    normals: Tensor | None
    seen: Tensor
    hit: Tensor
    trust: Tensor
    independence: float


def fit_mixture(evidence: Evidence, *, inflate: float, narrow: float) -> Mixture:
    """The proposal.

    Args:
        evidence: what is known. inflate: factor on fitted scales. narrow: smallest share of all narrow gates together.
    """
    hits, weight = Points.of(evidence.hits), evidence.weight
    basis = subspace(evidence.normals, evidence.trust, hits.u, weight)
    empty = torch.zeros(0, dtype=torch.float64, device=basis.device)
    overall = _normal(basis, hits, weight, inflate, evidence.independence)
    laws: list[Tilted] = [Tilted(basis[:, :0], empty, empty), overall]
    seen = Points.of(evidence.seen)
    if overall.others >= RING_DIMENSIONS and (ring := _ring(overall, seen, evidence.hit)) is not None:
        laws.append(ring)
    floor = [DEFENSIVE] + [OVERALL] * (len(laws) - 1)

    along = evidence.anchors @ basis
    features = evidence.normals if evidence.normals is not None else torch.nn.functional.normalize(along, dim=-1)
    labels = separate(gram_distances(features), along)
    tree = KDTree(along.cpu().numpy())

    def place_of(u: Tensor) -> Tensor:
        return labels[torch.as_tensor(tree.query((u @ basis).cpu().numpy())[1], device=labels.device)]

    hit_place, seen_place = place_of(hits.u), place_of(seen.u)
    gates: list[Tilted] = []
    for place in labels.unique().tolist():
        direction = features[labels == place].mean(0)
        direction = direction if evidence.normals is not None else basis @ direction
        if not float(direction.norm()) > 1e-6:
            continue
        mine, near = hit_place == place, seen_place == place
        gated = _gated(
            basis, direction / direction.norm(), evidence.anchors[labels == place],
            Points(hits.u[mine], hits.square[mine]), weight[mine],
            Points(seen.u[near], seen.square[near]), evidence.hit[near], inflate, evidence.independence,
        )  # fmt: skip
        if gated.gate.start <= 0 and len(gates):  # it points away from the event: odd normals at a few hits
            continue
        gates += [gated, gated.widened(max(3 * gated.gate.roughness, 2 / max(1.0, gated.gate.start)))]
    floor += [narrow / max(1, len(gates) // 2), WIDE / max(1, len(gates) // 2)] * (len(gates) // 2)
    laws += gates
    tilt = torch.stack([law.log_tilt(hits) for law in laws], -1)
    return Mixture(laws, best_shares(tilt, weight, torch.tensor(floor, dtype=torch.float64, device=weight.device)))


def _moments(value: Tensor, weight: Tensor, independence: float) -> tuple[Tensor, Tensor, float]:
    """Weighted mean and covariance, the latter drawn towards the identity; and the effective number of observations."""
    share = weight / weight.sum()
    effective = independence * float(1 / share.square().sum())
    mean = share @ value
    cov = (share[:, None] * (value - mean)).mT @ (value - mean)
    eye = torch.eye(value.shape[1], dtype=torch.float64, device=value.device)
    return mean, (effective * cov + PSEUDO * eye) / (effective + PSEUDO), effective


def _axes(cov: Tensor, effective: float, inflate: float) -> tuple[Tensor, Tensor]:
    """Principal axes and scales; where a variance could be that of the prior but for noise, it is taken to be."""
    if cov.shape[0] == 0:
        return cov, cov.diagonal()
    values, vectors = torch.linalg.eigh(cov)
    noise = math.sqrt(cov.shape[0] / max(effective, 1.0))
    likely = (values.sqrt() - 1).abs() <= noise / (1 + noise)
    values = torch.where(likely, 1.0, values.clamp(min=0.0))
    return vectors, inflate * values.sqrt().clamp(SMALLEST_SCALE, LARGEST_SCALE)


def _outside(rest: Tensor, weight: Tensor, others: int, effective: float) -> float:
    """Scale across the subspace, left at 1 unless it is beyond doubt another."""
    if others == 0 or effective < 2:
        return 1.0
    square = float((weight @ rest) / weight.sum()) / others
    doubt = 2.5 * math.sqrt(2 / (others * effective))
    return 1.0 if abs(square - 1) <= doubt else math.sqrt(min(max(square, 0.05), 20.0))


def _normal(basis: Tensor, hits: Points, weight: Tensor, inflate: float, independence: float) -> Tilted:
    """One normal law over all hits."""
    along = hits.u @ basis
    mean, cov, effective = _moments(along, weight, independence)
    axes, scale = _axes(cov, effective, inflate)
    rest = (hits.square - along.square().sum(-1)).clamp(min=0.0)
    outside = _outside(rest, weight, basis.shape[0] - basis.shape[1], effective)
    return Tilted(basis @ axes, axes.mT @ mean, scale, outside)


def _ring(overall: Tilted, seen: Points, hit: Tensor) -> Ring | None:
    """The same along the basis, a gate on the length across it; None where that length does not tell hits from misses."""
    along, rest = overall.coordinates(seen)
    gate = fit_boundary(rest.sqrt(), (along - overall.mean) / overall.scale, None, hit)
    if gate is None:
        return None
    return Ring(
        overall.basis, overall.mean, overall.scale, gate=replace(gate, roughness=max(gate.roughness, RING_ROUGHNESS))
    )


def _gated(
    basis: Tensor, direction: Tensor, anchors: Tensor, hits: Points, weight: Tensor, seen: Points, hit: Tensor,
    inflate: float, independence: float,
) -> Gated:  # fmt: skip
    """One place: across `direction` the moments of its hits, along it the boundary between its hits and its misses."""
    # The direction lies in the span of the basis but for rounding and normals cut off: one dimension fewer is left.
    rank = min(basis.shape[1], basis.shape[0]) - 1
    inside = basis - direction[:, None] * (direction @ basis)
    across = torch.linalg.svd(inside, full_matrices=False).U[:, :rank]
    if len(weight) >= 4 and float(weight.sum()) > 0:
        mean, cov, effective = _moments(hits.u @ across, weight, independence)
        start = float((hits.u @ direction).quantile(0.1))
    else:  # found by the search alone, and nothing is known but where
        mean, cov, effective = (anchors @ across).mean(0), torch.eye(rank).to(basis), 0.0
        start = float((anchors @ direction).min())
    axes, scale = _axes(cov, effective, inflate)
    across, mean = across @ axes, axes.mT @ mean
    law = Gated(
        torch.cat([direction[:, None], across], 1), torch.cat([mean.new_zeros(1), mean]), torch.cat([scale.new_ones(1), scale]),
        gate=Gate(start, 1 / max(1.0, start), torch.zeros_like(mean), torch.zeros_like(mean)),
    )  # fmt: skip
    outside = _outside(law.coordinates(hits)[1], weight, law.others, effective) if effective else 1.0
    along, rest = law.coordinates(seen)
    v, bulge = law.standardised(along, rest)
    fitted = fit_boundary(along[:, 0], v, bulge if law.others else None, hit)
    return Gated(law.basis, law.mean, law.scale, outside, gate=law.gate if fitted is None else optimal(fitted))
