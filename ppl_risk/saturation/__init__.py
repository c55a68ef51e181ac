"""The same catastrophe in units that do not saturate."""

from ppl_risk.saturation.undone import Unsaturated, unsaturated

__all__ = ["Unsaturated", "unsaturated"]
