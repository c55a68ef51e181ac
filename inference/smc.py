"""Rare-event SMC, four independent runs. Use it as the second route: it needs no guide and its interval is honest."""

import ppl_risk as pr


def infer(problem: pr.RiskProblem, *, seed: int = 0, progress: bool = True) -> pr.RiskEstimate:
    """Adaptive levels, gradient moves, interval from the spread of the runs."""
    return pr.run_smc(problem, particles=1000, runs=4, seed=seed, progress=progress)
