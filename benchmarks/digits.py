"""Every recipe on the digits network, one seed in full and the spread over seeds."""

from __future__ import annotations

from inspect import signature

import ppl_risk as pr
from benchmarks.results import table
from benchmarks.spread import over_seeds
from ppl_risk.risk_estimate import LOG10
from ppl_risk.zoo import list_recipes

TITLE = "digits: every recipe at p about 1e-4 and 1e-7"
SEEDS = 20


def run() -> str:
    """Per rarity the comparison at seed 0, and statistics over seeds."""
    parts = []
    for rarity in ("1e-4", "1e-7"):
        problem = pr.load_model("digits", rarity=rarity)
        truth = pr.load_truth("digits", rarity=rarity)
        assert truth is not None
        first, spread = {}, []
        for name in list_recipes():
            kept: list[pr.RiskEstimate] = []

            def once(seed: int, infer=pr.load_recipe(name), kept=kept) -> pr.RiskEstimate:  # noqa: ANN001, B008
                options = {"progress": False} if "progress" in signature(infer).parameters else {}
                estimate = infer(problem, seed=seed, **options)  # noqa: B023 - called at once
                kept[:] = kept or [estimate]
                return estimate

            if once(0).status.is_bound:
                # A bound has no error to speak of.
                first[name] = kept[0]
                continue
            spread.append({"recipe": name} | over_seeds(once, truth.log_prob, SEEDS))
            first[name] = kept[0]
        comparison = pr.compare(first, truth)
        parts.append(
            f"### p about {rarity}: truth log10 p = {truth.log_prob / LOG10:.3f} +- {truth.std_error / LOG10:.3f} "
            f"({truth.method})\n\nSeed 0:\n\n{table([dict(r) for r in comparison.rows()])}\n\n"
            f"{comparison.verdict()}\n\nOver {SEEDS} seeds:\n\n{table(spread)}"
        )
    return "\n\n".join(parts)
