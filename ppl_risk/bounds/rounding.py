"""What rounding may do to a margin, in the types that the network computes in; half precision is refused.

Rounding of float32 and float64 is far below what a margin varies by, unless a sigmoid has run out of digits; that of half and
bfloat16 is not.
"""

from __future__ import annotations

import torch

from ppl_risk.errors import RiskError
from ppl_risk.problem import RiskProblem
from ppl_risk.tracing import Tape

#: Roundings of the network's own type that a margin must stay below 0 by, in units of the terms it is a sum of.
ROUNDINGS = 4


def require_wide(problem: RiskProblem) -> None:
    """Refuse weights in half precision, before anything is read.

    Raises:
        RiskError: the weights are narrower than float32.
    """
    if problem.is_half:
        weights = next(p.dtype for p in problem.parameters() if p.is_floating_point())
        raise _narrow(problem, weights, "its weights")


def rounding_of(problem: RiskProblem, tape: Tape) -> float:
    """What a margin may be off by, in units of its terms, in the narrowest type the network computes in.

    Raises:
        RiskError: a step computes in a type narrower than float32.
    """
    widest = torch.finfo(torch.float64).eps
    for step in tape.steps:
        kind = step.dtype
        if kind is None or not kind.is_floating_point:
            continue
        widest = max(widest, torch.finfo(kind).eps)
        if widest > torch.finfo(torch.float32).eps:
            raise _narrow(problem, kind, f"step {step.name!r}")
    return ROUNDINGS * widest


def _narrow(problem: RiskProblem, kind: torch.dtype, where: str) -> RiskError:
    return RiskError(
        f"{problem.name}: the network computes in {kind} ({where}), whose rounding is part of what it does and is not bounded. "
        "Bound its float32 version, network.float(), which is another function; or use run_smc or estimate."
    )
