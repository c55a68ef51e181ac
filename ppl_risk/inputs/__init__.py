"""Input laws and their transport maps from independent standard normals."""

from ppl_risk.inputs.transport import Transport, transport_of

__all__ = ["Transport", "transport_of"]
