"""Can a catastrophe be reached at all, and is it rare? Pilot draws, then gradient ascent in the normal space."""

from __future__ import annotations

import torch

from ppl_risk.errors import undefined_margins
from ppl_risk.problem import RiskProblem


def reachable(problem: RiskProblem, draws: int) -> tuple[str, str]:
    """Whether it is: "ok" or "note", and what was found by pilot draws and gradient ascent."""
    margin = problem.margin(problem.sample(draws))
    if wrong := int(torch.isnan(margin).sum()):
        return "error", undefined_margins(wrong, draws)
    hits, best = int((margin >= 0).sum()), float(margin.max())
    if hits == draws:
        return "note", (
            f"All {draws} pilot draws are catastrophes, so P would be about 1. Is the sign of the margin right, and the threshold "
            "subtracted? Catastrophe is margin >= 0."
        )
    if hits > draws // 10:
        return "note", (
            f"{hits} of {draws} pilot draws are catastrophes (P about {hits / draws:.2f}): not rare, plain Monte Carlo will "
            "do. Is the sign of the margin right? Catastrophe is margin >= 0."
        )
    if hits:
        return "ok", f"{hits} of {draws} pilot draws are catastrophes"
    if bool((margin == margin[0]).all()):
        return "note", (
            f"All {draws} pilot draws have the margin {best:.3g}: there is nothing to climb on. Return a margin that grows "
            "towards the catastrophe."
        )
    with torch.enable_grad():
        climbed, undefined = _climb(problem)
    if undefined:
        return "note", (
            f"No catastrophe in {draws} pilot draws, and gradient ascent from them meets margins that are NaN: methods that look "
            "further out than the law's own draws will refuse. Look for log(0), division by zero or overflow in the network."
        )
    best = max(best, climbed)
    if best >= 0:
        return "ok", f"no catastrophe in {draws} pilot draws, but gradient ascent finds one"
    return "note", (
        f"The highest margin found by {draws} draws and gradient ascent is {best:.3g}; catastrophe is >= 0. Either it "
        f"cannot be reached under this input law or the search is stuck. All that is known is P < {3 / draws:.1e}."
    )


def _climb(problem: RiskProblem, starts: int = 16, steps: int = 40) -> tuple[float, bool]:
    """Highest margin on normalised gradient ascent in the normal space, from several starts; and whether one was NaN."""
    best = -torch.inf
    try:
        u = torch.randn(starts, problem.transport.dimension, device=problem.device)
        for _ in range(steps):
            margin, gradient = problem.margin_and_gradient(u)
            if bool(torch.isnan(margin).any()):
                return best, True
            best = max(best, float(margin.max()))
            u = u + 0.25 * gradient / gradient.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    except (ValueError, RuntimeError):  # no map from normals; no graph to differentiate
        pass
    return best, False
