r"""A linear network on Gaussian inputs: the only entry whose answer is exact in every dimension.

y = w2 (W1 x) + b, x ~ N(0, I_d), so y ~ N(b, |W1^T w2^T|^2) and Pr[y >= 0] = Phi(b / |W1^T w2^T|).
The bias b is set so that this is 10^log10_prob.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from scipy.special import ndtri_exp
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from ppl_risk import RiskError, RiskProblem

HIDDEN = 8
#: Of the weights. Not a small number: inputs drawn under the same seed would be the very numbers that are the weights.
SEED = 271_828_182


def only_output(y: Tensor) -> Tensor:
    """The network's one output is the margin."""
    return y[:, 0]


def problem(*, dimension: int = 20, log10_prob: float = -6.0) -> RiskProblem:
    """Pr[w2 W1 x + b >= 0], x ~ N(0, I).

    Args:
        dimension: of the input.
        log10_prob: the answer, in decades, below 0.

    """
    if dimension < 1 or not -math.inf < log10_prob < 0:
        raise RiskError(f"Wanted dimension >= 1 and a finite log10_prob < 0, got {dimension} and {log10_prob}.")
    generator = torch.Generator().manual_seed(SEED)
    hidden = torch.randn(HIDDEN, dimension, generator=generator) / math.sqrt(dimension)
    output = torch.randn(1, HIDDEN, generator=generator) / math.sqrt(HIDDEN)
    # In double precision, but from the weights as they are stored.
    scale = float((output.double() @ hidden.double()).norm())
    bias = scale * ndtri_exp(log10_prob * math.log(10.0))
    with torch.device("meta"):  # no weights are drawn, so the caller's random state stays as it was
        network = nn.Sequential(OrderedDict(hidden=nn.Linear(dimension, HIDDEN), output=nn.Linear(HIDDEN, 1)))
    weights = {
        "hidden.weight": hidden,
        "hidden.bias": torch.zeros(HIDDEN),
        "output.weight": output,
        "output.bias": torch.tensor([bias], dtype=torch.float32),
    }
    network.load_state_dict(weights, assign=True)
    law = Independent(Normal(torch.zeros(dimension), 1.0), 1)
    return RiskProblem(network.eval().requires_grad_(False), law, only_output, name="linear_gaussian")
