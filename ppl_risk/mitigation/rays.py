r"""Where a homothetic trial asks, and with which weights: nodes of [rho, 1] on the segment from x* to a uniform point.

Chebyshev-Lobatto nodes magnify errors least of all nodes of an interval; the smallest rho whose points are bad rarely enough
makes the interval the longest, and so the magnification the smallest. Ours.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq

from ppl_risk.errors import RiskError


class Ray(NamedTuple):
    """A homothetic trial: rho_j ascending, the last may be 1; weights l_j(0); sum |l_j(0)|; the bound q on bad trials."""

    nodes: tuple[float, ...]
    weights: tuple[float, ...]
    amplification: float
    bad: float


def lobatto(rho: float, degree: int) -> np.ndarray:
    """Chebyshev-Lobatto points of [rho, 1], the last one 1; for degree 0 the point rho.

    Example:
        >>> lobatto(0.5, 2).tolist()
        [0.5, 0.75, 1.0]

    """
    if degree == 0:
        return np.array([rho])
    nodes = (1 + rho) / 2 - (1 - rho) / 2 * np.cos(np.pi * np.arange(degree + 1) / degree)
    # To the last bit: the answer at x1 itself is asked once for all inputs.
    nodes[-1] = 1.0
    return nodes


def extrapolation(nodes: np.ndarray) -> np.ndarray:
    """Lagrange weights l_j(0).

    Example:
        >>> extrapolation(np.array([0.5, 1.0])).tolist()
        [2.0, -1.0]

    """
    others = nodes[None, :] - nodes[:, None]
    np.fill_diagonal(others, 1.0)
    top = np.where(np.eye(len(nodes), dtype=bool), 1.0, np.broadcast_to(nodes, others.shape))
    return (top / others).prod(axis=1)


def smallest_ratio(n: int, degree: int, allowed: float) -> float:
    """The rho at which sum_j rho_j^-n is `allowed`: the fewest bad trials that are still too few to matter.

    Raises:
        RiskError: if even rho = 1 asks for more, that is if epsilon is too large.

    """
    if not allowed > degree + 1:
        raise RiskError(
            f"epsilon is too large for degree {degree}: a trial asks {degree + 1} points, and may go wrong with probability "
            f"{allowed:.3g} epsilon only. More repeats raise that; or relearn from clean rows."
        )
    excess = lambda c: np.logaddexp.reduce(-n * np.log(lobatto(math.exp(-c / n), degree))) - math.log(allowed)  # noqa: E731
    c: float = brentq(excess, 1e-12, math.log(allowed) + 1e-9, xtol=1e-12)  # pyright: ignore[reportArgumentType, reportAssignmentType]
    return math.exp(-c / n)


def ray_of(n: int, degree: int, epsilon: float, bad: float) -> Ray:
    """The trial that is bad with probability at most `bad` where the model is off on a share epsilon of the set.

    Raises:
        RiskError: if epsilon is too large for that.

    Example:
        >>> round(ray_of(200, 1, 0.02, 0.22).amplification, 1)
        173.7

    """
    nodes = lobatto(smallest_ratio(n, degree, bad / epsilon), degree)
    weights = extrapolation(nodes)
    share = epsilon * float(np.exp(-n * np.log(nodes)).sum())
    return Ray(tuple(nodes.tolist()), tuple(weights.tolist()), float(np.abs(weights).sum()), share)
