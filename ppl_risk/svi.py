r"""Variational inference on the law given catastrophe, corrected by importance sampling on the exact network.

ELBO = E_q[log p(sites) + log sigmoid(margin / T) - log q(sites)] <= log E_p[sigmoid(margin / T)], nats (Jordan et al. 1999,
doi:10.1023/A:1007665907178). The temperature T is annealed from the spread of the margin down to a fraction of it. The fitted
law of the input is then the proposal of an importance sampler with the hard event: that number is unbiased.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyro
import torch
from pyro.infer import Trace_ELBO
from pyro.optim.clipped_adam import ClippedAdam
from tqdm.auto import tqdm

from ppl_risk.activations import ActivationModel, check_batching
from ppl_risk.errors import PreflightError, RiskError, undefined_margins
from ppl_risk.guides import Family, Guide, LowRank, Network
from ppl_risk.importance.sampling import carried, importance_sample, resample, verdict
from ppl_risk.posterior import posterior_of, to_chains
from ppl_risk.preflight import last_look, require_sound
from ppl_risk.problem import RiskProblem
from ppl_risk.randomness import child_seeds, seeded
from ppl_risk.risk_estimate import RiskEstimate, Status

#: Last share of the steps, at constant temperature and falling step size, on which convergence is judged.
SETTLING = 0.3


class Fit(NamedTuple):
    """A fitted guide: losses (-ELBO, nats) and gradient norms per step, ELBO over the settled part, convergence."""

    guide: Guide
    loss: np.ndarray
    grad_norm: np.ndarray
    elbo: float
    elbo_error: float
    converged: bool


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
) -> RiskEstimate:
    """Fit a guide to the law given catastrophe and turn it into an importance-corrected probability.

    Args:
        problem: the problem. family: guide family, default `LowRank()`.
        steps, particles: optimiser steps, and vectorised particles of each.
        draws: importance draws. learning_rate: of clipped Adam, falling over the last steps.
        temperature: final one, in units of the margin's spread under the input law.
        pilot: draws from which the guide starts. posterior_draws: equal-weight draws kept for ArviZ (0: none).
        seed: reproduces the run. progress: show a bar.

    Returns:
        the corrected estimate; `.elbo`, `.guide`, `.posterior` beside it.

    Raises:
        PreflightError: the problem is not sound, its margin has no gradient, or a margin met while fitting is NaN.
        NoTransportError: the input law has no map from standard normals.

    Example:
        >>> from ppl_risk.zoo import load_model
        >>> fit_svi(load_model("linear_gaussian"), steps=50, draws=500, progress=False).method
        'SVI low-rank(8) + importance sampling'
    """
    family = LowRank() if family is None else family
    if steps < 1 or particles < 1 or draws < 8 or pilot < 8:
        raise RiskError(
            f"At least 1 step, 1 particle, 8 draws and 8 pilot draws are needed, got steps={steps}, particles={particles}, "
            f"draws={draws}, pilot={pilot}."
        )
    started = time.perf_counter()
    first_look = require_sound(problem, slope=True)
    work = first_look.units.problem
    fit_seed, draw_seed = child_seeds(seed, 2)
    with problem.metered() as meter:
        fit = fit_guide(
            work, family, steps=steps, particles=particles, learning_rate=learning_rate, temperature=temperature,
            pilot=pilot, seed=fit_seed, progress=progress,
        )  # fmt: skip
        with seeded(draw_seed, problem.device):
            result = importance_sample(work, fit.guide.input_law(), draws)
            kept = resample(result.draws, posterior_draws) if result.hits and posterior_draws else None
            posterior = {} if kept is None else posterior_of(problem, problem.from_normal(kept))
    status, remedy = verdict(result)
    if not status.believable and status is not Status.NO_HITS and not fit.converged:
        status, remedy = Status.NOT_CONVERGED, "The ELBO was still moving: use more steps. " + remedy
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
            "elbo_error": fit.elbo_error, "converged": float(fit.converged),
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

    The temperature goes from `start` to `temperature`, in units of the margin's spread. Parameters end at their average over
    the last half of the settling part (Polyak and Juditsky 1992, doi:10.1137/0330046).
    """
    check_batching(model, guide.sample(5), model.margin_spread)
    elbo = Trace_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=0)
    parameters = [p for p in guide.parameters() if p.requires_grad]
    optimiser = ClippedAdam(parameters, lr=learning_rate, clip_norm=10.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _step_size(step / max(steps, 1)))
    average, averaged = [torch.zeros_like(p) for p in parameters], 0
    losses, norms = np.full(steps, np.nan), np.full(steps, np.nan)
    bar = tqdm(
        _temperatures(steps, model.margin_spread, start, temperature), total=steps, disable=not progress, desc="SVI"
    )
    for step, current in enumerate(bar):
        # `check_batching` has validated the shapes; validating every value costs a fifth of a step.
        with pyro.validation_enabled(False):
            loss = elbo.differentiable_loss(model, guide, current)
        model.problem.count_gradients(particles)
        losses[step] = float(loss.detach())
        # Only the guide's gradients: the weights of the network stay out of it.
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        norms[step] = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        if not math.isfinite(losses[step]) or not math.isfinite(norms[step]):
            if step >= (1 - SETTLING) * steps:
                _refuse_undefined(model, guide)
            continue  # such a step is left out, and tells the convergence check
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimiser.step()
        schedule.step()
        if step >= (1 - SETTLING / 2) * steps:
            averaged += 1
            for total, parameter in zip(average, parameters, strict=True):
                total += (parameter.detach() - total) / averaged
        if step % 20 == 0:
            bar.set_postfix_str(f"ELBO {-losses[step]:.1f} nats")
    if averaged:
        with torch.no_grad():
            for total, parameter in zip(average, parameters, strict=True):
                parameter.copy_(total)
    return Fit(guide, losses, norms, *_settled(losses))


def _refuse_undefined(model: ActivationModel, guide: Guide) -> None:
    """Where steps fail to the last: margins that are NaN are the problem's fault, and no further step mends them.

    Raises:
        PreflightError: the margin is NaN at some of 64 draws of the guide.
    """
    margin = model.problem.margin_of_normal(guide.sample(64)["input"].detach())
    if wrong := int(torch.isnan(margin).sum()):
        raise PreflightError(f"Fitting met margins that are NaN: {undefined_margins(wrong, 64)}")


def _temperatures(steps: int, spread: float, start: float, final: float) -> Iterator[float]:
    """Geometric from `start` to `final`, in units of the margin's spread, then constant while the guide settles."""
    annealed = max(1, round((1 - SETTLING) * steps))
    for step in range(steps):
        yield (spread or 1e-12) * start * (final / start) ** min(1.0, step / annealed)


def _step_size(share: float) -> float:
    """Constant, then falling geometrically to a fiftieth over the settling part."""
    return 50.0 ** -max(0.0, (share - (1 - SETTLING)) / SETTLING)


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
