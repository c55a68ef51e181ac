r"""Transports of Gaussian laws, x = loc + A u, and what transforms leave affine.

    Normal               loc + scale u               MultivariateNormal   loc + L u
    LowRankMultivariateNormal   loc + W e_1 + D^{1/2} e_2, (e_1, e_2) = u ~ N(0, I), rank + n normals

The low-rank law needs no factor at all: a Cholesky factor of W W^T + D loses a D that is small beside W W^T, with the *square* of
the ratio of the two spreads (W = 1000, D = 1e-4: 1e10, more than float32 holds). L is taken in double precision from the
matrix that the law was given, covariance or precision: in float32 its error in a direction of small variance is 1e-7 times the
condition number, in float64 1e-16 times. Every map carries its linear part A, so that nobody has to find out by trying.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions.transforms as pt
import torch
import torch.distributions as td
from jaxtyping import Float
from torch import Tensor

from ppl_risk.errors import RiskError
from ppl_risk.inputs.transport import Part, part_of

Linear = Callable[[Tensor], Tensor]


@part_of.register
def _(law: td.Normal) -> Part:
    return Part(law.event_shape, lambda u: law.loc + law.scale * u, linear=lambda u: law.scale * u)


@part_of.register
def _(law: td.MultivariateNormal) -> Part:
    tril = factor(law)
    return Part(
        law.event_shape, lambda u: law.loc + _times(tril.to(_type(law, u)), u), linear=lambda u: _times(tril, u)
    )


@part_of.register
def _(law: td.LowRankMultivariateNormal) -> Part:
    if not bool((law.cov_diag >= 0).all() & law.cov_factor.isfinite().all()):
        raise RiskError(
            "LowRankMultivariateNormal needs a finite cov_factor and a cov_diag that is nowhere negative or NaN."
        )
    rank, spread = law.cov_factor.shape[-1], law.cov_diag.sqrt()

    def linear(u: Tensor) -> Tensor:
        return _times(law.cov_factor.to(_type(law, u)), u[..., :rank]) + spread * u[..., rank:]

    return Part(torch.Size([rank + law.event_shape[0]]), lambda u: law.loc + linear(u), linear=linear)


def _type(law: td.MultivariateNormal | td.LowRankMultivariateNormal, u: Tensor) -> torch.dtype:
    return torch.promote_types(law.loc.dtype, u.dtype)


def _times(matrix: Float[Tensor, "*law n d"], u: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch n"]:
    """Matrix times each row of u, one matrix for all rows or one for each of several vectors."""
    u = u.to(torch.promote_types(matrix.dtype, u.dtype))
    matrix = matrix.to(u.dtype)
    return u @ matrix.mT if matrix.dim() == 2 else (matrix @ u.unsqueeze(-1)).squeeze(-1)


def factor(law: td.MultivariateNormal) -> Float[Tensor, "*batch n n"]:
    """The Cholesky factor: as given, else in double precision from the covariance or precision that was given.

    Example:
        >>> factor(td.MultivariateNormal(torch.zeros(2), torch.tensor([[4.0, 2.0], [2.0, 2.0]]))).tolist()
        [[2.0, 0.0], [1.0, 1.0]]
    """
    known = list(vars(law))
    if law.loc.dtype == torch.float64 or "_unbroadcasted_scale_tril" not in known:
        return law.scale_tril
    # torch keeps other forms once somebody has asked for them; what was given comes before what is derived, and a copy
    # (`expand`) holds the factor only where that was given or asked for.
    before = known[: known.index("_unbroadcasted_scale_tril")]
    for form, derived in (("covariance_matrix", torch.linalg.cholesky_ex), ("precision_matrix", _of_precision)):
        if form in before or (form in known and "scale_tril" not in known):
            tril, failed = derived(getattr(law, form).double())
            return law.scale_tril if bool(failed.any()) else tril
    return law.scale_tril


def _of_precision(precision: Float[Tensor, "*batch n n"]) -> tuple[Tensor, Tensor]:
    """Cholesky factor of the inverse: that of the matrix turned round, inverted, turned back."""
    turned, failed = torch.linalg.cholesky_ex(precision.flip(-2, -1))
    upper = turned.flip(-2, -1).mT
    eye = torch.eye(upper.shape[-1], dtype=upper.dtype, device=upper.device)
    return torch.linalg.solve_triangular(upper, eye, upper=False), failed


def linear_of(transform: td.Transform) -> Linear | None:
    """What an affine transform does to a difference of two values; None where it is not known to be affine.

    Example:
        >>> linear_of(td.AffineTransform(1.0, 2.0))(torch.ones(1)).tolist(), linear_of(td.ExpTransform())
        ([2.0], None)
    """
    if isinstance(transform, td.AffineTransform):
        return lambda v: transform.scale * v
    if isinstance(transform, td.ReshapeTransform | pt.Permute):
        return transform
    if isinstance(transform, td.IndependentTransform):
        return linear_of(transform.base_transform)
    if isinstance(transform, pt.LowerCholeskyAffine):
        return lambda v: _times(transform.scale_tril, v)
    if isinstance(transform, td.ComposeTransform):
        steps = [linear_of(part) for part in transform.parts]
        return None if None in steps else _chain([step for step in steps if step is not None])
    return None


def _chain(steps: list[Linear]) -> Linear:
    def push(v: Tensor) -> Tensor:
        for step in steps:
            v = step(v)
        return v

    return push


@part_of.register
def _(law: td.TransformedDistribution) -> Part:
    base = part_of(law.base_dist)
    whole = td.ComposeTransform(list(law.transforms))
    rest, lead = linear_of(whole), len(law.batch_shape) + len(law.event_shape)
    linear = None if base.linear is None or rest is None else _chain([base.linear, rest])
    own = _chain([base.map, *law.transforms])
    # Values next to 1 hold no tail in float32, and what follows (a logit, a power) would read it there.
    exact = linear is None and (base.linear is not None or base.monotone()) and all(map(_plain, law.transforms))
    return base._replace(
        map=in_double(own, lead) if exact else own,
        linear=linear,
        elementwise=base.monotone() and all(_has_sign(transform) for transform in law.transforms),
    )


def in_double(push: Linear, lead: int) -> Linear:
    """The same map computed in double precision, its result in the type that it has without.

    Args:
        push: the map. lead: dimensions of one element; those before are rows.
    """

    def pushed(u: Tensor) -> Tensor:
        x = push(u.double())
        if u.dtype == torch.float64 or not x.is_floating_point():
            return x
        with torch.no_grad():
            kind = push(u[:0] if u.dim() > lead else u).dtype
        info = torch.finfo(kind)
        return x.clamp(info.min, info.max).to(kind)

    return pushed


def _plain(transform: td.Transform) -> bool:
    """Whether a transform takes either floating type: torch's own do, one with trained weights may not."""
    if isinstance(transform, td.ComposeTransform):
        return all(map(_plain, transform.parts))
    if isinstance(transform, td.IndependentTransform):
        return _plain(transform.base_transform)
    return type(transform).__module__ == "torch.distributions.transforms"


def _has_sign(transform: td.Transform) -> bool:
    """Whether a transform is a monotone function of each number."""
    if isinstance(transform, td.ReshapeTransform):
        return True
    if isinstance(transform, td.ComposeTransform):
        return all(map(_has_sign, transform.parts))
    if isinstance(transform, td.IndependentTransform):
        return _has_sign(transform.base_transform)
    try:
        return transform.sign is not None
    except NotImplementedError:
        return False
