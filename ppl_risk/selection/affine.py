"""The linear part of an affine module as a matrix, whatever its kind: W with module(h) = W h + b on flattened values."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from ppl_risk.errors import RiskError
from ppl_risk.network import AFFINE

#: Widest input of a layer for which covariances (width squared) are formed.
WIDEST = 8192


def is_affine(module: nn.Module) -> bool:
    """Whether a module is affine in its one input."""
    return isinstance(module, AFFINE) and not isinstance(module, nn.Bilinear)


@torch.no_grad()
def linear_part(
    module: nn.Module, shape: torch.Size, weights: Mapping[str, Tensor] | None = None
) -> Float[Tensor, "out width"]:
    """The matrix of a module on inputs of `shape` (without batch), by sending the unit vectors through it.

    Args:
        module: an affine module. shape: of one input. weights: a state dict to use instead of its own.

    Raises:
        RiskError: an input so wide that its covariance would not fit.
    """
    width = shape.numel()
    if width > WIDEST:
        raise RiskError(
            f"A layer reads {width:,} values, and correlations are selected up to {WIDEST:,}. Leave it out: layers=[...]."
        )
    own = next(module.parameters())
    state = dict(module.state_dict()) | dict(weights or {})
    state = {name: value.to(own.device, own.dtype) for name, value in state.items()}
    zero = torch.zeros(1, *shape, device=own.device, dtype=own.dtype)
    bias = functional_call(module, state, (zero,)).flatten(1)
    columns = []
    for start in range(0, width, 1024):
        eye = torch.zeros(min(1024, width - start), width, device=own.device, dtype=own.dtype)
        eye[:, start : start + len(eye)].fill_diagonal_(1.0)
        columns.append(functional_call(module, state, (eye.reshape(-1, *shape),)).flatten(1) - bias)
    return torch.cat(columns).mT
