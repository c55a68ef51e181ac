"""Estimates for ArviZ, whichever is installed; the function itself stands beside the DataTree that it wraps."""

from ppl_risk.storage import to_arviz as to_arviz
