r"""Which regions of the input a law lets bounds speak of.

Gaussian laws are x = A u + b with u ~ N(0, I): a ball in u, of mass Pr[chi_d <= R]. Laws of independent coordinates are
x_i = T_i(u_i) with T_i monotone: the box |u_i| <= r becomes the box between T(-r) and T(r), of mass (2 Phi(r) - 1)^d. A law with
bounded support is inside one box for certain. What a map is, it says itself (`Transport.linear`, `.coordinatewise`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributions as td
from jaxtyping import Float
from torch import Tensor
from torch.distributions import constraints

from ppl_risk.bounds.program import Program
from ppl_risk.errors import NoTransportError
from ppl_risk.inputs import Product
from ppl_risk.inputs.transport import part_of, transport_of

#: Quantile functions computed from Phi(u) in float64 no longer tell u apart beyond this.
LARGEST_U = 8.0


class Affine(NamedTuple):
    """u (d,) -> x (n,), flat, and the same with the absolute values of its matrix and without its constant."""

    dimension: int
    call: Callable[[Tensor], Tensor]
    spread: Callable[[Tensor], Tensor]


def affine_of(law: td.Distribution, device: torch.device | str = "cpu") -> Affine | None:
    """The map from standard normals to a Gaussian law, in float64; None where the law is not known to be Gaussian.

    Example:
        >>> affine_of(td.Independent(td.Normal(torch.ones(2), 3.0), 1)).call(torch.ones(2)).tolist()
        [4.0, 4.0]
    """
    try:
        transport = transport_of(law)
    except NoTransportError:
        return None
    if transport.linear is None:
        return None
    if transport.coordinatewise:
        one = torch.ones(transport.dimension, dtype=torch.float64, device=transport.device)
        with torch.no_grad():
            loc, scale = (t.double().flatten().to(device) for t in (transport(0 * one), transport.linear(one)))
        return Affine(len(loc), lambda u: loc + scale * u, lambda r: scale.abs() * r)
    assert transport.affine is not None
    loc, matrix = (t.to(device) for t in transport.affine)
    if matrix.shape[1] > matrix.shape[0]:
        # A ball of fewer normals is smaller: R of A^T = QR, without ever forming A A^T.
        matrix = torch.linalg.qr(matrix.mT).R.mT
    return Affine(matrix.shape[1], lambda u: loc + matrix @ u, lambda r: matrix.abs() @ r)


def leading(affine: Affine, event: torch.Size) -> Callable[[Program], str]:
    """What appends root and map to a program: u (d,), then x, a batch of one."""

    def append(program: Program) -> str:
        program.begin("u", torch.Size([affine.dimension]))
        return program.affine(
            ("u",),
            lambda u: affine.call(u).reshape(1, *event),
            lambda r: affine.spread(r).reshape(1, *event),
        )

    return append


def is_monotone(law: td.Distribution) -> bool:
    """Whether each input number is a monotone function of one normal of its own.

    Example:
        >>> is_monotone(td.Gamma(2.0, 1.0)), is_monotone(td.Dirichlet(torch.ones(3)))
        (True, False)
    """
    try:
        return part_of(law).monotone()
    except NoTransportError:
        return False


def ends(map_: Callable[[Tensor], Tensor], radii: Float[Tensor, " r"], dimension: int) -> tuple[Tensor, Tensor]:
    """T(-r) and T(r), sorted, for every radius: (r, *event)."""
    u = radii.double()[:, None].expand(-1, dimension)
    low, high = map_(-u).double(), map_(u).double()
    return torch.minimum(low, high), torch.maximum(low, high)


def support_of(law: td.Distribution) -> tuple[Tensor, Tensor]:
    """Least and largest values of each input number, flat; infinite where a law is not known to be bounded.

    Example:
        >>> [end.tolist() for end in support_of(td.Independent(td.Uniform(torch.zeros(2), 1.0), 1))]
        [[0.0, 0.0], [1.0, 1.0]]
    """
    infinite = torch.full(((law.batch_shape + law.event_shape).numel(),), math.inf, dtype=torch.float64)
    if isinstance(law, td.Independent):
        return support_of(law.base_dist)
    if isinstance(law, Product):
        low, high = (torch.cat(side) for side in zip(*map(support_of, law.laws.values()), strict=True))
        return low, high
    if law.event_shape != torch.Size() or isinstance(law, td.TransformedDistribution):
        return -infinite, infinite
    try:
        support = law.support
    except (NotImplementedError, AttributeError):
        return -infinite, infinite
    if support is constraints.boolean:
        limits = (0.0, 1.0)
    else:
        limits = (getattr(support, "lower_bound", -math.inf), getattr(support, "upper_bound", math.inf))
    low, high = (torch.as_tensor(end).double().expand(law.batch_shape).flatten() for end in limits)
    return low, high
