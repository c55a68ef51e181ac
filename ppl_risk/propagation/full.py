"""The full family: every covariance between live values is kept. One layer of width n costs 2 n forward passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ppl_risk.propagation.hermite import TINY, Activation
from ppl_risk.propagation.joint import Joint, LayerLaw, Moments, activated_covariance
from ppl_risk.propagation.linear_map import LinearMap


class FullJoint(Joint):
    """N(mean, covariance) of all live numbers, (batch, N) and (batch, N, N)."""

    def __init__(self, name: str, mean: Tensor, covariance: Tensor, drift: Tensor | None = None) -> None:
        super().__init__(name, mean, drift)
        self.covariance = covariance

    def law_of(self, name: str) -> LayerLaw:
        """Law of one live value."""
        place = self.places[name]
        whole = self.covariance[:, place, place]
        empty = whole.new_zeros(*whole.shape[:-1], 0)
        return LayerLaw(self.mean_of(name), whole.diagonal(dim1=-2, dim2=-1), empty, whole)

    def covariance_of(self, names: Sequence[str]) -> Float[Tensor, "batch n n"]:
        """Covariance of several live values together."""
        columns = self._columns(names)
        return self.covariance[:, columns[:, None], columns]

    def affine(self, name: str, parents: Sequence[str], linear: LinearMap, keep: set[str]) -> None:
        """Cov(y, c) = A Cov(x, c), Cov(y) = A Cov(x) A^T."""
        mean = torch.cat([self.mean_of(p) for p in parents], -1)
        drift = self._drift_along(parents, linear)
        staying = [old for old in self.places if old in keep]
        read = self._columns(parents)
        rows = self._columns(staying)
        # Rows of Cov(., x), pushed through the map, are rows of Cov(., y).
        own = linear.forward(linear.forward(self._block(read, read)).mT)
        cross = (
            linear.forward(self._block(rows, read))
            if staying
            else self.covariance.new_zeros(len(mean), 0, own.shape[-1])
        )
        self._write(name, linear.forward(mean) + linear.constant(mean), drift, (own + own.mT) / 2, cross.mT, keep)

    def activate(self, name: str, parent: str, activation: Activation, keep: set[str]) -> None:
        """y = f(x), elementwise."""
        mean, place = self.mean_of(parent), self.places[parent]
        own = self.covariance[:, place, place]
        variance = own.diagonal(dim1=-2, dim2=-1)
        c = activation.coefficients(mean, variance)
        gain = c.first / variance.clamp_min(TINY).sqrt()
        rows = self._columns([old for old in self.places if old in keep])
        cross = gain[..., None] * self.covariance[:, place][:, :, rows]
        drift = self._drift_through({parent: gain})
        self._write(name, c.mean, drift, activated_covariance(activation, mean, own, c), cross, keep)

    def join(self, name: str, moments: Moments, keep: set[str]) -> None:
        """Cov(y, c) = sum over parents of E[dy/dx] Cov(x, c)."""
        rows = self._columns([old for old in self.places if old in keep])
        parts = [gain @ self.covariance[:, self.places[p]][:, :, rows] for p, gain in moments.gains.items()]
        cross = torch.stack(parts).sum(0)
        self._write(name, moments.mean, self._drift_through(moments.gains), moments.covariance, cross, keep)

    def _block(self, rows: Tensor, columns: Tensor) -> Tensor:
        every = torch.arange(self.covariance.shape[-1], device=rows.device)
        if torch.equal(rows, every) and torch.equal(columns, every):
            return self.covariance
        return self.covariance[:, rows[:, None], columns]

    def _write(self, name: str, mean: Tensor, drift: Tensor | None, own: Tensor, cross: Tensor, keep: set[str]) -> None:
        rows = self._columns([old for old in self.places if old in keep])
        if len(rows):
            top = torch.cat([self._block(rows, rows), cross.mT], -1)
            self.covariance = torch.cat([top, torch.cat([cross, own], -1)], -2)
        else:
            self.covariance = own
        self._move_means(name, mean, drift, keep)
