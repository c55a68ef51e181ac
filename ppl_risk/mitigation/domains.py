r"""Convex sets X, the uniform law on each, and what a mitigator asks of them: draws, chords, depth.

| set | points | uniform draw |
| --- | --- | --- |
| Ball | norm(x) <= r | r U^{1/n} g / norm(g), g ~ N(0, I) |
| Cube | -r <= x_i <= r | coordinates independent |
| Simplex | x_i >= 0, sum x_i <= r | the first n of n + 1 exponentials over their sum |

`law()` is the same law as a distribution that a `RiskProblem` takes; each is a smooth map of standard normals, so every
estimator runs on it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributions as td
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import constraints

from ppl_risk.errors import RiskError
from ppl_risk.inputs.transport import Part, part_of
from ppl_risk.mitigation.wanted import number, tensor_of, whole

ONE = torch.Size()


@dataclass(frozen=True)
class Domain(ABC):
    """A bounded convex set of R^n with the uniform law; subclasses say which.

    Args:
        n: dimension.
        radius: size.

    Raises:
        RiskError: unless n is a whole number >= 1 and the radius finite and > 0.

    """

    n: int
    radius: float = 1.0
    #: Whether -x is in the set with x.
    symmetric: ClassVar[bool] = True

    def __post_init__(self) -> None:
        whole(f"{type(self).__name__}.n", self.n, least=1)
        number(f"radius of {type(self).__name__}", self.radius, 0.0)

    @abstractmethod
    def sample(self, count: int, generator: torch.Generator | None = None) -> Float[Tensor, "count n"]:
        """Uniform draws, float64."""

    @abstractmethod
    def contains(self, x: Float[Tensor, "batch n"], tolerance: float = 1e-9) -> Bool[Tensor, " batch"]:
        """Whether each row is in the set."""

    @abstractmethod
    def chord(
        self, x: Float[Tensor, "batch n"], direction: Float[Tensor, "batch n"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Low and high t between which x + t direction is in the set; an empty chord has low > high."""

    @abstractmethod
    def depth(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, " batch"]:
        """Minkowski depth: the largest alpha with x - alpha (X - x) inside X; 1 at a centre of symmetry, 0 on the edge."""

    def law(self, dtype: torch.dtype | None = None) -> UniformOn:
        """The uniform law on the set, as a distribution over one input; default in torch's default type."""
        return UniformOn(self, dtype)

    def _points(self, x: Tensor) -> Tensor:
        x = tensor_of("Points", x)
        if not x.dim() or x.shape[-1] != self.n:
            raise RiskError(f"Points of {self} are of {self.n} numbers, got shape {tuple(x.shape)}.")
        return x

    @abstractmethod
    def push(self, u: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """Standard normals to uniform points: the map that estimators use."""


class Ball(Domain):
    """The ball of a radius around 0.

    Example:
        >>> Ball(3).depth(torch.tensor([[0.0, 0.0, 0.5]], dtype=torch.float64))
        tensor([0.3333], dtype=torch.float64)

    """

    def sample(self, count: int, generator: torch.Generator | None = None) -> Float[Tensor, "count n"]:
        """Direction of a normal draw, radius U^{1/n}."""
        whole("count", count, least=0)
        g = torch.randn(count, self.n, generator=generator, dtype=torch.float64)
        u = torch.rand(count, 1, generator=generator, dtype=torch.float64)
        return self.radius * u ** (1 / self.n) * g / g.norm(dim=-1, keepdim=True)

    def contains(self, x: Float[Tensor, "batch n"], tolerance: float = 1e-9) -> Bool[Tensor, " batch"]:
        """Norm at most the radius."""
        x = self._points(x)
        return x.norm(dim=-1) <= self.radius * (1 + tolerance)

    def chord(
        self, x: Float[Tensor, "batch n"], direction: Float[Tensor, "batch n"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Roots of |x + t d|^2 = r^2."""
        x = self._points(x)
        a, b = direction.square().sum(-1), (x * direction).sum(-1)
        under = b.square() - a * (x.square().sum(-1) - self.radius**2)
        root = under.clamp_min(0.0).sqrt()
        missed = under < 0
        return torch.where(missed, torch.inf, (-b - root) / a), torch.where(missed, -torch.inf, (-b + root) / a)

    def depth(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, " batch"]:
        """(r - |x|) / (r + |x|)."""
        x = self._points(x)
        size = x.norm(dim=-1)
        return ((self.radius - size) / (self.radius + size)).clamp_min(0.0)

    def push(self, u: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """r F(|u|^2)^{1/n} u / |u|, F the distribution function of chi^2 with n degrees of freedom."""
        square = u.square().sum(-1, keepdim=True).clamp_min(1e-30)
        inside = torch.special.gammainc(torch.full_like(square, self.n / 2), square / 2)
        return self.radius * inside.clamp_min(1e-300).log().div(self.n).exp() * u / square.sqrt()


class Cube(Domain):
    """The cube [-r, r]^n.

    Example:
        >>> Cube(2).contains(torch.tensor([[0.5, -1.0], [0.0, 1.1]], dtype=torch.float64)).tolist()
        [True, False]

    """

    def sample(self, count: int, generator: torch.Generator | None = None) -> Float[Tensor, "count n"]:
        """Independent uniforms."""
        whole("count", count, least=0)
        return self.radius * (2 * torch.rand(count, self.n, generator=generator, dtype=torch.float64) - 1)

    def contains(self, x: Float[Tensor, "batch n"], tolerance: float = 1e-9) -> Bool[Tensor, " batch"]:
        """Every |x_i| at most r."""
        x = self._points(x)
        return x.abs().amax(-1) <= self.radius * (1 + tolerance)

    def chord(
        self, x: Float[Tensor, "batch n"], direction: Float[Tensor, "batch n"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """The tightest of n intervals."""
        x = self._points(x)
        still = direction == 0
        step = torch.where(still, torch.ones_like(direction), direction)
        one, other = (-self.radius - x) / step, (self.radius - x) / step
        outside = still & (x.abs() > self.radius)
        low = torch.where(still, -torch.inf, torch.minimum(one, other)).amax(-1)
        high = torch.where(still, torch.inf, torch.maximum(one, other)).amin(-1)
        return torch.where(outside.any(-1), torch.inf, low), torch.where(outside.any(-1), -torch.inf, high)

    def depth(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, " batch"]:
        """(r - max |x_i|) / (r + max |x_i|)."""
        x = self._points(x)
        size = x.abs().amax(-1)
        return ((self.radius - size) / (self.radius + size)).clamp_min(0.0)

    def push(self, u: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """r (2 Phi(u) - 1)."""
        return self.radius * torch.erf(u / math.sqrt(2.0))


class Simplex(Domain):
    """The corner simplex x_i >= 0, sum x_i <= r; it has no centre of symmetry.

    Example:
        >>> Simplex(2).contains(torch.tensor([[0.5, 0.5], [0.6, 0.5]], dtype=torch.float64)).tolist()
        [True, False]

    """

    symmetric: ClassVar[bool] = False

    def sample(self, count: int, generator: torch.Generator | None = None) -> Float[Tensor, "count n"]:
        """Exponentials over their sum, the last left out."""
        whole("count", count, least=0)
        u = torch.rand(count, self.n + 1, generator=generator, dtype=torch.float64)
        e = -torch.log1p(-u)
        return self.radius * e[:, :-1] / e.sum(-1, keepdim=True)

    def contains(self, x: Float[Tensor, "batch n"], tolerance: float = 1e-9) -> Bool[Tensor, " batch"]:
        """No coordinate negative, sum at most r."""
        x = self._points(x)
        return (x >= -tolerance * self.radius).all(-1) & (x.sum(-1) <= self.radius * (1 + tolerance))

    def chord(
        self, x: Float[Tensor, "batch n"], direction: Float[Tensor, "batch n"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """The tightest of n + 1 half-lines."""
        x = self._points(x)
        slack = torch.cat([x, self.radius - x.sum(-1, keepdim=True)], dim=-1)
        rate = torch.cat([direction, -direction.sum(-1, keepdim=True)], dim=-1)
        bound = -slack / torch.where(rate == 0, torch.ones_like(rate), rate)
        low = torch.where(rate > 0, bound, -torch.inf).amax(-1)
        high = torch.where(rate < 0, bound, torch.inf).amin(-1)
        outside = ((rate == 0) & (slack < 0)).any(-1)
        return torch.where(outside, torch.inf, low), torch.where(outside, -torch.inf, high)

    def depth(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, " batch"]:
        """Least barycentric coordinate b over 1 - b: in barycentric terms (1 + alpha) b - alpha >= 0."""
        x = self._points(x)
        least = torch.cat([x, self.radius - x.sum(-1, keepdim=True)], dim=-1).amin(-1) / self.radius
        return (least / (1 - least)).clamp_min(0.0)

    def push(self, u: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """Stick breaking: of what is left, coordinate i takes Beta(1, n - i), whose quantile is 1 - (1 - F)^{1/(n-i)}."""
        left_over = torch.special.log_ndtr(-u) / torch.arange(self.n, 0, -1, dtype=u.dtype, device=u.device)
        before = torch.cat([torch.zeros_like(left_over[..., :1]), left_over.cumsum(-1)[..., :-1]], dim=-1)
        return self.radius * before.exp() * -torch.expm1(left_over)


class UniformOn(td.Distribution):
    """The uniform law on a domain.

    Example:
        >>> Ball(4).law().sample((3,)).shape
        torch.Size([3, 4])

    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector  # pyright: ignore[reportAssignmentType]

    def __init__(self, domain: Domain, dtype: torch.dtype | None = None) -> None:
        self.domain, self.dtype = domain, torch.get_default_dtype() if dtype is None else dtype
        super().__init__(torch.Size(), torch.Size((domain.n,)), validate_args=False)

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ONE) -> Tensor:
        """Uniform points."""
        return self.domain.push(torch.randn(*sample_shape, self.domain.n, dtype=self.dtype))


@part_of.register
def _(law: UniformOn) -> Part:
    return Part(law.event_shape, law.domain.push)
