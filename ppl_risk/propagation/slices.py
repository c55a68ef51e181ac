r"""Slices: the law of the margin given one direction of the input, and the integral over that direction.

One Gaussian tail is wrong by decades where the margin is not Gaussian. Given v = a.u it is much closer to Gaussian, so

    Pr[margin >= t] = int phi(v) Pr[margin >= t | a.u = v] dv,      u | v ~ N(v a, I - a a'),

with the law at seven nodes v propagated in one batch and splined between them. The direction a points to the smoothed design
point: z where, for u ~ N(z, I), half the mass fails; each step goes along the gradient there to the distance that the
probability found so far asks for. Where the gradient turns along a, a second direction is sliced too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import CubicSpline
from torch import Tensor

from ppl_risk.propagation.event import Event
from ppl_risk.propagation.orthant import log_quantile
from ppl_risk.propagation.propagator import Propagator
from ppl_risk.risk_estimate import LOG10

#: Nodes of the first direction and of the second, and the ends of their ranges; the first is longer where the failures are within
#: EDGE of its end, by BEYOND the design point at least.
NODES, SECOND_NODES = 7, 5
LOWEST, HIGHEST, EDGE, BEYOND, SECOND_REACH = -3.5, 7.5, 1.5, 2.75, 3.5
#: Points of the integral along one direction, for a margin of one number and of several, and along two, likewise.
FINE, FINE_SEVERAL, FINE_OF_TWO, FEW = 8001, 441, (441, 57), (221, 41)
#: Points of the integral that are smaller than the largest by more than this many nats are left out.
NEGLIGIBLE = 30.0
#: Nodes are doubled, up to MOST, while leaving one out moves log10 p by more than ROUGH: a law that turns between two nodes is
#: invisible to both.
ROUGH, MOST, SKIPPED = 0.75, 97, 8
#: A place behind the origin counts where it is less likely than all failures by no more than this, nats.
BEHIND = 6.0
#: Steps towards the design point, and how far away it may be said to be. Steps go no further than NEAR: the law
#: there still sees what lies around, and where its spread is much too small, as in deep networks, its distances lead astray.
STEPS, FARTHEST, NEAR = 6, 60.0, 3.0
#: A second direction is sliced where the gradient at +3.5 a turns further than this from a, or where the failures lie this many
#: standard deviations out in the law that a leaves: that part of the tail would be read off a Gaussian.
TURN_DEGREES, TURN_AT, LEFT = 30.0, 3.5, 1.75


@dataclass(frozen=True, eq=False)
class Slices:
    """The event's layer along one or two directions: nodes on each axis, and mean, root of the covariance and gradient there."""

    event: Event
    directions: Float[Tensor, "d k"]
    axes: tuple[Tensor, ...]
    mean: Tensor
    root: Tensor
    gradient: Tensor

    def again(self, propagator: Propagator) -> Slices:
        """The same nodes propagated anew, so that the laws can be differentiated in the weights."""
        grid = torch.stack(torch.meshgrid(*self.axes, indexing="ij"), -1).reshape(-1, len(self.axes))
        mean, covariance, _ = propagator.laws(grid @ self.directions.mT, self.directions)
        return replace(self, mean=mean.reshape(self.mean.shape), root=root_of(covariance).reshape(self.root.shape))

    def roughness(self) -> float:
        """Largest change of log10 p, decades, when one inner node of the first of one direction is left out."""
        every = SKIPPED if self.mean.shape[-1] > 1 else 1
        whole, changes, count = float(self.log_prob(every=every)), [0.0], len(self.axes[0])
        for left in range(1, count - 1):
            kept = [i for i in range(count) if i != left]
            fewer = replace(
                self,
                axes=(self.axes[0][kept],),
                mean=self.mean[kept],
                root=self.root[kept],
                gradient=self.gradient[kept],
            )
            changes.append(abs(float(fewer.log_prob(every=every)) - whole) / LOG10)
        return max(changes)

    def points(self) -> list[Tensor]:
        """The fine points of every axis."""
        several, second = self.mean.shape[-1] > 1, len(self.axes) > 1
        counts = FEW if several and second else FINE_OF_TWO if second else (FINE_SEVERAL if several else FINE,)
        return [_fine(axis, count) for axis, count in zip(self.axes, counts, strict=False)]

    def conditional(self, every: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Fine points (points, k), log weight of each (spacing and normal density), mean and covariance there.

        `every` takes each so-manieth point of an axis only.
        """
        mean, root = self.mean, self.root
        fine = [points[::every] for points in self.points()]
        for place, (axis, points) in enumerate(zip(self.axes, fine, strict=True)):
            matrix = spline(tuple(axis.tolist()), tuple(points.tolist())).to(mean)
            mean = torch.einsum("ij,j...->i...", matrix, mean.movedim(place, 0)).movedim(0, place)
            root = torch.einsum("ij,j...->i...", matrix, root.movedim(place, 0)).movedim(0, place)
        grid = torch.stack(torch.meshgrid(*fine, indexing="ij"), -1).reshape(-1, len(fine))
        steps = sum(math.log(float(points[1] - points[0])) for points in fine)
        log_weight = steps - 0.5 * grid.square().sum(-1) - 0.5 * len(fine) * math.log(2 * math.pi)
        k = mean.shape[-1]
        covariance = root @ root.mT
        for place, points in enumerate(fine):
            # A point stands for half a spacing to both sides: without that, a margin known exactly given v is a step that
            # the points miss.
            move = torch.gradient(mean, spacing=(points,), dim=place)[0] * (0.5 * float(points[1] - points[0]))
            covariance = covariance + move[..., None] * move[..., None, :]
        return grid, log_weight, mean.reshape(-1, k), covariance.reshape(-1, k, k)

    @cached_property
    def masses(self) -> tuple[Tensor, Tensor]:
        """`log_masses` at the threshold 0."""
        return self.log_masses()

    def log_masses(self, threshold: float = 0.0, every: int = 1) -> tuple[Tensor, Tensor]:
        """log Pr[margin >= threshold | v] at the fine points, -inf where it cannot matter, and the same with the weight of v."""
        _, log_weight, mean, covariance = self.conditional(every)
        bound = log_weight + self.event.log_bound(mean, covariance, threshold).detach()
        matters = torch.nonzero(bound > bound.max() - NEGLIGIBLE).squeeze(-1)
        found = self.event.log_prob(mean[matters], covariance[matters], threshold)
        log_p = torch.full_like(log_weight, -torch.inf).index_put((matters,), found)
        return log_p, log_weight + log_p

    def log_prob(self, threshold: float = 0.0, every: int = 1) -> Float[Tensor, ""]:
        """log Pr[margin >= threshold], nats, by the trapezoid rule over the splined laws."""
        here = self.masses if threshold == 0.0 and every == 1 else self.log_masses(threshold, every)
        return torch.logsumexp(here[1], 0).clamp_max(0.0)

    def left_to_gaussian(self) -> float:
        """Mean over the failures of -Phi^{-1}(Pr[event | v]), where positive: how far out a slice's Gaussian is trusted."""
        log_p, log_mass = self.masses
        depth = -log_quantile(log_p.clamp(-1e6, -1e-12))
        return float((torch.softmax(log_mass, 0) * depth.clamp_min(0.0)).sum())


def slices_along(
    propagator: Propagator, directions: Float[Tensor, "d k"], distance: float, axis: Tensor | None = None
) -> Slices:
    """Propagate the laws at the nodes of one or two directions; `distance` is where the design point lies on the first.

    The nodes of one direction are doubled while the law turns between them; of two, `axis` is the first's.
    """
    if axis is None:
        return _along_one(propagator, directions, distance)
    return _at_nodes(propagator, directions, (axis, _chebyshev(-SECOND_REACH, SECOND_REACH, SECOND_NODES).to(axis)))


def _along_one(propagator: Propagator, directions: Tensor, distance: float) -> Slices:
    low, high, device = LOWEST, HIGHEST, directions.device
    count = NODES
    while True:
        axes = (_chebyshev(LOWEST, high, count).to(device),)
        found = _at_nodes(propagator, directions, axes)
        grid = _fine(axes[0], len(found.masses[1]))
        if float(grid[int(found.masses[1].argmax())]) < high - EDGE or high > FARTHEST:
            break
        # The failures lie at the end of the range or beyond: take it to where the design point is said to be, or further.
        high = min(max(1.5 * high, distance + BEYOND), 2 * FARTHEST)
        count = math.ceil(NODES * (high - LOWEST) / (HIGHEST - LOWEST))
    if distance > -LOWEST - EDGE and _fails_behind(propagator, directions, distance, float(found.log_prob())):
        low = -high
        count = math.ceil(NODES * (high - low) / (HIGHEST - LOWEST))
        axes = (_chebyshev(low, high, count).to(device),)
        found = _at_nodes(propagator, directions, axes)
    while 2 * len(axes[0]) - 1 <= MOST and found.roughness() > ROUGH:
        # Chebyshev points nest: only those between the old ones are new.
        finer = _chebyshev(low, high, 2 * len(axes[0]) - 1).to(device)
        new = _at_nodes(propagator, directions, (finer[1::2],))
        axes = (finer,)
        parts = [_interleaved(getattr(found, n), getattr(new, n)) for n in ("mean", "root", "gradient")]
        found = Slices(propagator.event, directions, axes, *parts)
    return found


def _fails_behind(propagator: Propagator, directions: Tensor, distance: float, log_prob: float) -> bool:
    """Whether failures lie the other way too, as those of |x| do: then the range must reach them."""
    back = -(distance + 0.5)
    with torch.no_grad():
        mean, covariance, _ = propagator.laws((back * directions).mT, directions)
        there = float(propagator.event.log_prob(mean, covariance))
    return there - 0.5 * back * back > log_prob - BEHIND


def _at_nodes(propagator: Propagator, directions: Tensor, axes: tuple[Tensor, ...]) -> Slices:
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    mean, covariance, gradient = propagator.at(grid.reshape(-1, len(axes)) @ directions.mT, directions)
    shape = grid.shape[:-1]
    root = root_of(covariance)
    return Slices(
        propagator.event, directions, axes, mean.reshape(*shape, -1), root.reshape(*shape, *root.shape[1:]),
        gradient.reshape(*shape, -1),
    )  # fmt: skip


def _interleaved(old: Tensor, new: Tensor) -> Tensor:
    """Old and new rows in turn, the old ones first and last."""
    both = torch.cat([old, old[:-1]])
    both[0::2], both[1::2] = old, new
    return both


#: What `Propagator.at` returns.
At = tuple[Tensor, Tensor, Tensor]


def design_point(propagator: Propagator, prior: At) -> tuple[Float[Tensor, " d"], float]:
    """Unit direction of the smoothed design point and its distance, after `STEPS` steps.

    Each step goes half way to the gradient's direction: whole steps swing between failure modes. `prior` is the law at 0.
    """
    z = torch.zeros(1, propagator.inputs.dimension, dtype=torch.float64, device=propagator.inputs.problem.device)
    direction, distance, here = z[0], 0.0, prior
    for step in range(STEPS):
        if step:
            here = propagator.at(z, z.new_zeros(z.shape[1], 0))
        towards, distance = step_from(propagator, z, here)
        if not step and not bool(towards.any()):
            # A symmetric law has no gradient at 0, as |x| has none.
            towards, distance = propagator.widest(), 1.0
        elif not bool(towards.any()):
            break
        middle = direction + towards
        direction = middle / middle.norm().clamp_min(1e-12)
        z = (min(distance, NEAR) * direction)[None]
    return direction, distance


def step_from(propagator: Propagator, z: Float[Tensor, "1 d"], here: At) -> tuple[Float[Tensor, " d"], float]:
    r"""Gradient direction at N(z, I) and beta = grad q . z - q there, q = Phi^{-1}(Pr[event]): exact for a linear margin."""
    mean, covariance, gradient = here
    log_p = float(propagator.event.log_prob(mean, covariance))
    size = float(gradient.norm())
    if not math.isfinite(log_p) or size == 0.0:
        return torch.zeros_like(z[0]), 0.0
    q = float(log_quantile(torch.tensor(min(log_p, -1e-12), dtype=torch.float64)))
    # d log p = phi(q) / p dq
    slope = math.exp(min(log_p + 0.5 * q * q + 0.5 * math.log(2 * math.pi), 600.0))
    distance = float((gradient * z).sum()) * slope - q
    return gradient[0] / size, min(max(distance, 0.0), FARTHEST)


def second_direction(slices: Slices) -> Float[Tensor, " d"] | None:
    """Where the failure mass pulls across the first direction: top singular vector of the nodes' gradients, weighted.

    None where the gradient at +3.5 a stays within 30 degrees of a and little is left to the Gaussian within a slice.
    """
    a = slices.directions[:, 0]
    axis, gradient = slices.axes[0], slices.gradient
    near = gradient[int((axis - TURN_AT).abs().argmin())]
    size = float(near.norm())
    straight = size > 0.0 and float(near @ a) / size > math.cos(math.radians(TURN_DEGREES))
    if straight and slices.left_to_gaussian() < LEFT:
        return None
    covariance = slices.root @ slices.root.mT
    log_weight = slices.event.log_prob(slices.mean, covariance) - 0.5 * axis.square()
    weight = torch.softmax(log_weight, 0).sqrt()
    across = gradient - (gradient @ a)[:, None] * a
    if not bool((across.norm(dim=1) > 1e-9 * gradient.norm(dim=1).clamp_min(1e-300)).any()):
        return None
    _, _, vectors = torch.linalg.svd(weight[:, None] * across, full_matrices=False)
    b = vectors[0] - (vectors[0] @ a) * a
    return b / b.norm()


def root_of(covariance: Float[Tensor, "*batch k k"]) -> Float[Tensor, "*batch k k"]:
    """Triangular root; what is singular gets the least that makes it positive."""
    scale = covariance.diagonal(dim1=-2, dim2=-1).amax(-1).clamp_min(1e-30)[..., None, None]
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    for jitter in (0.0, 1e-13, 1e-11, 1e-9, 1e-7):
        root, wrong = torch.linalg.cholesky_ex(covariance + jitter * scale * identity)
        if not bool(wrong.any()):
            return root
    values, vectors = torch.linalg.eigh(covariance)
    return torch.linalg.qr((vectors * values.clamp_min(0.0).sqrt()[..., None, :]).mT)[1].mT


def _chebyshev(low: float, high: float, count: int) -> Tensor:
    """Chebyshev points of the second kind: the ends are among them, so nothing is extrapolated."""
    place = np.cos(np.pi * np.arange(count) / (count - 1))[::-1]
    return torch.tensor((low + high) / 2 + (high - low) / 2 * place, dtype=torch.float64)


def _fine(axis: Tensor, count: int) -> Tensor:
    return torch.linspace(float(axis[0]), float(axis[-1]), count, dtype=torch.float64, device=axis.device)


@cache
def spline(nodes: tuple[float, ...], points: tuple[float, ...]) -> Tensor:
    """Matrix (points, nodes) of the natural cubic spline: linear in the values, so it can be differentiated in them."""
    return torch.tensor(CubicSpline(nodes, np.eye(len(nodes)), bc_type="natural")(points))
