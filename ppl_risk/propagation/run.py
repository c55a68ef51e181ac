"""`propagate`: the probability of a catastrophe read off the network, with or without a check against a few passes of it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_risk.arguments import checked
from ppl_risk.errors import RiskError
from ppl_risk.posterior import posterior_of
from ppl_risk.preflight import require_sound
from ppl_risk.problem import RiskProblem
from ppl_risk.propagation.event import Event, event_of
from ppl_risk.propagation.input_law import FAMILIES, InputLaw
from ppl_risk.propagation.joint import Joint, LayerLaw
from ppl_risk.propagation.propagator import Propagator
from ppl_risk.propagation.skewed_slices import SkewedSlices, skewed
from ppl_risk.propagation.slices import At, Slices, design_point, second_direction, slices_along
from ppl_risk.propagation.trust import DEEP, Trust, examine
from ppl_risk.randomness import seeded
from ppl_risk.risk_estimate import LOG10, RiskEstimate, Status, decades
from ppl_risk.tracing import trace

SLICED = ("slices", "skewed")
READOUTS = (*SLICED, "orthant", "gaussian")
#: Thresholds of the survival curve, and how many fine points one of its numbers skips.
CURVE, SKIPPED = 33, 8
#: Standard deviations of the event's layer smaller than this, or larger than its inverse, are made 1.
SMALL = 1e-4


@dataclass(frozen=True)
class PropagatedLaw:
    """The law of every named layer under the input law, and the slices that the number was read off.

    `prior` is the event's layer: mean (1, k), covariance (1, k, k), and the gradient of log p in the input's mean.
    """

    layers: Mapping[str, LayerLaw]
    event: Event
    prior: At
    slices: Slices | None = None


@checked()
def propagate(
    problem: RiskProblem,
    family: str = "low_rank",
    rank: int = 16,
    readout: str = "slices",
    *,
    directions: int = 2,
    trust: bool = True,
    posterior_draws: int = 200,
    seed: int = 0,
) -> RiskEstimate:
    r"""log Pr[margin >= 0] by carrying the law of the input through the network; no input runs through it for the number.

    The law of every layer is Gaussian, u -> x -> layers, with the correlations that `family` keeps. `slices` integrates over one
    direction of the input, or two, int phi(v) Pr[event | v] dv; `skewed` carries third cumulants inside the slices; `orthant`
    reads the event off one law, `gaussian` the tail of one Gaussian margin. With `trust` the true network is then run some
    3,000 to 4,400 times and searched for failures; the number is REFUSED where those passes say so, or do not exclude that it is
    a factor of 2 off. Where they leave that open, more are made.

    Args:
        problem: the problem; its input law Gaussian, or a product of continuous laws. family: "mean_field", "low_rank" or
            "full". rank: of "low_rank", 1 or more. readout: "slices", "skewed" (with "full", for chains of layers), "orthant" or
            "gaussian". directions: how many may be sliced; a second, where the first leaves too much, costs 35 propagations
            more. trust: check the number with passes of the network. posterior_draws: catastrophic inputs kept at most, found
            by the check. seed: of the check; the number itself has none.

    Returns:
        The estimate; `survival` is the whole curve from one set of slices, `guide` a `PropagatedLaw`, `std_error` (nats) the
        distance to the check. FLOPs count the propagation and the check.

    Raises:
        RiskError: a step or an input law whose effect on a law is not known. PreflightError: the problem is not sound.

    Example:
        >>> law = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> round(propagate(RiskProblem(lambda x: x.sum(-1) - 6.0, law), trust=False).log10_prob, 2)
        -4.96
    """
    if family not in FAMILIES or readout not in READOUTS or rank < 1 or directions not in (1, 2):
        raise RiskError(
            f"family must be one of {', '.join(FAMILIES)}, readout one of {', '.join(READOUTS)}, rank 1 or more and directions "
            f"1 or 2; got {family!r}, {readout!r}, {rank}, {directions}."
        )
    if readout == "skewed" and family != "full":
        raise RiskError(f"readout='skewed' carries every covariance: family must be 'full', got {family!r}.")
    started = time.perf_counter()
    require_sound(problem)
    with problem.metered() as meter:
        with torch.no_grad(), _in_words(problem):
            made = Propagator(_event(problem, readout), InputLaw(problem), family, rank)
            law, log_prob = _read(made, readout, directions)
        propagated = made.flops
        passes = Trust()
        if trust and law.slices is not None and math.isfinite(log_prob):
            with seeded(seed, problem.device), _in_words(problem):
                passes = examine(made, law.slices, log_prob, law.prior)
        posterior = _posterior(problem, passes, posterior_draws, seed)
    status, remedy = _verdict(passes, log_prob, readout, trust)
    law_says = log_prob
    if status is Status.ROUTES_DISAGREE:
        log_prob = passes.evidence["log10_p_of_places"] * LOG10
    evidence = {"forward_passes_worth": propagated / max(problem.flops_per_row, 1.0)} | passes.evidence
    if law.slices is not None:
        evidence |= {"left_to_gaussian": law.slices.left_to_gaussian(), "nodes": float(law.slices.mean[..., 0].numel())}
    if status is Status.REFUSED:
        evidence["log10_p_of_the_law"] = log_prob / LOG10
        log_prob = math.nan
    elif status is Status.ROUTES_DISAGREE:
        evidence["log10_p_of_the_law"] = law_says / LOG10
    else:
        evidence.pop("log10_p_of_the_law", None)
    cost = problem.cost(meter)
    return RiskEstimate(
        method=f"propagation, {family.replace('_', ' ')}{f' {rank}' if family == 'low_rank' else ''}, {readout}",
        log_prob=log_prob, std_error=passes.std_error, status=status, remedy=remedy, **cost | {"flops": cost["flops"] + propagated},
        seconds=time.perf_counter() - started, seed=seed, problem=problem.name, evidence=evidence, posterior=posterior,
        survival=None if law.slices is None else _curve(law), guide=law,
        settings={"family": family, "rank": rank, "readout": readout, "directions": directions, "trust": trust},
    )  # fmt: skip


@checked()
def propagated_log_prob(
    problem: RiskProblem, family: str = "full", rank: int = 16, readout: str = "slices", *, directions: int = 2
) -> Tensor:
    """log Pr[margin >= 0] as a tensor that can be differentiated in the weights of network and detector, nats.

    The slice directions are taken as given: at their best choice a small turn of them changes nothing. Arguments as in
    `propagate`; it makes no check.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> law = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> problem = RiskProblem(lambda x: (x * weight).sum(-1) - 6.0, law)
        >>> propagated_log_prob(problem).backward()
        >>> bool((weight.grad > 0).all())
        True
    """
    made = Propagator(_event(problem, readout), InputLaw(problem), family, rank)
    with torch.no_grad(), _in_words(problem):
        law, _ = _read(made, readout, directions)
    if law.slices is None:
        zero = law.prior[0].new_zeros(1, made.inputs.dimension)
        mean, covariance, _ = made.laws(zero, zero.new_zeros(zero.shape[1], 0))
        return made.event.log_prob(mean, covariance)[0]
    slices = law.slices.again(made)
    return (skewed(made, slices) if readout == "skewed" else slices).log_prob()


@contextmanager
def _in_words(problem: RiskProblem) -> Iterator[None]:
    """What fails deep in the arithmetic of a law is one error that says so."""
    try:
        yield
    except RiskError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, NotImplementedError, AttributeError) as error:
        first = (str(error).strip().split("\n") or [""])[0][:200]
        raise RiskError(
            f"{problem.name}: the law of an activation could not be computed ({type(error).__name__}: {first}). Use run_smc or "
            "estimate, which run the network."
        ) from error


def _event(problem: RiskProblem, readout: str) -> Event:
    tape = trace(problem)
    # The classical read-out takes the margin itself as Gaussian, whatever it is.
    return Event(tape, True, (), 1.0) if readout == "gaussian" else event_of(tape)


def _read(made: Propagator, readout: str, directions: int) -> tuple[PropagatedLaw, float]:
    """The law and log p."""
    zero = torch.zeros(1, made.inputs.dimension, dtype=torch.float64, device=made.inputs.problem.device)
    layers: dict[str, LayerLaw] = {}

    def look(site: str, joint: Joint, name: str) -> None:
        layers[site] = joint.law_of(name)

    prior = made.at(zero, zero.new_zeros(zero.shape[1], 0), look)
    spread = prior[1][0].diagonal().clamp_min(0.0).sqrt()
    if bool(((spread > 0) & ((spread < SMALL) | (spread > 1 / SMALL))).any()):
        # Volts or nanovolts: rounding and bounds below are those of numbers of size 1.
        made.event = made.event.in_units(torch.where(spread > 0, spread, 1.0))
        prior = made.at(zero, zero.new_zeros(zero.shape[1], 0))
    law = PropagatedLaw(layers, made.event, prior)
    direct = float(made.event.log_prob(*prior[:2]))
    if readout not in SLICED:
        return law, direct
    direction, distance = design_point(made, prior)
    slices = slices_along(made, direction[:, None], distance)
    if readout == "skewed":
        slices = skewed(made, slices)
    # Where nothing bends, the law within a slice is Gaussian and a second direction has nothing to add.
    more = directions == 2 and readout == "slices" and not made.exact
    across = second_direction(slices) if more else None
    if across is not None:
        slices = slices_along(made, torch.stack([direction, across], 1), distance, slices.axes[0])
    return replace(law, slices=slices), float(slices.log_prob())


def _verdict(passes: Trust, log_prob: float, readout: str, trust: bool) -> tuple[Status, str]:
    instead = "Use estimate or run_smc, which run the network."
    if not math.isfinite(log_prob) or log_prob < -1e4:
        where = decades(log_prob / LOG10) if math.isfinite(log_prob) else "0"
        return Status.REFUSED, f"The propagated law puts it at {where}, which no propagated law can know. {instead}"
    if passes.left_out:
        return Status.ROUTES_DISAGREE, f"{passes.left_out[0].upper()}{passes.left_out[1:]}. {instead}"
    if passes.refused:
        return Status.REFUSED, f"{passes.refused[0].upper()}{passes.refused[1:]}. {instead}"
    if not passes.evidence:
        told = (
            "Set trust=True to check it" if readout in SLICED and not trust else "Use readout='slices', which checks it"
        )
        return (
            Status.MODEL_ONLY,
            f"{told} with a few thousand passes of the network, or {instead[0].lower()}{instead[1:]}",
        )
    if passes.evidence["depth_over_width"] > DEEP:
        return (
            Status.OK,
            "Deep for its width, where propagated laws have failed without warning: compare with estimate.",
        )
    return Status.OK, ""


def _posterior(problem: RiskProblem, passes: Trust, draws: int, seed: int) -> dict[str, Any]:
    if passes.u is None or passes.weight is None or draws < 1 or passes.refused:
        return {}
    with seeded(seed + 1, problem.device):
        rows = torch.multinomial(passes.weight, draws, replacement=True)
    return posterior_of(problem, problem.from_normal(passes.u[rows].to(problem.dtype)))


def _curve(law: PropagatedLaw) -> tuple[np.ndarray, np.ndarray]:
    """(thresholds, log Pr[margin > threshold]) from the slices, between the median margin and a quarter beyond 0."""
    slices = law.slices
    assert slices is not None
    several = slices.mean.shape[-1] > 1 or len(slices.axes) > 1
    every = SKIPPED if several or isinstance(slices, SkewedSlices) else 1
    low = -1e-3
    with torch.no_grad():
        while low > -1e9 and float(law.event.log_prob(*law.prior[:2], low)) < math.log(0.5):
            low *= 2
        while low < -1e-300 and float(law.event.log_prob(*law.prior[:2], low / 2)) > math.log(0.5):
            low /= 2
        thresholds = np.linspace(low, -0.25 * low, CURVE)
        return thresholds, np.array([float(slices.log_prob(float(t), every)) for t in thresholds])
