r"""The low-rank family: diag(d) + F F^T over all live numbers, with one latent behind them all; rank 0 is mean-field.

An affine map A makes A diag(d) A^T of the independent part, which is neither diagonal nor of low rank: the operator
S = A (diag(d) + F F^T) A^T is sketched by `rank + EXTRA` columns (Nystrom, with a power step where one sketch misses much;
Halko, Martinsson and Tropp 2011, doi:10.1137/090771806), and what they miss of its exact diagonal becomes the new d. Activations
keep the marginals exact and the first Hermite term of every covariance. A layer costs O(n^2 rank); the full family's O(n^3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from ppl_risk.propagation.hermite import TINY, Activation
from ppl_risk.propagation.joint import Joint, LayerLaw, Moments
from ppl_risk.propagation.linear_map import LinearMap

#: Columns kept beyond the rank asked for, and the share of the variance that a sketch may miss before it is refined.
EXTRA, MISSED = 8, 0.3


class LowRankJoint(Joint):
    """N(mean, diag(diagonal) + factor factor^T), (batch, N), (batch, N), (batch, N, columns)."""

    def __init__(
        self, name: str, mean: Tensor, diagonal: Tensor, factor: Tensor, rank: int, drift: Tensor | None = None
    ) -> None:
        super().__init__(name, mean, drift)
        self.diagonal, self.factor, self.rank = diagonal, factor, rank

    def law_of(self, name: str) -> LayerLaw:
        """Law of one live value."""
        place = self.places[name]
        return LayerLaw(self.mean_of(name), self.diagonal[:, place], self.factor[:, place])

    def covariance_of(self, names: Sequence[str]) -> Float[Tensor, "batch n n"]:
        """Covariance of several live values together."""
        columns = self._columns(names)
        factor = self.factor[:, columns]
        return torch.diag_embed(self.diagonal[:, columns]) + factor @ factor.mT

    def affine(self, name: str, parents: Sequence[str], linear: LinearMap, keep: set[str]) -> None:
        """Exact mean and variances; the covariances by their sketch."""
        read = self._columns(parents)
        staying = [old for old in self.places if old in keep]
        rows = self._columns(staying)
        drift = self._drift_along(parents, linear)
        mean = linear.forward(self.mean[:, read]) + linear.constant(self.mean)
        own, factor = self.diagonal[:, read], self.factor[:, read]
        moved = linear.forward(factor.mT).mT
        variance = linear.variances(own) + moved.square().sum(-1)
        kept_diagonal, kept_factor = self.diagonal[:, rows], self.factor[:, rows]
        if self.rank == 0 or not bool((own > 0).any()):
            # Nothing independent is mixed: the columns go through as they are.
            new_factor = torch.cat([kept_factor, moved], 1)
            new_diagonal = torch.cat([kept_diagonal, (variance - moved.square().sum(-1)).clamp_min(0.0)], 1)
        else:
            # Numbers that are read and stay live share their independent part with y; those of others stay apart.
            shared = (rows[:, None] == read).any(1)
            place = (rows[:, None] == read).to(own.dtype)
            apart = torch.where(shared, torch.zeros_like(kept_diagonal), kept_diagonal)

            def covariance(x: Tensor) -> Tensor:
                above, below = x[:, : len(rows)], x[:, len(rows) :]
                back = linear.backward(below.mT).mT + place.mT @ above
                independent = own[..., None] * back
                latent = kept_factor.mT @ above + moved.mT @ below
                bottom = linear.forward(independent.mT).mT + moved @ latent
                return torch.cat([place @ independent + kept_factor @ latent, bottom], 1)

            total = torch.cat([kept_diagonal - apart + kept_factor.square().sum(-1), variance], 1)
            new_factor = _sketched(covariance, total, self.rank + EXTRA)
            rest = (total - new_factor.square().sum(-1)).clamp_min(0.0)
            new_diagonal = rest + torch.cat([apart, torch.zeros_like(variance)], 1)
        self._write(name, mean, drift, new_diagonal, new_factor, keep)

    def activate(self, name: str, parent: str, activation: Activation, keep: set[str]) -> None:
        """Marginals exact; F'' = diag(E f') F."""
        place = self.places[parent]
        factor = self.factor[:, place]
        variance = self.diagonal[:, place] + factor.square().sum(-1)
        c = activation.coefficients(self.mean_of(parent), variance)
        gain = c.first / variance.clamp_min(TINY).sqrt()
        moved = gain[..., None] * factor
        drift = self._drift_through({parent: gain})
        self._append(name, c.mean, drift, (c.variance - moved.square().sum(-1)).clamp_min(0.0), moved, keep)

    def join(self, name: str, moments: Moments, keep: set[str]) -> None:
        """The factor goes through the gains; the rest of the variances becomes diagonal."""
        moved = torch.stack([gain @ self.factor[:, self.places[p]] for p, gain in moments.gains.items()]).sum(0)
        variance = moments.covariance.diagonal(dim1=-2, dim2=-1)
        # A closure may give less variance than its linear part has: the factor then shrinks to fit.
        shrink = (variance / moved.square().sum(-1).clamp_min(TINY)).clamp(0.0, 1.0).sqrt()
        moved = shrink[..., None] * moved
        rest = (variance - moved.square().sum(-1)).clamp_min(0.0)
        self._append(name, moments.mean, self._drift_through(moments.gains), rest, moved, keep)

    def _append(
        self, name: str, mean: Tensor, drift: Tensor | None, diagonal: Tensor, factor: Tensor, keep: set[str]
    ) -> None:
        rows = self._columns([old for old in self.places if old in keep])
        diagonal = torch.cat([self.diagonal[:, rows], diagonal], 1)
        self._write(name, mean, drift, diagonal, torch.cat([self.factor[:, rows], factor], 1), keep)

    def _write(
        self, name: str, mean: Tensor, drift: Tensor | None, diagonal: Tensor, factor: Tensor, keep: set[str]
    ) -> None:
        self._move_means(name, mean, drift, keep)
        self.diagonal, self.factor = diagonal, factor


def _sketched(covariance: Callable[[Tensor], Tensor], total: Tensor, columns: int) -> Tensor:
    """Columns F with F F^T close to the operator and never more than it on the diagonal."""
    size = total.shape[-1]
    start = _probes(size, min(columns, size), total.device).expand(len(total), -1, -1)
    image, factor = _nystrom(covariance, start, total)
    missed = 1 - factor.detach().square().sum((-1, -2)) / total.detach().sum(-1).clamp_min(TINY)
    if float(missed.max()) <= MISSED:
        return factor
    return _nystrom(covariance, torch.linalg.qr(image)[0], total)[1]


def _nystrom(
    covariance: Callable[[Tensor], Tensor], basis: Tensor, total: Tensor
) -> tuple[Float[Tensor, "batch n k"], Float[Tensor, "batch n k"]]:
    """S Q and S Q (Q^T S Q)^(-1/2) for orthonormal columns Q."""
    image = covariance(basis)
    core = basis.mT @ image
    # Directions in which the operator is numerically 0 would divide by nothing.
    jitter = 1e-10 * total.sum(-1).clamp_min(TINY) / total.shape[-1]
    identity = torch.eye(basis.shape[-1], dtype=total.dtype, device=total.device)
    core = (core + core.mT) / 2 + jitter[:, None, None] * identity
    return image, torch.linalg.solve_triangular(torch.linalg.cholesky(core), image.mT, upper=False).mT


@cache
def _probes(size: int, columns: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(size, columns, generator=generator, dtype=torch.float64))[0].to(device)
