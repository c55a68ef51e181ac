r"""Tail of a law known by mean, standard deviation, skewness and, where it is known, excess kurtosis, in log space.

A standardised gamma variable with shape k has skewness 2 / sqrt(k). Shifted, scaled and, for negative skewness, reflected it
matches three moments, tends to the normal law as the skewness tends to 0, and is a law: unlike Edgeworth's expansion its tail
is neither negative nor rising. With z = (t - mean) / sd, s = skewness and u = z s / 2, Temme's uniform expansion reads

    log Pr[f > t] = log phi(w) + log( M(w) + (s/2) C0(u) + (s/2)^3 C1(u) ),     w = z sqrt(2 (u - log(1 + u))) / |u|
    C0 = 1 / u - 1 / eta,   C1 = 1 / eta^3 - 1 / u^3 - 1 / u^2 - 1 / (12 u),    eta = w s / 2

with phi the normal density and M = (1 - Phi) / phi, for z >= 0; below the mean it is applied to the other tail. The reflected
gamma ends at z = 2 / |s|. So that no threshold is impossible, w goes on along its tangent from half way, z = 1 / |s|.

The gamma's excess kurtosis is 3 s^2 / 2. What is beyond that is read as a variance V that fluctuates, as it does when the
activations of a network share a scale: V lognormal, E V = 1, Var V = tau, and the tail is the mixture over V, with the third
moment kept: tau = (excess - 3 s^2 / 2) / (3 + 3 s^2 / 8), which matches the fourth moment to first order in tau. A smaller
excess than the gamma's is not matched.

Source: Temme 1979, "The asymptotic expansion of the incomplete gamma functions", SIAM J. Math. Anal. 10(4). The mixture: ours.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

#: Nodes of the mixture, and the least fluctuation of its variance.
NODES, SMALLEST_TAU = 24, 1e-12
#: Below these |u|, C0 and w, and C1, come from their power series.
SERIES, SERIES_C1 = 0.2, 0.1
#: Half way to the end of the reflected gamma.
HALF_WAY = -0.5
#: Power series of C1 in eta, from the constant on.
C1_SERIES = (-1 / 540, -1 / 288, 1 / 378, -77 / 77760, 2.0576131687242798e-4)


def corrected_tail(
    mean: Float[Tensor, "*#n"],
    sd: Float[Tensor, "*#n"],
    skewness: Float[Tensor, "*#n"],
    threshold: Float[Tensor, "*#n"],
    excess: Float[Tensor, "*#n"] | None = None,
) -> Float[Tensor, "*n"]:
    """log Pr[f > threshold], nats; decreasing in the threshold, finite, and differentiable in every argument.

    Args:
        mean: of f.
        sd: its standard deviation, positive, in the units of the mean.
        skewness: third cumulant over sd^3. Up to 1.5 in size the tail is the gamma's to 2e-3 nats, but for a negative
            skewness only to half way to the gamma's end.
        threshold: in the units of the mean.
        excess: excess kurtosis, fourth cumulant over sd^4; None for the gamma's.

    Example:
        >>> mean, sd, threshold = torch.zeros(3).double(), torch.ones(3).double(), torch.full((3,), 4.0).double()
        >>> print(corrected_tail(mean, sd, torch.tensor([-0.5, 0.0, 0.5]).double(), threshold))
        tensor([-18.5031, -10.3601,  -7.3234], dtype=torch.float64)
    """
    z, skewness = torch.broadcast_tensors(((threshold - mean) / sd).double(), skewness.double())
    if excess is None:
        return _gamma_tail(z, skewness)
    tau = (excess - 1.5 * skewness**2) / (3 + 0.375 * skewness**2)
    # not 0: the square root has no derivative there
    sigma = torch.log1p(tau.clamp(min=SMALLEST_TAU)).sqrt()[..., None]
    nodes, weights = (torch.from_numpy(t).to(z.device) for t in np.polynomial.hermite_e.hermegauss(NODES))
    scale = torch.exp(sigma * nodes / 2 - sigma**2 / 4)  # sqrt V; E V^(3/2) = e^(3 sigma^2 / 8)
    tails = _gamma_tail(z[..., None] / scale, (skewness[..., None] * torch.exp(-0.375 * sigma**2)).expand_as(scale))
    return torch.logsumexp(tails + torch.log(weights / weights.sum()), -1)


def _gamma_tail(z: Tensor, skewness: Tensor) -> Tensor:
    """log Pr of a standardised gamma variable beyond z."""
    above = z >= 0
    tail = _far(z.abs(), torch.where(above, skewness, -skewness))
    # log(1 - e^tail): the tail is then at most 0.8 or so, and where it is not used a constant keeps its gradient finite
    other = torch.log1p(-torch.where(above, torch.full_like(tail, -1.0), tail).exp())
    return torch.where(above, tail, other)


def _far(z: Tensor, skewness: Tensor) -> Tensor:
    """The formula of the module's first lines, z >= 0."""
    u = (z * skewness / 2).clamp(min=HALF_WAY)
    stretch = _stretch(u)
    w = z * stretch
    end = _stretch(torch.full_like(u, HALF_WAY))
    beyond = z * skewness / 2 < HALF_WAY
    half = -2 * HALF_WAY / torch.where(beyond, skewness.abs(), torch.ones_like(z))
    w = torch.where(beyond, half * end + 2 / end * (z - half), w)
    mills = math.sqrt(math.pi / 2) * torch.special.erfcx(w / math.sqrt(2))
    correction = skewness / 2 * _first(u, stretch) + (skewness / 2) ** 3 * _second(u, stretch)
    return -(w**2) / 2 - math.log(2 * math.pi) / 2 + torch.log(mills + correction)


def _away(u: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Where |u| < radius, and u with those values replaced, so that the closed forms have finite gradients there."""
    near = u.abs() < radius
    return near, torch.where(near, torch.ones_like(u), u)


def _stretch(u: Tensor) -> Tensor:
    """w / z = sqrt(2 (u - log(1 + u))) / |u|, 1 at 0."""
    near, far = _away(u, SERIES)
    series = 1 + u * _excess(u)
    return torch.where(near, series, 2 * (far - torch.log1p(far)) / far**2).sqrt()


def _excess(u: Tensor) -> Tensor:
    """((w / z)^2 - 1) / u."""
    near, far = _away(u, SERIES)
    inside = torch.where(near, u, torch.zeros_like(u))
    series = torch.zeros_like(u)
    for j in range(20, 0, -1):  # Horner's rule on sum_j 2 (-1)^j u^(j-1) / (j + 2)
        series = series * inside + 2 * (-1) ** j / (j + 2)
    return torch.where(near, series, (2 * (far - torch.log1p(far)) / far**2 - 1) / far)


def _first(u: Tensor, stretch: Tensor) -> Tensor:
    """C0, -1/3 at 0."""
    return _excess(u) / (stretch * (stretch + 1))


def _second(u: Tensor, stretch: Tensor) -> Tensor:
    """C1, -1/540 at 0."""
    near, far = _away(u, SERIES_C1)
    eta = u * stretch
    series = torch.zeros_like(u)
    for coefficient in reversed(C1_SERIES):
        series = series * eta + coefficient
    closed = (1 / stretch**3 - 1) / far**3 - 1 / far**2 - 1 / (12 * far)
    return torch.where(near, series, closed)
