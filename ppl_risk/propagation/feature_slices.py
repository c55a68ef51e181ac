r"""Slices along features: the sums given the common factor and the most influential features, and the integral over those.

    Pr[event] = int phi(v) Pr[sum_j z_j a_j(v) + rest(v) >= 0 | v] dv,      v = (w, e_1, ...), two numbers at most,

with the network propagated at every node of v and start, a_j and rest splined between them; given v the features are independent
again, whatever their co-activation. The same slices give draws of the features given catastrophe, with their density.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import CubicSpline
from torch import Tensor

from ppl_risk.propagation.feature_joint import Carrier, Nodes, log_event, point_of, tilt_of
from ppl_risk.propagation.saddlepoint import Sums, cumulants
from ppl_risk.propagation.slices import root_of

#: Range of a sliced normal, its nodes (first axis, second), fine points of the search for the mass and then within it.
RANGE, NODES, COARSE, FINE = 7.5, (25, 13), (61, 25), (161, 41)
#: What is smaller than the largest by more nats than this is left out.
NEGLIGIBLE = 25.0


@dataclass(frozen=True)
class FeatureSlices:
    """Points v (points, axes) of the integral, log weight and log Pr[event | v] of each, and the sums there."""

    carrier: Carrier
    nodes: Nodes
    log_weight: Tensor
    log_p: Tensor
    sums: Sums

    def log_prob(self) -> Float[Tensor, ""]:
        """log Pr[event], nats."""
        return torch.logsumexp(self.log_weight + self.log_p, 0).clamp_max(0.0)

    @torch.no_grad()
    def sample(self, draws: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows x (draws, n) from the law tilted to the event, log of P_0's density over theirs, and that times what the sums say.

        The third is -inf where the propagated sums see no catastrophe: weights of draws from P_0 given the model's catastrophe.
        """
        share = torch.log_softmax(self.log_weight + self.log_p, 0)
        quantiles, event = self.carrier.quantiles, self.carrier.event
        cells, inverse = torch.multinomial(share.exp(), draws, replacement=True).unique(return_inverse=True)
        sums = self.sums.rows(cells)
        theta = point_of(event, quantiles, sums)
        tilt = tilt_of(sums, theta)
        cumulant = quantiles.tilted(tilt, sums.mean, sums.sd).log
        whole = cumulants(quantiles, sums, theta)[0]
        given = (self.log_weight - share)[cells]
        z = quantiles.sample(tilt[inverse], sums.mean[inverse], sums.sd[inverse])
        own = sums.rows(inverse)
        # The Gaussian rest is tilted as the features are: its mean moves by rest theta.
        noise = root_of(own.rest) @ torch.randn_like(own.start)[..., None] + own.rest @ theta[inverse][..., None]
        gap = own.start + (own.weights @ z[..., None] + noise)[..., 0]
        log_ratio = given[inverse] + (cumulant[inverse] - tilt[inverse] * z).sum(-1)
        happens = (gap >= 0).all(-1) if event.every else (gap >= 0).any(-1)
        modelled = torch.where(happens, given[inverse] + whole[inverse] - (theta[inverse] * gap).sum(-1), -torch.inf)
        directions, _ = self.carrier.law.everything()
        return self.carrier.law.bias + z @ directions.mT, log_ratio, modelled


