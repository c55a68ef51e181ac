"""Guide families: which correlations a guide carries. A family is a description; bound to sites it is a guide.

| family    | across layers              | inside a layer | cost per layer of width n |
| --------- | -------------------------- | -------------- | ------------------------- |
| MeanField | none                       | none           | n                         |
| Block     | none                       | full           | n^2                       |
| LowRank   | one factor for all sites   | same factor    | n r                       |
| Full      | all                        | all            | (sum n)^2                 |
| Network   | the network itself         | exact          | one forward pass          |

Each takes `input`, another law for the input part, which then stands apart from the other sites.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import nn

from ppl_risk.activations import INPUT, Site
from ppl_risk.errors import RiskError
from ppl_risk.guides.guide import Guide
from ppl_risk.guides.laws import FullNormal, LawFamily, LowRankNormal, Normal

Groups = Sequence[tuple[Sequence[Site], LawFamily]]


@runtime_checkable
class Family(Protocol):
    """What `fit_svi` and `fit_layerwise` ask of a guide family."""

    @property
    def coordinates(self) -> str:
        """In which coordinates of the activation model the guide lives."""
        ...

    @property
    def resolution(self) -> float:
        """sigma_l as a fraction of the spread of layer l."""
        ...

    @property
    def label(self) -> str:
        """A few words for tables."""
        ...

    def bind(self, sites: Mapping[str, Site]) -> Guide:
        """The guide over these sites."""
        ...


def require_family(family: object) -> None:
    """What every call that takes a family asks of it first.

    Raises:
        RiskError: a class, a name, a guide or anything else that is no family; the message says what to write.

    Example:
        >>> require_family(MeanField())
    """
    if isinstance(family, type):
        made = f"did you mean {family.__name__}()?" if hasattr(family, "bind") else "write for example MeanField()."
        raise RiskError(f"The family must be an object, got the class {family.__name__}: {made}")
    if isinstance(family, str):
        raise RiskError(
            f"The family must be an object, got the text {family!r}: write for example ppl_risk.guides.MeanField()."
        )
    if isinstance(family, nn.Module):
        raise RiskError(
            f"The family must be a description of a guide, got {type(family).__name__}, which is a guide or a network already: "
            "write for example ppl_risk.guides.LowRank(8)."
        )
    missing = [name for name in ("coordinates", "resolution", "label", "bind") if not hasattr(family, name)]
    if missing or not callable(getattr(family, "bind", None)):
        raise RiskError(
            f"{type(family).__name__} is no guide family: it has no {', '.join(missing) or 'method bind'}. Take one of "
            "ppl_risk.guides (MeanField(), Block(), LowRank(8), Full(), Network()), or write an own one with coordinates, "
            "resolution, label and bind(sites)."
        )


def _separately(sites: Mapping[str, Site], each: LawFamily, input_law: LawFamily) -> Groups:
    return [([site], input_law if name == INPUT else each) for name, site in sites.items()]


def _jointly(sites: Mapping[str, Site], joint: LawFamily, input_law: LawFamily | None) -> Groups:
    rest = [site for name, site in sites.items() if name != INPUT]
    if input_law is None:
        return [(list(sites.values()), joint)]
    return [([sites[INPUT]], input_law)] + ([(rest, joint)] if rest else [])


@dataclass(frozen=True)
class MeanField:
    """Every coordinate of every site independent: the presumption of independence.

    Example:
        >>> MeanField().label
        'mean-field'
    """

    input: LawFamily = Normal()
    coordinates: str = "activation"
    resolution: float = 0.1
    label: str = field(init=False, default="mean-field")

    def bind(self, sites: Mapping[str, Site]) -> Guide:
        """The guide over these sites."""
        return Guide(_separately(sites, Normal(), self.input))


@dataclass(frozen=True)
class Block:
    """Full covariance inside each layer, none across layers.

    Example:
        >>> Block().label
        'block'
    """

    input: LawFamily = FullNormal()
    coordinates: str = "activation"
    resolution: float = 0.1
    label: str = field(init=False, default="block")

    def bind(self, sites: Mapping[str, Site]) -> Guide:
        """The guide over these sites."""
        return Guide(_separately(sites, FullNormal(), self.input))


@dataclass(frozen=True)
class LowRank:
    """A factor of rank r shared by all sites, plus a diagonal: r common causes.

    Example:
        >>> LowRank(rank=4).label
        'low-rank(4)'
    """

    rank: int = 8
    input: LawFamily | None = None
    coordinates: str = "activation"
    resolution: float = 0.1

    @property
    def label(self) -> str:
        """A few words for tables."""
        return f"low-rank({self.rank})"

    def bind(self, sites: Mapping[str, Site]) -> Guide:
        """The guide over these sites."""
        return Guide(_jointly(sites, LowRankNormal(self.rank), self.input))


@dataclass(frozen=True)
class Full:
    """One covariance over all sites; only for networks with few units.

    Example:
        >>> Full().label
        'full'
    """

    input: LawFamily | None = None
    coordinates: str = "activation"
    resolution: float = 0.1
    label: str = field(init=False, default="full")

    def bind(self, sites: Mapping[str, Site]) -> Guide:
        """The guide over these sites."""
        return Guide(_jointly(sites, FullNormal(), self.input))


@dataclass(frozen=True)
class Network:
    """The network carries every correlation; the guide is a law of the input alone (noise coordinates, sigma = 0).

    Example:
        >>> Network().label
        'network'
    """

    input: LawFamily = Normal()
    coordinates: str = field(init=False, default="noise")
    resolution: float = field(init=False, default=0.0)
    label: str = field(init=False, default="network")

    def bind(self, sites: Mapping[str, Site]) -> Guide:
        """The guide over the input."""
        return Guide([([sites[INPUT]], self.input)])
