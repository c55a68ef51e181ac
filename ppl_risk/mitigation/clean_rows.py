r"""Clean rows: where they enter, which of them can be compared, and whether they are draws from the law they certify for.

A label that is NaN agrees with nothing and differs from nothing; a row outside the set, or from another law than the uniform one,
says nothing of the share of the set on which a model is off; a row that is repeated is one row. So what cannot be compared
fails a premise, repeats count once, and the law is tested: seen from an inner point c, a uniform point x of a convex set of R^n
has depth

    (|x - c| / length of the chord from c through x)^n  ~  U(0, 1),

and its projections on a few fixed directions have the law of those of other uniform points (Kolmogorov and Smirnov). Ours.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from scipy.stats import binom, ks_2samp, kstest
from torch import Tensor

from ppl_risk.errors import RiskError
from ppl_risk.mitigation.card import Premise
from ppl_risk.mitigation.domains import Domain
from ppl_risk.mitigation.wanted import tensor_of

#: Labelled rows as a caller gives them: inputs (m, n) and labels (m,), tensors, arrays or lists.
Samples = tuple[Any, Any]
#: Chance at which rows from the right law are refused.
LEVEL = 1e-6
#: Directions that are looked along, and points they are held against.
DIRECTIONS, POINTS = 4, 4096


class CleanRows(NamedTuple):
    """Rows and labels in float64, all finite; how many were given; the rounding of the types that they came in."""

    x: Tensor
    y: Tensor
    given: int
    x_rounding: float
    y_rounding: float

    def tested(self) -> tuple[Premise, ...]:
        """A failed premise where rows had to be left out, none otherwise."""
        left_out = self.given - len(self.x)
        if not left_out:
            return ()
        told = f"{left_out:,} of {self.given:,} hold NaN or infinity, and so agree with nothing"
        return (Premise("clean rows and labels are finite numbers", False, told),)


def clean_rows(samples: Any, n: int | None = None) -> CleanRows:
    """Clean rows (x, y) as a caller gives them: a pair of tensors, arrays or lists.

    Args:
        samples: rows (m, n) and labels (m,).
        n: numbers a row; None takes any.

    Raises:
        RiskError: for anything but a pair, other shapes, no rows, complex numbers.

    Example:
        >>> clean_rows(([[0.0, 1.0]], [2.0]), 2).y
        tensor([2.], dtype=torch.float64)

    """
    if not isinstance(samples, tuple | list) or len(samples) != 2:
        raise RiskError(
            f"Samples are a pair (x, y) of rows (m, n) and labels (m,), got {type(samples).__name__}"
            f"{f' of {len(samples)}' if isinstance(samples, tuple | list) else ''}."
        )
    x, y = (tensor_of(what, part).detach().cpu() for what, part in zip(("Clean rows", "Labels"), samples, strict=True))
    if x.dim() != 2 or y.shape != x.shape[:1] or len(x) == 0:
        flat = " Give y.flatten()." if x.dim() == 2 and y.shape == (len(x), 1) else ""
        raise RiskError(f"Samples are rows (m, n) and labels (m,), got {tuple(x.shape)} and {tuple(y.shape)}.{flat}")
    if n is not None and x.shape[1] != n:
        raise RiskError(f"Samples are rows (m, {n}) here, got {tuple(x.shape)}: their width is not that of the set.")
    wide, labels = x.double(), y.double()
    usable = torch.isfinite(wide).all(-1) & torch.isfinite(labels)
    return CleanRows(wide[usable], labels[usable], len(x), _rounding(x), _rounding(y))


def distinct(x: Float[Tensor, "m n"], marked: Bool[Tensor, " m"]) -> tuple[int, int]:
    """Of the rows that differ: how many there are, and how many are marked in any of their copies.

    Example:
        >>> distinct(torch.tensor([[1.0], [1.0], [2.0]]), torch.tensor([False, True, False]))
        (2, 1)

    """
    which = torch.unique(x, dim=0, return_inverse=True)[1]
    count = int(which.max()) + 1 if len(x) else 0
    return count, len(which[marked].unique())


def uniform_on(domain: Domain, rows: CleanRows) -> Premise:
    """Whether the rows may be draws from the uniform law on the set."""
    name, x = f"clean rows are draws from the uniform law on {domain}", rows.x
    outside = int((~domain.contains(x, max(1e-6, 4 * rows.x_rounding))).sum())
    if outside:
        return Premise(name, False, f"{outside:,} of {len(x):,} lie outside")
    x = torch.unique(x, dim=0)
    if len(x) < 10:
        return Premise(name, None, f"{len(x)} different rows are too few to test it")
    coins = torch.Generator().manual_seed(0)
    points = domain.sample(POINTS, coins)
    centre = points.mean(0).expand_as(x)
    depths = domain.chord(centre, x - centre)[1].nan_to_num(math.inf).clamp_min(1.0) ** -domain.n
    along = torch.randn(domain.n, DIRECTIONS, generator=coins, dtype=torch.float64)
    least = float(kstest(depths.numpy(), "uniform").pvalue)  # pyright: ignore[reportAttributeAccessIssue]
    for one, other in zip((x @ along).T.numpy(), (points @ along).T.numpy(), strict=True):
        least = min(least, float(ks_2samp(one, other, method="asymp").pvalue))  # pyright: ignore[reportAttributeAccessIssue]
    if least * (DIRECTIONS + 1) < LEVEL:
        told = (
            f"{len(x):,} different rows, p {least * (DIRECTIONS + 1):.1g} (Kolmogorov-Smirnov, depth and projections)"
        )
        return Premise(name, False, told)
    return Premise(name, None, f"depths and projections of {len(x):,} different rows do not speak against it")


def uniform_bits(rows: CleanRows) -> Premise:
    """Whether rows of +-1 may be uniform: how often each bit is -1, exact binomial, Bonferroni over bits."""
    name, (m, n) = "clean rows are uniform bits", rows.x.shape
    low = (rows.x < 0).sum(0)
    fewer = torch.minimum(low, m - low)
    worst = int(fewer.argmin()) if n else 0
    chance = 2 * n * float(binom.cdf(int(fewer[worst]), m, 0.5)) if n else 1.0
    if chance < LEVEL:
        return Premise(name, False, f"bit {worst} is -1 in {int(low[worst]):,} of {m:,} rows, p {chance:.1g}")
    return Premise(name, None, f"single bits of {m:,} rows do not speak against it")


def _rounding(values: Tensor) -> float:
    """Relative, of the type; that of float64 for whole numbers."""
    return torch.finfo(values.dtype if values.is_floating_point() else torch.float64).eps
