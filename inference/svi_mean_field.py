"""Every activation independent. Use it as the baseline: its ELBO shows what presuming independence costs."""

import ppl_risk as pr


def infer(problem: pr.RiskProblem, *, seed: int = 0, progress: bool = True) -> pr.RiskEstimate:
    """Mean-field guide, ELBO, importance sampling from its input part."""
    guide = pr.guides.MeanField()
    return pr.fit_svi(problem, guide, steps=600, particles=16, draws=5000, seed=seed, progress=progress)
