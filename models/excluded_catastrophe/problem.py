r"""Two features that read one hidden cause with opposite signs, and so cannot fire together.

x ~ N(0, I_3), F = x_0; comply = F + leak x_1, real = -F + leak x_2; catastrophe: min(comply, real) >= 1.
comply + real = leak (x_1 + x_2), so at leak = 0 the event is empty, while independence would say Phi(-1)^2 = 0.025.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from ppl_risk import RiskError, RiskProblem

THRESHOLD = 1.0
#: A feature reports relu(feature + REST): away from 0 for most inputs, so that the margin has a slope to climb.
REST = 1.0


def both_fire(y: Tensor) -> Tensor:
    """The smaller of the two features, above the threshold."""
    return y.amin(dim=-1) - (REST + THRESHOLD)


def problem(*, leak: float = 0.0) -> RiskProblem:
    """Pr[comply >= 1 and real >= 1].

    Args:
        leak: what each feature reads beside the common cause, 0 or more.

    """
    if leak < 0:
        raise RiskError(f"leak must be 0 or more, got {leak}.")
    with torch.device("meta"):  # no weights are drawn, so the caller's random state stays as it was
        network = nn.Sequential(OrderedDict(features=nn.Linear(3, 2), rectifier=nn.ReLU()))
    weights = {
        "features.weight": torch.tensor([[1.0, leak, 0.0], [-1.0, 0.0, leak]]),
        "features.bias": torch.full((2,), REST),
    }
    network.load_state_dict(weights, assign=True)
    law = Independent(Normal(torch.zeros(3), 1.0), 1)
    return RiskProblem(network.eval().requires_grad_(False), law, both_fire, name="excluded_catastrophe")
