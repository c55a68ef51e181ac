r"""Where the catastrophes lie: the few directions that matter, and the separate places along them.

For u ~ N(0, I) given an event with boundary normals n, E[u | event] is an average of normals (Stein's identity), and across the
span of the normals the law is untouched: so the leading eigenvectors of E[n n^T] are the directions a proposal must fit. Without
gradients the leading eigenvectors of E[u u^T | event] take their place, where they rise above the noise of sampling.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor

MAX_RANK = 8
#: Directions kept must carry this share of the normals.
SMALLEST_SHARE = 0.003
#: Normals further apart than this chord (60 degrees) belong to separate places.
CHORD = 1.0
MAX_PLACES = 12
#: Particles of a chain and draws resampled resemble each other: they count for so many of their number.
INDEPENDENT = 0.25
#: Factor on the edge of the spectrum of noise, whose largest eigenvalue fluctuates about it.
SAFETY = 1.3
#: Share of the normals that the directions kept explain, where so few can.
EXPLAINED = 0.98
#: A cut that leaves less than this share of the variance within its two halves parts two places; a normal law leaves 0.36.
BIMODAL = 0.2


def subspace(
    normals: Float[Tensor, "m d"] | None,
    trust: Float[Tensor, " m"],
    hits: Float[Tensor, "n d"],
    weight: Float[Tensor, " n"],
) -> Float[Tensor, "d r"]:
    """Orthonormal directions that a proposal should fit, most important first.

    Args:
        normals: of the boundary, each counting for `trust` independent ones. hits, weight: used where there are no normals.
    """
    dimension = hits.shape[1]
    if dimension <= MAX_RANK:
        return torch.eye(dimension, dtype=torch.float64, device=hits.device)
    if normals is not None:
        square, rows = _leading(normals)
        explained = (square / square.sum()).cumsum(0)[:MAX_RANK]
        if float(explained[-1]) >= EXPLAINED:  # few directions hold all normals: no noise does that
            return rows[: int((explained < EXPLAINED).sum()) + 1].mT
        square, rows = _leading(trust.sqrt()[:, None] * normals)
        share = square / square.sum()
        # What is left after the leading ones, were it the same in all directions, would still have a largest eigenvalue.
        left = (1 - share.cumsum(0) + share).clamp(min=0.0) / dimension
        edge = SAFETY * left * (1 + math.sqrt(dimension / float(trust.sum()))) ** 2
        telling = (share > edge) & (share >= SMALLEST_SHARE)
        return rows[: max(1, min(MAX_RANK, int(telling.long().cumprod(0).sum())))].mT
    effective = INDEPENDENT * float(1 / weight.square().sum())
    square, rows = _leading(weight.sqrt()[:, None] * hits)
    edge = (1 + math.sqrt(dimension / effective)) ** 2  # of the spectrum of pure noise (Marchenko and Pastur 1967)
    return rows[: max(1, min(MAX_RANK, int((square > edge).sum())))].mT


def _leading(rows: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " all"], Float[Tensor, "k d"]]:
    """All squared singular values, falling, and the leading right singular vectors; by the smaller of the two Gram matrices."""
    wide = rows.shape[0] < rows.shape[1]
    square, vectors = torch.linalg.eigh(rows @ rows.mT if wide else rows.mT @ rows)
    square, vectors = square.flip(0).clamp(min=0.0), vectors.flip(1)[:, :MAX_RANK]
    right = rows.mT @ vectors if wide else vectors
    return square, torch.linalg.qr(right).Q.mT


def gram_distances(features: Float[Tensor, "m k"]) -> np.ndarray:
    """Distances between unit rows, condensed as scipy wants them; by one product, however many columns there are."""
    gram = (features @ features.mT).cpu().numpy()
    return np.sqrt(np.clip(2 - 2 * gram[np.triu_indices(len(gram), 1)], 0.0, None))


def separate(distances: np.ndarray, along: Float[Tensor, "m r"]) -> Int[Tensor, " m"]:
    """Labels of places: first by normals (or directions), then wherever one coordinate of the points falls into two heaps."""
    labels = np.zeros(len(along), dtype=int)
    if len(along) > 1:
        labels = np.unique(fcluster(linkage(distances, "average"), CHORD, "distance"), return_inverse=True)[1]
    along_ = along.cpu().numpy()
    queue, done = [np.flatnonzero(labels == k) for k in range(labels.max() + 1)], []
    while queue:
        members = queue.pop()
        halves = _two_heaps(along_[members])
        if halves is None or len(done) + len(queue) >= MAX_PLACES:
            done.append(members)
        else:
            queue += [members[halves], members[~halves]]
    done = sorted(done, key=len, reverse=True)
    for k, members in enumerate(done):
        labels[members] = min(k, MAX_PLACES - 1)
    return torch.as_tensor(labels, device=along.device)


def _two_heaps(points: np.ndarray) -> np.ndarray | None:
    """The cut at one coordinate that parts the points into two heaps, or None."""
    if len(points) < 16:
        return None
    best, cut = BIMODAL, None
    for column in points.T:
        order = np.sort(column)
        count = np.arange(1, len(order))
        sums, squares = np.cumsum(order)[:-1], np.cumsum(order**2)[:-1]
        left = squares - sums**2 / count
        right = (np.sum(order**2) - squares) - (np.sum(order) - sums) ** 2 / (len(order) - count)
        ratio = (left + right) / max(1e-300, len(order) * order.var())
        ratio[:3] = ratio[-3:] = 1.0
        if ratio.min() < best:
            best, at = ratio.min(), int(ratio.argmin())
            cut = column > (order[at] + order[at + 1]) / 2
    return cut
