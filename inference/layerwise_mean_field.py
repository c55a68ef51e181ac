"""What presuming independence of all activations says about the tail. The baseline of every comparison of guides."""

import ppl_risk as pr


def infer(problem: pr.RiskProblem, *, seed: int = 0, progress: bool = True) -> pr.RiskEstimate:
    """Mean-field guide fitted by forward KL to the network's own law; the number is the guide's tail."""
    return pr.fit_layerwise(problem, pr.guides.MeanField(), seed=seed, progress=progress)
