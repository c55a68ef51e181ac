"""Pictures, in log10 because people read decades."""

from ppl_risk.plots.estimates import (
    plot_correlations,
    plot_estimates,
    plot_fit,
    plot_lights,
    plot_overview,
    plot_survival,
)
from ppl_risk.plots.mitigation import plot_composition, plot_rays, plot_trials
from ppl_risk.plots.propagation import plot_slices, plot_tails
from ppl_risk.plots.selections import plot_ranks, plot_selection, plot_tracking

__all__ = [
    "plot_composition", "plot_correlations", "plot_estimates", "plot_fit", "plot_lights", "plot_overview", "plot_ranks",
    "plot_rays", "plot_selection", "plot_slices", "plot_survival", "plot_tails", "plot_tracking", "plot_trials",
]  # fmt: skip
