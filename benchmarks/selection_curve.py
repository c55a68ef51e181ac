"""The price of not tracking: |log10 p error| against rank, per basis, over trained networks and seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from tqdm.auto import tqdm

import ppl_risk as pr
from benchmarks.results import table
from benchmarks.trained_networks import KINDS, covering_draws, margins, problem_of, train
from ppl_risk.layerwise import fitted_guide

TITLE = "selection_curve: error of the tail against rank, per basis"
NETWORKS = tuple(name for name in KINDS if "32" not in name)
SEEDS = range(5)
SOURCES = ("trained", "checkpoints", "sketch", "spectrum", "gradient", "pca", "weights", "random")
SHARES = {"1/16": 1 / 16, "1/8": 1 / 8, "1/4": 1 / 4, "1/2": 1 / 2}
DECADES = (-2, -4, -6)
DRAWS = 100_000
OUT = Path(__file__).parent / "out" / "selection_curve"
#: A guide that none of the draws reaches is this far off, at least.
UNSEEN = 6.0


def run() -> str:
    """All networks and seeds (two at a time; finished ones are read back), as tables and a figure."""
    units = [(name, seed) for name in NETWORKS for seed in SEEDS]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        rows = [row for rows in tqdm(pool.map(unit, units), total=len(units), desc=TITLE) for row in rows]
    figure = draw(rows)
    return "\n\n".join([report(rows), f"![error against rank](figures/{figure.name})"])


def unit(told: tuple[str, int]) -> list[dict[str, Any]]:
    """One trained network: every basis at every rank."""
    kind, seed = told
    file = OUT / f"{kind.replace(', ', '_').replace(' ', '_')}_{seed}.json"
    if file.exists():
        return json.loads(file.read_text())
    torch.set_num_threads(1)
    trained = train(kind, seed)
    rows = list(cells(kind, seed, trained))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows))
    return rows


def cells(kind: str, seed: int, trained: Any) -> Iterator[dict[str, Any]]:
    """Errors at three thresholds, on draws that truth and guides share."""
    draws = covering_draws(partial(problem_of, trained), DRAWS, seed)
    problem = problem_of(trained)
    margin = margins(problem, draws.u)
    thresholds = [draws.threshold(margin, decade) for decade in DECADES]
    for decade, threshold in zip(DECADES, thresholds, strict=True):
        yield {
            "network": kind, "seed": seed, "source": "truth", "share": "", "decade": decade,
            "accuracy": trained.accuracy, "effective": draws.effective(margin, threshold),
        }  # fmt: skip
    # Any threshold serves to select: the gradient of the margin does not contain it.
    for source in SOURCES:
        for name, share in {"0": 0.0, **SHARES}.items():
            if name == "0" and source != "trained":
                continue
            selection = select(trained, source, share)
            chosen = selection.at(0) if name == "0" else selection.at_share(share)
            found = believed_margins(problem, chosen, draws.u, seed)
            for decade, threshold in zip(DECADES, thresholds, strict=True):
                log10 = draws.log10_tail(found, threshold)
                error = log10 - decade if math.isfinite(log10) else -UNSEEN
                yield {
                    "network": kind, "seed": seed, "source": source, "share": name, "decade": decade,
                    "error": max(error, -UNSEEN), "effective": draws.effective(found, threshold),
                }  # fmt: skip


def select(trained: Any, source: str, share: float) -> pr.Selection:
    """Directions from one source; the sketch is as large as the rank asks."""
    updates = None
    if source == "sketch":
        widest = max(p.shape[1:].numel() for n, p in trained.network.named_parameters() if n.endswith("weight"))
        updates = sketched(trained, max(1, round(share * widest)))
    return pr.select(problem_of(trained, updates=updates), 1, source)


def sketched(trained: Any, rank: int) -> dict[str, torch.Tensor]:
    """What an `UpdateSketch` made before training says after it."""
    network = trained.network
    final = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(trained.initial)
    sketch = pr.UpdateSketch(network, rank)
    network.load_state_dict(final)
    return sketch.state()


@torch.no_grad()
def believed_margins(problem: pr.RiskProblem, selection: pr.Selection, u: torch.Tensor, seed: int) -> torch.Tensor:
    """Margins under the guide's law, on the given inputs."""
    guide: Any = fitted_guide(problem, pr.guides.Selected(selection), pushed=False, draws=10_000, seed=seed)
    noise = guide.normals() - u.shape[1]
    torch.manual_seed(seed)
    return margins(
        problem, u, lambda rows: guide.margin_of_normals(problem, torch.cat([rows, torch.randn(len(rows), noise)], 1))
    )


def chosen(rows: list[dict[str, Any]], **wanted: object) -> np.ndarray:
    """|log10 p error| of the rows that match."""
    return np.array([abs(r["error"]) for r in rows if "error" in r and all(r[k] == v for k, v in wanted.items())])


