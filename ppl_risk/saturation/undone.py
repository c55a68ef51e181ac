r"""The same catastrophe in units that do not saturate: `sigmoid(z) - 0.999 >= 0` is `z - logit(0.999) >= 0`.

Where the last steps before the margin are one increasing (or one falling) function g of a number w,

    margin = g(w) >= 0   <=>   sign (w - c) >= 0,   g(c) = 0,

and w keeps its slope where g is flat: sigmoid, tanh, exp, log-sigmoid, clamps, hinges and constants. Of a softmax,
p_k = sigmoid(h_k - log sum_{j != k} exp h_j), number by number. What picks numbers out (a select, a reshape, a largest or a
smallest) changes places with g. The steps are read while the network runs, so layers, gradients and counts stay what they are.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ppl_risk.errors import RiskError
from ppl_risk.network import Visitor
from ppl_risk.problem import RiskProblem
from ppl_risk.randomness import seeded
from ppl_risk.saturation.watched import Chain, Watch, chain_of, lightened, rises

#: Rows on which the two margins must agree, and how much wider the second half of them is.
ROWS, WIDER = 128, 3.0


class Unsaturated(RiskProblem):
    """A problem whose margin is that of another in the units before its last functions; made by `unsaturated`."""

    def __init__(self, problem: RiskProblem) -> None:
        super().__init__(
            problem.network, problem.inputs, problem.detector, name=problem.name, layers=list(problem.cut),
            provenance=problem.provenance,
        )  # fmt: skip
        self.saturated = problem
        self._chain = Chain(())

    @property
    def bound(self) -> float:
        """c, where the margin's last functions pass 0."""
        return self._chain.bound

    def __copy__(self) -> Unsaturated:
        """A copy has meters of its own, as one of any problem has."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__ | {"saturated": copy.copy(self.saturated)})
        return made

    @property
    def _meters(self) -> list[Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Calls are booked where those of the problem itself are."""
        return self.__dict__["saturated"]._meters if "saturated" in self.__dict__ else []

    @_meters.setter
    def _meters(self, meters: list[Any]) -> None:
        if "saturated" in self.__dict__:
            self.saturated._meters = meters

    def run(
        self,
        x: Tensor,
        visit: Visitor | None = None,
        read: Visitor | None = None,
        skipped: dict[str, str] | None = None,
    ) -> Float[Tensor, " batch"]:
        """sign (w - c) of one batch."""
        with Watch() as watch:
            margin = super().run(x, visit, read, skipped)
        chain = self._chain
        calls = chain_of(watch, margin, chain.names())
        return chain.sign * (Chain(calls, rises=chain.rises).before().reshape(margin.shape) - chain.bound)


def unsaturated(problem: RiskProblem) -> Unsaturated | None:
    """The problem with the same catastrophe whose margin is that before its last functions; None where there is nothing to undo.

    The new margin is sign (w - c), w being what the margin is a monotone function of. Its sign is compared with that of the
    margin on 128 rows, half of them three times as wide as the input law; where one differs the answer is None. Network,
    layers, input law and counts of calls are those of the problem.

    Raises:
        RiskError: only what the network itself raises.

    Example:
        >>> law = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> found = unsaturated(RiskProblem(lambda x: torch.sigmoid(x[:, 0]) - 0.999, law))
        >>> [round(m, 4) for m in found.margin(torch.tensor([[0.0, 0.0], [50.0, 0.0]])).tolist()]
        [-6.9067, 43.0933]
        >>> unsaturated(RiskProblem(lambda x: x[:, 0] - 3.0, law)) is None
        True
    """
    with torch.no_grad(), seeded(0, problem.device):
        x = _rows(problem)
        with Watch() as watch:
            margin = problem.run(x)
        if not isinstance(margin, Tensor) or margin.shape != x.shape[:1] or not margin.is_floating_point():
            return None
        calls = chain_of(watch, margin)
        if not calls:
            return None
        crossing = _crossing(Chain(calls), margin.device, calls[-1].read.dtype)
        if crossing is None:
            return None
        made = Unsaturated(problem)
        made._chain = Chain(calls, *crossing, tuple(rises(call) for call in calls))
        try:
            found = made.run(x)
        except (RuntimeError, TypeError, RiskError):
            return None
        here = found / made._chain.sign + made._chain.bound
        # Rounding may turn the sign of a margin that is 0 but for the last digits.
        close = found.abs() <= 64 * torch.finfo(found.dtype).eps * (here.abs() + abs(made._chain.bound))
        same = ((found >= 0) == (margin >= 0)) | close
        sound = bool(same.all()) and bool(found.isfinite().all()) and not bool(margin.isnan().any())
    if not sound:
        return None
    made._chain = replace(made._chain, calls=tuple(lightened(call) for call in calls))
    return made


def _rows(problem: RiskProblem) -> Tensor:
    """Rows of the input law, and of one three times as wide where it has a map from normals."""
    try:
        u = torch.randn(ROWS, problem.transport.dimension, device=problem.device)
    except ValueError:
        return problem.sample(ROWS)
    u[ROWS // 2 :] *= WIDER
    return problem.from_normal(u)


def _crossing(chain: Chain, device: torch.device, dtype: torch.dtype) -> tuple[float, float] | None:
    """(sign, c) of g in the network's own arithmetic; None where g crosses 0 never or more than once, or is not a number."""
    high = min(60.0, math.asinh(torch.finfo(dtype).max / 1e6))

    def above(t: Tensor) -> Tensor:
        return chain.on_number(t.sinh().to(dtype))

    grid = torch.linspace(-high, high, 4001, dtype=torch.float64, device=device)
    value = above(grid)
    if bool(value.isnan().any()):
        return None
    turns = torch.nonzero((value[1:] >= 0) != (value[:-1] >= 0)).squeeze(-1)
    if len(turns) != 1:
        return None
    place = int(turns[0])
    low, up = grid[place : place + 1], grid[place + 1 : place + 2]
    sign = 1.0 if bool(value[place + 1] >= 0) else -1.0
    for _ in range(64):
        middle = (low + up) / 2
        passed = (above(middle.expand(16))[0] >= 0) == (sign > 0)
        low, up = (low, middle) if bool(passed) else (middle, up)
    c = float(up.sinh() if sign > 0 else low.sinh())
    # Halvings come close to 0 and never there, where a margin of whole numbers may lie.
    return sign, 0.0 if abs(c) < 1e-15 and bool(above(grid.new_zeros(1)) >= 0) else c
