"""One Gaussian tail, correlations of rank 16. Use it to see what the covariance alone says: fast, and wrong in the tail."""

import ppl_risk as pr


def infer(problem: pr.RiskProblem, *, seed: int = 0) -> pr.RiskEstimate:
    """Means, variances and a rank-16 factor through every layer, then the margin as Gaussian."""
    return pr.propagate(problem, "low_rank", 16, "gaussian", seed=seed)
