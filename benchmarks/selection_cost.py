"""What selection, fit and tail cost as a share of training, and what a sketch costs while training."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import ppl_risk as pr
from benchmarks.results import table
from benchmarks.trained_networks import KINDS, Draws, covering_draws, margins, problem_of, train
from ppl_risk.layerwise import fitted_guide

TITLE = "selection_cost: FLOPs as a share of training's, and the sketch"
SHARE = 1 / 4
#: Draws that directions are found from, and that the guide is fitted to: the defaults, and a lean setting.
SETTINGS = {"default": (4000, 10_000), "lean": (1000, 3000)}


def run() -> str:
    """One training of each kind: costs at three rarities, and the sketch's time and memory."""
    costs, tails, sketches = [], [], []
    for kind in KINDS:
        started = time.perf_counter()
        trained = train(kind, 0)
        seconds = time.perf_counter() - started
        sketches.append({"network": kind, "training, s": f"{seconds:.1f}"} | sketch_cost(trained, seconds))
        draws = covering_draws(partial(problem_of, trained), 100_000, 0)
        margin = margins(problem_of(trained), draws.u)
        thresholds = {decade: draws.threshold(margin, decade) for decade in (-2, -4, -6)}
        for setting in SETTINGS:
            costs.append({"network": kind, "draws": setting} | fit_cost(trained, setting, draws, thresholds))
        for decade, threshold in thresholds.items():
            problem = problem_of(trained, threshold)
            selection = pr.select(problem).at_share(SHARE)
            found = pr.fit_layerwise(problem, pr.guides.Selected(selection), progress=False)
            tails.append(
                {
                    "network": kind, "p": f"1e{decade}", "log10 p": f"{found.log10_prob:.2f}",
                    "std. error": f"{found.std_error / math.log(10):.2f}", "tail by": found.settings["tail"],
                    "tail, share of training": f"{found.evidence['tail_flops'] / trained.training_flops:.2f}",
                    "seconds, all": f"{found.seconds:.1f}",
                }
            )  # fmt: skip
    return (
        "Selection and fit at a quarter of each layer's width, as a share of the FLOPs that trained the network: passes through "
        "the network, other matrix products (covariances, variances of the rest), and decompositions (78 n^3 + 18 m^3 for a "
        f"layer from n to m values). They do not depend on how rare the event is.\n\n{table(costs)}\n\nThe tail inside the "
        f"guide's law (`fit_layerwise`, defaults), which does\n\n{table(tails)}\n\nAn `UpdateSketch` for an eighth of the "
        f"width, against the training it watches\n\n{table(sketches)}"
    )


def fit_cost(trained: Any, setting: str, draws: Draws, thresholds: dict[int, float]) -> dict[str, str]:
    """FLOPs of selection and fit, and the errors of what they give."""
    problem = problem_of(trained)
    few, many = SETTINGS[setting]
    with FlopCounterMode(display=False) as counter, problem.metered() as meter:
        selection = pr.select(problem, draws=few).at_share(SHARE)
        guide: Any = fitted_guide(problem, pr.guides.Selected(selection), pushed=False, draws=many, seed=0)
    passes = problem.flops(meter)
    sizes = [(n.shape[0], n.shape[1]) for n in guide.matrices.values()]
    dense = sum(78.0 * n**3 + 18.0 * m**3 for m, n in sizes)
    products = counter.get_total_flops() - passes
    shares = {"passes": passes, "products": products, "decompositions": dense, "all": passes + products + dense}
    torch.manual_seed(0)
    noise = guide.normals() - draws.u.shape[1]
    found = margins(
        problem, draws.u, lambda u: guide.margin_of_normals(problem, torch.cat([u, torch.randn(len(u), noise)], 1))
    )
    errors = {f"error at 1e{d}": f"{draws.log10_tail(found, t) - d:+.2f}" for d, t in thresholds.items()}
    return {name: f"{value / trained.training_flops:.3f}" for name, value in shares.items()} | errors


def sketch_cost(trained: Any, seconds: float) -> dict[str, str]:
    """Time to make a sketch and to read it, relative to training, and what it keeps."""
    network: torch.nn.Module = trained.network
    rank = max(p.shape[1:].numel() for n, p in network.named_parameters() if n.endswith("weight")) // 8
    started = time.perf_counter()
    sketch = pr.UpdateSketch(network, rank)
    sketch.state()
    spent = time.perf_counter() - started
    return {"rank": str(rank), "slowed by": f"{spent / seconds:.2%}", "kept, share of weights": f"{sketch.memory:.0%}"}
