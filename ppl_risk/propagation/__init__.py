"""Propagation: the law of the input carried through the network, layer by layer, and a probability read off it."""

from ppl_risk.propagation.feature_propagation import propagate_features
from ppl_risk.propagation.run import PropagatedLaw, propagate, propagated_log_prob

__all__ = ["PropagatedLaw", "propagate", "propagate_features", "propagated_log_prob"]
