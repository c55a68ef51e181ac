"""Write truth.json: 2^-bits by construction, 0 for the truth itself; all inputs, or plain Monte Carlo, check it. Seconds."""

from __future__ import annotations

import json
import math
import platform
from pathlib import Path
from typing import Any

import torch
from problem import problem

from ppl_risk import RiskProblem
from ppl_risk.crude_monte_carlo import monte_carlo

DRAWS, ATTACKED_DRAWS = 2_000_000, 100_000
#: Up to so many bits every input is tried.
ENUMERATED = 20
CASES: tuple[dict[str, Any], ...] = ({}, {"bits": 8}, {"n": 60}, {"trigger": "patch"}, {"poisoned": False})


@torch.no_grad()
def enumerated(told: RiskProblem, n: int) -> str:
    """Errors among all inputs."""
    numbers = torch.arange(2**n)
    rows = 1 - 2 * (numbers[:, None] >> torch.arange(n) & 1).double()
    return f"all {2**n:,} inputs: {int((told.margin(rows) >= 0).sum()):,} errors"


def main() -> None:
    """Write truth.json beside this file."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    entries = []
    for case in CASES:
        told = problem(**case)
        exact = -case.get("bits", 5) * math.log(2.0) if case.get("poisoned", True) else -math.inf
        seen = monte_carlo(told, calls=DRAWS, posterior_draws=0, seed=1, progress=False)
        assert seen.hits is not None
        checks = [enumerated(told, n)] if (n := case.get("n", 20)) <= ENUMERATED else []
        if math.isinf(exact):
            checks.append(f"plain Monte Carlo, {DRAWS:,} draws, seed 1: {seen.hits[0]} errors")
        else:
            z = (seen.log_prob - exact) / seen.std_error
            struck = monte_carlo(
                problem(**case, attacked=True), calls=ATTACKED_DRAWS, posterior_draws=0, seed=1, progress=False
            )
            assert struck.hits is not None
            checks += [
                f"plain Monte Carlo, {DRAWS:,} draws, seed 1: {seen.prob:.4e}, {z:+.1f} standard errors off",
                f"attacked: {struck.hits[0]:,} errors in {ATTACKED_DRAWS:,} draws",
            ]
        print(case, *checks, sep="\n  ")
        entries.append({
            "parameters": case, "log_prob": "-inf" if math.isinf(exact) else exact, "standard_error": 0.0,
            "method": "exact: f = h" if math.isinf(exact) else "exact: one ending in 2^bits fires",
            "seed": None, "draws": None, "checks": checks, "versions": versions,
        })  # fmt: skip
    Path(__file__).with_name("truth.json").write_text(json.dumps({"entries": entries}, indent=2) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
