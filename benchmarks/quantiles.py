"""How fast the maps of laws without a closed quantile function are, beside SciPy's inverses in the same run, and how exact.

A map takes 100 rows of 3072 standard normals to inputs: one parameter for all pixels, or one for each. Error: the standard normal
that `scipy.stats` says the input stands for, against the one that went in.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import scipy.special as sp
import scipy.stats
import torch
import torch.distributions as td

from benchmarks.results import table
from ppl_risk.inputs import transport_of

TITLE = "Maps of laws: speed beside SciPy's quantile functions, and error"
ROWS, PIXELS, REPEATS = 100, 3072, 5


def laws(own: bool) -> dict[str, tuple[td.Distribution, Callable[[np.ndarray], np.ndarray], scipy.stats.rv_continuous]]:
    """Name -> law of the pixels, SciPy's quantile function of it, SciPy's law; `own`: a parameter for each pixel."""
    a = (
        torch.linspace(1.5, 4.0, PIXELS, dtype=torch.float64)
        if own
        else torch.full((PIXELS,), 2.0, dtype=torch.float64)
    )
    b, n = torch.full_like(a, 3.0), a.numpy()
    return {
        "Beta": (td.Beta(a, b), lambda q: sp.betaincinv(n, 3.0, q), scipy.stats.beta(n, 3.0)),
        "Gamma": (td.Gamma(a, b), lambda q: sp.gammaincinv(n, q) / 3.0, scipy.stats.gamma(n, scale=1 / 3.0)),
        "Chi2": (td.Chi2(a), lambda q: sp.chdtri(n, 1 - q), scipy.stats.chi2(n)),
        "StudentT": (td.StudentT(a), lambda q: sp.stdtrit(n, q), scipy.stats.t(n)),
    }  # pyright: ignore[reportReturnType]


def seconds(work: Callable[[], object]) -> float:
    """The shortest of some runs."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def run() -> str:
    """The text of the section."""
    u = torch.randn(ROWS, PIXELS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q = torch.special.ndtr(u).numpy()
    rows: list[dict[str, object]] = []
    for own in (False, True):
        for name, (law, inverse, reference) in laws(own).items():
            started = time.perf_counter()
            transport = transport_of(td.Independent(law, 1))
            transport(u[:1])
            first = time.perf_counter() - started
            ours, theirs = seconds(lambda t=transport: t(u)), seconds(lambda f=inverse: f(q))
            back = scipy.stats.norm.ppf(reference.cdf(transport(u).numpy()))
            rows.append({
                "law": name, "parameters": "one for each pixel" if own else "one", "first use, s": f"{first:.2f}",
                "ours, s": f"{ours:.4f}", "SciPy, s": f"{theirs:.3f}", "ratio": f"{theirs / ours:.0f}",
                "largest error of u": f"{np.abs(back - u.numpy()).max():.0e}",
            })  # fmt: skip
    return f"{ROWS} rows of {PIXELS} numbers, the shortest of {REPEATS} runs.\n\n{table(rows)}"
