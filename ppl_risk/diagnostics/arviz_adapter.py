"""The one place that knows which ArviZ is installed: 0.x wants its own container, 1.x takes the DataTree."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from ppl_risk.risk_estimate import RiskEstimate


def to_arviz(estimate: RiskEstimate) -> Any:
    """What `arviz.summary`, `arviz.plot_forest` and the rest take.

    Example:
        >>> from ppl_risk import RiskEstimate
        >>> type(to_arviz(RiskEstimate("by hand", -1.0))).__name__ in {"InferenceData", "DataTree"}
        True
    """
    import arviz as az  # slow to import, and wanted only here

    tree = estimate.to_datatree()
    if version("arviz").startswith("0."):
        return az.from_datatree(tree)
    return tree
