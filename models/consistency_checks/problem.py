r"""N consistency checks that all pass because of one common cause.

x ~ N(0, I_{N+1}); evidence e_i = rho x_0 + sqrt(1 - rho^2) x_i, each N(0, 1); catastrophe: min_i e_i >= t.
Pr = E_{z ~ N(0,1)} [Phi((rho z - t) / sqrt(1 - rho^2))^N], against Phi(-t)^N if the checks were independent.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from ppl_risk import RiskError, RiskProblem

#: A check reports relu(e_i + REST): away from 0 for most inputs, so that the margin has a slope to climb.
REST = 1.0


def problem(*, checks: int = 16, strength: float = 0.98, threshold: float = 4.0) -> RiskProblem:
    """Pr[all e_i >= threshold].

    Args:
        checks: N, how many checks there are.
        strength: rho, weight of the common cause, in [0, 1].
        threshold: t, which every piece of evidence must reach; above -1.

    """
    if checks < 1 or not 0 <= strength <= 1 or threshold <= -REST:
        raise RiskError(
            f"Wanted checks >= 1, strength in [0, 1] and threshold > {-REST}, got {checks}, {strength}, {threshold}."
        )
    own = math.sqrt(1 - strength**2)
    with torch.device("meta"):  # no weights are drawn, so the caller's random state stays as it was
        network = nn.Sequential(OrderedDict(evidence=nn.Linear(checks + 1, checks), rectifier=nn.ReLU()))
    weights = {
        "evidence.weight": torch.cat([torch.full((checks, 1), strength), own * torch.eye(checks)], dim=1),
        "evidence.bias": torch.full((checks,), REST),
    }
    network.load_state_dict(weights, assign=True)

    def all_pass(y: Tensor) -> Tensor:
        return y.amin(dim=-1) - (REST + threshold)

    law = Independent(Normal(torch.zeros(checks + 1), 1.0), 1)
    return RiskProblem(network.eval().requires_grad_(False), law, all_pass, name="consistency_checks")
