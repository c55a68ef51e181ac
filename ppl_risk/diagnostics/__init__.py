"""Looking at posteriors and guides: ArviZ, the correlations that a guide carries, and which of them matter."""

from ppl_risk.diagnostics.arviz_adapter import to_arviz
from ppl_risk.diagnostics.correlations import LayerCorrelation, layer_correlation, layer_draws
from ppl_risk.diagnostics.tracking import Tracking, what_tracking_moved

__all__ = [
    "LayerCorrelation", "Tracking", "layer_correlation", "layer_draws", "to_arviz", "what_tracking_moved",
]  # fmt: skip
