r"""Forward KL on the unconditioned law: what a guide family itself believes about the tail.

Fitted to draws of the true network, guide = argmin KL(activation law || guide); or pushed, layer by layer, P_l = argmin
KL(f_l # P_{l-1} || P), each layer on draws of the guide of the layers before (layer-by-layer activation modelling, ARC 2024).
The estimate is the guide's own tail, Pr_guide[margin >= 0]. It needs no catastrophic input; its error is the price of the
correlations that the family does not carry. The unrestricted class, `Empirical`, is plain Monte Carlo.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppl_risk.activations import INPUT, ActivationModel
from ppl_risk.arguments import checked
from ppl_risk.crude_monte_carlo import counted, monte_carlo
from ppl_risk.errors import RiskError
from ppl_risk.guides import EmpiricalGuide, Family, Guide, LowRank, Selected, believed_problem, require_family
from ppl_risk.guides import Network as NetworkGuide
from ppl_risk.guides.believed import margin_of_values
from ppl_risk.parallel import units_folder
from ppl_risk.preflight import require_sound
from ppl_risk.problem import RiskProblem
from ppl_risk.randomness import child_seeds, seeded
from ppl_risk.risk_estimate import RiskEstimate, Status
from ppl_risk.smc import run_smc
from ppl_risk.svi import fit_svi

FITS = ("network", "pushed")
TAILS = ("auto", "count", "importance", "smc")
#: Catastrophes among the draws of the guide above which counting them is enough (a tenth of relative error).
ENOUGH = 100


@dataclass(frozen=True)
class Tail:
    """How the guide's own tail is found: route, draws that are counted, SMC particles, SVI steps."""

    route: str
    draws: int
    particles: int
    steps: int = 400


