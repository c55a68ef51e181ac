r"""Variational inference on the law given catastrophe, corrected by importance sampling on the exact network.

ELBO = E_q[log p(sites) + log sigmoid(margin / T) - log q(sites)] <= log E_p[sigmoid(margin / T)], nats (Jordan et al. 1999,
doi:10.1023/A:1007665907178). The temperature T is annealed from the spread of the margin down to a fraction of it. The fitted
law of the input is then the proposal of an importance sampler with the hard event: that number is unbiased.
"""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ppl_risk.activations import ActivationModel
from ppl_risk.arguments import checked
from ppl_risk.errors import PreflightError, RiskError, undefined_margins
from ppl_risk.guides import Family, Guide, LowRank, Network, require_family
from ppl_risk.guides.ascent import SETTLING, Ascent
from ppl_risk.importance.places import again, disagreement, evidence_of, excess, places_of
from ppl_risk.importance.proposal import component_means
from ppl_risk.importance.sampling import ImportanceResult, carried, importance_sample, resample, verdict
from ppl_risk.parallel import digest, fits, folder_of, run_chain, tried_twice, units_folder
from ppl_risk.posterior import posterior_of, to_chains
from ppl_risk.preflight import last_look, require_sound
from ppl_risk.problem import RiskProblem
from ppl_risk.randomness import child_seeds, random_state, seeded
from ppl_risk.risk_estimate import RiskEstimate, Status

#: A fit, and a set of draws, are kept in so many parts at most; those of a fit take at most so many bytes together.
PARTS, LARGEST_KEPT = 8, 64 * 2**20

#: Decades by which draws around every place found may stand above the number, beyond so many standard errors of both.
LEFT_OUT, SIGMAS = 0.05, 3.0
#: How many times more draws are made around the places where the first stand above the number.
MORE = 5
#: Said where a family of laws over layers was asked for and there are none.
ONE_SITE = (
    "No layers were found behind the network, so the input is the only site and all families are laws of the input alone: to "
    "compare families pass the nn.Module itself, or an nn.Module whose forward calls it."
)


class Fit(NamedTuple):
    """A fitted guide: losses (-ELBO, nats) and gradient norms per step, ELBO over the settled part, convergence."""

    guide: Guide
    loss: np.ndarray
    grad_norm: np.ndarray
    elbo: float
    elbo_error: float
    converged: bool


