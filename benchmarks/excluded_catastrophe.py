"""Two correlations that exclude each other: independence says likely, the truth says (almost) never."""

from __future__ import annotations

import math

import ppl_risk as pr
from benchmarks.results import table
from ppl_risk.risk_estimate import LOG10
from ppl_risk.zoo import shelf

TITLE = "excluded_catastrophe: independence overestimates, the network and SMC do not"


def cell(estimate: pr.RiskEstimate) -> str:
    if math.isnan(estimate.log_prob):
        return f"none, {estimate.status.name}, p < 1e{estimate.interval()[1] / LOG10:.1f}" if math.isfinite(
            estimate.interval()[1]
        ) else f"none, {estimate.status.name}"  # fmt: skip
    return f"{estimate.log10_prob:.2f} {estimate.status.name}"


def leaks() -> list[float]:
    """The leaks with a reference answer."""
    import json

    entries = json.loads((shelf("models") / "excluded_catastrophe" / "truth.json").read_text())["entries"]
    return [entry["parameters"].get("leak", 0.0) for entry in entries]


def run() -> str:
    """One row a leak."""
    rows = []
    for leak in leaks():
        problem = pr.load_model("excluded_catastrophe", leak=leak)
        truth = pr.load_truth("excluded_catastrophe", leak=leak)
        assert truth is not None
        row: dict[str, object] = {
            "leak": leak,
            "truth": "0" if math.isinf(truth.log_prob) else f"{truth.log_prob / LOG10:.2f}",
        }
        for name, family in (("mean-field", pr.guides.MeanField()), ("full", pr.guides.Full())):
            row[f"{name}, own tail"] = cell(pr.fit_layerwise(problem, family, draws=20_000, seed=0, progress=False))
        for name, family in (("mean-field", pr.guides.MeanField()), ("network", pr.guides.Network())):
            row[f"SVI {name}"] = cell(pr.fit_svi(problem, family, steps=600, draws=5000, seed=0, progress=False))
        row["SMC"] = cell(pr.run_smc(problem, seed=0, progress=False))
        rows.append(row)
    return f"log10 p and status.\n\n{table(rows)}"
