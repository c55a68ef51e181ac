"""Looking at posteriors: ArviZ, and the correlations that a guide carries."""

from ppl_risk.diagnostics.arviz_adapter import to_arviz
from ppl_risk.diagnostics.correlations import LayerCorrelation, layer_correlation, layer_draws

__all__ = ["LayerCorrelation", "layer_correlation", "layer_draws", "to_arviz"]
