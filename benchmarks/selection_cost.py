"""What selection, fit and tail cost as a share of training, and what a sketch costs while training."""

from __future__ import annotations

import math
import time
from functools import partial

import torch

import ppl_risk as pr
from benchmarks.results import table
from benchmarks.trained_networks import KINDS, covering_draws, margins, problem_of, train

TITLE = "selection_cost: FLOPs as a share of training's, and the sketch"
SHARE = 1 / 4


def run() -> str:
    """One training of each kind: costs at three rarities, and the sketch's time and memory."""
    costs, sketches = [], []
    for kind in KINDS:
        started = time.perf_counter()
        trained = train(kind, 0)
        seconds = time.perf_counter() - started
        sketches.append({"network": kind, "training, s": f"{seconds:.1f}"} | sketch_cost(trained, seconds))
        draws = covering_draws(partial(problem_of, trained), 100_000, 0)
        margin = margins(problem_of(trained), draws.u)
        for decade in (-2, -4, -6):
            problem = problem_of(trained, draws.threshold(margin, decade))
            selection = pr.select(problem).at_share(SHARE)
            found = pr.fit_layerwise(problem, pr.guides.Selected(selection), progress=False)
            chosen = {
                name: found.evidence[f"{name}_flops"] / trained.training_flops for name in ("selection", "fit", "tail")
            }
            costs.append(
                {
                    "network": kind, "p": f"1e{decade}", "log10 p": f"{found.log10_prob:.2f}",
                    "std. error": f"{found.std_error / math.log(10):.2f}", "tail by": found.settings["tail"],
                    **{name: f"{value:.3f}" for name, value in chosen.items()},
                    "selection + fit": f"{chosen['selection'] + chosen['fit']:.3f}", "seconds": f"{found.seconds:.1f}",
                }
            )  # fmt: skip
    return (
        f"Rank a quarter of each layer's width; FLOPs of matrix products as a share of those that trained the network, gradients "
        f"counted as two forward passes\n\n{table(costs)}\n\nAn `UpdateSketch` for an eighth of the width, against the training "
        f"it watches\n\n{table(sketches)}"
    )


def sketch_cost(trained: object, seconds: float) -> dict[str, str]:
    """Time to make a sketch and to read it, relative to training, and what it keeps."""
    network: torch.nn.Module = trained.network  # pyright: ignore[reportAttributeAccessIssue]
    rank = max(p.shape[1:].numel() for n, p in network.named_parameters() if n.endswith("weight")) // 8
    started = time.perf_counter()
    sketch = pr.UpdateSketch(network, rank)
    sketch.state()
    spent = time.perf_counter() - started
    return {"rank": str(rank), "slowed by": f"{spent / seconds:.2%}", "kept, share of weights": f"{sketch.memory:.0%}"}
