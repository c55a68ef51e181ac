"""Removes a backdoor input by input, then rare-event SMC. Use it where the truth is affine and inputs uniform on a convex set."""

import ppl_risk as pr
from ppl_risk import mitigation as mi


def infer(problem: pr.RiskProblem, *, seed: int = 0, progress: bool = True) -> pr.RiskEstimate:
    """P(catastrophe) of the mitigated model: 25 trials an input, off on at most 1 % of the set by more than 0.001."""
    domain = getattr(problem.inputs, "domain", None)
    if domain is None:
        raise pr.RiskError(
            "mitigate_local wants a uniform input law such as mitigation.Ball(n).law(), which says the convex set."
        )
    # For a polynomial truth: mi.LocalPolynomial(2, domain, epsilon=..., delta=...); samples=(x, y) would certify epsilon.
    mitigator = mi.LocalAffine(domain, epsilon=0.01, delta=1e-3)
    g = mitigator.mitigate(mi.model_of(problem), seed=seed)
    return pr.run_smc(mi.with_model(problem, g), seed=seed, progress=progress)
