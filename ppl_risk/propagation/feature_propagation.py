r"""`propagate_features`: the probability of a catastrophe under a law of independent linear features, and under the worst such law.

P_0 is fitted to draws of the input law, or of one layer (`features`), carried through what follows (`feature_joint`) and read off
by exponential tilting with exact cumulant generating functions (`saddlepoint`), in slices along a common factor and the features
that matter most (`feature_slices`). ARC, "Estimating Tail Risk in Neural Networks" (2024), method 2.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_risk.arguments import checked
from ppl_risk.errors import RiskError
from ppl_risk.posterior import posterior_of
from ppl_risk.preflight import require_sound
from ppl_risk.problem import RiskProblem
from ppl_risk.propagation.dictionaries import given_directions, random_dictionary, train_sae
from ppl_risk.propagation.event import event_of
from ppl_risk.propagation.feature_adversary import Adversary, worst_law
from ppl_risk.propagation.feature_joint import Carrier, tape_from
from ppl_risk.propagation.feature_slices import FeatureSlices, feature_slices
from ppl_risk.propagation.features import COACTIVATIONS, MARGINALS, RESIDUALS, Dictionary, FeatureLaw, fit_features
from ppl_risk.propagation.interpret import evaluate
from ppl_risk.randomness import seeded
from ppl_risk.risk_estimate import LOG10, RiskEstimate, Status
from ppl_risk.tracing import Tape, trace

DICTIONARIES = ("sae", "random")
#: Decades between the number and the draws under the same law from which the remedy says so.
APART = 0.3


@dataclass(frozen=True)
class FeatureRisk:
    """What a number was read off: the fitted law, the one it is about, its slices and the ascent that led there."""

    start: FeatureLaw
    law: FeatureLaw
    slices: FeatureSlices
    adversary: Adversary | None = None


@checked()
def propagate_features(
    problem: RiskProblem,
    features: str | Tensor | Dictionary | FeatureLaw = "sae",
    *,
    coactivation: str = "none",
    layer: str = "",
    count: int | None = None,
    marginals: str = "empirical",
    residual: str = "errors",
    budget: float = 0.0,
    slices: int = 1,
    rank: int = 16,
    draws: int = 5000,
    checks: int = 500,
    posterior_draws: int = 200,
    seed: int = 0,
    progress: bool = True,
) -> RiskEstimate:
    r"""log Pr[margin >= 0] for x ~ P_0 = law(b + sum_j z_j v_j + R e), features z_j independent or firing by a common factor.

    It is the probability under P_0, not under the input law, hence MODEL_ONLY always; with `budget` under the P_0 within that many
    nats of the fitted one that makes the catastrophe most likely. Draws of x under P_0 given catastrophe are run through the
    network: `share_that_fails`, `log10_p_of_draws` (the network's own probability under P_0), `typicality` (their mean log density
    under the input law, less that of plain draws, in standard deviations of the latter).

    Args:
        problem: the problem. features: "sae", "random", directions (n, J), a `Dictionary`, or a fitted `FeatureLaw`.
        coactivation: "none", or "pairwise": a Gaussian copula with one factor. layer: whose activations the features make; "" for
            the input. count: features of a dictionary made here, default as many as numbers. marginals: "empirical" or "gaussian".
        residual: "errors", "covariance" or "none", see `fit_features`. budget: KL for the adversary, nats; 0 for none. slices:
            axes, 0 to 2: the common factor, which always is one, then the features that matter most. rank: columns for the rest.
            draws: for the fit.
        checks: draws given catastrophe that the network is run on. posterior_draws: catastrophes kept at most. seed: of it all.

    Returns:
        The estimate; `std_error` is nan, `guide` a `FeatureRisk`, evidence `kl_nats` what the adversary spent, an upper bound on
        the divergence of the laws of x; `log10_p_of_start` where it began.

    Raises:
        RiskError: an unknown option, a layer that does not decide the margin, or a step whose effect on a law is not known.

    Example:
        >>> problem = RiskProblem(lambda x: x.sum(-1) - 6.0, torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)))
        >>> told = propagate_features(problem, torch.eye(2), marginals="gaussian", draws=50_000, progress=False)
        >>> abs(told.log10_prob + 4.96) < 0.1
        True
    """
    unknown = isinstance(features, str) and features not in DICTIONARIES
    if unknown or budget < 0 or slices not in (0, 1, 2) or rank < 1:
        raise RiskError(
            f"features must be one of {', '.join(DICTIONARIES)}, directions, a Dictionary or a FeatureLaw, budget 0 or more, "
            f"slices 0, 1 or 2 and rank 1 or more; got {features!r}, {budget}, {slices}, {rank}."
        )
    known = ((coactivation, COACTIVATIONS), (marginals, MARGINALS), (residual, RESIDUALS))
    if any(given not in options for given, options in known) or min(draws, checks) < 100:
        raise RiskError(
            "coactivation, marginals and residual must be from "
            + "; ".join(", ".join(options) for _, options in known)
            + f", draws and checks 100 or more; got {coactivation!r}, {marginals!r}, {residual!r}, {draws}, {checks}."
        )
    started = time.perf_counter()
    require_sound(problem)
    with problem.metered() as meter, seeded(seed, problem.device):
        tape = tape_from(trace(problem), layer)
        evidence: dict[str, float] = {}
        rows = _rows(problem, layer, draws)
        with torch.no_grad():
            start = _law(features, rows, count, coactivation, marginals, residual, seed, progress, evidence)
            made = Carrier(start, event_of(tape), rank)
            read = feature_slices(made, slices)
        found, adversary = read, None
        if budget > 0:
            evidence["log10_p_of_start"] = float(read.log_prob()) / LOG10
            adversary = worst_law(made, budget, progress=progress)
            found = feature_slices(Carrier(adversary.law, made.event, rank), slices)
            if float(found.log_prob()) < float(read.log_prob()):
                # The ascent reads its own, coarser, number: what it found must also be better by this one.
                found, adversary = read, Adversary(start, 0.0, adversary.path)
        evidence |= {"kl_nats": 0.0 if adversary is None else adversary.kl, "features": float(len(start.shift))}
        log_prob = float(found.log_prob())
        posterior = {}
        apart = math.nan
        if math.isfinite(log_prob) and log_prob > -1e4:
            x, hit, weight = _check(problem, tape, layer, found, checks, evidence, rows)
            apart = abs(evidence["log10_p_of_draws"] - log_prob / LOG10) if hit.any() else math.inf
            if hit.any() and weight[hit].sum() > 0 and not layer and posterior_draws > 0:
                kept = torch.multinomial(weight * hit, posterior_draws, replacement=True)
                posterior = posterior_of(problem, problem._place(x[kept].reshape(-1, *problem.inputs.event_shape)))
    status, remedy = _told(log_prob, apart, evidence)
    return RiskEstimate(
        method=f"features, {found.carrier.law.name}, {'one common factor' if start.coactive else 'independent'}"
        + (f", worst within {budget:g} nats" if budget else ""),
        log_prob=log_prob if math.isfinite(log_prob) else math.nan, status=status, remedy=remedy, **problem.cost(meter),
        seconds=time.perf_counter() - started, seed=seed, problem=problem.name, evidence=evidence, posterior=posterior,
        guide=FeatureRisk(start, found.carrier.law, found, adversary),
        settings={
            "features": start.name, "coactivation": coactivation, "layer": layer, "marginals": marginals, "residual": residual,
            "budget": budget, "slices": slices, "rank": rank, "draws": draws,
        },
    )  # fmt: skip


@torch.no_grad()
def _rows(problem: RiskProblem, layer: str, draws: int) -> Tensor:
    """Draws of the input, or of a layer, flat and in double precision."""
    x = problem.sample(draws)
    if not layer and not x.is_floating_point():
        raise RiskError(
            f"{problem.name}: inputs are integers, which are no sums of features. Name a layer: {', '.join(problem.cut)}."
        )
    if layer:
        x = problem.activations(x)[0][layer]
    return x.reshape(draws, -1).double()


def _law(
    features: str | Tensor | Dictionary | FeatureLaw, rows: Tensor, count: int | None, coactivation: str, marginals: str,
    residual: str, seed: int, progress: bool, evidence: dict[str, float],
) -> FeatureLaw:  # fmt: skip
    if isinstance(features, FeatureLaw):
        if features.directions.shape[0] != rows.shape[1]:
            raise RiskError(
                f"The law of features has {features.directions.shape[0]} numbers a row and the layer {rows.shape[1]}. Fit it there."
            )
        return features
    size = rows.shape[1]
    if isinstance(features, Tensor):
        if features.dim() != 2 or features.shape[0] != size:
            raise RiskError(f"Directions must be ({size}, features), got {tuple(features.shape)}.")
        features = given_directions(features.to(rows))
    elif features == "random":
        features = random_dictionary(size, count or size, seed)
    elif not isinstance(features, Dictionary):
        features = train_sae(rows, count or size, seed=seed, progress=progress)
    evidence["left_unexplained"] = features.left_unexplained(rows)
    return fit_features(features, rows, coactivation, marginals, residual)


@torch.no_grad()
def _check(
    problem: RiskProblem, tape: Tape, layer: str, found: FeatureSlices, checks: int, evidence: dict[str, float], rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Run the network on draws of P_0 given catastrophe: rows, which fail, and their weights."""
    x, log_ratio, modelled = found.sample(checks)
    if layer:
        problem.book(checks, 0)
        hit = evaluate(tape, x)[:, 0] >= 0
    else:
        shaped = x.reshape(-1, *problem.inputs.event_shape)
        hit = problem.margin(problem._place(shaped)) >= 0
    seen = bool(torch.isfinite(modelled).any())
    weight = torch.softmax(modelled, 0) if seen else torch.zeros_like(modelled)
    # Where many numbers must pass at once, none of the draws may be a catastrophe of the sums: there is no share then.
    evidence["share_that_fails"] = float((weight * hit).sum()) if seen else math.nan
    ratio = torch.where(hit, log_ratio, -torch.inf)
    evidence["log10_p_of_draws"] = float(torch.logsumexp(ratio, 0) - math.log(checks)) / LOG10
    if not layer:
        try:
            plain = problem.inputs.log_prob(problem._place(rows.reshape(-1, *problem.inputs.event_shape))).double()
            own = problem.inputs.log_prob(problem._place(x.reshape(-1, *problem.inputs.event_shape))).double()
        except (NotImplementedError, ValueError):
            return x, hit, weight
        typical = ((own - plain.mean()) / plain.std()).clamp_min(-1e6)
        evidence["typicality"] = float((weight * typical).sum()) if seen else math.nan
    return x, hit, weight


def _told(log_prob: float, apart: float, evidence: dict[str, float]) -> tuple[Status, str]:
    whose = "It is the probability under P_0, a law of features, not under the input law"
    if not math.isfinite(log_prob):
        return Status.REFUSED, "The sums of features have no number. Use estimate or run_smc, which run the network."
    if apart > APART:
        said = f"{apart:.1f} decades away" if math.isfinite(apart) else "at 0"
        return Status.MODEL_ONLY, f"{whose}; draws put the network's own {said} even there. Use estimate or run_smc."
    return Status.MODEL_ONLY, f"{whose}; use estimate or run_smc for that."
