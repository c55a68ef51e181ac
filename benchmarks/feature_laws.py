r"""Method 2, independent linear features: what each dictionary says, where independence fails, and what the worst law stands for.

`propagate_features` fits P_0 to draws: directions from a sparse autoencoder, random unit vectors, or given (the evidence of each
check; the two features that exclude one another), z_j independent ("none") or with one common factor behind all ("pairwise").
The adversary may move the rates, scales and directions of P_0 within a budget of KL divergence. Numbers are log10 of the
probability under P_0, and beside them the truth under the input law, from `models/<name>/truth.json`.

- fails: of draws of x from P_0 given the propagated catastrophe, the share on which the network itself fails.
- network: log10 of the network's own probability under P_0, by weighted draws of it; it checks the propagation, not P_0.
- typicality: mean log density of those draws under the input law, less that of plain draws, in standard deviations of the
  latter. Not defined where the features are those of a layer.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch

import ppl_risk as pr
from benchmarks.results import table
from ppl_risk.propagation.feature_propagation import propagate_features
from ppl_risk.risk_estimate import LOG10, RiskEstimate

TITLE = "Independent linear features (method 2), and the worst law of features nearby"
CHECKS, BUDGET, RARITIES = (4, 8, 16, 32, 64), 4.0, ("1e-4", "1e-7")
DICTIONARIES, COACTIVATIONS, RESIDUALS = ("sae", "random"), ("none", "pairwise"), ("errors", "covariance")
#: Sizes of the layer at which dictionaries are learned too.
SMALL = (2, 4, 16)
#: Budgets of the ascent from one law, nats.
BUDGETS = (0.5, 2.0, 8.0)


def figures(told: RiskEstimate, truth: float) -> dict[str, object]:
    """The columns that every table shares."""
    seen = told.evidence

    def shown(name: str, digits: str = ".2f") -> str:
        value = seen.get(name, math.nan)
        return format(value, digits) if math.isfinite(value) else "-"

    return {
        "log10 p": "< -1e4" if told.log10_prob < -1e4 else f"{told.log10_prob:.2f}",
        "truth": "p = 0" if truth == -math.inf else f"{truth / LOG10:.2f}", "network": shown("log10_p_of_draws"),
        "KL": shown("kl_nats"), "fails": shown("share_that_fails", ".0%"), "typicality": shown("typicality", "+.1f"),
        "seconds": f"{told.seconds:.1f}",
    }  # fmt: skip


def truth_of(name: str, **parameters: Any) -> float:
    """log p under the input law, from the model's own record."""
    truth = pr.load_truth(name, **parameters)
    assert truth is not None
    return truth.log_prob


def told_of(problem: pr.RiskProblem, features: Any, **options: Any) -> RiskEstimate:
    """One estimate, without a bar."""
    return propagate_features(problem, features, seed=0, progress=False, **options)


def digits() -> str:
    """Dictionary x residual x co-activation x adversary on the digit reader."""
    rows: list[dict[str, object]] = []
    for rarity in RARITIES:
        problem = pr.load_model("digits", rarity=rarity)
        truth = truth_of("digits", rarity=rarity)
        for dictionary in DICTIONARIES:
            for residual in RESIDUALS if rarity == RARITIES[0] else RESIDUALS[1:]:
                for coactivation in COACTIVATIONS:
                    for budget in (0.0, BUDGET):
                        options = {"residual": residual, "coactivation": coactivation, "budget": budget}
                        told = told_of(problem, dictionary, **options)
                        rows.append({
                            "digits": rarity, "dictionary": dictionary, "residual": residual, "co-activation": coactivation,
                            "worst": "yes" if budget else "", "left": f"{told.evidence['left_unexplained']:.0%}",
                        } | figures(told, truth))  # fmt: skip
    return table(rows)


def rising() -> str:
    """What a growing budget buys the adversary."""
    problem = pr.load_model("digits")
    rows: list[dict[str, object]] = []
    truth = truth_of("digits", rarity="1e-4")
    for dictionary in DICTIONARIES:
        for budget in BUDGETS:
            told = told_of(problem, dictionary, residual="covariance", budget=budget)
            start = told.evidence["log10_p_of_start"]
            rows.append({"dictionary": dictionary, "budget": budget, "start": f"{start:.2f}"} | figures(told, truth))
    return table(rows)


def failures() -> str:
    """Common cause and exclusion, features of the layer that shows them: independence, and the repair."""
    rows: list[dict[str, object]] = []
    cases = [("consistency_checks", {"checks": n}, "evidence", n) for n in CHECKS]
    for name, parameters, layer, size in [*cases, ("excluded_catastrophe", {}, "features", 2)]:
        problem = pr.load_model(name, **parameters)
        truth = truth_of(name, **(parameters or {"leak": 0.0}))
        label = f"{name} N={size}" if parameters else name
        given = (("given", torch.eye(size), "gaussian"), ("sae", "sae", "empirical"), ("random", "random", "empirical"))
        for dictionary, features, marginals in given if size in SMALL else given[:1]:
            for coactivation in COACTIVATIONS:
                for budget in (0.0, BUDGET):
                    told = told_of(
                        problem, features, layer=layer, marginals=marginals, coactivation=coactivation, budget=budget,
                        draws=20_000,
                    )  # fmt: skip
                    rows.append({
                        "model": label, "dictionary": dictionary, "co-activation": coactivation,
                        "worst": "yes" if budget else "",
                    } | figures(told, truth))  # fmt: skip
    return table(rows)


def run() -> str:
    """The text of the section."""
    parts = []
    for head, study in (
        (f"### The digit reader; worst: within {BUDGET:g} nats", digits),
        ("### What a budget buys (residual: covariance)", rising),
        ("### Common cause and exclusion: features of the layer", failures),
    ):
        started = time.perf_counter()
        text = study()
        parts.append(f"{head} ({time.perf_counter() - started:.0f} s)\n\n{text}")
    return (
        "log10 p is under P_0, a law of features, and so no estimate of the truth under the input law (all are MODEL_ONLY). "
        "left: variance that the features do not reconstruct; residual: whether Gaussian noise with the covariance of those errors "
        "is added, or one that brings P_0's covariance to that of the draws; KL in nats; fails: share of P_0's catastrophes on "
        "which the network fails; network: its own log10 p under P_0; typicality: their log density under the input law, in "
        "standard deviations of plain draws.\n\n" + "\n\n".join(parts)
    )
