"""Probabilities read off networks, against every published way to propagate a law, FORM and importance sampling, cell by cell.

`propagation_cells` has the networks and truths: three networks a cell, eight readouts, three rarities. Each method answers each of
the 72 problems of a cell (8 of the largest) in one process; an error is |log10 p - log10 truth|, a cell's figure their root mean
square. Answers are kept in `out/propagation.jsonl`; a study that was stopped goes on. The peers, re-implemented from their papers:

- mean-field: one Gaussian tail, variances only (Gast and Roth 2018, arXiv 1805.11327); full covariance: one Gaussian tail
  (Wright et al. 2024, arXiv 2403.16163; Kuang and Lin 2026, arXiv 2601.22307); linearised: the Jacobian at the mean input
  (Petersen et al. 2024, arXiv 2402.08324).
- third cumulants: what ARC's cumulant propagation carries (arXiv 2605.05179), in our own engine, with its skewed tail.
- FORM: the nearest failing point (Hasofer and Lind 1974), by ascent on six spheres from six starts each: steps of Rackwitz and
  Fiessler do not settle on ReLU kinks. Importance sampling: 2000 draws around it.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

import ppl_risk as pr
from benchmarks.propagation_cells import CELLS, RARITIES, SEEDS, Cell, problem, truths
from benchmarks.results import table
from ppl_risk.propagation.cumulants import Cumulants
from ppl_risk.propagation.trust import refusal
from ppl_risk.risk_estimate import LOG10

TITLE = "Without sampling: slices against every way to propagate a law"
OUT = Path(__file__).parent / "out" / "propagation.jsonl"
#: rms decades asked for at 1e-2, 1e-4, 1e-6; None where nothing is asked but a refusal.
BARS = {
    "digits 3x64": (0.03, 0.08, 0.10), "digits 3x256": (0.03, 0.05, 0.15), "digits 8x64": (0.15, 0.25, 0.40),
    "digits 8x256": (0.15, 0.20, None), "digits 32x64": (0.5, 0.6, 1.1), "rand 3x64": (0.07, 0.15, 0.20),
    "rand 3x256": (0.02, 0.05, 0.15), "rand 8x256": (0.05, 0.20, 0.40), "rand 8x64": (0.2, 0.5, 0.8),
    "digits 32x256": None, "rand 32x64": None, "rand 32x256": None,
}  # fmt: skip
#: FORM's search: gradient ascent on spheres of these radii from several starts each; draws of importance sampling.
RADII, STARTS, ASCENT, IS_DRAWS = (2.5, 3.5, 4.5, 5.5, 7.0, 9.0), 6, 40, 2000
#: The method whose verdict counts.
TRUSTED = "slices, full"
#: Third cumulants inside the slices: asked for up to 8 layers of 64, beyond which they take seconds and break down.
SKEWED = "slices, skewed, one direction"

Answer = dict[str, Any]


def _skewed(p: pr.RiskProblem) -> Answer:
    try:
        found = pr.propagate(p, "full", readout="skewed", trust=False, posterior_draws=0)
    except pr.RiskError:
        return {"log10": math.nan, "cost": math.nan}
    law = found.evidence.get("log10_p_of_the_law", found.log10_prob)
    return {"log10": law, "cost": found.evidence["forward_passes_worth"]}


def _slices(p: pr.RiskProblem, family: str, directions: int, trust: bool = False) -> Answer:
    found = pr.propagate(p, family, readout="slices", directions=directions, trust=trust, posterior_draws=0)
    law = found.evidence.get("log10_p_of_the_law", found.log10_prob)
    evidence = dict(found.evidence) | {"log10_p_of_the_law": law}
    return {"log10": law, "cost": found.evidence["forward_passes_worth"], "evidence": evidence if trust else {}}


def _one_tail(p: pr.RiskProblem, family: str) -> Answer:
    found = pr.propagate(p, family, readout="gaussian", trust=False)
    law = found.evidence.get("log10_p_of_the_law", found.log10_prob)
    return {"log10": law, "cost": found.evidence["forward_passes_worth"]}


def _linearised(p: pr.RiskProblem) -> Answer:
    margin, gradient = p.margin_and_gradient(torch.zeros(1, p.transport.dimension))
    size = float(gradient.double().norm())
    log_p = float(torch.special.log_ndtr(margin.double()[0] / size)) if size > 0 else -math.inf
    return {"log10": log_p / LOG10, "cost": 2.0}


def _third(p: pr.RiskProblem) -> Answer:
    zero, one = torch.zeros(1, p.transport.dimension), torch.eye(p.transport.dimension)
    origin = p.from_normal(zero).double()[0]
    push = p.from_normal(one).double() - origin
    law, flops = Cumulants.gaussian(origin, push.mT @ push), 0.0
    assert isinstance(p.network, nn.Sequential)
    try:
        for part in p.network:
            law = law.affine(part.weight, part.bias) if isinstance(part, nn.Linear) else law.activation("relu")
    except pr.RiskError:
        return {"log10": math.nan, "cost": math.nan}
    # The readout is linear: its row and threshold follow from three kinds of outputs.
    outputs = law.mean.shape[0]
    assert p.detector is not None
    base: Any = p.detector(torch.zeros(1, outputs, dtype=torch.float64))
    rows: Any = p.detector(torch.eye(outputs, dtype=torch.float64)) - base
    tail = law.affine(rows[None], base.reshape(1)).log_tail(torch.zeros(1, dtype=torch.float64))
    n, layers = law_width(p), sum(isinstance(part, nn.Linear) for part in p.network)
    flops = 4 * n**3 * layers + 6 * n**3 * layers * (layers - 1)
    return {"log10": float(tail) / LOG10, "cost": flops / p.flops_per_row}


def law_width(p: pr.RiskProblem) -> int:
    """Width of the hidden layers."""
    assert isinstance(p.network, nn.Sequential)
    first: Any = p.network[0]
    return int(first.out_features)


def _form_and_sampling(p: pr.RiskProblem) -> dict[str, Answer]:
    d, generator = p.transport.dimension, torch.Generator().manual_seed(0)
    radius = torch.tensor(RADII).repeat(STARTS)[:, None]
    u = torch.nn.functional.normalize(torch.randn(len(radius), d, generator=generator), dim=1) * radius
    for step in range(ASCENT):
        _, gradient = p.margin_and_gradient(u)
        along = u / radius + max(0.05, 1.0 - step / ASCENT) * torch.nn.functional.normalize(gradient, dim=1)
        u = radius * torch.nn.functional.normalize(along, dim=1)
    # Where the ray through each point fails first.
    share = torch.linspace(0.05, 1.0, 20)[:, None, None]
    ray = (share * u).reshape(-1, d)
    cost = 3.0 * ASCENT * len(u) + len(ray)
    failing = ray[p.margin_of_normal(ray) >= 0]
    if not len(failing):
        return {name: {"log10": math.nan, "cost": cost} for name in ("FORM", "importance sampling")}
    best = failing[failing.norm(dim=1).argmin()][None]
    shape = torch.special.log_ndtr(-best.double().norm())
    draws = best + torch.randn(IS_DRAWS, d, generator=generator)
    log_w = (-(draws @ best[0]) + 0.5 * best.square().sum()).double()
    hit = p.margin_of_normal(draws) >= 0
    log_p = float(torch.logsumexp(log_w[hit], 0)) - math.log(IS_DRAWS) if bool(hit.any()) else math.nan
    return {
        "FORM": {"log10": float(shape) / LOG10, "cost": cost},
        "importance sampling": {"log10": log_p / LOG10, "cost": cost + IS_DRAWS},
    }


METHODS: dict[str, Callable[[pr.RiskProblem], Answer]] = {
    "slices, full": lambda p: _slices(p, "full", 2, True),
    "slices, full, one direction": lambda p: _slices(p, "full", 1),
    "slices, low rank 16, one direction": lambda p: _slices(p, "low_rank", 1),
    SKEWED: _skewed,
    "mean-field": lambda p: _one_tail(p, "mean_field"),
    "full covariance": lambda p: _one_tail(p, "full"),
    "low rank 16": lambda p: _one_tail(p, "low_rank"),
    "linearised": _linearised,
    "third cumulants": _third,
}


def asked(cell: Cell) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Seeds and rarities: all, but one network at 1e-4 of 32 layers of 256, where an answer takes half a minute."""
    return (SEEDS, RARITIES) if cell.depth * cell.width < 8192 else (SEEDS[:1], RARITIES[1:2])