def report(rows: list[dict[str, Any]]) -> str:
    """Median, worst, per basis and rank; then per network."""
    parts = []
    shallow = [r for r in rows if KINDS[r["network"]].layers <= 4]
    names = {"all networks": rows, "networks of up to four layers": shallow}
    for title, part in names.items():
        count = len({(r["network"], r["seed"]) for r in part})
        for decade in DECADES:
            lines = [
                {"basis": source}
                | {f"rank {s} of width": summary(chosen(part, source=source, share=s, decade=decade)) for s in SHARES}
                for source in SOURCES
            ]
            rank0 = summary(chosen(part, source="trained", share="0", decade=decade))
            parts.append(
                f"**p = 1e{decade}, {title} ({count} trainings): median (worst) |log10 p error|; nothing tracked: {rank0}**\n\n"
                f"{table(lines)}"
            )
    lines = [
        {"network": name}
        | {
            f"{source}, {s}": summary(chosen(rows, network=name, source=source, share=s, decade=-4))
            for source in ("trained", "checkpoints", "gradient", "pca")
            for s in ("1/8", "1/4")
        }
        for name in NETWORKS
    ]
    parts.append(f"**p = 1e-4, per network: median (worst) of 5 seeds**\n\n{table(lines)}")
    parts.append(paired(rows))
    truth = [r["effective"] for r in rows if r["source"] == "truth"]
    accuracy = [r["accuracy"] for r in rows if r["source"] == "truth"]
    parts.append(
        f"Truth and guides share {DRAWS:,} importance draws, so that their difference is less noisy than either; effective draws "
        f"behind a truth: median {np.median(truth):,.0f}, fewest {min(truth):,.0f}. Held-back accuracy {min(accuracy):.1%} to "
        f"{max(accuracy):.1%}. An error of {UNSEEN:.0f} means that no draw reached the event under the guide."
    )
    return "\n\n".join(parts)


def paired(rows: list[dict[str, Any]]) -> str:
    """Training by training: the sketch against the checkpoint pair, and how often `trained` is the better basis."""
    found = {
        (r["network"], r["seed"], r["source"], r["share"], r["decade"]): r["error"] for r in rows if "error" in r
    }  # fmt: skip

    def pairs(source: str, other: str, share: str, decade: int) -> np.ndarray:
        keys = sorted({k[:2] for k in found})
        return np.array([[found[*k, name, share, decade] for name in (source, other)] for k in keys])

    near, better = [], []
    for share in SHARES:
        gaps = {d: np.abs(np.subtract(*pairs("sketch", "checkpoints", share, d).T)) for d in DECADES}
        near.append({"rank, of width": share} | {f"p = 1e{d}": summary(gap) for d, gap in gaps.items()})
        for decade in DECADES[1:]:
            row = {"rank, of width": share, "p": f"1e{decade}"}
            for other in SOURCES[1:]:
                mine, theirs = np.abs(pairs("trained", other, share, decade)).T
                row[other] = f"{np.mean(mine <= theirs + 0.02):.0%}"
            better.append(row)
    return (
        f"**Sketch against checkpoint pair, the same training: median (worst) difference of their errors**\n\n{table(near)}\n\n"
        f"**Share of the trainings in which `trained` is as good as the other basis, to 0.02 decades**\n\n{table(better)}"
    )


def summary(errors: np.ndarray) -> str:
    """Median (worst)."""
    return f"{np.median(errors):.2f} ({errors.max():.2f})" if len(errors) else "-"


def draw(rows: list[dict[str, Any]]) -> Path:
    """One panel a threshold, one line a basis: medians, with the middle half shaded."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.2), sharey=True, layout="constrained")
    at = list(SHARES.values())
    for ax, decade in zip(axes, DECADES, strict=True):
        for source in SOURCES:
            errors = [chosen(rows, source=source, share=s, decade=decade) for s in SHARES]
            bold = source == "trained"
            (line,) = ax.plot(
                at, [max(float(np.median(e)), 3e-3) for e in errors], "o-", label=source, lw=2.5 if bold else 1.2,
                ms=6 if bold else 3.5, zorder=3 if bold else 2,
            )  # fmt: skip
            if source in ("trained", "pca"):
                low, high = zip(*(np.percentile(e, [25, 75]).clip(3e-3) for e in errors), strict=True)
                ax.fill_between(at, low, high, color=line.get_color(), alpha=0.15, lw=0)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xticks(at, list(SHARES))
        ax.set_xlabel("directions tracked, share of the width")
        ax.set_title(f"p = 1e{decade}")
    axes[0].set_ylabel("|log10 p error|, decades")
    axes[-1].legend(frameon=False, fontsize=8)
    file = Path(__file__).parent / "figures" / "selection_curve.png"
    file.parent.mkdir(exist_ok=True)
    figure.savefig(file, dpi=120)
    plt.close(figure)
    return file
