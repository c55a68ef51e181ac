"""The guide's own law as a risk problem: activations follow the guide instead of the network."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from ppl_risk.errors import RiskError
from ppl_risk.guides.guide import Guide
from ppl_risk.guides.selected import SelectedGuide
from ppl_risk.problem import RiskProblem


def believed_problem(problem: RiskProblem, guide: Guide) -> RiskProblem:
    """The risk problem whose probability is the guide's own tail; its inputs are the standard normals that drive the guide.

    What lies behind the last sites (a detector) runs as it is, on activations drawn from the guide.

    Raises:
        RiskError: a guide with a law that no map from standard normals is known for.
    """
    law = guide if isinstance(guide, SelectedGuide) else GaussianMap(guide)
    standard = Normal(torch.zeros(law.normals(), device=problem.device), 1.0)
    return RiskProblem(
        lambda z: law.margin_of_normals(problem, z), Independent(standard, 1), name=f"{problem.name} (guide's law)"
    )


class GaussianMap:
    """A guide of Gaussian groups as a map from standard normals to the values of all sites."""

    def __init__(self, guide: Guide) -> None:
        self.maps = []
        self.dimension = 0
        with torch.no_grad():
            for group in guide.parts():
                root = _root(group.law.distribution())
                self.maps.append(
                    (group, group.law.loc, root, slice(self.dimension, self.dimension + group.law.dimension))
                )
                self.dimension += group.law.dimension

    def normals(self) -> int:
        """Standard normals that one draw takes."""
        return self.dimension

    def values(self, z: Tensor) -> dict[str, Tensor]:
        """Site values (batch, *shape) from standard normals (batch, dimension)."""
        values: dict[str, Tensor] = {}
        for group, mean, root, part in self.maps:
            step = z[:, part] * root if root.dim() == 1 else z[:, part] @ root.mT
            values |= group.unflatten(mean + step)
        return values

    def margin_of_normals(self, problem: RiskProblem, z: Tensor) -> Tensor:
        """Margins of the guide's draws."""
        return margin_of_values(problem, self.values(z))


def margin_of_values(problem: RiskProblem, values: dict[str, Tensor]) -> Tensor:
    """Margins where every site takes the given value; sites that are not named follow the network."""

    def replace(name: str, output: Tensor) -> Tensor:
        return values[name].to(output.dtype) if name in values else output

    return problem.run(problem.from_normal(values["input"]), replace)


def _root(law: Distribution) -> Tensor:
    """A square root of the covariance: the scales of a diagonal law, else the Cholesky factor."""
    tril = getattr(law, "scale_tril", None)
    if tril is not None:
        return tril.detach()
    if isinstance(law, Independent | MultivariateNormal):
        return law.stddev.detach()
    raise RiskError(f"The tail of a {type(law).__name__} guide is not available here; use a Gaussian input law.")
