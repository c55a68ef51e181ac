r"""Transports of discrete laws: one standard normal each, through the step function k = min{k : F(k) >= Phi(u)}.

k exceeds j iff u > t_j, where Phi(t_j) = F(j) and Phi(-t_j) = 1 - F(j); a threshold t_j is taken from the smaller of the two
tails, so an event of probability 1e-30 sits at u = 11.5 and not at infinity. The gradient of x with respect to u is 0: use moves
that redraw such coordinates (`ppl_risk.smc.moves`). Tails are those of SciPy's incomplete gamma and beta functions:

    Poisson            P(X > k) = P(k + 1, rate)               Binomial  P(X > k) = I_p(k + 1, n - k)
    NegativeBinomial   P(X > k) = I_p(k + 1, r)                Geometric P(X > k) = (1 - p)^(k + 1)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.distributions as td
from jaxtyping import Float
from scipy import special
from torch import Tensor

from ppl_risk.inputs.tails import categories, steps, thresholds
from ppl_risk.inputs.transport import Part, part_of

#: (k, *parameters) -> (P(X <= k), P(X > k)), float64 arrays.
Tails = Callable[..., tuple[np.ndarray, np.ndarray]]
STEP = torch.ones((), dtype=torch.bool)
#: Beyond this Phi(-u) is 0 in float64.
LARGEST_U = 37.0
LARGEST_TABLE = 2**20


def _odds(law: td.Bernoulli | td.Binomial | td.NegativeBinomial) -> tuple[Tensor, Tensor]:
    """p and 1 - p in float64, from whichever of probs and logits the law was given: torch clamps the other at 1e-7."""
    if law._param is vars(law).get("probs"):
        return law.probs.double(), 1 - law.probs.double()
    return torch.sigmoid(law.logits.double()), torch.sigmoid(-law.logits.double())


def _dtype(law: td.Distribution) -> torch.dtype:
    """The type of the law's draws: that of the parameter it was given."""
    return law._param.dtype  # pyright: ignore[reportAttributeAccessIssue]


def shares(law: td.Categorical) -> Float[Tensor, "*law k"]:
    """Probabilities of the categories in float64, from whichever of probs and logits the law was given.

    Example:
        >>> shares(torch.distributions.Categorical(probs=torch.tensor([1.0, 1e-30]))).tolist()
        [1.0, 1.0000000031710769e-30]
    """
    if law._param is vars(law).get("probs"):
        return law.probs.double() / law.probs.double().sum(-1, keepdim=True)
    return law.logits.double().softmax(-1)


def _step(push: Callable[[Tensor], Tensor]) -> Part:
    return Part(torch.Size(), push, STEP)


@part_of.register
def _(law: td.Bernoulli) -> Part:
    p, q = _odds(law)
    at = thresholds(q[..., None], p[..., None])
    return _step(lambda u: steps(u, at).to(law.probs.dtype))


@part_of.register
def _(law: td.Categorical) -> Part:
    at = categories(shares(law))
    return _step(lambda u: steps(u, at))


@part_of.register
def _(law: td.OneHotCategorical) -> Part:
    at, kinds = categories(shares(law._categorical)), law.event_shape[-1]
    part = _step(lambda u: torch.nn.functional.one_hot(steps(u, at), kinds).to(law.probs.dtype))
    return part._replace(elementwise=False)


@part_of.register
def _(law: td.Geometric) -> Part:
    def push(u: Tensor) -> Tensor:
        # (1 - p)^(k + 1) <= Phi(-u), in logarithms.
        k = (torch.special.log_ndtr(-u.detach().double()) / torch.log1p(-law.probs.double())).ceil() - 1
        return k.clamp(min=0).to(law.probs.dtype)

    return _step(push)


def _poisson(k: np.ndarray, rate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return special.gammaincc(k + 1, rate), special.gammainc(k + 1, rate)


def _binomial(k: np.ndarray, total: np.ndarray, p: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    inside = k < total
    left = np.where(inside, total - k, 1.0)
    return (
        np.where(inside, special.betainc(left, k + 1, q), 1.0),
        np.where(inside, special.betainc(k + 1, left, p), 0.0),
    )


def _negative_binomial(k: np.ndarray, total: np.ndarray, p: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return special.betainc(total, k + 1, q), special.betainc(k + 1, total, p)


def _search(tails: Tails, u: np.ndarray, parameters: list[np.ndarray]) -> np.ndarray:
    """min{k : F(k) >= Phi(u)}, by doubling and then halving an interval."""
    shape, u = u.shape, np.atleast_1d(u)
    lower, tail = u < 0, np.exp(special.log_ndtr(-np.abs(u)))

    def exceeds(k: np.ndarray) -> np.ndarray:
        cdf, survival = tails(k, *parameters)
        return np.where(lower, cdf < tail, survival > tail)

    low, high = np.full(u.shape, -1.0), np.zeros(u.shape)
    while (out := exceeds(high)).any():
        low, high = np.where(out, high, low), np.where(out, 2 * high + 1, high)
    while (high - low > 1).any():
        middle = np.floor((low + high) / 2)
        out = exceeds(middle)
        low, high = np.where(out, middle, low), np.where(out, high, middle)
    return high.reshape(shape)


def _counts(tails: Tails, law: td.Distribution, dtype: torch.dtype, *parameters: Tensor) -> Part:
    """A law on 0, 1, 2, ...: a table of thresholds where rows of u share the law, a search where each has its own."""
    arrays = [np.broadcast_to(p.detach().double().cpu().numpy(), law.batch_shape) for p in parameters]
    table: list[Tensor] = []

    def build() -> Tensor | None:
        if not table:
            most = _search(tails, np.full(law.batch_shape, LARGEST_U), arrays).max(initial=0)
            if (most + 1) * law.batch_shape.numel() > LARGEST_TABLE:
                return None
            cdf, survival = tails(np.arange(most + 1), *(a[..., None] for a in arrays))
            table.append(thresholds(torch.as_tensor(cdf), torch.as_tensor(survival)))
        return table[0]

    def push(u: Tensor) -> Tensor:
        at = build() if u.dim() > len(law.batch_shape) else None
        if at is not None:
            return steps(u, at.to(u.device)).to(dtype)
        own = u.detach().double().cpu().numpy()
        return torch.as_tensor(_search(tails, own, [np.broadcast_to(a, own.shape) for a in arrays])).to(u.device, dtype)

    return _step(push)


@part_of.register
def _(law: td.Poisson) -> Part:
    return _counts(_poisson, law, law.rate.dtype, law.rate)


@part_of.register
def _(law: td.Binomial) -> Part:
    return _counts(_binomial, law, _dtype(law), law.total_count, *_odds(law))


@part_of.register
def _(law: td.NegativeBinomial) -> Part:
    return _counts(_negative_binomial, law, _dtype(law), law.total_count, *_odds(law))
