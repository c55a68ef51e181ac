"""Proved bounds: what the margin cannot be on a region of inputs, and what that says of the probability of a catastrophe."""

from ppl_risk.bounds.certified import certify
from ppl_risk.bounds.interval import Ball, Box, interval_bounds
from ppl_risk.bounds.lowering import program_of
from ppl_risk.bounds.program import Program
from ppl_risk.bounds.relaxation import crown_bounds, upper_planes

__all__ = ["Ball", "Box", "Program", "certify", "crown_bounds", "interval_bounds", "program_of", "upper_planes"]
