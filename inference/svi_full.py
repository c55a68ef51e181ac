"""One covariance over all sites. Use it on networks of a few hundred units, as the ceiling of the Gaussian families."""

import ppl_risk as pr


def infer(problem: pr.RiskProblem, *, seed: int = 0, progress: bool = True) -> pr.RiskEstimate:
    """Full guide, ELBO, importance sampling from its input part."""
    guide = pr.guides.Full()
    return pr.fit_svi(problem, guide, steps=600, particles=16, draws=5000, seed=seed, progress=progress)