@checked()
def fit_svi(
    problem: RiskProblem,
    family: Family | None = None,
    *,
    steps: int = 400,
    particles: int = 16,
    draws: int = 4000,
    learning_rate: float = 0.1,
    temperature: float = 0.05,
    pilot: int = 512,
    posterior_draws: int = 1000,
    seed: int = 0,
    progress: bool = True,
    folder: str | Path | None = None,
) -> RiskEstimate:
    """Fit a guide to the law given catastrophe and turn it into an importance-corrected probability.

    Args:
        problem: the problem. family: guide family, default `LowRank()`.
        steps, particles: optimiser steps, and vectorised particles of each.
        draws: importance draws. learning_rate: of clipped Adam, falling over the last steps.
        temperature: final one, in units of the margin's spread under the input law.
        pilot: draws from which the guide starts. posterior_draws: equal-weight draws kept for ArviZ (0: none).
        seed: reproduces the run. progress: show a bar.
        folder: keeps what is finished of the fit and of the draws, so that the same call goes on from there with the same bits.

    Returns:
        the corrected estimate; `.elbo`, `.guide`, `.posterior` beside it.

    Raises:
        PreflightError: the problem is not sound, its margin has no gradient, or a margin met while fitting is NaN.
        NoTransportError: the input law has no map from standard normals.
        UnitFailedError: the network failed twice on the same inputs.

    Example:
        >>> from ppl_risk.zoo import load_model
        >>> fit_svi(load_model("linear_gaussian"), steps=50, draws=500, progress=False).method
        'SVI low-rank(8) + importance sampling'
    """
    family = LowRank() if family is None else family
    require_family(family)
    if steps < 1 or particles < 1 or draws < 8 or pilot < 8:
        raise RiskError(
            f"At least 1 step, 1 particle, 8 draws and 8 pilot draws are needed, got steps={steps}, particles={particles}, "
            f"draws={draws}, pilot={pilot}."
        )
    started = time.perf_counter()
    first_look = require_sound(problem, slope=True)
    work = first_look.units.problem
    fit_seed, draw_seed, look_seed = child_seeds(seed, 3)
    with problem.metered() as meter, units_folder(folder_of(folder)):

        def fitted() -> Fit:
            return fit_guide(
                work, family, steps=steps, particles=particles, learning_rate=learning_rate, temperature=temperature,
                pilot=pilot, seed=fit_seed, progress=progress,
            )  # fmt: skip

        def drawn() -> tuple[ImportanceResult, dict[str, np.ndarray]]:
            result = importance_sample(_keeping(work, draw_seed), fit.guide.input_law(), draws)
            kept = resample(result.draws, posterior_draws) if result.hits and posterior_draws else None
            return result, {} if kept is None else posterior_of(problem, problem.from_normal(kept))

        fit = tried_twice(problem, fitted, "SVI fit")
        with seeded(draw_seed, problem.device):
            result, posterior = tried_twice(problem, drawn, "SVI draws")
        status, remedy = verdict(result)
        elsewhere: dict[str, float] = {}
        if status.believable:
            # Weights cannot know of a place that no draw of the guide came to.
            with seeded(look_seed, problem.device):
                places = places_of(work, component_means(fit.guide.input_law()), result.log_prob)
                if excess(places, result.log_prob, 0.0, 0.0) > LEFT_OUT:
                    places = again(work, places, MORE)
            elsewhere = evidence_of(places)
            if excess(places, result.log_prob, result.std_error, SIGMAS) > LEFT_OUT:
                status, remedy = Status.ROUTES_DISAGREE, (
                    f"{disagreement(places, result.log_prob, 'guide')} Use ppl_risk.estimate, or a family with input=Mixture()."
                )
    if status not in (Status.OK, Status.ROUTES_DISAGREE, Status.NO_HITS) and not fit.converged:
        status, remedy = Status.NOT_CONVERGED, "The ELBO was still moving: use more steps. " + remedy
    sites = len(fit.guide.site_names())
    if sites == 1 and family.coordinates == "activation":
        remedy = f"{remedy} {ONE_SITE}".strip()
    number = {"log_prob": result.log_prob, "std_error": result.std_error}
    if not status.believable:
        number = carried(result.log_prob, result.std_error, result.k_hat, result.ess)
    rows = len(result.draws.u) // 4 * 4
    estimate = RiskEstimate(
        method=f"SVI {family.label} + importance sampling",
        status=status, remedy=remedy, **number,
        **problem.cost(meter),
        seconds=time.perf_counter() - started, seed=seed, problem=problem.name,
        elbo=fit.elbo, guide=fit.guide,
        evidence={
            "k_hat": result.k_hat, "ess": result.ess, "hits": float(result.hits), "draws": float(draws),
            "elbo_error": fit.elbo_error, "converged": float(fit.converged), "sites": float(sites),
            **elsewhere,
        },
        posterior=posterior,
        stats={"log_weight": to_chains(result.draws.log_weight[:rows]), "margin": to_chains(result.draws.margin[:rows])},
        history={"svi_history": {"loss": fit.loss, "grad_norm": fit.grad_norm}},
        settings={
            "family": repr(family), "steps": steps, "particles": particles, "draws": draws,
            "learning_rate": learning_rate, "temperature": temperature, "pilot": pilot,
        },
    )  # fmt: skip
    return last_look(estimate, problem, first_look, result.draws.margin)


