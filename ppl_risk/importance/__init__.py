"""Importance sampling from a guide, on the exact network with the hard event."""

from ppl_risk.importance.pareto import effective_sample_size, pareto_khat
from ppl_risk.importance.sampling import ImportanceResult, importance_sample

__all__ = ["ImportanceResult", "effective_sample_size", "importance_sample", "pareto_khat"]
