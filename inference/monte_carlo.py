"""Plain Monte Carlo, 100 000 calls. Use it where p is above 1e-4: nothing else is needed there, and below it says so."""

import ppl_risk as pr


def infer(problem: pr.RiskProblem, *, seed: int = 0, progress: bool = True) -> pr.RiskEstimate:
    """Count catastrophes."""
    return pr.monte_carlo(problem, calls=100_000, seed=seed, progress=progress)
