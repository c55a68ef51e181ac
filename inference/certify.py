"""CROWN and PROVEN bounds. Use it for a proof that P is small, where noise is weak or the network shallow; else VACUOUS."""

import ppl_risk as pr


def infer(problem: pr.RiskProblem, *, seed: int = 0, progress: bool = True) -> pr.RiskEstimate:
    """The smaller of Pr[chi_d > R], with R the largest radius certified in the normal space, and PROVEN's bound."""
    return pr.certify(problem, seed=seed, progress=progress)
