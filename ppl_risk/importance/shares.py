r"""Shares of a mixture proposal that minimise the variance of the estimate.

With target density pi (the law given catastrophe) and phi the prior, the second moment of the weights under shares a is
p E_pi[phi(u) / sum_k a_k q_k(u)]: convex in a (He and Owen 2014, arXiv 1411.3954), estimated from weighted hits.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

STEPS = 100


def best_shares(
    log_tilt: Float[Tensor, "hits components"], weight: Float[Tensor, " hits"], floor: Float[Tensor, " components"]
) -> Float[Tensor, " components"]:
    """Shares that minimise the weights' second moment, none below its floor.

    Args:
        log_tilt: log q_k(u) - log N(u; 0, I) at weighted hits. weight: sum 1. floor: its sum is below 1.

    Example:
        >>> import torch
        >>> tilt = torch.tensor([[0.0, -50.0], [0.0, -50.0]]).double()
        >>> best_shares(tilt, torch.ones(2).double() / 2, torch.full((2,), 0.1).double())
        tensor([0.9000, 0.1000], dtype=torch.float64)
    """
    free = 1 - floor.sum()
    shares = floor + free / len(floor)
    for _ in range(STEPS):
        mixed = (log_tilt + shares.log()).logsumexp(-1, keepdim=True)
        # Minus the gradient, sum_i w_i (q_k / phi) / (q / phi)^2, up to a factor.
        log_gain = (weight.log()[:, None] + log_tilt - 2 * mixed).logsumexp(0)
        new = (shares - floor).clamp(min=0.0) * ((log_gain - log_gain.max()) / 2).exp()
        shares = floor + free * new / new.sum()
    return shares
