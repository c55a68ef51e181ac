"""All activations presumed independent. Use it as the baseline: what that presumption costs."""

import ppl_risk as pr


def infer(problem: pr.RiskProblem, *, seed: int = 0, progress: bool = True) -> pr.RiskEstimate:
    """Mean-field guide fitted by forward KL to the network's own law; the number is the guide's tail."""
    return pr.fit_layerwise(problem, pr.guides.MeanField(), seed=seed, progress=progress)
