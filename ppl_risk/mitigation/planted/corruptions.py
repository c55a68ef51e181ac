r"""Corruptions of a truth h on a convex set X: +shift on a share epsilon of X, placed where it hurts, or error within the bars.

| corruption | f~ - h |
| --- | --- |
| nearest | shift on the points of X nearest to x*: worst for a mitigator that looks near x* |
| cone | shift on a cone of directions seen from x*: a line through it is bad at both of its points |
| cap | shift on the cap of X that lies furthest in the direction of x* |
| tilt | n delta (1 - phi(x)) on a simplex, phi(x) = sum x_i / r: within delta on 63 % of X, and n delta at the vertex 0 |
| jitter | fixed pseudo-random noise in [-delta, delta] everywhere |

On the simplex n (1 - phi) is n Beta(1, n), near to exponential with mean 1, hence the 63 %. The tilted model is itself affine:
no query of it tells it from a truth. The placements are our own construction; masses are those of `regions`.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ppl_risk.errors import RiskError
from ppl_risk.mitigation.domains import Domain, Simplex
from ppl_risk.mitigation.planted.backdoored import Backdoored, Shift
from ppl_risk.mitigation.planted.regions import Region, Score

#: Periods of the jitter in a unit of length: none of the points that a mitigator queries are so near to each other.
PERIODS = 1e4


def nearest(
    truth: nn.Module, domain: Domain, x_star: Float[Tensor, " n"], epsilon: float, shift: float, *, seed: int
) -> Backdoored:
    """h + shift on the share epsilon of the domain that is nearest to x*.

    Raises:
        RiskError: for an x* of another size, or an epsilon that draws cannot place.

    Example:
        >>> from ppl_risk.mitigation import Ball, planted
        >>> h = planted.random_affine(Ball(5), seed=0); x = torch.full((5,), 0.4).double()
        >>> f = planted.nearest(h, Ball(5), x, 0.02, 10.0, seed=1); round(float(f(x[None]) - h(x[None])), 6)
        10.0

    """
    return _shifted("nearest", truth, domain, x_star, torch.zeros(domain.n), epsilon, shift, seed)


def cone(
    truth: nn.Module, domain: Domain, x_star: Float[Tensor, " n"], epsilon: float, shift: float, *, seed: int
) -> Backdoored:
    """h + shift in a cone of directions seen from x*, of mass epsilon, about the direction of a uniform draw.

    Raises:
        RiskError: for an x* of another size, or an epsilon that draws cannot place.

    Example:
        >>> from ppl_risk.mitigation import Ball, planted
        >>> h = planted.random_affine(Ball(5), seed=0); f = planted.cone(h, Ball(5), torch.zeros(5), 0.02, 10.0, seed=1)
        >>> f.fires(f.activate(torch.full((1, 5), 0.3))).item()
        True

    """
    _require_point(x_star, domain)
    drawn = domain.sample(1, torch.Generator().manual_seed(seed))[0]
    return _shifted("cone", truth, domain, x_star, drawn - x_star.double(), epsilon, shift, seed + 1)


def cap(
    truth: nn.Module, domain: Domain, x_star: Float[Tensor, " n"], epsilon: float, shift: float, *, seed: int
) -> Backdoored:
    """h + shift on the cap of mass epsilon that lies furthest from the mean of the domain in the direction of x*.

    Raises:
        RiskError: for an x* of another size or at the mean itself, or an epsilon that draws cannot place.

    Example:
        >>> from ppl_risk.mitigation import Ball, planted
        >>> h = planted.random_affine(Ball(5), seed=0); x = torch.full((5,), 0.4).double()
        >>> planted.cap(h, Ball(5), x, 0.02, 10.0, seed=1).fires(torch.stack([x, -x])).tolist()
        [True, False]

    """
    _require_point(x_star, domain)
    direction = x_star.double() - (0.0 if domain.symmetric else domain.radius / (domain.n + 1))
    if not float(direction.norm()) > 0:
        raise RiskError("x* is the mean of the domain: it says no direction for a cap. Move it a little.")
    return _shifted("cap", truth, domain, x_star, direction, epsilon, shift, seed)


def _require_point(x_star: Tensor, domain: Domain) -> None:
    if x_star.shape != (domain.n,):
        raise RiskError(f"x* must be one point of {domain.n} numbers, got shape {tuple(x_star.shape)}.")


def _shifted(
    kind: str, truth: nn.Module, domain: Domain, x_star: Tensor, axis: Tensor, epsilon: float, shift: float, seed: int
) -> Backdoored:
    _require_point(x_star, domain)
    score = Score(kind, x_star.double(), nn.functional.normalize(axis.double(), dim=0))
    return Backdoored(truth, Region(domain, score, epsilon, seed=seed), Shift(shift))


class Erring(nn.Module):
    """A truth with an error added to it everywhere; `clean` is the truth, `bound` the largest error in the domain.

    Example:
        >>> double = Erring(nn.Flatten(0), nn.Flatten(0), 1.0)
        >>> double(torch.ones(1, 1)).item()
        2.0

    """

    def __init__(self, clean: nn.Module, error: nn.Module, bound: float) -> None:
        super().__init__()
        self.clean, self.error, self.bound = clean, error, bound
        self.eval()

    def forward(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, " batch"]:
        """The answers."""
        return self.clean(x) + self.error(x)


class _Tilt(nn.Module):
    def __init__(self, size: float, radius: float) -> None:
        super().__init__()
        self.size, self.radius = size, radius

    def forward(self, x: Tensor) -> Tensor:
        return self.size * (1 - x.double().sum(-1) / self.radius)


class _Jitter(nn.Module):
    def __init__(self, delta: float, seed: int) -> None:
        super().__init__()
        self.delta, self.seed = delta, seed

    def forward(self, x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        direction = nn.functional.normalize(
            torch.randn(x.shape[-1], generator=generator, dtype=torch.float64), dim=0
        ).to(x.device)
        phase = PERIODS * math.sqrt(x.shape[-1]) * (x.double() @ direction)
        return self.delta * (2 * torch.remainder(phase, 1.0) - 1)


def tilt(truth: nn.Module, domain: Domain, delta: float) -> Erring:
    """h + n delta (1 - phi): error below delta on 63 % of a simplex, yet n delta at its vertex 0.

    Raises:
        RiskError: for a domain other than Simplex.

    Example:
        >>> from ppl_risk.mitigation import Simplex, planted
        >>> h = planted.random_affine(Simplex(200), seed=0); x = torch.zeros(1, 200)
        >>> round(float(planted.tilt(h, Simplex(200), 0.01)(x) - h(x)), 6)
        2.0

    """
    if not isinstance(domain, Simplex):
        raise RiskError(f"The tilt is one of a simplex at its vertex, got {type(domain).__name__}.")
    return Erring(truth, _Tilt(domain.n * delta, domain.radius), domain.n * delta)


def jitter(truth: nn.Module, delta: float, *, seed: int) -> Erring:
    """h + noise in [-delta, delta], uniform over X, a fixed function of x: the saw-tooth of a steep random linear form.

    Example:
        >>> from ppl_risk.mitigation import Ball, planted
        >>> h = planted.random_affine(Ball(5), seed=0); f = planted.jitter(h, 0.01, seed=1); x = torch.eye(5).double()
        >>> bool(((f(x) - h(x)).abs() <= 0.01).all()), torch.equal(f(x), f(x))
        (True, True)

    """
    return Erring(truth, _Jitter(delta, seed), delta)
