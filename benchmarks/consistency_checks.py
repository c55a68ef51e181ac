"""N checks with one common cause: what each guide family says, in activation coordinates, beside the truth."""

from __future__ import annotations

import math

from scipy.stats import norm

import ppl_risk as pr
from benchmarks.results import table
from ppl_risk.risk_estimate import LOG10

TITLE = "consistency_checks: what the untracked correlation costs, by family"
SIZES = (4, 8, 16, 32, 64)
THRESHOLD = 4.0  # of the model's defaults
FAMILIES = {
    "mean-field": pr.guides.MeanField(),
    "block": pr.guides.Block(),
    "low-rank(1)": pr.guides.LowRank(rank=1),
    "low-rank(8)": pr.guides.LowRank(rank=8),
    "full": pr.guides.Full(),
    "network": pr.guides.Network(),
}


def decades(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value / LOG10:.2f}"


def run() -> str:
    """Three tables: the guide's own tail, the ELBO, the corrected estimate with its status."""
    own, elbo, corrected = [], [], []
    for checks in SIZES:
        problem = pr.load_model("consistency_checks", checks=checks)
        truth = pr.load_truth("consistency_checks", checks=checks)
        assert truth is not None
        head = {"N": checks, "truth": decades(truth.log_prob)}
        smc = pr.run_smc(problem, seed=0, progress=False)
        own_row, elbo_row, corrected_row = dict(head), dict(head), dict(head)
        # N independent checks of the same marginal: what mean-field presumes, in closed form.
        own_row["independence, exact"] = decades(checks * float(norm.logsf(THRESHOLD)))
        for name, family in FAMILIES.items():
            if family.coordinates == "activation":
                believed = pr.fit_layerwise(problem, family, draws=20_000, particles=500, seed=0, progress=False)
                own_row[name] = (
                    f"{decades(believed.log_prob)} {'' if believed.status.name == 'MODEL_ONLY' else believed.status.name}"
                )
            fit = pr.fit_svi(problem, family, steps=600, draws=5000, seed=0, progress=False)
            elbo_row[name] = decades(fit.elbo)
            corrected_row[name] = f"{decades(fit.log_prob)} {fit.status.name}"
        corrected_row["SMC"] = f"{decades(smc.log_prob)} {smc.status.name}"
        own.append(own_row | {"SMC": decades(smc.log_prob)})
        elbo.append(elbo_row)
        corrected.append(corrected_row)
    return (
        "log10 p. The guide's own tail: forward KL on the unconditioned law (`fit_layerwise`, 20 000 draws), what the family "
        f"presumes; a word after a number is the status of the SMC that found it inside the guide's law.\n\n{table(own)}\n\n"
        f"ELBO on the law given catastrophe (`fit_svi`, 600 steps), a lower bound whose gap is the price of the family.\n\n"
        f"{table(elbo)}\n\nImportance-corrected, 5000 draws, with its status.\n\n{table(corrected)}"
    )
