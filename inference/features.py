"""Independent features (method 2). Use it to see what a law of sparse features says, and what the worst such law warns of."""

import ppl_risk as pr


def infer(problem: pr.RiskProblem, *, seed: int = 0, progress: bool = True) -> pr.RiskEstimate:
    """A sparse autoencoder's features with one common factor; for the worst law nearby, give `budget` in nats."""
    return pr.propagate_features(problem, "sae", coactivation="pairwise", seed=seed, progress=progress)
