"""Input laws and their transport maps from independent standard normals."""

# The files of laws register their maps when they are imported.
from ppl_risk.inputs import continuous as continuous
from ppl_risk.inputs import discrete as discrete
from ppl_risk.inputs import gaussian as gaussian
from ppl_risk.inputs import mixtures as mixtures
from ppl_risk.inputs import quantiles as quantiles
from ppl_risk.inputs.empirical import EmpiricalWithNoise
from ppl_risk.inputs.hierarchical import PyroModel
from ppl_risk.inputs.product import Product
from ppl_risk.inputs.transport import Transport, transport_of

__all__ = ["EmpiricalWithNoise", "Product", "PyroModel", "Transport", "transport_of"]
