"""One Gaussian over all activations. Use it to see whether any Gaussian joint law of the activations has the right tail."""

import ppl_risk as pr


def infer(problem: pr.RiskProblem, *, seed: int = 0, progress: bool = True) -> pr.RiskEstimate:
    """Full guide fitted by forward KL to the network's own law; the number is the guide's tail."""
    return pr.fit_layerwise(problem, pr.guides.Full(), seed=seed, progress=progress)
