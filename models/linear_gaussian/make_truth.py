"""Write truth.json: the answer is the parameter `log10_prob`, and plain Monte Carlo checks the network at 1e-3."""

from __future__ import annotations

import json
import math
import platform
from pathlib import Path

import scipy
import torch

from ppl_risk import load_model
from ppl_risk.crude_monte_carlo import monte_carlo

DIMENSIONS = (2, 20, 200)
DECADES = (-3.0, -6.0, -9.0)
DRAWS = 4_000_000


def network_log_prob(dimension: int, log10_prob: float) -> float:
    """Log Phi(b / |w|) of the weights as stored, in double precision, nats."""
    network = load_model("linear_gaussian", dimension=dimension, log10_prob=log10_prob).network
    weight = network.output.weight.double() @ network.hidden.weight.double()
    return float(torch.special.log_ndtr(network.output.bias.double() / weight.norm())[0])


def main() -> None:
    """Write truth.json beside this file."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "scipy": scipy.__version__}
    entries = []
    for dimension in DIMENSIONS:
        for log10_prob in DECADES:
            exact = log10_prob * math.log(10.0)
            gap = abs(network_log_prob(dimension, log10_prob) - exact)
            checks = [f"log Phi(b / |w|) of the stored float32 weights differs by {gap:.1e} nats"]
            if log10_prob == DECADES[0]:
                problem = load_model("linear_gaussian", dimension=dimension, log10_prob=log10_prob)
                seen = monte_carlo(problem, calls=DRAWS, posterior_draws=0, seed=1, progress=False)
                z = (seen.log_prob - exact) / seen.std_error
                checks.append(
                    f"plain Monte Carlo, {DRAWS:,} draws, seed 1: {seen.prob:.4e}, {z:+.1f} standard errors off"
                )
            entries.append({
                "parameters": {"dimension": dimension, "log10_prob": log10_prob},
                "log_prob": exact, "standard_error": 0.0, "method": "exact: log10_prob ln 10, by construction",
                "seed": None, "draws": None, "checks": checks, "versions": versions,
            })  # fmt: skip
    Path(__file__).with_name("truth.json").write_text(json.dumps({"entries": entries}, indent=2) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
