r"""The law of the input as propagation starts it: u ~ N(centre, I - A A^T) in the normal space, then the transport to x.

An affine transport is one more affine step. One that acts on every coordinate alone (any product of continuous laws) is an
elementwise function. Others, and discrete inputs, have no first layer to start from.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ppl_risk.errors import RiskError
from ppl_risk.problem import RiskProblem
from ppl_risk.propagation.full import FullJoint
from ppl_risk.propagation.hermite import Smooth
from ppl_risk.propagation.joint import Joint
from ppl_risk.propagation.low_rank import LowRankJoint
from ppl_risk.tracing import Step

#: The name of the normals behind the input.
NORMALS = "u"
FAMILIES = ("mean_field", "low_rank", "full")


class InputLaw:
    """How a problem's input follows from standard normals.

    Raises:
        RiskError: the transport is neither affine nor coordinate by coordinate.
    """

    def __init__(self, problem: RiskProblem) -> None:
        self.problem, self.dimension = problem, problem.transport.dimension
        if problem.transport.discrete is not None:
            raise RiskError(
                f"{problem.name}: the input law has discrete coordinates, which a Gaussian law of activations cannot start from. "
                "Use run_smc or estimate."
            )
        affine = problem.transport.affine or self._probed()
        self.affine = affine is not None
        if affine is not None:
            # x = loc + matrix u, with covariance `spread`.
            self.loc, self.matrix = (part.to(problem.device) for part in affine)
            self.spread = self.matrix @ self.matrix.mT
        else:
            self.matrix = torch.eye(self.dimension, dtype=torch.float64, device=problem.device)
        if not self.affine and not (problem.transport.coordinatewise or self._coordinatewise()):
            raise RiskError(
                f"{problem.name}: the input law is neither Gaussian nor a product of continuous laws, so its activations have no "
                "Gaussian law to start from. Use run_smc or estimate, or propagate_features with a law of features."
            )

    def transport(self, u: Float[Tensor, "batch d"]) -> Tensor:
        """x of rows u, in double precision."""
        if self.affine:
            return self.loc + u.double() @ self.matrix.mT
        return self._moved(u)

    def _moved(self, u: Float[Tensor, "batch d"]) -> Tensor:
        return self.problem.from_normal(u).reshape(len(u), -1).double()

    def _probes(self) -> Float[Tensor, "2 d"]:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(2, self.dimension, generator=generator, dtype=torch.float64).to(self.problem.device)

    def _probed(self) -> tuple[Tensor, Tensor] | None:
        """(T(0), matrix) of a map that does not say that it is affine and is: a chain of normals in a Pyro program."""
        probes = self._probes()
        zero = torch.zeros_like(probes[:1])
        a, b, both, origin = (self._moved(u) for u in (probes[:1], probes[1:], probes.sum(0, keepdim=True), zero))
        scale = (a - origin).abs().max() + (b - origin).abs().max()
        if not bool((both - a - b + origin).abs().max() <= 1e-4 * scale):
            return None
        eye = torch.eye(self.dimension, dtype=torch.float64, device=self.problem.device)
        return origin[0], (self._moved(eye) - origin).mT

    def _coordinatewise(self) -> bool:
        """Whether, where the map does not say so, coordinate i of x moves with u_i alone."""
        u = self._probes()[:1]
        if self._moved(u).shape[-1] != self.dimension:
            return False
        moved = u + torch.diag(torch.ones_like(u[0]))
        change = (self._moved(moved) - self._moved(u)).abs()
        off = change - torch.diag(change.diagonal())
        return bool(off.max() <= 1e-6 * change.max())

    def start(
        self,
        family: str,
        rank: int,
        centres: Float[Tensor, "batch d"],
        directions: Float[Tensor, "d k"],
        first: Step,
        drift: Tensor | None = None,
    ) -> Joint:
        """Joint law of x, u ~ N(centre, I - A A^T) for every centre; A has orthonormal columns, maybe none."""
        centres = centres.double()
        if self.affine:
            push = self.matrix
            mean, across = self.transport(centres), push @ directions
            with torch.enable_grad():
                drift = None if drift is None else drift @ push.mT
            name, whole = first.name, self.spread - across @ across.mT
            columns = push - across @ directions.mT
        else:
            name, mean = NORMALS, centres
            whole = columns = (
                torch.eye(self.dimension, dtype=torch.float64, device=mean.device) - directions @ directions.mT
            )
        laws, numbers = mean.shape
        if family == "full":
            joint: Joint = FullJoint(name, mean, whole.expand(laws, -1, -1), drift)
        elif family == "mean_field":
            alone = whole.diagonal().clamp_min(0.0).expand(laws, -1)
            joint = LowRankJoint(name, mean, alone, mean.new_zeros(laws, numbers, 0), 0, drift)
        else:
            # The first layer is exact: all normals are latents, until an activation makes them too many.
            joint = LowRankJoint(name, mean, torch.zeros_like(mean), columns.expand(laws, -1, -1), rank, drift)
        if not self.affine:
            joint.activate(first.name, NORMALS, Smooth(self._stacked), {first.name})
        return joint

    def _stacked(self, u: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return self.transport(u.reshape(-1, self.dimension)).reshape(u.shape)
