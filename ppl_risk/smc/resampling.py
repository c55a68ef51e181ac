"""Systematic resampling: offspring counts within one of their expectation (Carpenter, Clifford, Fearnhead 1999)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def systematic(log_weight: Float[Tensor, " particles"], count: int) -> Int[Tensor, " count"]:
    """Indices of `count` offspring, E[#i] = count * w_i / sum w, in random order.

    Example:
        >>> systematic(torch.tensor([0.0, -torch.inf]), 3).tolist()
        [0, 0, 0]
    """
    weight = log_weight.double().softmax(0)
    places = (
        torch.arange(count, device=weight.device) + torch.rand((), dtype=torch.float64, device=weight.device)
    ) / count
    # A place beyond the rounded total belongs to the last particle that has weight.
    last = int(torch.nonzero(weight)[-1])
    index = torch.searchsorted(weight.cumsum(0), places, right=True).clamp(max=last)
    return index[torch.randperm(count, device=weight.device)]
