"""Rare-event sequential Monte Carlo in the normal space."""

from ppl_risk.smc.run import run_smc

__all__ = ["run_smc"]
