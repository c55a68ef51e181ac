"""ppl_risk: how likely is a catastrophe, when it is far too rare to sample?

Names are imported when first used: the command line answers `--help` without loading torch. No module bears the name of a
public function (`comparison.compare`, `crude_monte_carlo.monte_carlo`): importing it would put the module in the function's place.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppl_risk import guides as guides
    from ppl_risk import inputs as inputs
    from ppl_risk import plots as plots
    from ppl_risk.activations import ActivationModel as ActivationModel
    from ppl_risk.bounds import certify as certify
    from ppl_risk.comparison import Comparison as Comparison
    from ppl_risk.comparison import compare as compare
    from ppl_risk.crude_monte_carlo import monte_carlo as monte_carlo
    from ppl_risk.engine import estimate as estimate
    from ppl_risk.errors import RiskError as RiskError
    from ppl_risk.layerwise import fit_layerwise as fit_layerwise
    from ppl_risk.preflight import check as check
    from ppl_risk.problem import RiskProblem as RiskProblem
    from ppl_risk.propagation import propagate as propagate
    from ppl_risk.propagation import propagate_features as propagate_features
    from ppl_risk.propagation import propagated_log_prob as propagated_log_prob
    from ppl_risk.provenance import Provenance as Provenance
    from ppl_risk.rank_search import choose_rank as choose_rank
    from ppl_risk.risk_estimate import RiskEstimate as RiskEstimate
    from ppl_risk.risk_estimate import Status as Status
    from ppl_risk.selection import Selection as Selection
    from ppl_risk.selection import UpdateSketch as UpdateSketch
    from ppl_risk.selection import select as select
    from ppl_risk.smc import run_smc as run_smc
    from ppl_risk.svi import fit_svi as fit_svi
    from ppl_risk.systems import all_of as all_of
    from ppl_risk.systems import any_of as any_of
    from ppl_risk.systems import at_least as at_least
    from ppl_risk.weight_posterior import uncertain_weights as uncertain_weights
    from ppl_risk.zoo import load_model as load_model
    from ppl_risk.zoo import load_recipe as load_recipe
    from ppl_risk.zoo import load_truth as load_truth

_HOME = {
    "ActivationModel": "activations", "Comparison": "comparison", "Provenance": "provenance", "RiskError": "errors",
    "RiskEstimate": "risk_estimate", "RiskProblem": "problem", "Selection": "selection", "Status": "risk_estimate",
    "UpdateSketch": "selection", "all_of": "systems", "any_of": "systems", "at_least": "systems", "certify": "bounds",
    "check": "preflight", "choose_rank": "rank_search", "compare": "comparison", "estimate": "engine",
    "fit_layerwise": "layerwise", "fit_svi": "svi", "load_model": "zoo", "load_recipe": "zoo", "load_truth": "zoo",
    "monte_carlo": "crude_monte_carlo", "propagate": "propagation", "propagate_features": "propagation",
    "propagated_log_prob": "propagation", "run_smc": "smc", "select": "selection", "uncertain_weights": "weight_posterior",
}  # fmt: skip
_ROOMS = ("guides", "inputs", "plots")

__all__ = [*_HOME, *_ROOMS]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"ppl_risk.{name}")
    if name in _HOME:
        return getattr(import_module(f"ppl_risk.{_HOME[name]}"), name)
    raise AttributeError(f"module 'ppl_risk' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
