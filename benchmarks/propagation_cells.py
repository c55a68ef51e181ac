"""Networks, readouts and thresholds with known probabilities, on which ways of propagating an input law are judged.

A cell is three networks of a depth and a width. "digits": MLPs trained on scikit-learn's digits, x ~ N(mean, covariance) of the
images, event logit_j - logit_{j+1} >= t. "rand": He weights, no biases, x ~ N(0, I), event f_k(x) >= t.

Truths of "rand": |x| ~ chi_N is independent of u = x / |x|, so p = E Pr[chi_N f(u) >= t]. Of "digits": importance sampling from
Gaussians fitted level after level to failures (cross-entropy; covariances shrunk as by Ledoit and Wolf, JMVA 2004), thresholds
from other draws. Where over `FINE` decades of error are left, SMC is run too.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import torch as weights
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

import ppl_risk as pr
from benchmarks.trained_networks import Draws
from ppl_risk.importance.pareto import USABLE, pareto_khat
from ppl_risk.zoo import load_file, shelf

DIGITS: Any = load_file(Path(shelf("models")) / "digits_training.py")
OUT = Path(__file__).parent / "out" / "propagation_cells"
SEEDS, RARITIES, READOUTS = (0, 1, 2), ("1e-2", "1e-4", "1e-6"), 8
FINE, RESOLVED = 0.03, 0.1  # decades of error above which SMC is asked too, and above which there is no truth
#: log10 of the rarities at which Gaussians are fitted: to plain draws, and to draws of the mixture so far.
PLAIN_LEVELS, LEVELS = (-2.0, -3.0), (-4.0, -5.0, -6.2, -6.2)
BATCH, RUNS, LN10 = 4000, 12, math.log(10)
#: (depth, width): epochs, rate, clip; directions, plain draws, draws of a level, particles.
SHAPES = {
    (3, 64): ((60, 0.05, None), 10**7, 10**6, 30_000, 4000), (8, 64): ((60, 0.01, None), 6 * 10**6, 10**6, 30_000, 4000),
    (3, 256): ((40, 0.05, None), 3 * 10**6, 10**6, 30_000, 4000), (32, 64): ((100, 0.01, 1.0), 2 * 10**6, 10**6, 30_000, 4000),
    (8, 256): ((40, 0.01, None), 2 * 10**6, 10**6, 30_000, 2000), (32, 256): ((40, 0.005, 1.0), 1_500_000, 200_000, 10_000, 2000),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """Three networks of `depth` weight layers and `width` units."""

    name: str
    net: str
    depth: int
    width: int


@dataclass(frozen=True)
class Truth:
    """Pr[readout >= threshold]; the standard error is in decades."""

    threshold: float
    log10_prob: float
    std_error: float


CELLS = {f"{n} {d}x{w}": Cell(f"{n} {d}x{w}", n, d, w) for d, w in SHAPES for n in ("digits", "rand")}


def _file(cell: Cell, seed: int, kind: str) -> Path:
    OUT.mkdir(parents=True, exist_ok=True)
    return OUT / f"{cell.name.replace(' ', '_')}_{seed}.{kind}"


def _fresh(cell: Cell) -> nn.Sequential:
    first, last = (64, 10) if cell.net == "digits" else (cell.width, READOUTS)
    sizes = pairwise([first, *[cell.width] * (cell.depth - 1), last])
    made = nn.Sequential(*[part for n, m in sizes for part in (nn.Linear(n, m), nn.ReLU())][:-1])
    DIGITS.he_(made)
    return made


def network(cell: Cell, seed: int) -> nn.Sequential:
    """The network; a trained one is kept beside the truths, with its accuracy on the held-back images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = _fresh(cell)
    if cell.net == "digits":
        file = _file(cell, seed, "safetensors")
        if not file.exists():
            (epochs, rate, clip), *_ = SHAPES[cell.depth, cell.width]
            trained = DIGITS.train_from(partial(_fresh, cell), DIGITS.Recipe(epochs, rate, clip=clip), seed)
            weights.save_file(trained.network.state_dict(), file, {"held_back_accuracy": str(trained.accuracy)})
        made.load_state_dict(weights.load_file(file))
    return made.eval().requires_grad_(False)


@cache
def law(cell: Cell) -> Distribution:
    """N(0, I), or the Gaussian of all images."""
    if cell.net == "rand":
        return Independent(Normal(torch.zeros(cell.width), torch.ones(cell.width)), 1)
    mean, scale_tril = DIGITS.gaussian_of(DIGITS.load_split(torch.Generator().manual_seed(0)).images)
    return MultivariateNormal(mean, scale_tril=scale_tril)


