"""The network and its detector as a list of steps, for methods that read the network instead of running it."""

from ppl_risk.tracing.record import ConstantMarginError, trace
from ppl_risk.tracing.tape import SITE, Ref, Step, Tape

__all__ = ["SITE", "ConstantMarginError", "Ref", "Step", "Tape", "trace"]
