"""Posterior draws for ArviZ: inputs and activations given catastrophe, laid out as (chain, draw, ...)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ppl_risk.problem import RiskProblem

CHAINS = 4


@torch.no_grad()
def posterior_of(problem: RiskProblem, x: Tensor, chains: int = CHAINS) -> dict[str, np.ndarray]:
    """Run equal-weight catastrophic inputs (rows, *event) once more and keep x, every layer and the margin.

    Rows that do not fill the chains are dropped. The calls are booked like any others.
    """
    x = x[: x.shape[0] // chains * chains]
    if x.shape[0] == 0:
        return {}
    values, margin = problem.activations(x)
    # Parts of an input under their own names; a layer or the margin of the same name keeps it.
    inputs = {f"x.{n}" if n in {*values, "margin"} else n: part for n, part in problem.unpack(x).items()}
    return {name: to_chains(value, chains) for name, value in (inputs | values | {"margin": margin}).items()}


def to_chains(value: Tensor, chains: int = CHAINS) -> np.ndarray:
    """(chains * draws, ...) -> (chains, draws, ...) on the host."""
    return value.detach().reshape(chains, -1, *value.shape[1:]).cpu().numpy()