def fit_guide(
    problem: RiskProblem,
    family: Family,
    *,
    steps: int = 400,
    particles: int = 16,
    learning_rate: float = 0.1,
    temperature: float = 0.05,
    pilot: int = 512,
    seed: int = 0,
    progress: bool = False,
) -> Fit:
    """Fit a guide to the law given catastrophe, without correcting it. Arguments as in `fit_svi`.

    In activation coordinates the sites are stiffly coupled (sigma is small) and a guide that starts at the prior does not
    reach the tail. There a scout goes first: the `Network` family, which finds the place in a third of the steps; its
    draws pushed through the network are what the guide starts from.
    """
    model = ActivationModel(problem, family.coordinates, resolution=family.resolution, pilot=pilot, seed=seed)
    guide = family.bind(model.sites)
    if not isinstance(guide, nn.Module):
        raise RiskError(f"A guide of the family {family.label} has nothing to train: use it in ppl_risk.fit_layerwise.")
    options = {"particles": particles, "temperature": temperature, "progress": progress}
    with seeded(seed, problem.device):
        if model.coordinates == "noise" and model.resolution == 0:
            guide.fit(model.prior_draws(pilot))
            return optimise(model, guide, steps=steps, learning_rate=learning_rate, start=1.0, **options)
        exact = ActivationModel(problem, "noise", resolution=0.0, pilot=pilot, seed=seed)
        scout = Network().bind(exact.sites)
        scout.fit(exact.prior_draws(pilot))
        scouted = optimise(exact, scout, steps=steps // 3, learning_rate=learning_rate, start=1.0, **options)
        found = model.draws_given(scout.sample(2 * pilot)["input"])
        if wrong := sum(int(torch.isnan(value).any(-1).sum()) for value in found.values()):
            raise PreflightError(f"Fitting met activations that are NaN: {undefined_margins(wrong, 2 * pilot)}")
        guide.fit(found)
        polished = optimise(
            model, guide, steps=steps - steps // 3, learning_rate=learning_rate / 3, start=temperature, **options
        )
    loss = np.concatenate([scouted.loss, polished.loss])
    return polished._replace(loss=loss, grad_norm=np.concatenate([scouted.grad_norm, polished.grad_norm]))


def optimise(
    model: ActivationModel,
    guide: Guide,
    *,
    steps: int,
    particles: int,
    learning_rate: float,
    start: float,
    temperature: float,
    progress: bool = False,
) -> Fit:
    """Maximise the ELBO over a guide's parameters in place, from where it stands.

    The temperature goes from `start` to `temperature`, in units of the margin's spread. Kept in parts where the block has a
    `units_folder`.
    """
    way = Ascent(
        model, guide, steps=steps, particles=particles, learning_rate=learning_rate, start=start, final=temperature
    )
    folder = folder_of(None)
    parts = _parts(steps, way.bytes())
    with tqdm(total=steps, disable=not progress, desc="SVI") as bar:

        def advance(index: int, _before: object) -> dict[str, Any]:
            for step in parts[index]:
                way.advance([step])
                bar.update(step + 1 - bar.n)
            bar.set_postfix_str(f"ELBO {-way.losses[parts[index][-1]]:.1f} nats")
            return {"steps": len(parts[index])}

        given = {
            "model": [model.coordinates, model.resolution, model.margin_spread, start, temperature],
            "steps": [steps, particles, learning_rate],
            "from": digest([{"guide": way.save(), "random": random_state(model.problem.device)}]) if folder else "",
        }  # fmt: skip
        run_chain(model.problem, "SVI fit", [given] * len(parts), advance, seed=0, save=way.save, load=way.load)
    way.arrive()
    return Fit(guide, way.losses, way.norms, *_settled(way.losses))


def _parts(steps: int, size: int) -> list[range]:
    """The steps in parts after which the fit is kept: fewer where `size`, the bytes of one keeping, is large."""
    each = -(-steps // max(1, min(PARTS, LARGEST_KEPT // max(size, 1))))
    return [range(first, min(first + each, steps)) for first in range(0, steps, max(each, 1))]


def _keeping(problem: RiskProblem, seed: int) -> RiskProblem:
    """The same problem; what the network says of draws is kept in the block's folder, if it has one."""
    if folder_of(None) is None:
        return problem
    kept = copy.copy(problem)

    def margin_of_normal(u: Tensor) -> Tensor:
        # Cut where the batches are, so that every bit is that of one call.
        batches = -(-len(u) // problem.batch_size)
        rows = u.split(-(-batches // PARTS) * problem.batch_size)
        results = run_chain(
            problem, "SVI draws", [{"rows": digest([{"u": part}])} for part in rows],
            lambda k, _: {"margin": problem.margin_of_normal(rows[k])}, seed=seed,
            sound=lambda unit, r: fits(r, {"margin": "float n"}, n=len(rows[unit.index])),
        )  # fmt: skip
        return torch.cat([r["margin"].to(u.device) for r in results])

    kept.margin_of_normal = margin_of_normal
    return kept


def _settled(losses: np.ndarray) -> tuple[float, float, bool]:
    """ELBO over the last half of the settling part, its standard error, and whether the two halves agree."""
    half = max(2, int(SETTLING * len(losses) / 2))
    if len(losses) < 2 * half:
        return -float(losses.mean()) if len(losses) else math.nan, math.nan, False
    before, after = losses[-2 * half : -half], losses[-half:]
    error = float(after.std(ddof=1)) / math.sqrt(half)
    noise = math.hypot(error, float(before.std(ddof=1)) / math.sqrt(half))
    moved = float(before.mean() - after.mean())
    # A bound on the log of a probability cannot be positive: a guide that says so has left what its numbers can represent.
    possible = after.mean() > -3 * error
    converged = bool(np.isfinite(losses[-half:]).all()) and moved < 3 * noise + 0.1 and bool(possible)
    return -float(after.mean()), error, converged