def answers(cell: Cell, seed: int) -> None:
    """Answer every problem of one network by every method that has not answered it."""
    known = {(a["index"], a["rarity"]): a["found"] for a in read() if (a["cell"], a["seed"]) == (cell.name, seed)}
    for (index, rarity), truth in truths(cell, seed).items():
        if truth is None or rarity not in asked(cell)[1]:
            continue
        p = problem(cell, seed, index, truth.threshold)
        before = known.get((index, rarity), {})
        found: dict[str, Answer] = {}
        for name, method in METHODS.items():
            if name not in before and (name != SKEWED or cell.depth * cell.width <= 512):
                started = time.perf_counter()
                found[name] = method(p) | {"seconds": time.perf_counter() - started}
        if "FORM" not in before:
            found |= _form_and_sampling(p)
        if found:
            record = {
                "cell": cell.name,
                "seed": seed,
                "index": index,
                "rarity": rarity,
                "truth": truth.log10_prob,
                "found": found,
            }
            OUT.parent.mkdir(exist_ok=True)
            with OUT.open("a") as file:
                file.write(json.dumps(record) + "\n")


def read() -> list[dict[str, Any]]:
    """What was answered so far, one record a problem."""
    merged: dict[tuple[object, ...], dict[str, Any]] = {}
    for line in OUT.read_text().splitlines() if OUT.exists() else []:
        record = json.loads(line)
        key = tuple(record[k] for k in ("cell", "seed", "index", "rarity"))
        merged.setdefault(key, record)["found"] |= record["found"]
    return list(merged.values())


