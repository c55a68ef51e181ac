r"""A proved upper bound on the probability of a catastrophe, or the plain word that the bound says nothing.

Gaussian laws: the largest ball |u| <= R in the normal space on which CROWN proves margin < 0 gives P <= Pr[chi_d > R]; PROVEN adds
the tail of an affine function above the margin; the smaller of the two is taken, over all radii tried. Laws of independent
coordinates: the largest box |u_i| <= r, with P <= 1 - (2 Phi(r) - 1)^d; where the whole support is in a box without catastrophe,
P = 0. What is bounded is the network in exact arithmetic, computed in float64 with an allowance for rounding, which is not proved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ppl_risk.arguments import checked, reals, whole
from ppl_risk.bounds.interval import Ball, Box, Region
from ppl_risk.bounds.laws import LARGEST_U, affine_of, ends, is_monotone, leading, support_of
from ppl_risk.bounds.lowering import program_of
from ppl_risk.bounds.program import Program
from ppl_risk.bounds.proven import log_box_tail, log_chi_tail, log_proven
from ppl_risk.bounds.relaxation import LARGEST, Plane, crown_bounds, upper_planes
from ppl_risk.bounds.search import GRID, Search, rounds
from ppl_risk.errors import RiskError
from ppl_risk.preflight import require_sound
from ppl_risk.problem import RiskProblem
from ppl_risk.randomness import seeded
from ppl_risk.risk_estimate import LOG10, RiskEstimate, Status
from ppl_risk.tracing import Tape, trace

#: A bound above this says nothing.
SAYS_NOTHING = 0.5
#: Half width of the boxes around sampled inputs, in units of the inputs' spread.
SHARE_OF_SPREAD = 0.01


@checked(inputs=whole, radii=reals)
def certify(
    problem: RiskProblem,
    *,
    radii: Sequence[float] | None = None,
    inputs: int = 100,
    epsilon: float | None = None,
    seed: int = 0,
    progress: bool = True,
) -> RiskEstimate:
    """A proved upper bound on Pr[margin >= 0].

    Args:
        problem: the problem; its network must consist of operators that have bounds (`ppl_risk.bounds.program`).
        radii: radii to try, in standard deviations of the normal space; default: searched.
        inputs: sampled inputs around which the sign of the margin is certified, for evidence; 0 for none.
        epsilon: half width of the box around each, in the units of x; default a hundredth of the inputs' spread.
        seed: of those inputs; the bound needs none. progress: show a bar.

    `log_prob` of the result is the log of the bound, in nats; status `BOUNDED`, `PROVED` (P = 0) or `VACUOUS` (P <= 1: nothing).
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
    require_sound(problem)
    with problem.metered() as meter:
        tape = trace(problem)
        affine = affine_of(problem.inputs, problem.device)
        if affine is not None:
            program = program_of(tape, problem.device, leading(affine, problem.inputs.event_shape))
            search, zero = _balls(program, affine.dimension, radii, progress), False
        else:
            program = program_of(tape, problem.device)
            search, zero = _boxes(program, problem, radii, progress)
        around, flops = _around_inputs(problem, tape, inputs, epsilon, seed)
    evidence = _of_search(search, affine is not None) | around
    bound = -math.inf if zero else min([*search.ball, *search.proven, 0.0])
    status, remedy = _verdict(problem, bound, zero, search, affine is not None)
    cost: dict[str, Any] = problem.cost(meter) | {"flops": problem.flops(meter) + program.flops + flops}
    return RiskEstimate(
        method="CROWN and PROVEN bounds" if affine is not None else "CROWN bounds",
        log_prob=0.0 if status is Status.VACUOUS else bound, std_error=0.0 if zero else math.nan, status=status, remedy=remedy,
        **cost, seconds=time.perf_counter() - started, seed=seed, problem=problem.name, evidence=evidence,
        settings={"radii": None if radii is None else list(radii), "inputs": inputs, "epsilon": epsilon},
    )  # fmt: skip


