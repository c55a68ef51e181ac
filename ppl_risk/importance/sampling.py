r"""Importance sampling on the exact network with the hard event.

p = E_q[ N(u; 0, I) / q(u) 1{margin(T(u)) >= 0} ], u ~ q. Unbiased whatever q is; how good depends on q alone, and the
weights say how good: k-hat for their tail, ESS for their number.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from ppl_risk.errors import undefined_margins
from ppl_risk.importance.pareto import USABLE, effective_sample_size, pareto_khat
from ppl_risk.importance.proposal import Proposal, defensive_mixture, standard_normal
from ppl_risk.problem import RiskProblem
from ppl_risk.risk_estimate import Status

PILOT_SHARE = 0.25
SMALLEST_ESS = 100.0
#: k-hat above which the weights have no mean, and effective draws below which their sum is then no number at all.
NO_MEAN, FEWEST_EFFECTIVE = 1.0, 10.0


class Weighted(NamedTuple):
    """Draws of u (draws, d), margins, and log importance weights (-inf outside the event), each (draws,)."""

    u: Tensor
    margin: Tensor
    log_weight: Tensor


class ImportanceResult(NamedTuple):
    """log p and its standard error in nats, with what the weights say."""

    log_prob: float
    std_error: float
    k_hat: float
    ess: float
    hits: int
    draws: Weighted


def importance_sample(problem: RiskProblem, law: Distribution, draws: int) -> ImportanceResult:
    """Estimate log p with a defensive mixture around `law`, in two batches; the first sets the shares of the second.

    Each batch is unbiased given the one before it, and so is their average. Seed the caller's random state.

    Args:
        problem: the exact network and event. law: a guide's law of u. draws: calls spent, at least 8.
    """
    proposal = defensive_mixture(law)
    pilot = weigh(problem, proposal, max(4, round(PILOT_SHARE * draws)))
    hit = torch.isfinite(pilot.log_weight)
    if effective_sample_size(pilot.log_weight[hit]) > 5 * len(proposal.components):
        proposal = proposal.adapted(pilot.u[hit], pilot.log_weight[hit], keep=0.2)
    rest = weigh(problem, proposal, max(4, draws - len(pilot.u)))
    return summarise(Weighted(*(torch.cat(pair) for pair in zip(pilot, rest, strict=True))))


@torch.no_grad()
def weigh(problem: RiskProblem, proposal: Proposal, draws: int) -> Weighted:
    """Draw from a proposal and weigh against the exact problem."""
    u, log_q = proposal.sample(draws)
    margin = problem.margin_of_normal(u)
    log_prior = standard_normal(u.shape[-1], u.device).log_prob(u)
    return Weighted(u, margin, torch.where(margin >= 0, log_prior - log_q, -torch.inf))


def summarise(draws: Weighted) -> ImportanceResult:
    """The mean of the weights, its relative error, and the diagnostics."""
    log_mean, std_error = log_mean_and_error(draws.log_weight)
    hits = draws.log_weight[torch.isfinite(draws.log_weight)]
    # No hit is no estimate, not P = 0; neither is a mean in which NaN counts as no hit.
    usable = hits.numel() > 0 and not bool(torch.isnan(draws.margin).any())
    log_prob = log_mean if usable else math.nan
    return ImportanceResult(log_prob, std_error, pareto_khat(hits), effective_sample_size(hits), hits.numel(), draws)


def log_mean_and_error(log_weight: Float[Tensor, " draws"]) -> tuple[float, float]:
    """log of the mean weight, and the standard error of that log (delta method), nats."""
    count = log_weight.numel()
    log_mean = float(log_weight.logsumexp(0)) - math.log(count)
    if not math.isfinite(log_mean):
        return -math.inf, math.nan
    ratio = (log_weight - log_mean).exp()
    return log_mean, float(ratio.std()) / math.sqrt(count)


def carried(log_prob: float, std_error: float, k_hat: float, ess: float) -> dict[str, float]:
    """What may be shown of weights that are not believed: above k-hat 1 no error bar, and no number on a handful of draws.

    Example:
        >>> carried(-9.0, 0.3, 28.0, 2.0)
        {'log_prob': nan, 'std_error': nan}
    """
    if not k_hat > NO_MEAN:
        return {"log_prob": log_prob, "std_error": std_error}
    return {"log_prob": log_prob if ess >= FEWEST_EFFECTIVE else math.nan, "std_error": math.nan}


def verdict(result: ImportanceResult) -> tuple[Status, str]:
    """What the weights allow one to say, and what to do otherwise."""
    wrong = int(torch.isnan(result.draws.margin).sum())
    if wrong:
        return Status.REFUSED, undefined_margins(wrong, result.draws.margin.numel())
    if result.hits == 0:
        return Status.NO_HITS, (
            "No draw of the guide is a catastrophe: it has not found the event. Run more steps, another family, or "
            "ppl_risk.run_smc."
        )
    if not result.k_hat < USABLE and result.ess >= SMALLEST_ESS:
        return Status.KHAT_HIGH, (
            f"k-hat {result.k_hat:.2f} >= {USABLE}: a few draws carry the estimate and it is probably low. Try a richer "
            "input law (input=Mixture()), the Network family, or ppl_risk.run_smc."
        )
    if result.ess < SMALLEST_ESS:
        return Status.LOW_ESS, (
            f"Only {result.ess:.0f} effective draws of {result.draws.u.shape[0]}, {SMALLEST_ESS:.0f} wanted. Use more draws or "
            "steps, or compare with ppl_risk.run_smc."
        )
    return Status.OK, ""


def resample(draws: Weighted, rows: int) -> Float[Tensor, "rows d"]:
    """Equal-weight draws of u given catastrophe, by systematic resampling of the weighted ones, in random order."""
    weight = draws.log_weight.softmax(0)
    places = (
        torch.arange(rows, dtype=torch.float64, device=weight.device) + torch.rand((), device=weight.device)
    ) / rows
    index = torch.searchsorted(weight.cumsum(0), places).clamp(max=len(weight) - 1)
    return draws.u[index[torch.randperm(rows, device=weight.device)]]
