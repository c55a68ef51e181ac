r"""Write truth.json: one-dimensional quadrature of phi(z) Phi((rho z - t) / sqrt(1 - rho^2))^N in log space.

The trapezoidal rule converges exponentially for such an integrand (Trefethen and Weideman 2014,
doi:10.1137/130932132). Held against mpmath's adaptive quadrature in 30 digits and, at a lower threshold, against plain
Monte Carlo on the network.
"""

from __future__ import annotations

import json
import math
import platform
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import scipy
import torch
from scipy.special import log_ndtr, logsumexp

from ppl_risk import load_model
from ppl_risk.crude_monte_carlo import monte_carlo

CHECKS = (4, 8, 16, 32, 64)
STRENGTH, THRESHOLD = 0.98, 4.0
EASY_THRESHOLD, DRAWS = 2.0, 4_000_000


def trapezoid(checks: int, threshold: float, step: float = 1e-3) -> float:
    """Log of the integral, in double precision."""
    z = np.arange(-15.0, 25.0, step)
    slope = math.sqrt(1 - STRENGTH**2)
    log_integrand = -(z**2) / 2 + checks * log_ndtr((STRENGTH * z - threshold) / slope)
    return float(logsumexp(log_integrand)) + math.log(step) - math.log(2 * math.pi) / 2


def adaptive(checks: int, threshold: float) -> float:
    """Log of the integral, in 30 digits."""
    with mpmath.workdps(30):
        slope = mpmath.sqrt(1 - mpmath.mpf(STRENGTH) ** 2)

        def integrand(z: Any) -> Any:
            return mpmath.npdf(z) * mpmath.ncdf((STRENGTH * z - threshold) / slope) ** checks

        return float(mpmath.log(mpmath.quad(integrand, mpmath.linspace(-6, 20, 53))))


def main() -> None:
    """Write truth.json beside this file."""
    versions = {
        "python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__,
        "mpmath": mpmath.__version__, "torch": torch.__version__,
    }  # fmt: skip
    entries = []
    for checks in CHECKS:
        log_prob = trapezoid(checks, THRESHOLD)
        gap = abs(log_prob - adaptive(checks, THRESHOLD))
        problem = load_model("consistency_checks", checks=checks, strength=STRENGTH, threshold=EASY_THRESHOLD)
        seen = monte_carlo(problem, calls=DRAWS, posterior_draws=0, seed=1, progress=False)
        easy = trapezoid(checks, EASY_THRESHOLD)
        entries.append({
            "parameters": {"checks": checks, "strength": STRENGTH, "threshold": THRESHOLD},
            "log_prob": log_prob, "standard_error": 0.0,
            "method": "one-dimensional quadrature, trapezoidal rule in log space", "seed": None, "draws": None,
            "checks": [
                f"mpmath's adaptive quadrature in 30 digits differs by {gap:.0e} relative",
                f"half the step differs by {abs(log_prob - trapezoid(checks, THRESHOLD, 5e-4)):.0e} relative",
                f"plain Monte Carlo on the network at threshold {EASY_THRESHOLD}, {DRAWS:,} draws, seed 1: "
                f"{seen.prob:.4e}, quadrature {math.exp(easy):.4e}, "
                f"{(seen.log_prob - easy) / seen.std_error:+.1f} standard errors apart",
            ],
            "versions": versions,
        })  # fmt: skip
    Path(__file__).with_name("truth.json").write_text(json.dumps({"entries": entries}, indent=2) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
