r"""Transport maps: x = T(u) with u ~ N(0, I), for every input law where such a map is known.

In the normal space every law looks alike: preconditioned moves, guides and importance weights need only N(0, I).
For a Gaussian law T is affine; for independent coordinates T is the quantile function of the law at Phi(u)
(Rosenblatt 1952, doi:10.1214/aoms/1177729394); transformed laws compose. This file is the machinery; the laws are in
`continuous` and `quantiles`, `discrete`, `mixtures`, `hierarchical`, `empirical` and `product`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any, NamedTuple

import torch
import torch.distributions as td
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from ppl_risk.errors import NoTransportError
from ppl_risk.inputs.tails import ndtr


@dataclass(frozen=True)
class Transport:
    """The map u -> x, (..., dimension) -> (..., *event_shape), that turns N(0, I) into the input law.

    `discrete` marks, (dimension,), the normals that act through a step function only, as those behind a Bernoulli or behind
    the choice of a mixture's component: the gradient of x there is 0 nearly everywhere. None: no normal does.

    Example:
        >>> T = transport_of(torch.distributions.MultivariateNormal(torch.zeros(3), torch.eye(3)))
        >>> T(torch.ones(5, 3)).shape
        torch.Size([5, 3])
    """

    dimension: int
    event_shape: torch.Size
    map: Callable[[Tensor], Tensor]
    discrete: Bool[Tensor, " d"] | None = field(default=None, compare=False)

    def __call__(self, u: Float[Tensor, "*batch d"]) -> Shaped[Tensor, ...]:
        """Push standard normal rows through the map."""
        return self.map(u)


class Part(NamedTuple):
    """The map of one law, possibly of a batch of them: u (..., *batch_shape, *normals) -> x (..., *batch_shape, *event_shape).

    `normals` is the shape of the standard normals behind one element of the batch; `discrete`, of that shape, marks those that
    act through a step function (None: none).
    """

    normals: torch.Size
    map: Callable[[Tensor], Tensor]
    discrete: Tensor | None = None

    def marks(self) -> Bool[Tensor, ...]:
        """`discrete` as a tensor."""
        return torch.zeros(self.normals, dtype=torch.bool) if self.discrete is None else self.discrete


def transport_of(law: td.Distribution) -> Transport:
    """The transport of an input law with batch_shape ().

    Raises:
        NoTransportError: no map is known for the law.

    Example:
        >>> transport_of(torch.distributions.Gamma(2.0, 1.0)).dimension
        1
    """
    part = part_of(law)
    shape = law.batch_shape + part.normals
    marks = None if part.discrete is None or not part.discrete.any() else part.discrete.expand(shape).reshape(-1)
    return Transport(shape.numel(), law.event_shape, lambda u: part.map(u.reshape(u.shape[:-1] + shape)), marks)


@singledispatch
def part_of(law: td.Distribution) -> Part:
    """The map of a law with any batch shape; register a law's own here.

    Raises:
        NoTransportError: no map is known for the law.

    Example:
        >>> part_of(torch.distributions.Normal(torch.zeros(3), 1.0)).normals
        torch.Size([])
    """
    if law.event_shape == torch.Size() and _has_icdf(law):
        return Part(law.event_shape, lambda u: law.icdf(_phi(u)))
    # Pyro wraps some laws in its own subclass of another name; those with a base law are unwrapped here.
    base = getattr(law, "base_dist", None)
    if isinstance(base, td.Distribution) and type(law).__name__ in {"ExpandedDistribution", "MaskedDistribution"}:
        return part_of(base)
    raise NoTransportError(
        f"No transport from standard normals is known for an input law of type {type(law).__name__} "
        f"(event shape {tuple(law.event_shape)}). Plain Monte Carlo works with it: ppl_risk.monte_carlo(problem). "
        "For guides and SMC write the law as a TransformedDistribution of a Normal, as independent coordinates with a "
        "quantile function (icdf), or as a program of simpler laws: ppl_risk.inputs.PyroModel."
    )


def _has_icdf(law: td.Distribution) -> bool:
    try:
        law.icdf(torch.full((), 0.5, device=law.mean.device))
    except (NotImplementedError, AttributeError, ValueError):
        return False
    return True


def _phi(u: Tensor) -> Tensor:
    """Phi(u), kept inside (0, 1) so that a quantile function never returns an infinity."""
    tiny = torch.finfo(u.dtype).eps / 2
    return ndtr(u).clamp(tiny, 1 - tiny)


@part_of.register
def _(law: td.Normal) -> Part:
    return Part(law.event_shape, lambda u: law.loc + law.scale * u)


@part_of.register
def _(law: td.Independent) -> Part:
    base = part_of(law.base_dist)
    own = law.base_dist.batch_shape[len(law.batch_shape) :] + base.normals
    return Part(own, base.map, None if base.discrete is None else base.discrete.expand(own))


@part_of.register(td.MultivariateNormal)
@part_of.register(td.LowRankMultivariateNormal)
def _(law: td.MultivariateNormal | td.LowRankMultivariateNormal) -> Part:
    tril = law.scale_tril
    if tril.dim() == 2:
        return Part(law.event_shape, lambda u: law.loc + u @ tril.mT)
    # One matrix for each of several vectors.
    return Part(law.event_shape, lambda u: law.loc + (tril @ u.unsqueeze(-1)).squeeze(-1))


@part_of.register
def _(law: td.TransformedDistribution) -> Part:
    base = part_of(law.base_dist)

    def push(u: Tensor) -> Tensor:
        x: Any = base.map(u)
        for transform in law.transforms:
            x = transform(x)
        return x

    return base._replace(map=push)
