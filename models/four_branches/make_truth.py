"""Write truth.json: quadrature, held against plain Monte Carlo. Seconds on one core."""

from __future__ import annotations

import json
import math
import platform
from pathlib import Path

import scipy
import torch
from problem import exact_log_prob

from ppl_risk import load_model
from ppl_risk.crude_monte_carlo import monte_carlo

DRAWS = 20_000_000
#: p as printed by Echard, Gayton and Lemaire 2011 (doi:10.1016/j.strusafe.2011.01.002), by 1e6 plain draws.
PRINTED = {6.0: 4.416e-3, 7.0: 2.233e-3}


def main() -> None:
    """Write truth.json beside this file."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "scipy": scipy.__version__}
    entries = []
    for k in (7.0, 6.0):
        exact = exact_log_prob(k)
        seen = monte_carlo(load_model("four_branches", k=k), calls=DRAWS, posterior_draws=0, seed=1, progress=False)
        z = (seen.log_prob - exact) / seen.std_error
        checks = [
            f"plain Monte Carlo, {DRAWS:,} draws, seed 1: {seen.prob:.4e}, {z:+.1f} standard errors off",
            f"Echard, Gayton and Lemaire 2011 print {PRINTED[k]:.3e} from 1e6 plain draws, here {math.exp(exact):.4e}",
        ]
        print(k, *checks, sep="\n  ")
        entries.append({
            "parameters": {"k": k}, "log_prob": exact, "standard_error": 0.0, "method": "one-dimensional quadrature",
            "seed": None, "draws": None, "checks": checks, "versions": versions,
        })  # fmt: skip
    Path(__file__).with_name("truth.json").write_text(json.dumps({"entries": entries}, indent=2) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
