r"""Transport maps: x = T(u) with u ~ N(0, I), for every input law where such a map is known in closed form.

In the normal space every law looks alike: preconditioned moves, guides and importance weights need only N(0, I).
For a Gaussian law T is affine; for independent coordinates T is the quantile function of the law at Phi(u)
(Rosenblatt 1952, doi:10.1214/aoms/1177729394); transformed laws compose.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
import torch.distributions as td
from jaxtyping import Float
from torch import Tensor

from ppl_risk.errors import NoTransportError


@dataclass(frozen=True)
class Transport:
    """The map u -> x, (..., dimension) -> (..., *event_shape), that turns N(0, I) into the input law.

    Example:
        >>> T = transport_of(torch.distributions.MultivariateNormal(torch.zeros(3), torch.eye(3)))
        >>> T(torch.ones(5, 3)).shape
        torch.Size([5, 3])
    """

    dimension: int
    event_shape: torch.Size
    map: Callable[[Tensor], Tensor]

    def __call__(self, u: Float[Tensor, "*batch d"]) -> Float[Tensor, ...]:
        """Push standard normal rows through the map."""
        return self.map(u)


def transport_of(law: td.Distribution) -> Transport:
    """The transport of an input law with batch_shape ().

    Raises:
        NoTransportError: no closed-form map is known for the law.
    """
    inner, shape = _map_of(law), _normals_of(law)
    return Transport(shape.numel(), law.event_shape, lambda u: inner(u.reshape(*u.shape[:-1], *shape)))


def _normals_of(law: td.Distribution) -> torch.Size:
    """Shape of the standard normals behind a law: its own, but for a transform that changes shapes, that of its base."""
    if isinstance(law, td.TransformedDistribution | td.Independent):
        return _normals_of(law.base_dist)
    return law.batch_shape + law.event_shape


@singledispatch
def _map_of(law: td.Distribution) -> Callable[[Tensor], Tensor]:
    """The map u (..., *shape of the normals) -> x (..., *batch_shape, *event_shape)."""
    if law.event_shape == torch.Size() and _has_icdf(law):
        return lambda u: law.icdf(_phi(u))
    # Pyro wraps some laws in its own subclass of another name; those with a base law are unwrapped here.
    base = getattr(law, "base_dist", None)
    if isinstance(base, td.Distribution) and type(law).__name__ in {"ExpandedDistribution", "MaskedDistribution"}:
        return _map_of(base)
    raise NoTransportError(
        f"No transport from standard normals is known for an input law of type {type(law).__name__} "
        f"(event shape {tuple(law.event_shape)}). Plain Monte Carlo works with it: ppl_risk.monte_carlo(problem). "
        "For guides and SMC write the law as a TransformedDistribution of a Normal, or as independent coordinates "
        "with a quantile function (icdf)."
    )


def _has_icdf(law: td.Distribution) -> bool:
    try:
        law.icdf(torch.full((), 0.5, device=law.mean.device))
    except (NotImplementedError, AttributeError, ValueError):
        return False
    return True


def _ndtr(u: Tensor) -> Tensor:
    """Phi(u); torch's own ndtr is 0 below -8.3, its logarithm is not."""
    return torch.special.log_ndtr(u).exp()


def _phi(u: Tensor) -> Tensor:
    """Phi(u), kept inside (0, 1) so that a quantile function never returns an infinity."""
    tiny = torch.finfo(u.dtype).eps / 2
    return _ndtr(u).clamp(tiny, 1 - tiny)


@_map_of.register
def _(law: td.Normal) -> Callable[[Tensor], Tensor]:
    return lambda u: law.loc + law.scale * u


@_map_of.register
def _(law: td.Independent) -> Callable[[Tensor], Tensor]:
    return _map_of(law.base_dist)


@_map_of.register(td.MultivariateNormal)
@_map_of.register(td.LowRankMultivariateNormal)
def _(law: td.MultivariateNormal | td.LowRankMultivariateNormal) -> Callable[[Tensor], Tensor]:
    tril = law.scale_tril
    if tril.dim() == 2:
        return lambda u: law.loc + u @ tril.mT
    return lambda u: law.loc + (tril @ u.unsqueeze(-1)).squeeze(-1)  # one matrix for each of several vectors


@_map_of.register
def _(law: td.TransformedDistribution) -> Callable[[Tensor], Tensor]:
    base = _map_of(law.base_dist)

    def push(u: Tensor) -> Tensor:
        x: Any = base(u)
        for transform in law.transforms:
            x = transform(x)
        return x

    return push


@_map_of.register
def _(law: td.Laplace) -> Callable[[Tensor], Tensor]:
    # By the smaller tail, in log space: the quantile at Phi(u) would saturate at |u| = 5 in float32.
    def push(u: Tensor) -> Tensor:
        tail = torch.special.log_ndtr(-u.abs()) + math.log(2.0)
        return law.loc - law.scale * u.sign() * tail

    return push


@_map_of.register
def _(law: td.Exponential) -> Callable[[Tensor], Tensor]:
    return lambda u: -torch.special.log_ndtr(-u) / law.rate


@_map_of.register
def _(law: td.Uniform) -> Callable[[Tensor], Tensor]:
    return lambda u: law.low + (law.high - law.low) * _ndtr(u)
