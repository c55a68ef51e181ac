r"""Is it a margin? What any method must know of one before it spends anything.

A margin is a real number for each row, >= 0 where the catastrophe happens and growing towards it. What people return instead (a
0/1 flag, a label, a probability without its threshold, a clamped score) is never negative, so that `margin >= 0` holds for every
input and P = 1 looks like an answer. Such margins are refused here, for every method alike.

Rules that hold everywhere:

- NaN is no margin: it is refused. An infinite margin has a side: +inf is a catastrophe, -inf is none.
- Two values on both sides of zero (`flag.float() - 0.5`) can be counted, and only that: there is no slope to follow.
- Where the margin is rounded off at the threshold (sigmoid(z) - 0.999999 in single precision) no number stands as `OK`.
- A margin without a gradient (detached, NumPy inside, steps) suits all methods but `fit_svi`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ppl_risk.problem import RiskProblem

#: Rows of the look that every estimator takes, and further ones where none of the first has a negative margin.
LOOK, CONFIRM = 64, 936
#: Share of margins exactly at zero from which a margin that is never negative looks clamped.
CLAMPED = 0.01
#: Rows at which a gradient is asked for: draws of the law, and the same three times as far out.
SLOPES = 32
#: Margins within so many roundings of zero are looked at for ties, and so many there must be.
DIGITS, FEWEST_NEAR = 1000.0, 10
#: Share of the margins above 0 that must lie so near it.
SHARE_NEAR = 0.05
COUNTABLE = "for plain Monte Carlo alone, flag.float() - 0.5 will do"
NO_SLOPE = {
    "none": "The margin has no gradient (detached, under no_grad, or NumPy inside)",
    "nan": "The gradient of the margin is NaN (the square root or logarithm of 0, or a division, in a branch not taken?)",
    "flat": "The gradient of the margin is 0 wherever it was looked at (a step, a rounding, or a flag)",
}


def not_real(name: str, margin: Tensor) -> str:
    """What is wrong with a margin that is no floating number; "" where it is one. `name` is who returned it."""
    if margin.is_floating_point():
        return ""
    wanted = (
        "A margin is wanted, real-valued and >= 0 where the catastrophe happens: levels and gradients have nothing to climb on "
        "otherwise."
    )
    if margin.dtype is torch.bool:
        return f"{name} returned booleans. {wanted} Return e.g. score - threshold; {COUNTABLE}."
    if margin.dtype.is_complex:
        return f"{name} returned {margin.dtype}. {wanted} Return e.g. its modulus - threshold."
    return (
        f"{name} returned {margin.dtype}, whole numbers such as flags, labels or counts. {wanted} Return e.g. score - threshold, "
        "or count - 3.5 where more than 3 are too many. margin.float() alone would make every label >= 0 a catastrophe; "
        f"{COUNTABLE}."
    )


def never_negative(margin: Float[Tensor, " n"]) -> str:
    """Why margins of which none is negative cannot be meant; "" where one is negative, or where they may be.

    Example:
        >>> never_negative(torch.tensor([0.2, 0.7, 0.1]))[:30]
        'All 3 margins lie in [0, 1]: a'
    """
    if bool((margin < 0).any()) or bool(torch.isnan(margin).any()):
        return ""
    values, count = margin.unique(), f"{len(margin):,}"
    everywhere = "counts as a catastrophe (margin >= 0), so P would be 1"
    if len(values) == 1:
        return (
            f"All {count} margins are {_short(values[0])}, and each {everywhere}. Is it a flag (0 where all is well), or "
            f"does it not depend on the input? Return score - threshold; {COUNTABLE}."
        )
    if len(values) == 2:
        return (
            f"All {count} margins are {_short(values[0])} or {_short(values[1])}, and each {everywhere}. A flag is no margin: "
            f"return score - threshold; {COUNTABLE}."
        )
    if bool((margin == margin.round()).all()):
        return (
            f"All {count} margins are whole numbers from {_short(values[0])} to {_short(values[-1])}, and each "
            f"{everywhere}. Labels and counts are no margins: return score - threshold, or count - 3.5 "
            "where more than 3 are too many."
        )
    if float(values[-1]) <= 1:
        return (
            f"All {count} margins lie in [0, 1]: a probability is no margin, and each {everywhere}. Subtract the threshold: "
            "probability - 0.9, or better, in front of the last sigmoid or softmax, logit - log(0.9 / 0.1)."
        )
    if int((margin == 0).sum()) >= max(2, CLAMPED * len(margin)):
        return (
            f"None of {count} margins is negative and {int((margin == 0).sum()):,} are exactly 0, as relu or clamp(min=0) "
            f"leaves them; each {everywhere}. Return score - threshold without the clamp."
        )
    return ""


def look_at(margin: Float[Tensor, " n"]) -> tuple[str, str]:
    """Level and message of the finding on pilot margins."""
    if fault := never_negative(margin):
        return "error", fault
    values = margin.unique()
    few = f"{len(margin):,} margins, "
    if len(values) == 2:
        return "note", (
            f"{few}all {_short(values[0])} or {_short(values[1])}: plain Monte Carlo counts them; if there are no others, "
            "nothing else has a slope to follow. Return score - threshold for that."
        )
    return "ok", f"{few}from {_short(values[0])} to {_short(values[-1])}"


def saturated(margin: Float[Tensor, " n"], scale: float) -> bool:
    """Whether margins just off zero are rounded to a few values: the threshold lies where a sigmoid or tanh has run out of digits.

    Looked at are those of 0 < |margin| <= `DIGITS` eps scale; where every other one has the value of another, the event begins
    where rounding puts it and not where the network does. Margins that are exactly 0 (a clamped score) say nothing.

    Args:
        margin: margins met near the event. scale: size of the margins that the law gives.
    """
    size = margin.abs()
    near = margin[(size > 0) & (size <= DIGITS * torch.finfo(margin.dtype).eps * scale)]
    # Where rounding decides of a few draws in a million, as everywhere, it decides nothing.
    decided = (near > 0).sum() >= SHARE_NEAR * (margin > 0).sum()
    return len(near) >= FEWEST_NEAR and bool(decided) and len(near.unique()) <= len(near) / 2


def slope_fault(problem: RiskProblem) -> str:
    """Which of `NO_SLOPE` describes the margin's gradient; "" where it can be followed somewhere, or no map to normals is known.

    Looks at `SLOPES` draws and at the same draws three times as far out.
    """
    try:
        u = torch.randn(SLOPES, problem.transport.dimension, device=problem.device, dtype=problem.dtype)
    except ValueError:
        return ""
    steps = problem.transport.discrete  # a law that acts through steps has its own finding
    u = torch.cat([u, 3 * u]).requires_grad_()
    try:
        with torch.enable_grad():
            margin = problem.run(problem.from_normal(u))
            if not margin.requires_grad:
                return "" if steps is not None and bool(steps.all()) else "none"
            gradient = torch.autograd.grad(margin.sum(), u, allow_unused=True)[0]
    except RuntimeError:  # what torch raises where NumPy stands in the way, or there is no graph
        return "none"
    if gradient is None or not bool((gradient != 0).any()):
        return "flat" if steps is None else ""
    return "" if bool(((gradient != 0) & torch.isfinite(gradient)).any()) else "nan"


def _short(value: Tensor) -> str:
    return f"{float(value):.3g}"
