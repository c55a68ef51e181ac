"""Pareto k-hat: how heavy the tail of importance weights is, and so whether their mean can be trusted.

Vehtari, Simpson, Gelman, Yao, Gabry (arXiv 1507.02646); for variational guides Yao et al. (arXiv 1802.02538). Below 0.7
the estimate is usable; from 0.5 its variance no longer exists; from 1 not even its mean.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from pyro.ops.stats import fit_generalized_pareto
from torch import Tensor

USABLE = 0.7
#: Fewer weights in the tail than this say nothing about its shape.
SMALLEST_TAIL = 5


def pareto_khat(log_weights: Float[Tensor, " draws"]) -> float:
    """Shape of the generalised Pareto law fitted to the largest min(n/5, 3 sqrt n) weights; nan where there are too few.

    Args:
        log_weights: log importance weights, nats; -inf entries (draws outside the event) are left out.

    Example:
        >>> pareto_khat(torch.zeros(100))
        -inf
    """
    finite = log_weights[torch.isfinite(log_weights)].double()
    tail = int(min(0.2 * finite.numel(), 3.0 * math.sqrt(finite.numel())))
    if tail < SMALLEST_TAIL:
        return math.nan
    top = (finite - finite.max()).sort().values[-tail - 1 :].exp()
    excess = top[1:] - top[0]
    if float(excess[-1]) <= 1e-12:
        return -math.inf  # all weights of the tail are equal: as light as can be
    try:
        k, _sigma = fit_generalized_pareto(excess)
    except ZeroDivisionError:
        return math.inf  # the quartile of the tail underflows: one weight carries everything
    return float(k)


def effective_sample_size(log_weights: Float[Tensor, " draws"]) -> float:
    """(sum w)^2 / sum w^2, Kish."""
    if log_weights.numel() == 0 or not bool(torch.isfinite(log_weights).any()):
        return 0.0
    return float((2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp())
