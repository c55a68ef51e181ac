r"""What two independent routes allow one to say.

Importance sampling is unbiased and cannot see a place that no component covers; SMC is rougher and needs no proposal. They must
agree, and what SMC reached must be covered by the proposal: otherwise places may be missing and the number is refused.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ppl_risk.engine.climbs import Climbs, prior_error
from ppl_risk.engine.final import Weights
from ppl_risk.errors import undefined_margins
from ppl_risk.importance.pareto import USABLE
from ppl_risk.importance.sampling import SMALLEST_ESS
from ppl_risk.risk_estimate import LOG10, Status, decades

#: Standard errors between the two routes from which they disagree.
SIGMAS = 3.5
#: SMC with few particles loses places on its way up and errs low, far more often than high: below, more is allowed.
SIGMAS_BELOW = 6.0
#: A particle whose weight is this many times what is to be expected, p (1 + CV^2), lies where the proposal hardly goes; and the
#: share of such that is too many.
UNCOVERED_WEIGHT, UNCOVERED_SHARE = 30.0, 0.05
#: Relative error above which a number is within a factor of 2 only by luck.
LARGEST_ERROR = 0.3


class Agreement(NamedTuple):
    """How the routes compare: error of SMC as judged, distance in standard errors, share of its particles not covered."""

    smc_error: float
    sigmas: float
    uncovered: float


def compare_routes(weights: Weights, climbs: Climbs, particles: int, log_weight: Float[Tensor, " final"]) -> Agreement:
    """Args: `log_weight` is that of SMC's particles in the event under the last proposal."""
    # Under the law given catastrophe the mean weight is p (1 + CV^2) = p n / ess.
    expected = weights.log_prob + math.log(UNCOVERED_WEIGHT * weights.draws / max(weights.ess, 1.0))
    uncovered = float((log_weight > expected).double().mean()) if len(log_weight) else 0.0
    if climbs.finished < 2 or not math.isfinite(climbs.log_prob) or not math.isfinite(weights.log_prob):
        return Agreement(math.nan, math.nan, uncovered)
    expected = prior_error(weights.log_prob, particles)
    dof = climbs.finished - 1
    error = math.sqrt((dof * climbs.std_error**2 + 4 * expected**2) / (dof + 4))
    sigmas = (climbs.log_prob - weights.log_prob) / math.hypot(error, weights.std_error)
    return Agreement(error, sigmas, uncovered)


def better_route(weights: Weights, climbs: Climbs) -> Weights:
    """SMC's number in place of one that the weights cannot carry; what the weights say stays as it is."""
    worthless = not weights.k_hat < USABLE and weights.ess < SMALLEST_ESS
    known = math.isfinite(weights.log_prob) and math.isfinite(climbs.log_prob)
    if not (worthless and known and climbs.finished >= 2):
        return weights
    return weights._replace(log_prob=climbs.log_prob, std_error=climbs.std_error)


def smc_alone(weights: Weights, climbs: Climbs) -> Weights:
    """SMC's number where no draw of the proposal met the event (nan where SMC has none either); nothing else knows it."""
    return weights._replace(log_prob=climbs.log_prob, std_error=climbs.std_error)


def verdict(weights: Weights, climbs: Climbs, agreement: Agreement, bound: str) -> tuple[Status, str]:
    """Status and remedy."""
    wrong = int(torch.isnan(weights.margin).sum())
    if wrong:
        return Status.REFUSED, undefined_margins(wrong, weights.draws)
    if weights.hits == 0 and math.isfinite(climbs.log_prob):
        return Status.ONE_ROUTE, (
            f"SMC alone met the event and gives {decades(climbs.log_prob / LOG10)}; none of {weights.draws:,} draws around "
            "what was found is a catastrophe, so nothing confirms it. Raise max_calls, or use ppl_risk.run_smc with more particles."
        )
    if weights.hits == 0:
        return Status.NO_HITS, (
            f"Neither searches, nor SMC, nor {weights.draws:,} draws around their best points met a catastrophe: it cannot be "
            f"reached under this input law, or max_calls is too small. Only P < {bound} is known, from the prior's draws."
        )
    if climbs.values <= 2:
        return Status.ONE_ROUTE, (
            f"The margin takes {climbs.values} values (a flag): SMC has no levels to rise by and checks nothing. Return score - "
            "threshold; for plain Monte Carlo alone a flag will do."
        )
    if agreement.sigmas > SIGMAS or agreement.sigmas < -SIGMAS_BELOW:
        return Status.ROUTES_DISAGREE, (
            f"SMC alone gives {decades(climbs.log_prob / LOG10)}, {abs(agreement.sigmas):.1f} standard errors away: "
            + (
                "catastrophes may be missing from the proposal"
                if agreement.sigmas > 0
                else "SMC or the weights went astray"
            )
            + ". Raise max_calls, or look at ppl_risk.run_smc with more particles."
        )
    if agreement.uncovered > UNCOVERED_SHARE:
        return Status.ROUTES_DISAGREE, (
            f"{agreement.uncovered:.0%} of SMC's catastrophes lie where the proposal hardly goes: places may be missing. Raise "
            "max_calls."
        )
    if weights.k_hat >= USABLE and not weights.ess > 10 * SMALLEST_ESS:
        return Status.KHAT_HIGH, (
            f"k-hat {weights.k_hat:.2f} >= {USABLE}: a few draws carry the weights, too many directions lead to the event. Raise "
            "max_calls, or use ppl_risk.run_smc with many particles."
        )
    if weights.ess < SMALLEST_ESS or not weights.std_error <= LARGEST_ERROR:
        return Status.LOW_ESS, (
            f"Only {weights.ess:.0f} effective draws of {weights.draws:,}, {SMALLEST_ESS:.0f} wanted. Raise max_calls."
        )
    if not math.isfinite(agreement.sigmas):
        return Status.ONE_ROUTE, (
            f"{climbs.finished} of {climbs.planned} runs of SMC finished within their share of the calls and the event was "
            f"{'' if math.isfinite(climbs.log_prob) else 'not '}reached, so nothing checks whether places are missing. Raise "
            "max_calls."
        )
    return Status.OK, ""
