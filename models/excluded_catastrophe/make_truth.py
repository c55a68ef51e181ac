r"""Write truth.json: -inf by proof at leak 0; quadrature over the hidden cause F otherwise,

Pr = integral of phi(f) Phi((f - t) / leak) Phi((-f - t) / leak) df.

Held against another formula in 30 digits, over comply ~ N(0, 1 + leak^2) and real given comply, and, at a larger leak,
against plain Monte Carlo on the network.
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

LEAK, THRESHOLD = 0.35, 1.0
EASY_LEAK, DRAWS = 0.7, 4_000_000


def over_cause(leak: float, step: float = 1e-3) -> float:
    """Log of the integral over F by the trapezoidal rule, in double precision."""
    f = np.arange(-10.0, 10.0, step)
    log_integrand = -(f**2) / 2 + log_ndtr((f - THRESHOLD) / leak) + log_ndtr((-f - THRESHOLD) / leak)
    return float(logsumexp(log_integrand)) + math.log(step) - math.log(2 * math.pi) / 2


def over_comply(leak: float) -> float:
    """Log of the integral over comply >= t of Pr[real >= t | comply], in 30 digits; Cov(comply, real) = -1."""
    with mpmath.workdps(30):
        variance = 1 + mpmath.mpf(leak) ** 2
        spread = mpmath.sqrt(variance - 1 / variance)

        def integrand(c: Any) -> Any:
            return mpmath.npdf(c, 0, mpmath.sqrt(variance)) * mpmath.ncdf((-c / variance - THRESHOLD) / spread)

        return float(mpmath.log(mpmath.quad(integrand, mpmath.linspace(THRESHOLD, THRESHOLD + 12, 49))))


def main() -> None:
    """Write truth.json beside this file."""
    versions = {
        "python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__,
        "mpmath": mpmath.__version__, "torch": torch.__version__,
    }  # fmt: skip
    nothing = monte_carlo(load_model("excluded_catastrophe"), calls=DRAWS, posterior_draws=0, seed=1, progress=False)
    assert nothing.hits is not None
    log_prob, easy = over_cause(LEAK), over_cause(EASY_LEAK)
    seen = monte_carlo(
        load_model("excluded_catastrophe", leak=EASY_LEAK), calls=DRAWS, posterior_draws=0, seed=1, progress=False
    )
    entries = [
        {
            "parameters": {"leak": 0.0}, "log_prob": "-inf", "standard_error": 0.0,
            "method": "proof: comply + real = 0 for every input, and the event needs comply + real >= 2",
            "seed": None, "draws": None,
            "checks": [
                "holds in float32 too: both features are one product with +-1, exact, and fl(1 + F) >= 2 with "
                "fl(1 - F) >= 2 would need F >= 1 - 2^-24 and F <= -1 + 2^-24",
                f"plain Monte Carlo, {DRAWS:,} draws, seed 1: {nothing.hits[0]} catastrophes",
            ],
            "versions": versions,
        },
        {
            "parameters": {"leak": LEAK}, "log_prob": log_prob, "standard_error": 0.0,
            "method": "one-dimensional quadrature over the common cause, trapezoidal rule in log space",
            "seed": None, "draws": None,
            "checks": [
                "integral over comply, mpmath's quadrature in 30 digits, differs by "
                f"{abs(log_prob - over_comply(LEAK)):.0e} relative",
                f"half the step differs by {abs(log_prob - over_cause(LEAK, 5e-4)):.0e} relative",
                f"plain Monte Carlo on the network at leak {EASY_LEAK}, {DRAWS:,} draws, seed 1: {seen.prob:.4e}, "
                f"quadrature {math.exp(easy):.4e}, "
                f"{(seen.log_prob - easy) / seen.std_error:+.1f} standard errors apart",
            ],
            "versions": versions,
        },
    ]  # fmt: skip
    Path(__file__).with_name("truth.json").write_text(json.dumps({"entries": entries}, indent=2) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
