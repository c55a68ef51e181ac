"""The guide's own law as a risk problem: activations follow the guide instead of the network."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from ppl_risk.errors import NoTransportError, RiskError
from ppl_risk.guides.guide import Group, Guide
from ppl_risk.guides.selected import SelectedGuide
from ppl_risk.inputs import Transport, transport_of
from ppl_risk.problem import RiskProblem


def believed_problem(problem: RiskProblem, guide: Guide) -> RiskProblem:
    """The risk problem whose probability is the guide's own tail; its inputs are the standard normals that drive the guide.

    What lies behind the last sites (a detector) runs as it is, on activations drawn from the guide.

    Raises:
        RiskError: a guide with a law that no map from standard normals is known for.
    """
    law = guide if isinstance(guide, SelectedGuide) else GuideMap(guide)
    standard = Normal(torch.zeros(law.normals(), device=problem.device), 1.0)
    return RiskProblem(
        lambda z: law.margin_of_normals(problem, z),
        Independent(standard, 1),
        name=f"{problem.name} (guide's law)",
        layers=[],  # what is modelled here are the normals, whatever modules they run through
    )


class GuideMap:
    """A guide's groups as a map from standard normals to the values of all sites: of each its own law, whatever that is."""

    def __init__(self, guide: Guide) -> None:
        self.maps: list[tuple[Group, Transport, slice]] = []
        self.dimension = 0
        for group in guide.parts():
            transport = _transport(group)
            self.maps.append((group, transport, slice(self.dimension, self.dimension + transport.dimension)))
            self.dimension += transport.dimension

    def normals(self) -> int:
        """Standard normals that one draw takes."""
        return self.dimension

    def values(self, z: Tensor) -> dict[str, Tensor]:
        """Site values (batch, *shape) from standard normals (batch, dimension)."""
        values: dict[str, Tensor] = {}
        for group, transport, part in self.maps:
            values |= group.unflatten(transport(z[:, part]))
        return values

    def margin_of_normals(self, problem: RiskProblem, z: Tensor) -> Tensor:
        """Margins of the guide's draws."""
        return margin_of_values(problem, self.values(z))


def margin_of_values(problem: RiskProblem, values: dict[str, Tensor]) -> Tensor:
    """Margins where every site takes the given value; sites that are not named follow the network."""

    def replace(name: str, output: Tensor) -> Tensor:
        return values[name].to(output.dtype) if name in values else output

    return problem.run(problem.from_normal(values["input"]), replace)


@torch.no_grad()
def _transport(group: Group) -> Transport:
    law = group.law.distribution()
    try:
        return transport_of(law)
    except NoTransportError as error:
        raise RiskError(
            f"The guide's own tail needs the map from standard normals to its law of {', '.join(group.names)}, and none is known "
            f"for {type(law).__name__}. Register one with ppl_risk.inputs.transport.part_of, or build the law from parts that "
            "have one."
        ) from error
