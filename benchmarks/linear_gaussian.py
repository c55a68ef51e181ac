"""Exact answers: guide + importance sampling at 10 000 calls, SMC at 20 000, and whether the intervals hold."""

from __future__ import annotations

import ppl_risk as pr
from benchmarks.results import table
from benchmarks.spread import over_seeds
from ppl_risk.risk_estimate import LOG10

TITLE = "linear_gaussian: guide + importance sampling and SMC against the exact answer"
SEEDS, SMC_SEEDS = 20, 100
#: Levels that a run needs at keep = 1/4, from which the particles follow that spend 20 000 calls.
CALLS = 19_200  # the plan; level counts vary a little between seeds, and none may pass 20 000


def guided(problem: pr.RiskProblem, seed: int) -> pr.RiskEstimate:
    """One setting for every cell: 256 pilot, 150 steps of 8 particles with gradients, 7050 importance draws."""
    return pr.fit_svi(
        problem, pr.guides.Network(), steps=150, particles=8, pilot=256, draws=7050, posterior_draws=0, seed=seed, progress=False
    )  # fmt: skip


def climbed(problem: pr.RiskProblem, decades: int, seed: int) -> pr.RiskEstimate:
    """Four runs whose particles follow from the budget: a level costs 3/4 of them, twice for the gradient."""
    levels = decades / 0.602
    particles = int(CALLS / 4 / (1.5 * levels + 2))
    return pr.run_smc(problem, particles=particles, posterior_draws=0, seed=seed, progress=False)


def run() -> str:
    """Both tables."""
    guide_rows, smc_rows = [], []
    for dimension in (2, 20, 200):
        for decades in (3, 6, 9):
            problem = pr.load_model("linear_gaussian", dimension=dimension, log10_prob=-float(decades))
            cell = {"d": dimension, "p": f"1e-{decades}"}
            truth = -decades * LOG10
            guide_rows.append(cell | over_seeds(lambda s, q=problem: guided(q, s), truth, SEEDS))
            smc_rows.append(cell | over_seeds(lambda s, q=problem, n=decades: climbed(q, n, s), truth, SMC_SEEDS))
    return (
        f"Guide `Network()` + importance sampling, {SEEDS} seeds, target: rel. RMSE <= 0.05 at 10 000 calls.\n\n"
        f"{table(guide_rows)}\n\n"
        f"SMC, 4 runs, gradient moves, {SMC_SEEDS} seeds, target: median |log10 error| <= 0.1 at 20 000 calls.\n\n{table(smc_rows)}"
    )