def readout(cell: Cell, index: int) -> Callable[[Tensor], Tensor]:
    """Output (rows, out) -> (rows,)."""
    return lambda output: output[:, index] - (output[:, index + 1] if cell.net == "digits" else 0.0)


def problem(cell: Cell, seed: int, index: int, threshold: float) -> pr.RiskProblem:
    """Pr[readout >= threshold]."""
    read, name = readout(cell, index), f"{cell.name}, seed {seed}, readout {index}"
    return pr.RiskProblem(network(cell, seed), law(cell), lambda output: read(output) - threshold, name=name)


def truths(cell: Cell, seed: int) -> dict[tuple[int, str], Truth | None]:
    """Truths by readout and rarity, made where there is no file; None where unresolved."""
    file = _file(cell, seed, "json")
    if not file.exists():
        make = directions if cell.net == "rand" else importance
        file.write_text(json.dumps(make(cell, seed), indent=1) + "\n")
    kept = [e for e in json.loads(file.read_text()) if e["resolved"]]
    found = {(e["readout"], e["rarity"]): Truth(e["threshold"], e["log10_prob"], e["std_error"]) for e in kept}
    return {(k, rarity): found.get((k, rarity)) for k in range(READOUTS) for rarity in RARITIES}


def smc(cell: Cell, seed: int, index: int, threshold: float, fewer: int = 1) -> pr.RiskEstimate:
    """Rare-event SMC, whose error is the spread of its runs; `fewer`: divides the number of particles."""
    told = {"moves": "pcn", "posterior_draws": 0, "progress": False, "seed": seed + (fewer > 1)}
    particles = SHAPES[cell.depth, cell.width][4] // fewer
    return pr.run_smc(problem(cell, seed, index, threshold), particles=particles, runs=RUNS, **told)


def entry(cell: Cell, seed: int, key: tuple[int, str], threshold: float, first: dict[str, Any]) -> dict[str, Any]:
    """The better of `first` and, where that is poor or the first readout at 1e-6, SMC; the other is a check."""
    answers = [first]
    if not (first["usable"] and first["std_error"] <= FINE) or key == (0, "1e-6"):
        found = smc(cell, seed, key[0], threshold)
        errors = {"std_error": found.std_error / LN10, "usable": found.std_error > 0}
        answers.append({"method": "SMC", "log10_prob": found.log10_prob, **errors})
    best = min(answers, key=lambda a: (not a["usable"], a["std_error"]))
    resolved = bool(best["usable"] and best["std_error"] <= RESOLVED)
    place = {"readout": key[0], "rarity": key[1], "threshold": threshold, "resolved": resolved}
    return {**place, **best, "others": [a for a in answers if a is not best]}


def _shares(slope: Tensor, threshold: float, width: int) -> tuple[float, float]:
    """Sum and sum of squares over directions of Pr[chi_width * slope >= threshold]."""
    half, longest = torch.tensor(width / 2, dtype=torch.float64), width**0.5 + 9  # Pr[chi >= longest] < 1e-30
    if threshold > 0:
        share = torch.special.gammaincc(half, (threshold / slope[slope > threshold / longest]) ** 2 / 2)
    else:  # where the slope is not negative the event is sure
        share = torch.special.gammainc(half, (threshold / slope.clamp(max=-1e-300)) ** 2 / 2)
    return float(share.sum()), float(share.square().sum())


def _threshold_of(slope: Tensor, prob: float, width: int) -> float:
    low, high = (float(bound) * (width**0.5 + 9) for bound in (slope.min().clamp(max=0), slope.max().clamp(min=0)))
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _shares(slope, middle, width)[0] > prob * len(slope) else (low, middle)
    return (low + high) / 2


