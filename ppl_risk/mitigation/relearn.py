r"""The honest baselines: leave the poisoned model alone and learn again, or refit it robustly.

With all p = C(n + d, d) monomials of total degree at most d as the columns of A (rows, p), in float64:

| name | fit | what it sees |
| --- | --- | --- |
| relearn_affine, relearn_polynomial | min |A w - y|^2 | clean rows only: no backdoor reaches it |
| ridge > 0 | min |A w - y|^2 + ridge |w|^2 | the same; ridge = 0 is the fit of least |w| |
| relearn_affine_robust | min sum rho((A w - y) / scale) (Huber 1964) | queries to the poisoned model only |

Huber's rho is quadratic up to 1.345 and linear beyond (95 % efficiency at a normal law); the scale is the median absolute residual
over .6745, and weights min(1, 1.345 scale / |r|) are iterated until the fit stands still. SciPy's least_squares arrives at the same
fit for a given scale at some seven times the cost.

None promises anything of one input x. What least squares on clean rows has is that the model has no part in it. What the robust
refit has is neither: a model that is tilted within its bars, h + n delta (1 - sum x_i) on the simplex, is itself affine and is
refitted as it stands. For n <= 200 it is, nonetheless, often closer than a mitigator, and so it stands beside every one.
Baselines and their cards are ours, not the paper's.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ppl_risk.errors import RiskError
from ppl_risk.mitigation.advice import ROWS_PER_COEFFICIENT, advise
from ppl_risk.mitigation.card import GuaranteeCard, Premise
from ppl_risk.mitigation.clean_rows import Samples, clean_rows
from ppl_risk.mitigation.domains import Domain
from ppl_risk.mitigation.mitigated import BlackBox, Mitigated, Oracle
from ppl_risk.mitigation.monomials import Polynomial, monomial_index, monomials
from ppl_risk.mitigation.wanted import coins, number, whole

#: Where Huber's loss turns from square to straight, in scales.
TURN = 1.345
#: Most numbers in a matrix of monomials: 2 GiB.
LARGEST = 2**28
#: Most rounds of reweighting.
ROUNDS = 500


def relearn_affine(samples: Samples, *, ridge: float | None = None) -> Mitigated:
    """Least squares of an affine function on clean rows: `relearn_polynomial` of degree 1.

    Example:
        >>> x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
        >>> relearn_affine((x, 1 + x.sum(-1))).answer.coefficients.round(decimals=4).tolist()
        [1.0, 1.0, 1.0, 1.0]

    """
    return relearn_polynomial(samples, 1, ridge=ridge)


def relearn_polynomial(samples: Samples, degree: int, *, ridge: float | None = None) -> Mitigated:
    """Least squares of a polynomial of a total degree on clean rows.

    Args:
        samples: clean rows (x, y).
        degree: largest total degree, at least 1.
        ridge: penalty on the squares of the coefficients, 0 for the fit of least norm; None wants rows that determine the fit.

    Raises:
        RiskError: rows of another shape or not finite; rows that do not determine the fit, unless ridge is given; more
            monomials than fit into memory.

    Example:
        >>> x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> relearn_polynomial((x, x[:, 0] * x[:, 1]), 2).answer.coefficients.abs().round(decimals=6).tolist()
        [0.0, 0.0, 0.0, 0.0, 1.0, 0.0]

    """
    whole("degree", degree, least=1)
    rows = clean_rows(samples)
    x, y = rows.x, rows.y
    if rows.tested():
        raise RiskError(
            f"The clean rows hold NaN or infinity: {rows.given - len(x):,} of {rows.given:,}. Leave those rows out."
        )
    if ridge is not None:
        number("ridge, None or 0 for the fit of least norm,", ridge, 0.0, with_low=True)
    m, n = x.shape
    p = math.comb(n + degree, degree)
    if m * p > LARGEST:
        raise RiskError(
            f"{m:,} rows of {p:,} monomials take {8 * m * p / 2**30:.3g} GiB, and {8 * LARGEST / 2**30:.3g} is the most. "
            "Lower the degree."
        )
    if m < p and ridge is None:
        raise RiskError(
            f"{m:,} clean rows cannot determine {p:,} coefficients of degree {degree} in {n} inputs. Give "
            f"{ROWS_PER_COEFFICIENT * p:,} rows, or ridge=0.0 for the fit of least norm."
        )
    index = monomial_index(n, degree)
    a, label = monomials(x.double(), index), y.double()
    if ridge:
        # w = A'(A A' + ridge)^-1 y = (A'A + ridge)^-1 A'y: the smaller of the two systems.
        gram = a @ a.mT if m < p else a.mT @ a
        root = torch.linalg.cholesky(gram + ridge * torch.eye(len(gram), dtype=gram.dtype))
        right = label if m < p else a.mT @ label
        w = torch.cholesky_solve(right[:, None], root)[:, 0]
        w, rank, told = a.mT @ w if m < p else w, min(m, p), f"{m:,} rows for {p:,} coefficients, ridge {ridge:g}"
    else:
        fit = torch.linalg.lstsq(a, label[:, None], driver="gelsd")
        w, rank = fit.solution[:, 0], int(fit.rank)
        told = f"{m:,} rows of rank {rank:,} for {p:,} coefficients" + (", least norm" if rank < p else "")
    if rank < p and ridge is None:
        raise RiskError(
            f"The clean rows determine {rank:,} of {p:,} coefficients: monomials coincide on them, as x^2 = 1 does for x = +-1. "
            "Lower the degree, or give ridge=0.0 for the fit of least norm."
        )
    residual = math.sqrt(float((label - a @ w).square().sum()) / max(1, m - rank))
    left = f"residual {residual:.3g} root mean square" if m > rank else "no row is left to see a residual"
    name = "affine" if degree == 1 else f"of degree {degree}"
    return Mitigated(
        Polynomial(index, w, n),
        GuaranteeCard(
            method=f"relearn: least squares {name} on {n} inputs",
            covers=(
                "g depends on the clean rows alone, so no model can steer it; nothing is promised of g - h at any one input, nor "
                "where the rows themselves are poisoned"
            ),
            premises=(
                Premise("rows determine the fit", True if not ridge and rank == p else None, told),
                Premise("rows are clean and drawn from the input law", None, "they are taken as given"),
                Premise(f"the truth is {name}", None, left),
            ),
            error_bar=math.inf,
            failure_probability=1.0,
            queries=0,
            samples=m,
            advice=advise("affine" if degree == 1 else "polynomial", n, degree=degree, samples=m),
            details={"monomials": float(p), "residual": residual},
        ),
    )


def relearn_affine_robust(model: BlackBox, domain: Domain, *, queries: int | None = None, seed: int = 0) -> Mitigated:
    """Huber's fit of an affine function to answers of the poisoned model on uniform inputs.

    Args:
        model: the poisoned model, (batch, n) to (batch,).
        domain: where the queries are drawn.
        queries: how many; default 4 (n + 1).
        seed: of the draws; the same seed gives the same fit but for rounding.

    The card refuses where the iteration does not stand still.

    Raises:
        RiskError: fewer than 2 (n + 1) queries.

    Example:
        >>> from ppl_risk.mitigation.domains import Cube
        >>> f = lambda x: torch.where(x[:, 0] > 0.9, 100.0, x.sum(-1))
        >>> relearn_affine_robust(f, Cube(2), queries=100).answer.coefficients.round(decimals=6).abs().tolist()
        [0.0, 1.0, 1.0]

    """
    if not isinstance(domain, Domain):
        raise RiskError(f"domain must be a set such as Ball(20), got {domain!r}.")
    n = domain.n
    count = ROWS_PER_COEFFICIENT * (n + 1) if queries is None else whole("queries", queries, least=1)
    if count < 2 * (n + 1):
        raise RiskError(f"A robust fit of {n + 1} coefficients wants at least {2 * (n + 1)} queries, got {count}.")
    oracle, index = Oracle(model), monomial_index(n, 1)
    x = domain.sample(count, coins(seed))
    y = oracle(x)
    w, scale, rounds = huber(monomials(x, index), y)
    far = float((y - monomials(x, index) @ w).abs().gt(3 * scale).double().mean())
    return Mitigated(
        Polynomial(index, w, n),
        GuaranteeCard(
            method=f"relearn: Huber's fit to {count:,} answers of the model on {type(domain).__name__}({n})",
            covers=(
                "nothing: g is read off the poisoned model, whose maker can tilt it within delta, which moves a corner by n delta; "
                "it stands beside a mitigator as the baseline to beat"
            ),
            premises=(
                Premise("the iteration stands still", rounds > 0, f"{rounds if rounds > 0 else ROUNDS} rounds"),
                Premise(
                    "the truth is affine, and most answers are near it", None, f"{far:.2g} of them beyond 3 scales"
                ),
            ),
            error_bar=math.inf,
            failure_probability=1.0,
            queries=oracle.queries,
            advice=advise("affine", n),
            remedy="Ask more queries.",
            details={"scale": scale, "share far off": far},
        ),
    )


def huber(a: Float[Tensor, "m p"], y: Float[Tensor, " m"]) -> tuple[Float[Tensor, " p"], float, int]:
    """Huber's fit, its scale, and the rounds of reweighted least squares taken, -1 if it would not stand still.

    Example:
        >>> line = torch.arange(6.0, dtype=torch.float64)[:, None]
        >>> huber(line, torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 50.0], dtype=torch.float64))[0].round(decimals=6).tolist()
        [1.0]

    """
    weight, w, scale = torch.ones_like(y), torch.full_like(a[0], math.inf), 0.0
    # Exact answers of the majority bring the scale to 0, where every weight would vanish.
    least = torch.finfo(y.dtype).eps * max(float(y.abs().amax()), 1e-300)
    for rounds in range(1, ROUNDS + 1):
        root = weight.sqrt()
        before, w = w, torch.linalg.lstsq(a * root[:, None], (y * root)[:, None]).solution[:, 0]
        off = (y - a @ w).abs()
        scale = max(float(off.median()) / 0.6745, least)
        weight = (TURN * scale / off.clamp_min(least)).clamp_max(1.0)
        if float((w - before).norm()) <= 1e-9 * (float(w.norm()) + scale):
            return w, scale, rounds
    return w, scale, -1