def _balls(program: Program, dimension: int, radii: Sequence[float] | None, progress: bool) -> Search:
    """Balls around 0 in the normal space."""

    def prove(tried: list[float]) -> None:
        for part in torch.tensor(tried, dtype=torch.float64, device=program.device).split(_at_once(program)):
            ball = Ball(torch.zeros(len(part), dimension, dtype=torch.float64, device=program.device), part)
            planes, _, high = _margin(program, ball)
            certified = (high < 0).tolist()
            search.radii += part.tolist()
            search.certified += certified
            search.ball += [
                log_chi_tail(r, dimension) if ok else 0.0 for r, ok in zip(part.tolist(), certified, strict=True)
            ]
            search.proven += log_proven(planes.weights, planes.offset, part).tolist()

    search = Search()
    rounds(prove, search, [g * math.sqrt(dimension) for g in GRID], radii, progress)
    return search


def _boxes(
    program: Program, problem: RiskProblem, radii: Sequence[float] | None, progress: bool
) -> tuple[Search, bool]:
    """Boxes between quantiles of independent numbers, and whether the whole support is one without catastrophe."""
    law, transport = problem.inputs, problem.transport
    if not is_monotone(law):
        raise RiskError(
            f"No region of an input law of type {type(law).__name__} is known whose probability is known too. Bounds need a "
            "Gaussian law, or independent numbers with quantile functions (torch.distributions.Independent); run_smc needs neither."
        )

    def prove(low: Tensor, high: Tensor) -> list[bool]:
        shape = (len(low), *program.root.shape)
        low, high = (end.reshape(shape).to(program.device) for end in (low, high))
        found = []
        for some, others in zip(low.split(_at_once(program)), high.split(_at_once(program)), strict=True):
            found += (_margin(program, Box((some + others) / 2, (others - some) / 2))[2] < 0).tolist()
        return found

    search, support = Search(), support_of(law)
    if support is not None and all(prove(support[0][None], support[1][None])):
        search.radii, search.certified, search.ball = [math.inf], [True], [-math.inf]
        return search, True

    def try_(tried: list[float]) -> None:
        tried = [r for r in tried if r <= LARGEST_U]
        search.radii += tried
        certified = prove(*ends(transport.map, torch.tensor(tried), transport.dimension)) if tried else []
        search.certified += certified
        search.ball += [
            log_box_tail(r, transport.dimension) if ok else 0.0 for r, ok in zip(tried, certified, strict=True)
        ]

    rounds(try_, search, [LARGEST_U * g / GRID[-1] for g in GRID], radii, progress)
    return search, False


def _margin(program: Program, region: Region) -> tuple[Plane, Tensor, Tensor]:
    """Planes above the margin on each region, and its bounds there (regions,)."""
    bounds = crown_bounds(program, region)
    planes, largest = upper_planes(program, region, bounds)
    low, high = (end.flatten() for end in bounds[program.output.name])
    return planes, low, high.fmin(largest.amax(1))


def _at_once(program: Program) -> int:
    """Regions whose weights fit side by side."""
    widest = max(node.shape.numel() for node in program.nodes.values())
    return max(1, LARGEST // (2 * widest**2))


def _of_search(search: Search, gaussian: bool) -> dict[str, float]:
    found = {"certified_radius": search.radius, "log10_bound_region": min(search.ball, default=0.0) / LOG10}
    if gaussian:
        best = min(search.proven)
        found["log10_bound_proven"] = best / LOG10
        if best < 0:
            found["proven_radius"] = search.radii[search.proven.index(best)]
    return found


@torch.no_grad()
def _around_inputs(
    problem: RiskProblem, tape: Tape, inputs: int, epsilon: float | None, seed: int
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
        _, low, high = _margin(program, Box(part, torch.full_like(part, epsilon)))
        settled.append((high < 0) | (low >= 0))
    shares = {
        "inputs": float(inputs), "epsilon": epsilon, "share_of_inputs_certified": float(torch.cat(settled).double().mean()),
        "share_of_inputs_failing": float(fails.double().mean()),
    }  # fmt: skip
    return shares, program.flops


def _verdict(problem: RiskProblem, bound: float, zero: bool, search: Search, gaussian: bool) -> tuple[Status, str]:
    if zero:
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
