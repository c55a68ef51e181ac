r"""The standard normal's tails, and step functions of a normal: what the transports are made of.

Phi(u) rounds to 1 above u = 5.4 in float32 (8.3 in float64), so a quantile is found from the smaller tail: F = Phi(u) below the
median, 1 - F = Phi(-u) above it. log Phi (`torch.special.log_ndtr`) is exact on both sides; torch's ndtr is 0 below -8.3.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor


def ndtr(u: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Phi(u), exact in the lower tail; call it with -u for the upper one.

    Example:
        >>> f"{float(ndtr(torch.tensor(-12.0, dtype=torch.float64))):.4e}"
        '1.7765e-33'
    """
    return torch.special.log_ndtr(u).exp()


def thresholds(lower: Float[Tensor, "*batch k"], upper: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
    """Where a normal has the given tails: Phi(t) = lower and Phi(-t) = upper, each taken from the smaller of the two.

    Example:
        >>> thresholds(torch.tensor([0.5, 1.0]), torch.tensor([0.5, 1e-30]))[1].round(decimals=3)
        tensor(11.4640, dtype=torch.float64)
    """
    lower, upper = lower.double(), upper.double()
    return torch.where(lower < upper, torch.special.ndtri(lower), -torch.special.ndtri(upper))


def steps(u: Float[Tensor, "*batch"], at: Float[Tensor, "*law k"]) -> Int[Tensor, "*batch"]:
    """How many thresholds lie below u: a step function 0..k. `law` are the last dimensions of u, or broadcast to them.

    Example:
        >>> steps(torch.tensor([-1.0, 0.5, 9.0]), torch.tensor([0.0, 1.0])).tolist()
        [0, 1, 2]
    """
    if at.dim() == 1:
        return torch.searchsorted(at.to(u.dtype), u.detach().contiguous())
    own = u.shape[u.dim() - at.dim() + 1 :]
    table = at.to(u.dtype).expand(*own, at.shape[-1]).reshape(own.numel(), at.shape[-1])
    rows = u.detach().reshape(-1, own.numel()).mT.contiguous()
    return torch.searchsorted(table.contiguous(), rows).mT.reshape(u.shape)


def categories(p: Float[Tensor, "*law k"]) -> Shaped[Tensor, "*law k-1"]:
    """Thresholds of a categorical law with probabilities p: category i lies between threshold i - 1 and threshold i.

    Example:
        >>> categories(torch.tensor([0.5, 0.3, 0.2])).abs().round(decimals=3).tolist()
        [0.0, 0.842]
    """
    upper = p.double().flip(-1).cumsum(-1).flip(-1)[..., 1:]
    return thresholds(p.double().cumsum(-1)[..., :-1], upper)
