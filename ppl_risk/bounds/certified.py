r"""A proved upper bound on the probability of a catastrophe, or the plain word that the bound says nothing.

Gaussian laws: the largest ball |u| <= R in the normal space on which CROWN proves margin < 0 gives P <= Pr[chi_d > R]; PROVEN adds
the tail of an affine function above the margin; the smaller of the two is taken, over all radii tried. Laws of independent
coordinates: the largest box |u_i| <= r, with P <= 1 - (2 Phi(r) - 1)^d. Where the margin is below 0, or at least 0, on all that the
law can give, P is 0, or 1. What is bounded is the network in exact arithmetic, computed in float64 with an allowance for
rounding, its own and that of the margin's terms in the network's type, which is not proved; networks in a narrower type are
refused, as their rounding is part of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_risk.arguments import checked, reals, whole
from ppl_risk.bounds.everywhere import bounds_everywhere
from ppl_risk.bounds.interval import Ball, Box
from ppl_risk.bounds.laws import LARGEST_U, affine_of, ends, is_monotone, leading, support_of
from ppl_risk.bounds.lowering import program_of
from ppl_risk.bounds.program import Program
from ppl_risk.bounds.proven import log_box_tail, log_chi_tail, log_proven
from ppl_risk.bounds.relaxation import LARGEST, margin_bounds
from ppl_risk.bounds.rounding import require_wide, rounding_of
from ppl_risk.bounds.search import GRID, Clock, Search, rounds
from ppl_risk.errors import RiskError
from ppl_risk.preflight import require_sound
from ppl_risk.problem import RiskProblem
from ppl_risk.randomness import seeded
from ppl_risk.risk_estimate import LOG10, RiskEstimate, Status
from ppl_risk.tracing import ConstantMarginError, Tape, trace

#: A bound above this says nothing.
SAYS_NOTHING = 0.5
#: Half width of the boxes around sampled inputs, in units of the inputs' spread.
SHARE_OF_SPREAD = 0.01
#: Radii in a row without proof, after which no larger one is tried on networks so large that each takes seconds.
IDLE = 2
#: What a quantile function may be off by: of u, and of Phi(u) at either end, which float64 holds to 1.1e-16 beside 1.
QUANTILE, PHI = 1e-6, 2.3e-16


@checked(inputs=whole, radii=reals)
def certify(
    problem: RiskProblem,
    *,
    radii: Sequence[float] | None = None,
    inputs: int = 100,
    epsilon: float | None = None,
    seed: int = 0,
    progress: bool = True,
    max_seconds: float | None = None,
) -> RiskEstimate:
    """A proved upper bound on Pr[margin >= 0].

    Args:
        problem: the problem; its network must consist of operators that have bounds (`ppl_risk.bounds.program`).
        radii: radii to try, in standard deviations of the normal space; default: searched.
        inputs: sampled inputs around which the sign of the margin is certified, for evidence; 0 for none.
        epsilon: half width of the box around each, in the units of x; default a hundredth of the inputs' spread.
        seed: of those inputs; the bound needs none.
        progress: show a bar.
        max_seconds: stop after this time, with the best bound proved so far; None: try all radii. A result that was cut short
            depends on the machine.

    `log_prob` of the result is the log of the bound, in nats; status `BOUNDED`, `PROVED` (P = 0 or P = 1) or `VACUOUS` (P <= 1:
    nothing).
    Evidence: the certified radius and PROVEN's, in standard deviations, log10 of both bounds, and the share of sampled inputs
    whose sign is certified next to the share that fails.

    Raises:
        RiskError: an operator without bounds, named; an input law that is neither Gaussian nor of independent numbers.
        PreflightError: the problem is not sound.

    Example:
        >>> law = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> made = certify(RiskProblem(lambda x: x[:, 0] - 3.0, law), progress=False)
        >>> made.status.name, round(made.prob, 4)
        ('BOUNDED', 0.0013)
    """
    started = time.perf_counter()
    if inputs < 0 or (epsilon is not None and not epsilon > 0) or any(not r > 0 for r in radii or ()):
        raise RiskError("inputs must be at least 0, epsilon and radii greater than 0.")
    if max_seconds is not None and not max_seconds > 0:
        raise RiskError(f"max_seconds must be greater than 0 or None, got {max_seconds}.")
    require_sound(problem, proof=True)
    require_wide(problem)
    clock = Clock(started, max_seconds)
    sure: float | None = None
    search, around, flops, gaussian = Search(), dict[str, float](), 0.0, False
    with problem.metered() as meter:
        try:
            tape = trace(problem)
            rounding = rounding_of(problem, tape)
            sure = _certain(problem, tape)
            affine = affine_of(problem.inputs, problem.device) if sure is None else None
            gaussian = affine is not None
            if affine is not None:
                program = program_of(tape, problem.device, leading(affine, problem.inputs.event_shape))
                search = _balls(program, affine.dimension, rounding, radii, progress, clock)
                flops = program.flops
            elif sure is None:
                program = program_of(tape, problem.device)
                search, zero = _boxes(program, problem, rounding, radii, progress, clock)
                sure, flops = -math.inf if zero else None, program.flops
            around, more = _around_inputs(problem, tape, rounding, inputs, epsilon, seed, clock)
            flops += more
        except ConstantMarginError as constant:
            sure = 0.0 if constant.margin >= 0 else -math.inf
    if sure is None:
        around = _of_search(search, gaussian) | around
    bound = min([*search.ball, *search.proven, 0.0]) if sure is None else sure
    status, remedy = _verdict(problem, bound, sure is not None, search, gaussian)
    if clock.rang:
        remedy = f"{remedy} The search for radii was cut short after {max_seconds:.3g} s.".strip()
    cost: dict[str, Any] = problem.cost(meter)
    return RiskEstimate(
        method="CROWN and PROVEN bounds" if gaussian else "CROWN bounds",
        log_prob=0.0 if status is Status.VACUOUS else bound, std_error=math.nan if sure is None else 0.0, status=status,
        remedy=remedy, **cost | {"flops": cost["flops"] + flops}, seconds=time.perf_counter() - started, seed=seed,
        problem=problem.name, evidence=around,
        settings={"radii": None if radii is None else list(radii), "inputs": inputs, "epsilon": epsilon},
    )  # fmt: skip


def _certain(problem: RiskProblem, tape: Tape) -> float | None:
    """log P where it is 0 or 1 whatever the law gives, nats; None where that is not proved."""
    program = program_of(tape, problem.device)
    low, high = (end.reshape(program.root.shape).to(problem.device) for end in support_of(problem.inputs))
    least, most, defined = bounds_everywhere(program, low, high)
    if most < 0:
        return -math.inf
    return 0.0 if least >= 0 and defined else None


def _balls(
    program: Program, dimension: int, rounding: float, radii: Sequence[float] | None, progress: bool, clock: Clock
) -> Search:
    """Balls around 0 in the normal space."""
    large = radii is None and _at_once(program) == 1

    def prove(tried: list[float]) -> None:
        idle = 0
        if large and search.radii and log_chi_tail(max(tried), dimension) > math.log(SAYS_NOTHING):
            return  # a finer radius is no better bound, and each takes seconds
        for part in torch.tensor(tried, dtype=torch.float64, device=program.device).split(_at_once(program)):
            if clock.over() or (large and idle == IDLE):
                return
            ball = Ball(torch.zeros(len(part), dimension, dtype=torch.float64, device=program.device), part)
            planes, _, high = margin_bounds(program, ball, rounding)
            certified = (high < 0).tolist()
            search.radii += part.tolist()
            search.certified += certified
            search.ball += [
                log_chi_tail(r, dimension) if ok else 0.0 for r, ok in zip(part.tolist(), certified, strict=True)
            ]
            search.proven += log_proven(planes.weights, planes.offset, part).tolist()
            # The plane may say something on a larger ball, outside of which less is left.
            plane = float(log_proven(planes.weights, planes.offset, torch.full_like(part, math.inf)).min())
            idle = 0 if any(certified) or plane <= math.log(SAYS_NOTHING) else idle + 1

    search = Search()
    rounds(prove, search, [g * math.sqrt(dimension) for g in GRID], radii, progress)
    return search


def _boxes(
    program: Program, problem: RiskProblem, rounding: float, radii: Sequence[float] | None, progress: bool, clock: Clock
) -> tuple[Search, bool]:
    """Boxes between quantiles of independent numbers, and whether the whole support is one without catastrophe."""
    law = problem.inputs
    if not is_monotone(law):
        raise RiskError(
            f"No region of an input law of type {type(law).__name__} is known whose probability is known too. Bounds need a "
            "Gaussian law, or independent numbers with quantile functions (torch.distributions.Independent); run_smc needs neither."
        )

    transport = problem.transport

    def prove(low: Tensor, high: Tensor) -> list[bool]:
        shape = (len(low), *program.root.shape)
        low, high = (end.reshape(shape).to(program.device) for end in (low, high))
        found = []
        for some, others in zip(low.split(_at_once(program)), high.split(_at_once(program)), strict=True):
            if clock.over():
                return found + [False] * (len(low) - len(found))
            found += (margin_bounds(program, Box((some + others) / 2, (others - some) / 2), rounding)[2] < 0).tolist()
        return found

    search, support = Search(), support_of(law)
    if bool(torch.stack(support).isfinite().all()) and all(prove(support[0][None], support[1][None])):
        search.radii, search.certified, search.ball = [math.inf], [True], [-math.inf]
        return search, True

    large, dimension = radii is None and _at_once(program) == 1, transport.dimension

    def try_(tried: list[float]) -> None:
        tried, idle = [r for r in tried if r <= LARGEST_U], 0
        if large and search.radii and _outside(max(tried, default=0.0), dimension) > math.log(SAYS_NOTHING):
            return
        for some in ([r] for r in tried) if large else filter(None, [tried]):
            if idle == IDLE:
                return
            certified = prove(*ends(transport.map, torch.tensor(some), dimension))
            search.radii, search.certified = search.radii + some, search.certified + certified
            search.ball += [_outside(r, dimension) if ok else 0.0 for r, ok in zip(some, certified, strict=True)]
            idle = 0 if not large or any(certified) else idle + 1

    rounds(try_, search, [LARGEST_U * g / GRID[-1] for g in GRID], radii, progress)
    return search, False


def _outside(radius: float, dimension: int) -> float:
    """log of the mass outside a box whose ends are quantiles computed in float64, nats."""
    return min(0.0, float(np.logaddexp(log_box_tail(radius * (1 - QUANTILE), dimension), math.log(dimension * PHI))))


def _at_once(program: Program) -> int:
    """Regions whose weights fit side by side."""
    widest = max(node.shape.numel() for node in program.nodes.values())
    return max(1, LARGEST // (2 * widest**2))


def _of_search(search: Search, gaussian: bool) -> dict[str, float]:
    found = {"certified_radius": search.radius, "log10_bound_region": min(search.ball, default=0.0) / LOG10}
    if gaussian:
        best = min(search.proven, default=0.0)
        found["log10_bound_proven"] = best / LOG10
        if best < 0:
            found["proven_radius"] = search.radii[search.proven.index(best)]
    return found


@torch.no_grad()
def _around_inputs(
    problem: RiskProblem, tape: Tape, rounding: float, inputs: int, epsilon: float | None, seed: int, clock: Clock
) -> tuple[dict[str, float], float]:
    """Of sampled inputs, the share with a certified sign in a box around each, and the share that fails; and the FLOPs."""
    with seeded(seed, problem.device):
        x = problem.sample(inputs) if inputs else None
    if x is None or not x.is_floating_point():
        return {}, 0.0
    program = program_of(tape, problem.device)
    if epsilon is None:
        spread = x.double().std(0, unbiased=False).square().mean().sqrt()
        epsilon = SHARE_OF_SPREAD * float(spread)
    fails = problem.margin(x) >= 0
    centre, settled = x.double().reshape(inputs, *program.root.shape), []
    for part in centre.split(_at_once(program)):
        if clock.over():
            return {}, program.flops
        _, low, high = margin_bounds(program, Box(part, torch.full_like(part, epsilon)), rounding)
        settled.append((high < 0) | (low >= 0))
    shares = {
        "inputs": float(inputs), "epsilon": epsilon, "share_of_inputs_certified": float(torch.cat(settled).double().mean()),
        "share_of_inputs_failing": float(fails.double().mean()),
    }  # fmt: skip
    return shares, program.flops


def _verdict(problem: RiskProblem, bound: float, sure: bool, search: Search, gaussian: bool) -> tuple[Status, str]:
    if sure:
        return Status.PROVED, ""
    if bound <= math.log(SAYS_NOTHING):
        return Status.BOUNDED, "P is at most this and may be far smaller: for its value use run_smc or fit_svi."
    d = problem.transport.dimension
    if gaussian:
        need = f"|u| <= {search.radius:.3g}, where draws have |u| of about {math.sqrt(d):.3g}"
    else:
        need = f"|u_i| <= {search.radius:.3g} in each of {d} normals"
    return Status.VACUOUS, (
        f"No catastrophe is proved only for {need}, too small a region for any bound on P. Bounds of this kind want input noise "
        "several times smaller, or a shallower or narrower network; run_smc estimates P without them."
    )
