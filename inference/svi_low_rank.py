"""Eight common causes shared by all layers, plus a diagonal. Use it where a few directions drive many units."""

import ppl_risk as pr


def infer(problem: pr.RiskProblem, *, seed: int = 0, progress: bool = True) -> pr.RiskEstimate:
    """Low-rank guide, ELBO, importance sampling from its input part."""
    guide = pr.guides.LowRank(rank=8)
    return pr.fit_svi(problem, guide, steps=600, particles=16, draws=5000, seed=seed, progress=progress)
