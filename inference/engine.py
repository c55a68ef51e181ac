"""Two routes that must agree, adaptive importance sampling and SMC, in 20 000 calls. Use it first: it plans for itself."""

import ppl_risk as pr


def infer(problem: pr.RiskProblem, *, seed: int = 0, progress: bool = True) -> pr.RiskEstimate:
    """One call: searches, SMC, a fitted mixture, and fresh draws for the number."""
    return pr.estimate(problem, max_calls=20_000, seed=seed, progress=progress)
