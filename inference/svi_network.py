"""The network itself carries the correlations; the guide is a low-rank law of the input. Use it for the number."""

import ppl_risk as pr


def infer(problem: pr.RiskProblem, *, seed: int = 0, progress: bool = True) -> pr.RiskEstimate:
    """Noise coordinates, ELBO, importance sampling."""
    guide = pr.guides.Network(input=pr.guides.LowRankNormal(rank=4))
    return pr.fit_svi(problem, guide, steps=300, particles=16, draws=8000, seed=seed, progress=progress)
