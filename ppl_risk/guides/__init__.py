"""Guide families and the laws they are made of."""

from ppl_risk.guides.believed import believed_problem
from ppl_risk.guides.empirical import Empirical, EmpiricalGuide
from ppl_risk.guides.families import Block, Family, Full, LowRank, MeanField, Network, require_family
from ppl_risk.guides.guide import Guide
from ppl_risk.guides.laws import FullNormal, Law, LawFamily, LowRankNormal, Mixture, Normal
from ppl_risk.guides.selected import Selected, SelectedGuide

__all__ = [
    "Block", "Empirical", "EmpiricalGuide", "Family", "Full", "FullNormal", "Guide", "Law", "LawFamily", "LowRank",
    "LowRankNormal", "MeanField", "Mixture", "Network", "Normal", "Selected", "SelectedGuide", "believed_problem", "require_family",
]  # fmt: skip
