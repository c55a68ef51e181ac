r"""Forward KL on the unconditioned law: what a guide family itself believes about the tail.

The guide is the maximum-likelihood fit to draws of the true network, guide = argmin KL(activation law || guide), and the
estimate is the guide's own tail, Pr_guide[margin >= 0]. It needs no catastrophic input; its error is the price of the
correlations that the family does not carry. What lies behind the last sites (a detector) runs as it is, on activations
drawn from the guide. The unrestricted class of empirical laws would give plain Monte Carlo.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from torch import Tensor
from torch.distributions import Distribution

from ppl_risk.activations import ActivationModel
from ppl_risk.errors import RiskError
from ppl_risk.estimate import RiskEstimate, Status
from ppl_risk.guides import Family, Guide, LowRank
from ppl_risk.preflight import require_sound
from ppl_risk.problem import RiskProblem
from ppl_risk.randomness import child_seeds, seeded
from ppl_risk.smc import run_smc


def fit_layerwise(
    problem: RiskProblem,
    family: Family | None = None,
    *,
    draws: int = 10_000,
    particles: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> RiskEstimate:
    """Fit a guide to the network's own law and report the guide's tail, found by SMC inside the guide's law.

    The guide's law of all sites becomes the input law of a new risk problem whose network replaces activations by the draws,
    so the tail is found at 1e-12 as well as at 1e-2. Its status is `MODEL_ONLY`: nothing in it checks the network.

    Args:
        problem: the problem, with at least one layer. family: guide family in activation coordinates, default `LowRank()`.
        draws: of the true network, that the guide is fitted to. particles: of SMC inside the guide's law.
        seed: reproduces. progress: show a bar.

    Raises:
        PreflightError: the problem is not sound.
        RiskError: a family in noise coordinates, whose tail is the network's own, or a problem without layers.

    Example:
        >>> from ppl_risk.zoo import load_model
        >>> fit_layerwise(load_model("linear_gaussian"), draws=1000, particles=100, progress=False).status.name
        'MODEL_ONLY'
    """
    family = LowRank() if family is None else family
    if family.coordinates != "activation":
        raise RiskError(
            f"{family.label} lives in noise coordinates: its tail is the network's own. Use ppl_risk.run_smc."
        )
    if not problem.cut:
        raise RiskError(
            "The problem has no layers to model; a plain callable has one site, the input. Pass an nn.Module."
        )
    started = time.perf_counter()
    require_sound(problem)
    fit_seed, smc_seed = child_seeds(seed, 2)
    with problem.metered() as meter:
        # The exact activations: the resolution is for conditioning, and here nothing is conditioned on.
        model = ActivationModel(problem, resolution=1e-3, pilot=draws, seed=fit_seed)
        guide = family.bind(model.sites)
        with seeded(fit_seed, problem.device):
            guide.fit(model.pilot)
        # A presumption can be wrong by hundreds of decades, and the levels to see it are cheap in the guide's law.
        believed = run_smc(
            believed_problem(problem, guide), particles=particles, max_levels=400, seed=smc_seed, progress=progress
        )  # fmt: skip
    status, remedy = Status.MODEL_ONLY, (
        "This is what the family presumes. Compare families, and hold it against ppl_risk.run_smc where that is affordable."
    )  # fmt: skip
    if not believed.status.believable:
        status, remedy = believed.status, "Inside the guide's law: " + believed.remedy
    return replace(
        believed, method=f"layerwise {family.label}", status=status, remedy=remedy,
        **problem.cost(meter),
        seconds=time.perf_counter() - started, seed=seed, problem=problem.name, guide=guide, posterior={}, survival=None,
        evidence=dict(believed.evidence) | {"fitted_draws": float(draws)},
        settings={"family": repr(family), "draws": draws, "particles": particles},
    )  # fmt: skip


def believed_problem(problem: RiskProblem, guide: Guide) -> RiskProblem:
    """The risk problem in which the activations follow the guide's law instead of the network's."""
    law = GuideLaw(guide)

    def rest_of_network(z: Tensor) -> Tensor:
        values = law.values(z)

        def replace_by_draw(name: str, output: Tensor) -> Tensor:
            return values[name].to(output.dtype)

        return problem.run(problem.from_normal(values["input"]), replace_by_draw)

    standard = torch.distributions.Normal(torch.zeros(law.dimension, device=problem.device), 1.0)
    return RiskProblem(
        rest_of_network, torch.distributions.Independent(standard, 1), name=f"{problem.name} (guide's law)"
    )


class GuideLaw:
    """A guide as a map from standard normals to the values of all sites; Gaussian groups only."""

    def __init__(self, guide: Guide) -> None:
        self.maps = []
        self.dimension = 0
        with torch.no_grad():
            for group in guide.parts():
                law = group.law.distribution()
                root = _root(law)
                self.maps.append((group, law.mean, root, slice(self.dimension, self.dimension + group.law.dimension)))
                self.dimension += group.law.dimension

    def values(self, z: Tensor) -> dict[str, Tensor]:
        """Site values (batch, *shape) from standard normals (batch, dimension)."""
        values: dict[str, Tensor] = {}
        for group, mean, root, part in self.maps:
            step = z[:, part] * root if root.dim() == 1 else z[:, part] @ root.mT
            values |= group.unflatten(mean + step)
        return values


def _root(law: Distribution) -> Tensor:
    """A square root of the covariance: the scales of a diagonal law, else the Cholesky factor."""
    tril = getattr(law, "scale_tril", None)
    if tril is not None:
        return tril
    if isinstance(law, torch.distributions.Independent):
        return law.stddev
    raise RiskError(f"The tail of a {type(law).__name__} guide is not available here; use a Gaussian input law.")
