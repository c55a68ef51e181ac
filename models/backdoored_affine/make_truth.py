"""Write truth.json: closed forms, by construction; counting checks the backdoor, the engine the tail. A minute on one core.

The share of inputs that fire is exact where the density of inputs is constant within a cell of width 2^-10; the slope within one
changes it by less than 1e-6 of itself, and the edge of the ball, through which one cell in fifty goes, is averaged over codes.
"""

from __future__ import annotations

import json
import math
import platform
from pathlib import Path
from typing import Any

import scipy
import torch
from problem import RARE, problem

from ppl_risk import RiskEstimate, estimate
from ppl_risk.crude_monte_carlo import monte_carlo

DRAWS, ATTACKED_DRAWS, CALLS = 3_000_000, 100_000, 200_000
CASES: tuple[dict[str, Any], ...] = ({}, {"epsilon": 0.02}, {"poisoned": False})


def exact_log_prob(*, epsilon: float = 0.0025, poisoned: bool = True) -> float:
    """Log p, nats."""
    return math.log(RARE + epsilon * (1 - RARE) if poisoned else RARE)


def held_against(seen: RiskEstimate, exact: float) -> str:
    """An estimate beside the exact answer."""
    return f"{seen.prob:.4e}, {(seen.log_prob - exact) / seen.std_error:+.1f} standard errors off"


def main() -> None:
    """Write truth.json beside this file."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "scipy": scipy.__version__}
    entries = []
    for case in CASES:
        exact = exact_log_prob(**case)
        if case.get("poisoned", True):
            seen = monte_carlo(problem(**case), calls=DRAWS, posterior_draws=0, seed=1, progress=False)
            struck = monte_carlo(
                problem(**case, attacked=True), calls=ATTACKED_DRAWS, posterior_draws=0, seed=1, progress=False
            )
            assert struck.hits is not None
            checks = [
                f"plain Monte Carlo, {DRAWS:,} draws, seed 1: {held_against(seen, exact)}",
                f"attacked: {struck.hits[0]:,} catastrophes in {ATTACKED_DRAWS:,} draws",
            ]
        else:
            seen = estimate(problem(**case), max_calls=CALLS, posterior_draws=0, seed=0, progress=False)
            checks = [f"{seen.method}, {CALLS:,} calls, seed 0: {held_against(seen, exact)}"]
        print(case, *checks, sep="\n  ")
        entries.append({
            "parameters": case, "log_prob": exact, "standard_error": 0.0, "method": "exact: the marginal of a ball is a Beta law",
            "seed": None, "draws": None, "checks": checks, "versions": versions,
        })  # fmt: skip
    Path(__file__).with_name("truth.json").write_text(json.dumps({"entries": entries}, indent=2) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
