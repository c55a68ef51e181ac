r"""Transport maps: x = T(u) with u ~ N(0, I), for every input law where such a map is known.

In the normal space every law looks alike: preconditioned moves, guides and importance weights need only N(0, I).
For a Gaussian law T is affine; for independent coordinates T is the quantile function of the law at Phi(u)
(Rosenblatt 1952, doi:10.1214/aoms/1177729394); transformed laws compose. This file is the machinery; the laws are in
`gaussian`, `continuous` and `quantiles`, `discrete`, `mixtures`, `hierarchical`, `empirical` and `product`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, singledispatch
from typing import NamedTuple

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
    `linear` is u -> T(u) - T(0) where T is affine (a Gaussian law), else None. `coordinatewise`: number i of x, flat, is a
    monotone function of u_i alone.

    Example:
        >>> T = transport_of(torch.distributions.MultivariateNormal(torch.zeros(3), torch.eye(3)))
        >>> T(torch.ones(5, 3)).shape
        torch.Size([5, 3])
    """

    dimension: int
    event_shape: torch.Size
    map: Callable[[Tensor], Tensor]
    discrete: Bool[Tensor, " d"] | None = field(default=None, compare=False)
    linear: Callable[[Tensor], Tensor] | None = field(default=None, compare=False)
    coordinatewise: bool = False
    device: torch.device = field(default=torch.device("cpu"), compare=False)

    @cached_property
    def affine(self) -> tuple[Float[Tensor, " n"], Float[Tensor, "n d"]] | None:
        """(loc, matrix) in double precision with x = loc + matrix u, x flat; None where the map is not affine.

        Example:
            >>> transport_of(td.Normal(1.0, 2.0)).affine
            (tensor([1.], dtype=torch.float64), tensor([[2.]], dtype=torch.float64))
        """
        if self.linear is None:
            return None
        with torch.no_grad():
            eye = torch.eye(self.dimension, dtype=torch.float64, device=self.device)
            matrix = self.linear(eye).double().reshape(self.dimension, self.event_shape.numel()).mT
            return self.map(torch.zeros_like(eye[0])).double().reshape(-1), matrix.contiguous()

    def __call__(self, u: Float[Tensor, "*batch d"]) -> Shaped[Tensor, ...]:
        """Push standard normal rows through the map."""
        return self.map(u)


class Part(NamedTuple):
    """The map of one law, possibly of a batch of them: u (..., *batch_shape, *normals) -> x (..., *batch_shape, *event_shape).

    `normals` is the shape of the standard normals behind one element of the batch; `discrete`, of that shape, marks those that
    act through a step function (None: none). `linear` is the map without its constant where it is affine, else None.
    `elementwise`: each number is a monotone function of one normal of its own (None: where one normal makes one number).
    """

    normals: torch.Size
    map: Callable[[Tensor], Tensor]
    discrete: Tensor | None = None
    linear: Callable[[Tensor], Tensor] | None = None
    elementwise: bool | None = None

    def monotone(self) -> bool:
        """`elementwise`, with its default."""
        return self.normals == torch.Size() if self.elementwise is None else self.elementwise

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

    def on(map_: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda u: map_(u.reshape(u.shape[:-1] + shape))

    if part.linear is None:
        return Transport(shape.numel(), law.event_shape, on(part.map), marks, coordinatewise=part.monotone())
    linear, device = on(part.linear), _device(law)
    return Transport(shape.numel(), law.event_shape, on(part.map), marks, linear, part.monotone(), device)


def _device(law: td.Distribution) -> torch.device:
    """Where a law's tensors live, as one draw shows it."""
    with torch.random.fork_rng(devices=[]):
        return law.sample().device


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
        return Part(law.event_shape, lambda u: _quantile_at_phi(law, u))
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


def _quantile_at_phi(law: td.Distribution, u: Tensor) -> Tensor:
    """F^-1(Phi(u)) by the law's own quantile function, asked in double precision: float32 holds no tail of 1e-6 next to 1."""
    tiny = torch.finfo(torch.float64).eps / 2
    x = law.icdf(ndtr(u.double()).clamp(tiny, 1 - tiny))
    return x if u.dtype == torch.float64 or not x.is_floating_point() else x.to(u.dtype)


@part_of.register
def _(law: td.Independent) -> Part:
    base = part_of(law.base_dist)
    own = law.base_dist.batch_shape[len(law.batch_shape) :] + base.normals
    marks = None if base.discrete is None else base.discrete.expand(own)
    return Part(own, base.map, marks, base.linear, base.monotone())
