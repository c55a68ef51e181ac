"""Write truth.json: the answer is the parameter `log10_prob`; every formula is checked by other means. A minute.

The checks: plain Monte Carlo at 1e-2, and for the formulas that are integrals a second quadrature (adaptive, in 30 digits)
or, for the noncentral chi-square, scipy's own.
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
from problem import CURVATURE, OFFSET, SHAPES, TILT, level
from scipy.stats import ncx2

from ppl_risk import load_model
from ppl_risk.crude_monte_carlo import monte_carlo

DRAWS, EASY = 4_000_000, -2.0


def paraboloid(b: float, sign: int) -> float:
    """Log E Q(b + sign CURVATURE r^2 / 2), r^2 ~ chi2_19."""
    scale = mpmath.mpf(2) ** mpmath.mpf("9.5") * mpmath.gamma(mpmath.mpf("9.5"))

    def integrand(x: Any) -> Any:
        return x ** mpmath.mpf("8.5") * mpmath.exp(-x / 2) / scale * mpmath.ncdf(-b - sign * CURVATURE * x / 2)

    return float(mpmath.log(mpmath.quad(integrand, mpmath.linspace(0, 200, 101))))


def bowl(b: float) -> float:
    """Log E Q(b - (z - TILT)^2 / 2)."""

    def integrand(z: Any) -> Any:
        return mpmath.npdf(z) * mpmath.ncdf((z - TILT) ** 2 / 2 - b)

    return float(mpmath.log(mpmath.quad(integrand, mpmath.linspace(-14, 14, 57))))


SECOND = {
    "offset_shell": ("scipy's noncentral chi-square", lambda b: float(np.log(ncx2.sf(b * b, 100, OFFSET**2)))),
    "parabola_in": ("mpmath's adaptive quadrature in 30 digits", lambda b: paraboloid(b, 1)),
    "parabola_out": ("mpmath's adaptive quadrature in 30 digits", lambda b: paraboloid(b, -1)),
    "bowl": ("mpmath's adaptive quadrature in 30 digits", bowl),
}


def main() -> None:
    """Write truth.json beside this file."""
    mpmath.mp.dps = 30
    versions = {
        "python": platform.python_version(), "torch": torch.__version__, "scipy": scipy.__version__,
        "mpmath": mpmath.__version__,
    }  # fmt: skip
    entries = []
    for shape in SHAPES:
        problem = load_model("curved_sets", shape=shape, log10_prob=EASY)
        seen = monte_carlo(problem, calls=DRAWS, posterior_draws=0, seed=1, progress=False)
        z = (seen.log_prob - EASY * math.log(10.0)) / seen.std_error
        for log10_prob in (-5.0, -3.0):
            exact, b = log10_prob * math.log(10.0), level(shape, log10_prob)
            checks = [f"b = {b:.6f}; the formula there is {SHAPES[shape].log_prob(b) - exact:.0e} off"]
            if shape in SECOND:
                name, second = SECOND[shape]
                checks.append(f"{name} is {second(b) - exact:.0e} off")
            checks.append(
                f"plain Monte Carlo at log10_prob {EASY}, {DRAWS:,} draws, seed 1: {seen.prob:.4e}, "
                f"{z:+.1f} standard errors off"
            )
            print(shape, log10_prob, *checks, sep="\n  ", flush=True)
            entries.append({
                "parameters": {"shape": shape, "log10_prob": log10_prob}, "log_prob": exact, "standard_error": 0.0,
                "method": "exact: closed form or one-dimensional quadrature, by construction",
                "seed": None, "draws": None, "checks": checks, "versions": versions,
            })  # fmt: skip
    Path(__file__).with_name("truth.json").write_text(json.dumps({"entries": entries}, indent=2) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
