"""Posterior draws for ArviZ: inputs and activations given catastrophe, laid out as (chain, draw, ...)."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from ppl_risk.network import is_half
from ppl_risk.problem import RiskProblem

CHAINS = 4


@torch.no_grad()
def posterior_of(problem: RiskProblem, x: Tensor, chains: int = CHAINS) -> dict[str, np.ndarray]:
    """Run equal-weight catastrophic inputs (rows, *event) once more and keep x, every layer and the margin.

    Rows that do not fill the chains are dropped. The calls are booked like any others. Layers that have no value for every row
    are left out, with a warning that names them.
    """
    x = x[: x.shape[0] // chains * chains]
    if x.shape[0] == 0:
        return {}
    left_out: dict[str, str] = {}
    values, margin = problem.activations(x, left_out)
    if left_out:
        reasons = "; ".join(f'"{name}" {why}' for name, why in left_out.items())
        warnings.warn(f"{problem.name}: the posterior holds no draws of these layers: {reasons}.", stacklevel=2)
    # Parts of an input under their own names; a layer or the margin of the same name keeps it.
    inputs = {f"x.{n}" if n in {*values, "margin"} else n: part for n, part in problem.unpack(x).items()}
    return {name: to_chains(value, chains) for name, value in (inputs | values | {"margin": margin}).items()}


def to_chains(value: Tensor, chains: int = CHAINS) -> np.ndarray:
    """(chains * draws, ...) -> (chains, draws, ...) on the host."""
    # NumPy has no bfloat16.
    value = value.detach().float() if is_half(value.dtype) else value.detach()
    return value.reshape(chains, -1, *value.shape[1:]).cpu().numpy()
