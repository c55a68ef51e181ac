r"""The joint law of every activation that is still to be read: what the layers hand on to one another.

Values that a later step reads are live. Their joint law is Gaussian, a batch of laws at a time (`batch` is a batch of laws, not
of inputs): a residual stream keeps its correlation with the branch that it will be added to, and a detector that reads several
layers has them all. A new value y = f(x) joins by E y, Cov(y) and, by Stein's lemma for every live c, Cov(y, c) = E[f'] Cov(x, c).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ppl_risk.propagation.hermite import TINY, Activation
from ppl_risk.propagation.linear_map import LinearMap

#: Above this correlation two terms of the Hermite series do not do.
NEAR = 0.9


class Moments(NamedTuple):
    """What a closure gives of y: mean (batch, m), covariance (batch, m, m), E dy/dx (batch, m, n) for every parent."""

    mean: Tensor
    covariance: Tensor
    gains: Mapping[str, Tensor]


class LayerLaw(NamedTuple):
    """N(mean, diag(diagonal) + factor factor^T) of one layer, (batch, n), (batch, n), (batch, n, rank).

    The full family has the whole covariance instead, (batch, n, n), with `factor` empty and `diagonal` its diagonal.
    """

    mean: Tensor
    diagonal: Tensor
    factor: Tensor
    whole: Tensor | None = None

    @property
    def variance(self) -> Float[Tensor, "batch n"]:
        """Of every activation."""
        return self.diagonal + self.factor.square().sum(-1)

    def covariance(self) -> Float[Tensor, "batch n n"]:
        """Written out."""
        if self.whole is not None:
            return self.whole
        return torch.diag_embed(self.diagonal) + self.factor @ self.factor.mT

    def times(self, x: Float[Tensor, "batch n k"]) -> Float[Tensor, "batch n k"]:
        """Covariance times x, without writing it out."""
        if self.whole is not None:
            return self.whole @ x
        return self.diagonal[..., None] * x + self.factor @ (self.factor.mT @ x)


class Joint(ABC):
    """Joint Gaussian law of the live values; `drift` is 0 and carries the gradient of every mean in a shift of the input."""

    def __init__(self, name: str, mean: Tensor, drift: Tensor | None) -> None:
        self.places: dict[str, slice] = {name: slice(0, mean.shape[-1])}
        self.mean, self.drift = mean, drift

    def mean_of(self, name: str) -> Float[Tensor, "batch n"]:
        """Mean of a live value."""
        return self.mean[:, self.places[name]]

    def drift_of(self, name: str) -> Tensor | None:
        """Its drift."""
        with torch.enable_grad():
            return None if self.drift is None else self.drift[:, self.places[name]]

    def rename(self, name: str, parent: str, keep: set[str]) -> None:
        """The same numbers under another name."""
        if parent in keep:
            size = self.places[parent].stop - self.places[parent].start
            gain = torch.eye(size, dtype=self.mean.dtype, device=self.mean.device).expand(len(self.mean), -1, -1)
            moments = Moments(self.mean_of(parent), self.law_of(parent).covariance(), {parent: gain})
            self.join(name, moments, keep)
        else:
            self.places = {name if old == parent else old: place for old, place in self.places.items()}

    @abstractmethod
    def law_of(self, name: str) -> LayerLaw:
        """Law of one live value."""

    @abstractmethod
    def covariance_of(self, names: Sequence[str]) -> Float[Tensor, "batch n n"]:
        """Covariance of several live values together, written out."""

    @abstractmethod
    def affine(self, name: str, parents: Sequence[str], linear: LinearMap, keep: set[str]) -> None:
        """y = A x + b; afterwards only `keep` is live."""

    @abstractmethod
    def activate(self, name: str, parent: str, activation: Activation, keep: set[str]) -> None:
        """y = f(x), elementwise."""

    @abstractmethod
    def join(self, name: str, moments: Moments, keep: set[str]) -> None:
        """A value whose moments a closure computed."""

    def _move_means(self, name: str, mean: Tensor, drift: Tensor | None, keep: set[str]) -> list[str]:
        """Write the new means and places; the names that stay, in order, without the new one."""
        staying = [old for old in self.places if old in keep]
        size = mean.shape[-1]
        self.mean = torch.cat([*(self.mean_of(old) for old in staying), mean], -1)
        if self.drift is not None and drift is not None:
            with torch.enable_grad():
                self.drift = torch.cat([*(self.drift[:, self.places[old]] for old in staying), drift], -1)
        places, start = {}, 0
        for old in staying:
            width = self.places[old].stop - self.places[old].start
            places[old] = slice(start, start + width)
            start += width
        places[name] = slice(start, start + size)
        self.places = places
        return staying

    def _columns(self, names: Sequence[str]) -> Tensor:
        """Places of the numbers of some values."""
        parts = [torch.arange(self.places[n].start, self.places[n].stop, device=self.mean.device) for n in names]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long, device=self.mean.device)

    def _drift_through(self, gains: Mapping[str, Tensor]) -> Tensor | None:
        """The drift of a value from those of its parents; gains are matrices, or one number each of an elementwise function."""
        if self.drift is None:
            return None
        with torch.enable_grad():
            moved = []
            for name, gain in gains.items():
                own = self.drift[:, self.places[name]]
                moved.append(gain * own if gain.dim() == 2 else (gain @ own[..., None]).squeeze(-1))
            return torch.stack(moved).sum(0)

    def _drift_along(self, parents: Sequence[str], linear: LinearMap) -> Tensor | None:
        """The drift of an affine value."""
        if self.drift is None:
            return None
        with torch.enable_grad():
            return linear.forward(torch.cat([self.drift[:, self.places[p]] for p in parents], -1))


def activated_covariance(
    activation: Activation,
    mean: Float[Tensor, "batch n"],
    covariance: Float[Tensor, "batch n n"],
    c: tuple[Tensor, Tensor, Tensor, Tensor],
) -> Float[Tensor, "batch n n"]:
    """Cov(f(x)): two Hermite terms, the exact variance, and the exact covariance of pairs with |rho| > 0.9."""
    _, first, second, variance = c
    sd = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(TINY).sqrt()
    rho = (covariance / (sd[..., None] * sd[..., None, :])).clamp(-1.0, 1.0)
    made = rho * (first[..., None] * first[..., None, :])
    made = made + 0.5 * rho.square() * (second[..., None] * second[..., None, :])
    near = (rho.abs() > NEAR).triu(1)
    if bool(near.any()):
        law, i, j = torch.nonzero(near, as_tuple=True)
        exact = activation.covariance_of_pairs(mean, sd, rho, law, i, j)
        made = made.index_put((law, i, j), exact).index_put((law, j, i), exact)
    return made - torch.diag_embed(made.diagonal(dim1=-2, dim2=-1) - variance)