def _rms(errors: list[float]) -> str:
    missing = sum(not math.isfinite(e) for e in errors)
    seen = [e for e in errors if math.isfinite(e)]
    if not seen:
        return "-"
    shown = f"{math.sqrt(sum(e * e for e in seen) / len(seen)):.2g}"
    return f"{shown} ({missing} none)" if missing else shown


def _rows(found: list[dict[str, Any]]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for cell in CELLS:
        mine = [r for r in found if r["cell"] == cell]
        for name in [*METHODS, "FORM", "importance sampling"] if mine else []:
            if any(name not in r["found"] for r in mine):
                continue
            errors = [
                _rms([r["found"][name]["log10"] - r["truth"] for r in mine if r["rarity"] == rarity])
                for rarity in RARITIES
            ]
            costs = sorted(r["found"][name]["cost"] for r in mine if math.isfinite(r["found"][name]["cost"])) or [
                math.nan
            ]
            bar = BARS[cell]
            wanted = "REFUSED" if bar is None else " / ".join("-" if b is None else f"{b:g}" for b in bar)
            rows.append({
                "cell": cell, "method": name, "rms decades at 1e-2 / 1e-4 / 1e-6": " / ".join(errors),
                "asked": wanted if name == TRUSTED else "",
                "forward passes, median (most)": f"{costs[len(costs) // 2]:.0f} ({costs[-1]:.0f})",
            })  # fmt: skip
    return rows


def _verdicts(found: list[dict[str, Any]]) -> list[dict[str, object]]:
    """How often a verdict was right: an answer within half a decade accepted, another refused."""
    rows: list[dict[str, object]] = []
    for cell in CELLS:
        mine = [
            (abs(r["found"][TRUSTED]["log10"] - r["truth"]), bool(refusal(r["found"][TRUSTED]["evidence"])))
            for r in found
            if r["cell"] == cell
        ]
        if mine:
            kept = [e for e, refused in mine if not refused]
            rows.append({
                "cell": cell, "answers": len(mine), "refused": len(mine) - len(kept),
                "accepted, rms decades": _rms(kept), "accepted, worst": f"{max(kept):.2f}" if kept else "-",
                "off by half a decade, accepted": sum(e > 0.5 for e in kept),
                "off by less, refused": sum(e <= 0.5 for e, refused in mine if refused),
            })  # fmt: skip
    return rows


def run() -> str:
    """Answer what is missing and tabulate."""
    for cell in tqdm(CELLS.values(), desc="cells"):
        for seed in asked(cell)[0]:
            answers(cell, seed)
    found = read()
    return "\n\n".join([
        "Answers are kept in benchmarks/out/ as they come, and a stopped study resumes there; from nothing it takes some six "
        "hours, one of them for the truths (plain draws).",
        table(_rows(found)),
        "Verdicts of the trust report on `slices, full` (`REFUSED` where it says so):",
        table(_verdicts(found)),
    ])  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name_ in sys.argv[1:]:
        for seed_ in asked(CELLS[name_])[0]:
            answers(CELLS[name_], seed_)
