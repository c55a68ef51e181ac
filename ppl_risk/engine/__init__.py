"""The rare-event engine: one call, two routes, and a refusal where they disagree."""

from ppl_risk.engine.run import estimate

__all__ = ["estimate"]
