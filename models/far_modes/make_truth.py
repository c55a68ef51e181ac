"""Write truth.json: the answer is the parameter `log10_prob`; plain Monte Carlo checks the margin at 1e-2. Seconds."""

from __future__ import annotations

import json
import math
import platform
from pathlib import Path

import scipy
import torch
from problem import exact_log_prob, nearest_distance

from ppl_risk import load_model
from ppl_risk.crude_monte_carlo import monte_carlo

DRAWS, EASY = 4_000_000, -2.0
CASES = [
    *({"dimension": d, "log10_prob": -6.0, "step": 0.0, "gradient": True} for d in (2, 20, 100)),
    *({"dimension": d, "log10_prob": -6.0, "step": 0.1, "gradient": True} for d in (2, 20, 100)),
    *({"dimension": d, "log10_prob": -6.0, "step": 0.0, "gradient": False} for d in (2, 20)),
]


def main() -> None:
    """Write truth.json beside this file."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "scipy": scipy.__version__}
    entries = []
    for case in CASES:
        exact, step = case["log10_prob"] * math.log(10.0), case["step"]
        distance = nearest_distance(case["log10_prob"], step)
        shares = [
            f"{math.exp(float(torch.special.log_ndtr(torch.tensor(-distance - i * step))) - exact):.3f}"
            for i in range(4)
        ]
        problem = load_model("far_modes", **{**case, "log10_prob": EASY})
        seen = monte_carlo(problem, calls=DRAWS, posterior_draws=0, seed=1, progress=False)
        z = (seen.log_prob - EASY * math.log(10.0)) / seen.std_error
        checks = [
            f"the nearest mode is {distance:.6f} away; the formula there is {exact_log_prob(distance, step) - exact:.0e} off",
            f"shares of the four modes: {', '.join(shares)}",
            f"plain Monte Carlo at log10_prob {EASY}, {DRAWS:,} draws, seed 1: {seen.prob:.4e}, {z:+.1f} standard errors off",
        ]
        print(case, *checks, sep="\n  ")
        entries.append({
            "parameters": case, "log_prob": exact, "standard_error": 0.0, "method": "exact: closed form, by construction",
            "seed": None, "draws": None, "checks": checks, "versions": versions,
        })  # fmt: skip
    Path(__file__).with_name("truth.json").write_text(json.dumps({"entries": entries}, indent=2) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
