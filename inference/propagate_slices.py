"""The law of activations, sliced along the design point, checked by passes of the network. Use it on wide, shallow networks."""

import ppl_risk as pr


def infer(problem: pr.RiskProblem, *, seed: int = 0) -> pr.RiskEstimate:
    """Full covariances on seven nodes of one input direction, or 35 of two; REFUSED where its check says so."""
    return pr.propagate(problem, "full", readout="slices", seed=seed)