@checked()
def fit_layerwise(
    problem: RiskProblem,
    family: Family | None = None,
    *,
    fit: str = "network",
    tail: str = "auto",
    draws: int = 10_000,
    particles: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> RiskEstimate:
    """Fit a guide to the network's own law and report the guide's tail.

    The guide's law of all sites is itself a risk problem, so the tail is found at 1e-12 as well as at 1e-2. Its status is
    `MODEL_ONLY`: nothing in it checks the network.

    Args:
        problem: the problem, with at least one layer. family: guide family in activation coordinates, default `LowRank()`.
        fit: "network", to draws of the true network; or "pushed", each layer to draws of the guide of the layers before.
        tail: "count", "importance" (SVI and importance sampling inside the guide's law) or "smc"; "auto" counts where
            that sees enough, else takes importance sampling where its own diagnostics hold, else SMC.
        draws: that the guide is fitted to, and that are counted. particles: of SMC inside the guide's law.
        seed: reproduces. progress: show a bar.

    Raises:
        PreflightError: the problem is not sound.
        RiskError: a family in noise coordinates, whose tail is the network's own; a problem without layers; an unknown fit
            or tail.

    Example:
        >>> from ppl_risk.zoo import load_model
        >>> fit_layerwise(load_model("linear_gaussian", log10_prob=-1), draws=2000, particles=100, progress=False).status.name
        'MODEL_ONLY'
    """
    family = LowRank() if family is None else family
    require_family(family)
    for name, value, known in (("fit", fit, FITS), ("tail", tail, TAILS)):
        if value not in known:
            raise RiskError(f"{name} must be one of {known}, got {value!r}.")
    if family.coordinates != "activation":
        raise RiskError(
            f"{family.label} lives in noise coordinates: its tail is the network's own. Use ppl_risk.run_smc."
        )
    if not problem.cut:
        raise RiskError(
            "The problem has no layers to model; a plain callable has one site, the input. Pass an nn.Module."
        )
    started = time.perf_counter()
    require_sound(problem)
    fit_seed, tail_seed = child_seeds(seed, 2)
    with problem.metered() as meter:
        guide = fitted_guide(problem, family, pushed=fit == "pushed", draws=draws, seed=fit_seed)
        fit_flops = problem.flops(meter)
        if isinstance(guide, EmpiricalGuide):
            believed = _support(problem, guide)
        else:
            believed = _tail(problem, guide, Tail(tail, draws, particles), tail_seed, progress)
        tail_flops = problem.flops(meter) - fit_flops
        if isinstance(family, Selected):  # the directions are part of the answer
            meter.forward_calls += family.selection.draws
            meter.gradient_calls += family.selection.gradient_calls
    status, remedy = Status.MODEL_ONLY, (
        "This is what the family presumes. Compare families, and hold it against ppl_risk.run_smc where that is affordable."
    )  # fmt: skip
    if isinstance(guide, EmpiricalGuide):  # plain counting on the network itself: its own verdict holds
        status, remedy = believed.status, believed.remedy
    elif not believed.status.believable:
        status, remedy = believed.status, "Inside the guide's law: " + believed.remedy
    return replace(
        believed, method=f"layerwise {family.label}" + (" pushed" if fit == "pushed" else ""), status=status, remedy=remedy,
        **problem.cost(meter),
        seconds=time.perf_counter() - started, seed=seed, problem=problem.name, guide=guide, posterior={}, survival=None,
        evidence=dict(believed.evidence) | {
            "fitted_draws": float(draws), "fit_flops": fit_flops, "tail_flops": tail_flops,
            "selection_flops": family.selection.flops if isinstance(family, Selected) else 0.0,
        },
        settings={
            "family": repr(family), "fit": fit, "tail": believed.method, "draws": draws, "particles": particles,
        },
    )  # fmt: skip


def fitted_guide(
    problem: RiskProblem, family: Family, *, pushed: bool, draws: int, seed: int
) -> Guide | EmpiricalGuide:
    """The guide of a family, fitted to draws of the unconditioned law."""
    # The exact activations: the resolution is for conditioning, and here nothing is conditioned on.
    if isinstance(family, Selected):
        selected = family.bind(ActivationModel(problem, resolution=1e-3, pilot=256, seed=seed).sites)
        with seeded(seed, problem.device):
            u = torch.randn(draws, problem.transport.dimension, device=problem.device)
            selected.fit_layers(u, pushed=pushed)
        return selected
    model = ActivationModel(problem, resolution=1e-3, pilot=draws, seed=seed)
    with seeded(seed, problem.device):
        values = _push(problem, family, model) if pushed else model.pilot
        guide = family.bind(model.sites)
        guide.fit(values)
    return guide


@torch.no_grad()
def _push(problem: RiskProblem, family: Family, model: ActivationModel) -> Mapping[str, Tensor]:
    """Draws of all sites in which each layer has read what the guide of the sites before it produced."""
    names = list(model.sites)
    values: dict[str, Tensor] = {INPUT: model.pilot[INPUT]}
    for place, name in enumerate(names):
        if place:
            values[name] = _output_given(problem, values, name)
        guide = family.bind({n: model.sites[n] for n in names[: place + 1]})
        guide.fit(values)
        if place + 1 < len(names):
            values = dict(guide.support if isinstance(guide, EmpiricalGuide) else guide.sample(len(values[INPUT])))
    return values


def _output_given(problem: RiskProblem, values: Mapping[str, Tensor], name: str) -> Tensor:
    """What one layer returns where the sites before it take the given values."""
    seen: dict[str, Tensor] = {}

    def visit(site: str, output: Tensor) -> Tensor:
        seen[site] = output
        return values[site].to(output.dtype) if site in values else output

    problem.run(problem.from_normal(values[INPUT]), visit)
    return seen[name]


def _support(problem: RiskProblem, guide: EmpiricalGuide) -> RiskEstimate:
    """The tail of a law of finite support: the share of its points that are catastrophes."""
    points = torch.arange(len(guide.support[INPUT]), device=problem.device)

    def hits(rows: Tensor) -> int:
        return int((margin_of_values(problem, {n: v[rows] for n, v in guide.support.items()}) >= 0).sum())

    with torch.no_grad():
        return RiskEstimate("Monte Carlo", **counted(sum(problem.in_batches(points, hits)), len(points)))


def _tail(problem: RiskProblem, guide: Guide, told: Tail, seed: int, progress: bool) -> RiskEstimate:
    """The guide's own tail, by the cheapest route that can see it."""
    believed = believed_problem(problem, guide)
    counting, weighing, climbing = child_seeds(seed, 3)
    # Units of a problem that asks another would be read back without booking the other's calls: none are kept.
    with believed.metered() as meter, units_folder(None):
        found = None
        if told.route in ("auto", "count"):
            found = monte_carlo(believed, calls=told.draws, posterior_draws=0, seed=counting, progress=False)
            enough = told.route == "count" or (found.hits is not None and found.hits[0] >= ENOUGH)
            found = found if enough else None
        if found is None and told.route in ("auto", "importance"):
            found = fit_svi(
                believed, NetworkGuide(), steps=told.steps, draws=told.draws, posterior_draws=0, seed=weighing,
                progress=progress,
            )  # fmt: skip
            found = replace(found, elbo=None) if told.route == "importance" or found.status.believable else None
        if found is None:
            # A presumption can be wrong by hundreds of decades, and the levels to see it are cheap in the guide's law.
            found = run_smc(
                believed, particles=told.particles, max_levels=400, posterior_draws=0, seed=climbing, progress=progress
            )
    # Forward passes were booked as they ran; gradients are booked by whoever takes them, on the problem he holds.
    problem.count_gradients(meter.gradient_calls)
    return found
