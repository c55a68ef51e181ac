"""The engine on every class of rare event, beside the systems a user would pick instead.

Ours: `pr.estimate(problem, max_calls=10_000, seed=s)`, 100 seeds, of which the first 20 stand beside the peers' 20. Theirs: what
`benchmarks/peers.py` left in `benchmarks/out/peers.jsonl`, made by an interpreter that has them. Runs are kept in
`benchmarks/out/rare_events.jsonl`; delete it to make them again.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import warnings
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

import ppl_risk as pr
from benchmarks.efficiency import Score, score
from benchmarks.peers import scores as peer_scores
from benchmarks.rare_event_classes import CLASSES, problem_of, truth_of
from benchmarks.results import table

TITLE = "Rare events: `estimate` in every class, and the peers"
OUT = Path(__file__).parent / "out"
FILE, PEERS = OUT / "rare_events.jsonl", OUT / "peers.jsonl"
CALLS, SEEDS, BESIDE_PEERS = 10_000, 100, 20
#: Largest relative RMSE that was asked for, by how a label begins.
BARS = {
    "linear": 0.02, "digits 1e-4": 0.03, "digits 1e-7": 0.035, "digits_weights last": 0.03, "digits_weights all": 0.035,
    "four_branches": 0.05, "far_modes": 0.04, "curved": 0.08,
}  # fmt: skip


def one_run(job: tuple[str, int]) -> dict[str, Any]:
    """One estimate as a record."""
    label, seed = job
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = pr.estimate(problem_of(label), max_calls=CALLS, seed=seed, progress=False)
    low, high = found.interval(0.95)
    return {
        "label": label, "seed": seed, "log_prob": found.log_prob, "std_error": found.std_error, "low": low, "high": high,
        "calls": found.calls, "seconds": found.seconds, "status": found.status.name,
        "sigmas_apart": found.evidence.get("sigmas_apart", math.nan),
    }  # fmt: skip


def records() -> dict[str, list[dict[str, Any]]]:
    """All runs, those that are missing made now, two at a time."""
    OUT.mkdir(exist_ok=True)
    known = [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []
    done = {(r["label"], r["seed"]) for r in known}
    jobs = [(label, seed) for label in CLASSES for seed in range(SEEDS) if (label, seed) not in done]
    os.environ["OMP_NUM_THREADS"] = "1"
    with multiprocessing.get_context("spawn").Pool(2) as pool, FILE.open("a") as out:
        for record in pool.imap_unordered(one_run, jobs):
            out.write(json.dumps(record) + "\n")
            out.flush()
            known.append(record)
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in sorted(known, key=lambda r: r["seed"]):
        runs[record["label"]].append(record)
    return runs


def _score(runs: list[dict[str, Any]], label: str) -> Score:
    return score(
        [r["log_prob"] for r in runs], truth_of(label).log_prob, [r["calls"] for r in runs],
        [(r["low"], r["high"]) for r in runs], [r["std_error"] for r in runs],
    )  # fmt: skip


def _bar(label: str) -> str:
    return next((f"{bar}" for start, bar in BARS.items() if label.startswith(start)), "-")


def draw(worth: dict[str, list[float]], labels: list[str]) -> None:
    """Efficiency of every system in every class, log10; a failure stands at 0."""
    figure, axis = plt.subplots(figsize=(11, 6.5), layout="constrained")
    at = np.arange(len(labels))
    names = sorted((name for name in worth if name != "ours"), key=lambda n: -sum(worth[n]))
    for name, marker in zip(names, "osv^DPX*", strict=False):
        axis.plot(worth[name], at, marker, ms=6, alpha=0.75, label=name)
    axis.plot(worth["ours"], at, "|", ms=20, mew=4, color="black", label="ppl_risk.estimate")
    axis.set_yticks(at, labels)
    axis.invert_yaxis()
    axis.set_xlabel("log10 efficiency: calls of plain Monte Carlo over calls spent, at the same error (failures at 0)")
    axis.grid(alpha=0.25)
    axis.legend(frameon=True, fontsize=8, loc="lower right")
    figure.savefig(Path(__file__).parent / "figures" / "rare_events.png", dpi=110)
    plt.close(figure)


def run() -> str:
    """The text of the section."""
    ours, theirs = records(), peer_scores(PEERS) if PEERS.exists() else {}
    peers = sorted({peer for _, peer in theirs})
    rows, against = [], []
    logs: dict[str, list[float]] = defaultdict(list)
    for label in CLASSES:
        every, first = _score(ours[label], label), _score(ours[label][:BESIDE_PEERS], label)
        truth = truth_of(label).log_prob
        statuses = Counter(r["status"] for r in ours[label])
        wrong = sum(r["status"] == "OK" and not abs(r["log_prob"] - truth) < math.log(2) for r in ours[label])
        rows.append({
            "class": label, "rel. RMSE, 20 seeds": f"{first.rmse:.4f}", "bar": _bar(label), "100 seeds": f"{every.rmse:.4f}",
            "bias": f"{every.bias:+.4f}", "95 % intervals cover": f"{every.coverage:.0%}",
            "status": ", ".join(f"{name} {count}" for name, count in statuses.most_common()),
            "OK and off by > 2": wrong, "most calls": f"{max(r['calls'] for r in ours[label]):,}",
            "seconds": f"{sorted(r['seconds'] for r in ours[label])[len(ours[label]) // 2]:.2f}",
        })  # fmt: skip
        cells: dict[str, object] = {
            "class": label,
            "ours": f"{first.rmse:.3f} / {first.efficiency:.2g} / {first.coverage:.0%}",
        }
        logs["ours"].append(math.log10(1.0 if first.failed else first.efficiency))
        for peer in peers:
            found = theirs.get((label, peer), "not run")
            cells[peer] = str(found)
            if isinstance(found, Score) and found.runs < BESIDE_PEERS:
                cells[peer] = f"{found} [{found.runs} seeds]"
            worth = found.efficiency if isinstance(found, Score) and not found.failed else 1.0
            logs[peer].append(math.log10(worth))
        against.append(cells)
    draw(logs, list(CLASSES))
    # The collapsed twins have the law of the problem beside them and were given to no peer: they count for nobody.
    counted = [place for place, label in enumerate(CLASSES) if "collapsed" not in label]
    means = {name: 10 ** (sum(values[i] for i in counted) / len(counted)) for name, values in logs.items()}
    against.append(
        {"class": "**geometric mean of efficiency**"} | {name: f"{mean:,.3g}" for name, mean in means.items()}
    )
    best = max((mean for name, mean in means.items() if name != "ours"), default=math.nan)
    text = f"`estimate`, {CALLS:,} calls at most (preflight, gradients and posterior included), {SEEDS} seeds.\n\n{table(rows)}\n\n"
    if not peers:
        return text + "The peers are not installed here: see the head of `benchmarks/peers.py`."
    return (
        text
        + (
            "Relative RMSE / efficiency (calls of plain Monte Carlo for the same error, bias counted, over calls spent; errors "
            "below 1e-4 count as 1e-4, the precision of the margins) / coverage "
            f"of 95 % intervals, {BESIDE_PEERS} seeds. In the last row a failure, or a problem too large for a system, counts as "
            f"1. Ours over the best peer's: {means['ours'] / best:.0f}; smallest of ours {10 ** min(logs['ours']):.3g}. Runs: "
            "`PEERS/bin/python -m benchmarks.peers --out benchmarks/out/peers.jsonl`.\n\n"
        )
        + table(against)
        + "\n\n![efficiency by class](figures/rare_events.png)"
    )
