"""Which correlations are carried: per layer, the few directions that training selected, or a control's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ppl_risk.arguments import checked, of_type
from ppl_risk.errors import RiskError, UnknownNameError
from ppl_risk.preflight import require_sound
from ppl_risk.problem import RiskProblem
from ppl_risk.randomness import seeded
from ppl_risk.selection.flow import flow_of
from ppl_risk.selection.selection import LayerSelection, Selection
from ppl_risk.selection.sketch import UpdateSketch
from ppl_risk.selection.sources import BLIND, SOURCES, basis_of
from ppl_risk.weights import read_weights

__all__ = ["SOURCES", "LayerSelection", "Selection", "UpdateSketch", "select"]


_WEIGHTS = of_type(Mapping, str, Path, type(None), hint="Pass a state dict, or the path of a safetensors file.")


@checked(source=of_type(str), initial=_WEIGHTS, updates=_WEIGHTS)
def select(
    problem: RiskProblem,
    rank: int | None = None,
    source: str = "trained",
    *,
    initial: Mapping[str, Tensor] | str | Path | None = None,
    updates: Mapping[str, Tensor] | str | Path | None = None,
    draws: int = 4000,
    seed: int = 0,
) -> Selection:
    """Find the directions of every affine layer that a `Selected` guide carries on.

    Args:
        problem: the problem. rank: directions a layer; default an eighth of the widest layer's input. All are kept, so
            `selection.at(rank)` is free.
        source: "trained", "checkpoints", "sketch", "spectrum", or a control: "gradient", "pca", "weights", "random"
            (see `ppl_risk.selection.sources`).
        initial: weights that training started from, for "checkpoints" and "weights"; default `problem.provenance.initial`.
        updates: what an `UpdateSketch` recorded, for "sketch"; default `problem.provenance.updates`.
        draws: rows sent through the network and back. seed: reproduces.

    Raises:
        PreflightError: the problem is not sound. UnknownNameError: no such source.
        RiskError: a source without what it needs; no affine layer; a margin without gradient.

    Example:
        >>> from ppl_risk.zoo import load_model
        >>> select(load_model("linear_gaussian"), rank=2, draws=500).rank
        2
    """
    if source not in SOURCES:
        raise UnknownNameError(f"There is no source {source!r}. There are: {', '.join(SOURCES)}.")
    if draws < 8 or (rank is not None and rank < 0):
        raise RiskError(f"At least 8 draws and a rank of 0 or more are needed, got draws={draws}, rank={rank}.")
    require_sound(problem)
    provenance = replace(
        problem.provenance,
        initial=_tensors(initial) or problem.provenance.initial,
        updates=_tensors(updates) or problem.provenance.updates,
    )
    with problem.metered() as meter, seeded(seed, problem.device):
        u = torch.randn(draws, problem.transport.dimension, device=problem.device)
        flows = flow_of(problem, u, reading=source not in BLIND)
    layers = []
    for index, flow in enumerate(flows):
        basis = basis_of(source, flow, provenance, flow.shape.numel(), seed + index)
        moves = flow.covariance @ basis.functionals
        variance = (basis.functionals * moves).sum(0).clamp(min=1e-300)
        layers.append(
            LayerSelection(
                flow.name, flow.shape, basis.functionals.float(), (moves / variance).float(), basis.shares.float()
            )
        )
    width = max(layer.width for layer in layers)
    chosen = max(1, width // 8) if rank is None else rank
    return Selection(tuple(layers), chosen, source, draws, meter.gradient_calls, problem.flops(meter), problem=problem)


def _tensors(given: Mapping[str, Tensor] | str | Path | None) -> Mapping[str, Tensor] | None:
    return read_weights(given) if isinstance(given, str | Path) else given
