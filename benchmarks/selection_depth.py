"""How the error grows with depth at a fixed rank, what carries it, and the network in which nothing was selected."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

import ppl_risk as pr
from benchmarks.results import table
from benchmarks.selection_curve import UNSEEN, believed_margins, margins, summary
from benchmarks.trained_networks import covering_draws, problem_of, train

TITLE = "selection_depth: error against depth at a fixed rank, and a network that was never trained"
DEPTHS = {4: "digits", 8: "digits_deep, 8 layers", 32: "digits_deep, 32 layers"}
SOURCES = ("trained", "checkpoints", "gradient", "pca")
RANKS = (8, 16, 32)
SEEDS, DRAWS = range(5), 100_000


def run() -> str:
    """Depth 4, 8, 32, then `wide_random`."""
    return "\n\n".join([trained_networks(), untrained_networks()])


def trained_networks() -> str:
    """|log10 p error| at p = 1e-4 per depth, and with only a part of the layers replaced."""
    curve, parts = [], []
    for depth, kind in DEPTHS.items():
        errors: dict[str, list[float]] = {}
        alone: dict[str, list[float]] = {}
        for seed in SEEDS:
            trained = train(kind, seed)
            draws = covering_draws(partial(problem_of, trained), DRAWS, seed)
            problem = problem_of(trained)
            threshold = draws.threshold(margins(problem, draws.u), -4)

            def error(
                selection: pr.Selection, draws: Any = draws, problem: Any = problem, t: float = threshold
            ) -> float:
                found = draws.log10_tail(believed_margins(problem, selection, draws.u, 0), t)
                return max(found + 4, -UNSEEN) if math.isfinite(found) else -UNSEEN

            for source in SOURCES:
                selection = pr.select(problem, 8, source)
                for rank in RANKS:
                    errors.setdefault(f"{source}, {rank}", []).append(error(selection.at(rank)))
                if source == "trained":
                    half = len(selection.layers) // 2
                    subsets = {
                        "first layer": selection.layers[:1], "first half": selection.layers[:half],
                        "second half": selection.layers[half:], "last layer": selection.layers[-1:],
                        "every layer": selection.layers,
                    }  # fmt: skip
                    for name, layers in subsets.items():
                        alone.setdefault(name, []).append(error(replace(selection, layers=layers)))
        curve.append({"layers": depth} | {name: summary(np.abs(values)) for name, values in errors.items()})
        parts.append(
            {"layers": depth}
            | {name: f"{np.median(values):+.2f} (worst {max(values, key=abs):+.2f})" for name, values in alone.items()}
        )
    return (
        f"p = 1e-4, {len(SEEDS)} seeds, 64 wide: median (worst) |log10 p error| per basis and rank\n\n{table(curve)}\n\n"
        f"`trained` at rank 8 in a part of the layers, the others exact: median signed error\n\n{table(parts)}"
    )


def untrained_networks() -> str:
    """The zoo's `wide_random`, on plain draws: signed errors at 1e-2 and 1e-3."""
    rows = []
    for depth in (4, 8):
        problem = pr.load_model("wide_random", depth=depth, rarity="1e-2")
        torch.manual_seed(0)
        u = torch.randn(200_000, problem.transport.dimension)
        margin = margins(problem, u)
        levels = {f"1e-{k}": float(margin.topk(len(u) // 10**k).values[-1]) for k in (2, 3)}
        for source in ("trained", "gradient", "pca", "random"):
            selection = pr.select(problem, 8, source)
            for rank in (16, 32, 64, 128, 192):
                found = believed_margins(problem, selection.at(rank), u, 0)
                cells = {
                    f"p = {name}": f"{math.log10(max(float((found >= t).float().mean()), 0.5 / len(u)) * 10 ** int(name[-1])):+.2f}"
                    for name, t in levels.items()
                }
                rows.append({"layers": depth, "basis": source, "rank of 256": rank} | cells)
    return f"`wide_random`, 256 wide, nothing trained: signed log10 p error (200,000 plain draws)\n\n{table(rows)}"
