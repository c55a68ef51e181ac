r"""Quantile functions as tables: piecewise polynomials of degree 5 in u that match value, slope and curvature at their knots.

With h the density of g = G(u), G' = phi / h and G'' = G' (-u - G' (log h)'), both exact, so a table costs one inverse a knot.
Quintic Hermite interpolation errs by d^6 max |G^(6)| / 46080 at a distance d of knots. Every other knot is held against the
polynomial of its neighbours, whose error is 64 times as large: a law that is not smooth enough for the tolerance gets twice
the knots, up to `FINE` a unit, and after that its inverse. Laws with the same parameters share one table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

#: A table reaches from -END to END; Phi(-9) = 1e-19.
END = 9.0
#: Knots for one unit of u, at first and at most.
COARSE, FINE = 4, 512
#: Largest error of g by the type of u, absolute where |g| < 1 and relative beyond.
TOLERANCE = {torch.float64: 2e-11, torch.float32: 1e-9}
#: Inverses that may be spent on one batch of laws (some seconds).
LARGEST = 2**22


class Family(NamedTuple):
    """Laws of one number with parameters p, on a scale g: x = value(g).

    `inverse(u, *p)` is g at Phi(u), `density(g, *p)` the logarithm of the density of g and its derivative; NumPy, float64.
    `slope_of_value` is dx/dg. `positive`: x > 0 always.
    """

    name: str
    inverse: Callable[..., np.ndarray]
    density: Callable[..., tuple[np.ndarray, np.ndarray]]
    value: Callable[[Tensor], Tensor]
    slope_of_value: Callable[[Tensor], Tensor]
    positive: bool = True


class Table(NamedTuple):
    """Coefficients of all intervals, (6, intervals); for each law where its own begin and how many go to a unit of u."""

    coefficients: Float[Tensor, "6 intervals"]
    start: Tensor
    dense: Tensor

    def __call__(self, u: Tensor, *, with_slope: bool) -> tuple[Tensor, Tensor | None]:
        """g and, if wanted, dg/du of float64 u, (..., *law); outside of the table the values of its ends."""
        place = u.clamp(-END, END).add_(END).mul_(self.dense)
        # NaN becomes some whole number here, stays NaN in s and so in g.
        below = place.long().clamp_(min=0)
        below = torch.minimum(below, (2 * END * self.dense).long() - 1)
        s = place.sub_(below)
        row = below.add_(self.start).reshape(-1)
        c = [column.index_select(0, row).reshape(u.shape) for column in self.coefficients.unbind(0)]
        slope = None
        if with_slope:
            slope = torch.addcmul(4 * c[4], c[5], s, value=5)
            for k in (3, 2, 1):
                slope = torch.addcmul(k * c[k], slope, s)
            slope.mul_(self.dense)
        g = c[5]
        for k in (4, 3, 2, 1, 0):
            g = c[k].addcmul_(g, s)
        return g, slope


def log_phi(u: np.ndarray) -> np.ndarray:
    """Log density of the standard normal."""
    return -np.square(u) / 2 - np.log(2 * np.pi) / 2


def table_of(family: Family, parameters: Sequence[Tensor], kind: torch.dtype = torch.float64) -> Table | None:
    """The table of a batch of laws; None where there are too many of them, or one that no table holds to `TOLERANCE`.

    Args:
        family: the laws.
        parameters: of one shape, that of the batch, or broadcast to it.
        kind: the type that x is wanted in.
    """
    arrays = np.broadcast_arrays(*(p.detach().cpu().double().numpy() for p in parameters))
    # Of parameters that are one number expanded, or one row of numbers, there is one copy.
    slim = [a[tuple(slice(0, 1) if _repeats(arrays, d) else slice(None) for d in range(a.ndim))] for a in arrays]
    stacked = np.stack([a.ravel() for a in slim], -1)
    tolerance = TOLERANCE.get(kind, TOLERANCE[torch.float32])
    made = _made(family, stacked.tobytes(), stacked.shape[1], tolerance, parameters[0].device)
    if made is None:
        return None
    coefficients, start, dense = made
    shape = slim[0].shape
    return Table(coefficients, start.reshape(shape), dense.reshape(shape))


def _repeats(arrays: Sequence[np.ndarray], dimension: int) -> bool:
    return all(a.strides[dimension] == 0 for a in arrays)


@lru_cache(maxsize=16)
def _made(family: Family, digits: bytes, count: int, tolerance: float, device: torch.device) -> Table | None:
    distinct, place = np.unique(np.frombuffer(digits).reshape(-1, count), axis=0, return_inverse=True)
    start, dense = np.zeros(len(distinct), dtype=np.int64), np.zeros(len(distinct))
    todo, blocks, used, spent = np.arange(len(distinct)), [], 0, 0
    knots = COARSE
    while knots <= FINE:
        spent += len(todo) * (int(2 * END) * knots + 1)
        if spent > LARGEST:
            return None
        coefficients, good = _polynomials(family, distinct[todo].T[..., None], knots, tolerance)
        blocks.append(coefficients[good].reshape(-1, 6))
        intervals = coefficients.shape[1]
        start[todo[good]] = used + intervals * np.arange(int(good.sum()))
        dense[todo[good]] = knots
        used, todo = used + len(blocks[-1]), todo[~good]
        if not len(todo):
            parts = (np.concatenate(blocks).T.copy(), start[place.ravel()], dense[place.ravel()])
            return Table(*(torch.as_tensor(part).to(device) for part in parts))
        knots *= 2
    return None


def _polynomials(family: Family, parameters: np.ndarray, knots: int, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (laws, intervals, 6) with `knots` intervals a unit, and which laws they are good enough for."""
    u = np.linspace(-END, END, int(2 * END) * knots + 1)
    with np.errstate(all="ignore"):
        g = family.inverse(u, *parameters)
        log_h, score = family.density(g, *parameters)
        first = np.exp(log_phi(u) - log_h)
        second = first * (-u - first * score)
        fine = _hermite(g, first, second, 1 / knots)
        # A polynomial over two intervals, at the knot between them.
        coarse = _hermite(g[:, ::2], first[:, ::2], second[:, ::2], 2 / knots)
        middle = coarse @ 0.5 ** np.arange(6)
        error = np.abs(middle - g[:, 1::2]) / np.maximum(1.0, np.abs(g[:, 1::2]))
    return fine, np.isfinite(fine).all((1, 2)) & (error.max(1) / 64 <= tolerance / 4)


def _hermite(g: np.ndarray, first: np.ndarray, second: np.ndarray, width: float) -> np.ndarray:
    """Coefficients in s in [0, 1] of the quintics through value, slope and curvature at both ends."""
    a, b = g[:, :-1], first[:, :-1] * width
    c = second[:, :-1] * width**2 / 2
    rest, slope, bend = g[:, 1:] - a - b - c, first[:, 1:] * width - b - 2 * c, second[:, 1:] * width**2 - 2 * c
    return np.stack(
        [a, b, c, 10 * rest - 4 * slope + bend / 2, -15 * rest + 7 * slope - bend, 6 * rest - 3 * slope + bend / 2], -1
    )
