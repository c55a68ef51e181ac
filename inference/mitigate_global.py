"""Removes a backdoor from a function of bits, then plain Monte Carlo. Use it where the truth has few heavy Fourier coefficients."""

import ppl_risk as pr
from ppl_risk import mitigation as mi


def infer(problem: pr.RiskProblem, *, seed: int = 0, progress: bool = True) -> pr.RiskEstimate:
    """P(catastrophe) of the mitigated model, +-1 valued; the values of its coefficients come from 2000 clean rows."""
    clean_rows = getattr(problem.network, "clean_rows", None)
    if clean_rows is None:
        raise pr.RiskError(
            "mitigate_global wants clean rows: give the network a method clean_rows(count, seed) -> (x, y)."
        )
    mitigator = mi.GlobalFourier(tau=0.5, delta=1e-3, sign=True)
    g = mitigator.mitigate(mi.model_of(problem), samples=clean_rows(2000, seed), seed=seed)
    return pr.monte_carlo(mi.with_model(problem, g), seed=seed, progress=progress)
