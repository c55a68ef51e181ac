"""One Gaussian tail, every activation on its own. Use it as the classical baseline: it forgets all correlations."""

import ppl_risk as pr


def infer(problem: pr.RiskProblem, *, seed: int = 0) -> pr.RiskEstimate:
    """Means and variances through every layer, then the margin as Gaussian."""
    return pr.propagate(problem, "mean_field", readout="gaussian", seed=seed)
