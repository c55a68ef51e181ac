"""All correlations inside a layer, none across. Use it to see whether the layers must be tied together."""

import ppl_risk as pr


def infer(problem: pr.RiskProblem, *, seed: int = 0, progress: bool = True) -> pr.RiskEstimate:
    """Block guide, ELBO, importance sampling from its input part."""
    guide = pr.guides.Block()
    return pr.fit_svi(problem, guide, steps=600, particles=16, draws=5000, seed=seed, progress=progress)