@torch.no_grad()
def feature_slices(carrier: Carrier, slices: int) -> FeatureSlices:
    """`slices` axes at most: the common factor, if there is one, then the features that carry most of the tilted variance."""
    coactive, device = carrier.law.coactive, carrier.law.bias.device
    slices = min(max(slices - int(coactive), 0), len(carrier.law.shift))
    origin = Nodes(torch.zeros(1, int(coactive), dtype=torch.float64, device=device), coactive)
    if not coactive and slices == 0:
        sums, _ = carrier.settled(origin)
        log_p = log_event(carrier.event, carrier.quantiles, sums)
        return FeatureSlices(carrier, origin, torch.zeros_like(log_p), log_p, sums)
    sliced: tuple[int, ...] = ()
    if slices:
        sums, _ = carrier.settled(origin)
        tilt = tilt_of(sums, point_of(carrier.event, carrier.quantiles, sums))
        spread = carrier.quantiles.tilted(tilt, sums.mean, sums.sd).variance * tilt.square()
        sliced = tuple(spread[0, : len(carrier.law.shift)].topk(slices).indices.tolist())
    axes = [_even(-RANGE, RANGE, count, device) for count in NODES[: int(coactive) + len(sliced)]]
    known, _ = carrier.settled(Nodes(_mesh(axes), coactive, sliced))
    shape = [len(axis) for axis in axes]
    known = known._replace(rest=root_of(known.rest))
    values = [part.reshape(*shape, *part.shape[1:]) for part in known[:3]]

    def between(points: list[Tensor]) -> FeatureSlices:
        made = []
        for value in values:
            for place, (axis, fine) in enumerate(zip(axes, points, strict=True)):
                matrix = _spline(axis, fine)
                value = torch.einsum("ij,j...->i...", matrix, value.movedim(place, 0)).movedim(0, place)
            made.append(value)
        nodes = Nodes(_mesh(points), coactive, sliced)
        mean, sd = nodes.normals(carrier.law)
        start, weights, root = (part.reshape(-1, *part.shape[len(axes) :]) for part in made)
        rest = root @ root.mT
        z = carrier.quantiles.tilted(torch.zeros_like(mean), mean, sd).mean
        centre = (start + (weights @ z[..., None])[..., 0]).reshape(*[len(p) for p in points], -1)
        log_weight = -0.5 * nodes.at.square().sum(-1) - 0.5 * len(axes) * math.log(2 * math.pi)
        for place, fine in enumerate(points):
            step = float(fine[1] - fine[0])
            # A point stands for half a spacing to both sides, or a margin known exactly given v would be a step between points.
            slope = torch.gradient(centre, spacing=(fine,), dim=place)[0]
            move = slope.reshape(len(rest), -1) * (step / math.sqrt(12))
            rest = rest + move[..., None] * move[..., None, :]
            log_weight = log_weight + math.log(step)
        sums = Sums(start, weights, rest, mean, sd)
        return FeatureSlices(carrier, nodes, log_weight, log_event(carrier.event, carrier.quantiles, sums), sums)

    count = (COARSE, FINE) if len(axes) == 1 else ((COARSE[1],) * 2, (FINE[1],) * 2)
    coarse_points = [_even(-RANGE, RANGE, count[0][i], device) for i in range(len(axes))]
    coarse = between(coarse_points)
    mass = (coarse.log_weight + coarse.log_p).reshape([len(p) for p in coarse_points])
    matters = mass > mass.max() - NEGLIGIBLE
    fine = []
    for place, points in enumerate(coarse_points):
        others = [i for i in range(len(axes)) if i != place]
        inside = torch.nonzero(matters.any(others[0]) if others else matters).squeeze(-1)
        step = points[1] - points[0]
        low, high = points[inside.min()] - step, points[inside.max()] + step
        fine.append(_even(max(float(low), -RANGE), min(float(high), RANGE), count[1][place], device))
    return between(fine)


def _spline(axis: Tensor, points: Tensor) -> Tensor:
    """Matrix (points, nodes) of the natural cubic spline."""
    made = CubicSpline(axis.cpu().numpy(), np.eye(len(axis)), bc_type="natural")(points.cpu().numpy())
    return torch.as_tensor(made, dtype=torch.float64, device=axis.device)


def _mesh(axes: list[Tensor]) -> Tensor:
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))


def _even(low: float, high: float, count: int, device: torch.device) -> Tensor:
    return torch.linspace(low, high, count, dtype=torch.float64, device=device)