def directions(cell: Cell, seed: int) -> list[dict[str, Any]]:
    """Entries of a net without biases; thresholds from a first batch (at 1e-6: from SMC), probabilities from fresh draws."""
    net, generator = network(cell, seed), torch.Generator().manual_seed(1000 + seed)
    draws, dear = SHAPES[cell.depth, cell.width][1], cell.depth * cell.width > 4096

    def slopes() -> Tensor:
        x = torch.randn(BATCH, cell.width, generator=generator)
        return (net(x) / x.norm(dim=1, keepdim=True)).double()

    first = torch.cat([slopes() for _ in range(min(draws // 5, 10**6) // BATCH)])
    keys = [(k, rarity) for k in range(READOUTS) for rarity in RARITIES[: 2 if dear else 3]]
    bars = {key: _threshold_of(first[:, key[0]], float(key[1]), cell.width) for key in keys}
    for k in (k for k, rarity in keys if rarity == "1e-6"):
        beyond = bars[k, "1e-4"] + 1.15 * (bars[k, "1e-4"] - bars[k, "1e-2"])
        curve: Any = smc(cell, seed, k, beyond, fewer=4).survival
        bars[k, "1e-6"] = beyond + float(np.interp(6 * LN10, -curve[1], curve[0]))
    sums, entries = torch.zeros(len(keys), 2, dtype=torch.float64), []
    for _ in range(draws // BATCH):
        now = slopes()
        sums += torch.tensor([_shares(now[:, key[0]], bars[key], cell.width) for key in keys], dtype=torch.float64)
    for key, (mean, second) in zip(keys, (sums / draws).tolist(), strict=True):
        error = math.sqrt((second / mean**2 - 1) / draws) / LN10 if mean else math.inf
        found = {"log10_prob": math.log10(mean or 1e-300), "std_error": error, "usable": error <= RESOLVED}
        entries.append(entry(cell, seed, key, bars[key], {"method": "directions", **found}))
    return entries


def _fitted(u: Tensor, log_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and Cholesky factor for weighted failures: covariance shrunk towards I, but for the variance along the mean."""
    weight = log_weight.softmax(0).float()
    mean = weight @ u
    along, found = mean / mean.norm(), (weight[:, None] * (u - mean)).T @ (u - mean)
    target = torch.eye(len(mean)) - (1 - along @ found @ along) * torch.outer(along, along)
    keep = 0.95 * (1 - len(mean) ** 2 * weight.square().sum() / (found - target).square().sum()).clamp(min=0)
    return mean, torch.linalg.cholesky(keep * found + (1 - keep) * target)


def _mixture(parts: list[tuple[Tensor, Tensor]], count: int, generator: torch.Generator) -> Draws:
    """Draws of Gaussians, the first of them N(0, I), in equal shares, with log N(u; 0, I) - log q(u)."""
    z = torch.randn(len(parts), count // len(parts), len(parts[0][0]), generator=generator)
    u = torch.cat([mean + rows @ tril.T for (mean, tril), rows in zip(parts, z, strict=True)])
    log_q = torch.stack([MultivariateNormal(m, scale_tril=tril).log_prob(u).double() for m, tril in parts])
    return Draws(u, log_q[0] + math.log(len(parts)) - log_q.logsumexp(0))


def importance(cell: Cell, seed: int) -> list[dict[str, Any]]:
    """Entries of a trained net; `hits` are failures among plain draws, a check."""
    net, generator, told = network(cell, seed), torch.Generator().manual_seed(seed), problem(cell, seed, 0, 0.0)
    _, _, count, level, _ = SHAPES[cell.depth, cell.width]

    def look(parts: list[tuple[Tensor, Tensor]], count: int) -> tuple[Draws, Tensor]:
        draws = _mixture([(torch.zeros(64), torch.eye(64)), *parts], count, generator)
        return draws, torch.cat([net(told.from_normal(rows)) for rows in draws.u.split(BATCH)])

    entries, (plain, outputs) = [], look([], count)
    for k in range(READOUTS):
        read, parts = readout(cell, k), []
        for log10_prob in (*PLAIN_LEVELS, *LEVELS):
            draws, output = look(parts, level) if log10_prob in LEVELS else (plain, outputs)
            failed = read(output) >= draws.threshold(read(output), log10_prob)
            parts.append(_fitted(draws.u[failed], draws.log_weight[failed]))
        pilot, at_pilot = look(parts, 2 * level)
        draws, output = look(parts, 7 * level)
        for rarity in RARITIES:
            bar = pilot.threshold(read(at_pilot), math.log10(float(rarity)))
            weight = draws.log_weight.exp() * (read(output) >= bar)
            error, k_hat = float(weight.std() / weight.mean()) / len(weight) ** 0.5 / LN10, pareto_khat(weight.log())
            found = {"log10_prob": draws.log10_tail(read(output), bar), "std_error": error, "usable": k_hat < USABLE}
            more = {"k_hat": k_hat, "hits": int((read(outputs) >= bar).sum()), "plain": count}
            entries.append(entry(cell, seed, (k, rarity), bar, {"method": "importance", **found, **more}))
    return entries


def main() -> None:
    """Make every missing truth; a line for each network."""
    torch.set_num_threads(1)
    for name, seed in product(sys.argv[1:] or CELLS, SEEDS):
        errors = [t.std_error for t in truths(CELLS[name], seed).values() if t]
        print(f"{name}, seed {seed}: {len(errors)} resolved, worst {max(errors, default=math.nan):.3f}", flush=True)


if __name__ == "__main__":
    main()
