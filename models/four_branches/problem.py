r"""The four-branch series system: four limit states in the plane, the oldest test of a method for several failure modes.

u ~ N(0, I_2). The system fails when the smallest of four limit states is at most 0 (P. H. Waarts 2000, *Structural
reliability using finite element methods*, Delft University Press):

    g_1, g_2 = 3 + 0.1 (u_1 - u_2)^2 -+ (u_1 + u_2) / sqrt 2,    g_3, g_4 = +-(u_1 - u_2) + k / sqrt 2

margin = -min g. With v = (u_1 - u_2) / sqrt 2 and w = (u_1 + u_2) / sqrt 2, independent N(0, 1), failure is
|w| >= 3 + v^2 / 5 or |v| >= k / 2, so

    p = 2 Phi(-k / 2) + 2 int_{-k/2}^{k/2} phi(v) Phi(-3 - v^2 / 5) dv.
"""

from __future__ import annotations

import math

import torch
from scipy.integrate import quad
from scipy.special import ndtr
from torch import Tensor
from torch.distributions import Independent, Normal

from ppl_risk import RiskError, RiskProblem


def exact_log_prob(k: float) -> float:
    """Log p, nats, by quadrature of the integral above (relative tolerance 1e-13)."""

    def integrand(v: float) -> float:
        return math.exp(-v * v / 2) * float(ndtr(-3 - v * v / 5))

    inner, _ = quad(integrand, 0, k / 2, epsabs=0, epsrel=1e-13, limit=200)
    return math.log(2 * float(ndtr(-k / 2)) + 4 * inner / math.sqrt(2 * math.pi))


def problem(*, k: float = 7.0) -> RiskProblem:
    """Pr[one of the four branches fails].

    Args:
        k: where the two straight branches stand; 6 and 7 are in use. They are k / 2 away from the origin, the curved two 3.

    """
    if not k > 0:
        raise RiskError(f"k must be above 0, got {k}.")

    def margin(u: Tensor) -> Tensor:
        v, w = (u[:, 0] - u[:, 1]) / math.sqrt(2), (u[:, 0] + u[:, 1]) / math.sqrt(2)
        curved = w.abs() - 3 - v.square() / 5
        straight = math.sqrt(2) * v.abs() - k / math.sqrt(2)
        return torch.maximum(curved, straight)

    return RiskProblem(margin, Independent(Normal(torch.zeros(2), 1.0), 1), name="four_branches")
