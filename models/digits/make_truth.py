r"""Write truth.json: three independent estimates of each answer; the best one is the truth, the others check it.

- counting: catastrophes among plain draws, with the binomial interval of Clopper and Pearson;
- importance: guides fitted from several seeds, their importance draws pooled, so p = mean of all weights;
- particles: rare-event SMC, interval from its independent runs.

Counting is the truth at 1e-4, importance sampling at 1e-7. Counting is done in chunks, each with its own seed; with
--counts a stopped run goes on where it was. The defaults take about 45 minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ppl_risk import RiskProblem, fit_svi, load_model, run_smc
from ppl_risk.guides import Network
from ppl_risk.importance.pareto import USABLE, effective_sample_size, pareto_khat
from ppl_risk.importance.sampling import log_mean_and_error
from ppl_risk.randomness import child_seeds
from ppl_risk.risk_estimate import clopper_pearson

SEED = {"1e-4": 1, "1e-7": 2}
CHUNK, BATCH = 10_000_000, 2000


class Answer(NamedTuple):
    """log p and its standard error in nats, the method, its draws, and what to know about it."""

    log_prob: float
    error: float
    method: str
    draws: int
    remarks: str

    def __str__(self) -> str:
        """One line for the record."""
        found = f"p = {math.exp(self.log_prob):.4e}, standard error of log p {self.error:.4f}"
        return f"{self.method}: {found} ({self.remarks})"


class Layers(NamedTuple):
    """The network as plain tensors, for a loop without a module call or a new tensor in it."""

    image: Tensor
    sigma: Tensor
    affine: list[tuple[Tensor, Tensor]]
    misreading: int


def layers_of(problem: RiskProblem, misreading: int = 8) -> Layers:
    """The tensors of the digit reader."""
    affine = [(m.weight.T.contiguous(), m.bias) for m in problem.network.children() if isinstance(m, nn.Linear)]
    return Layers(problem.inputs.mean, problem.inputs.stddev, affine, misreading)


def margins(layers: Layers, u: Tensor, space: list[Tensor]) -> Tensor:
    """Margins (n,) of the inputs image + sigma u; overwrites u and the work space."""
    h = u.mul_(layers.sigma).add_(layers.image)
    for index, (weight, bias) in enumerate(layers.affine):
        h = torch.addmm(bias, h.relu_() if index else h, weight, out=space[index])
    wanted = h[:, layers.misreading].clone()
    h[:, layers.misreading] = -torch.inf
    return wanted - h.amax(dim=1)


@torch.no_grad()
def count_chunk(problem: RiskProblem, seed: int) -> int:
    """Catastrophes among CHUNK draws."""
    layers = layers_of(problem)
    space = [torch.empty(BATCH, len(bias)) for _, bias in layers.affine]
    generator = torch.Generator().manual_seed(seed)
    u, hits = torch.empty(BATCH, 64), 0
    u.normal_(generator=generator)
    gap = (problem.margin(layers.image + layers.sigma * u) - margins(layers, u.clone(), space)).abs().max()
    if gap > 1e-3:
        raise RuntimeError(f"The plain loop and the problem disagree by {float(gap):.1e}.")
    for _ in range(CHUNK // BATCH):
        hits += int((margins(layers, u, space) >= 0).sum())
        u.normal_(generator=generator)
    return hits


def counting(problem: RiskProblem, draws: int, seed: int, file: Path | None) -> Answer:
    """Plain Monte Carlo; `file` keeps the hits of the chunks that are done."""
    hits: list[int] = json.loads(file.read_text()) if file and file.exists() else []
    chunks = draws // CHUNK
    for child in child_seeds(seed, chunks)[len(hits) :]:
        hits.append(count_chunk(problem, child))
        if file:
            file.write_text(json.dumps(hits))
    total, count = sum(hits[:chunks]), chunks * CHUNK
    low, high = (math.exp(bound) for bound in clopper_pearson(total, count, 0.95))
    remarks = f"{total:,} catastrophes in {count:,} draws, 95 % interval [{low:.4e}, {high:.4e}], seed {seed}"
    if not total:
        return Answer(math.nan, math.nan, "plain Monte Carlo", count, remarks)
    error = math.sqrt((1 - total / count) / total)
    return Answer(math.log(total / count), error, "plain Monte Carlo", count, remarks)


def importance(problem: RiskProblem, draws: int, seeds: int) -> Answer:
    """Importance sampling from guides fitted by fit_svi, pooled over seeds 0, 1, ..."""
    fits = [
        fit_svi(problem, Network(), draws=draws, posterior_draws=0, seed=seed, progress=False) for seed in range(seeds)
    ]
    weights = torch.cat([torch.as_tensor(fit.stats["log_weight"]).flatten() for fit in fits])
    log_prob, error = log_mean_and_error(weights)
    k_hat, ess = pareto_khat(weights), effective_sample_size(weights)
    if not k_hat < USABLE:
        raise RuntimeError(f"k-hat {k_hat:.2f} >= {USABLE}: the weights have too heavy a tail for a reference.")
    apart = ", ".join(f"{fit.prob:.4e}" for fit in fits)
    remarks = (
        f"{len(weights):,} draws, seeds 0 to {seeds - 1} apart: {apart}; "
        f"pooled k-hat {k_hat:.2f}, effective draws {ess:,.0f}"
    )
    return Answer(log_prob, error, "importance sampling from fit_svi(guides.Network())", len(weights), remarks)


def particles(problem: RiskProblem, count: int, runs: int) -> Answer:
    """Rare-event SMC."""
    found = run_smc(problem, particles=count, runs=runs, posterior_draws=0, seed=0, progress=False)
    low, high = (math.exp(bound) for bound in found.interval(0.95))
    remarks = (
        f"{runs} runs of {count:,} particles, {found.forward_calls:,} forward and {found.gradient_calls:,} gradient "
        f"calls, 95 % interval [{low:.4e}, {high:.4e}], seed 0, status {found.status.name}"
    )
    return Answer(found.log_prob, found.std_error, found.method, found.forward_calls, remarks)


def entry(rarity: str, truth: Answer, others: list[Answer]) -> dict[str, object]:
    """One entry of truth.json."""
    checks = []
    for other in others:
        z = (other.log_prob - truth.log_prob) / math.hypot(other.error, truth.error)
        checks.append(f"{other}; {z:+.1f} joint standard errors from the truth")
    return {
        "parameters": {"rarity": rarity},
        "log_prob": truth.log_prob,
        "standard_error": truth.error,
        "method": truth.method,
        "seed": SEED[rarity] if truth.method == "plain Monte Carlo" else 0,
        "draws": truth.draws,
        "checks": [f"the truth itself: {truth}", *checks],
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def main() -> None:
    """Write truth.json beside this file."""
    parser = argparse.ArgumentParser(description="Write models/digits/truth.json.")
    parser.add_argument("--draws", type=float, nargs=2, default=[1e9, 4e9], help="plain draws at 1e-4 and at 1e-7")
    parser.add_argument("--importance", type=int, nargs=2, default=[500_000, 8], help="draws a seed, and seeds")
    parser.add_argument("--particles", type=int, nargs=2, default=[20_000, 16], help="particles a run, and runs")
    parser.add_argument("--counts", type=Path, help="folder that keeps the counts, to go on after a stop")
    told = parser.parse_args()
    entries = []
    for rarity, draws in zip(SEED, told.draws, strict=True):
        problem = load_model("digits", rarity=rarity)
        weighted, moved = importance(problem, *told.importance), particles(problem, *told.particles)
        file = told.counts / f"counts_{rarity}.json" if told.counts else None
        counted = counting(problem, int(draws), SEED[rarity], file)
        truth, others = (counted, [weighted, moved]) if rarity == "1e-4" else (weighted, [counted, moved])
        entries.append(entry(rarity, truth, others))
    Path(__file__).with_name("truth.json").write_text(json.dumps({"entries": entries}, indent=2) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
