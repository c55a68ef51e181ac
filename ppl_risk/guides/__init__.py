"""Guide families and the laws they are made of."""

from ppl_risk.guides.families import Block, Family, Full, LowRank, MeanField, Network
from ppl_risk.guides.guide import Guide
from ppl_risk.guides.laws import FullNormal, LowRankNormal, Mixture, Normal

__all__ = [
    "Block", "Family", "Full", "FullNormal", "Guide", "LowRank", "LowRankNormal", "MeanField", "Mixture", "Network",
    "Normal",
]  # fmt: skip
