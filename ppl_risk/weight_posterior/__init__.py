r"""Risk over the law of the weights as well as of the input: p = Pr[C(M_w(x)) >= 0], w ~ posterior, x ~ P, independent.

Every row draws its own weights along with its input, w = trained + L u, u ~ N(0, I): the marginal risk, averaged over what the
posterior leaves open. (Risk given the weights, itself a random number, is another question: its mean is this p.)

With `collapse`, exactly and not as an approximation, a Linear layer's weights are integrated out (local reparametrisation:
Kingma, Salimans and Welling 2015, arXiv 1506.02557). For one row, a = W x + b with independent normal W, b is

    a ~ N(M x + m_b,  diag(S^2 x^2 + s_b^2)),   and with a joint covariance Sigma of (W, b):  a ~ N(M x + m_b, J Sigma J^T),

J the Jacobian of a in (W, b). Rows have weights of their own, so nothing else depends on that draw, and the latent dimension
falls from the number of weights to the number of units: 4160 to 64 for a layer of 64 x 64. It holds where a layer reads one
vector per row, once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from ppl_risk.arguments import checked
from ppl_risk.errors import RiskError
from ppl_risk.problem import RiskProblem
from ppl_risk.provenance import Provenance
from ppl_risk.weight_posterior.network import UncertainNetwork
from ppl_risk.weight_posterior.posterior import spreads_of

__all__ = ["UncertainNetwork", "uncertain_weights"]


@checked()
def uncertain_weights(
    network: nn.Module,
    posterior: Mapping[str, float | Tensor],
    inputs: Distribution | Tensor,
    detector: Callable[..., object] | None = None,
    *,
    collapse: bool = True,
    name: str = "",
    layers: Sequence[str] | None = None,
    provenance: Provenance | None = None,
) -> RiskProblem:
    """The problem whose input is one vector of standard normals: those of the input, then those of the weights.

    Covered are normal posteriors around the trained weights: independent ones (mean field), and a full covariance within one
    Linear layer (a Laplace approximation of the last layer, say); layers are independent of each other.

    Args:
        network: the trained network; it is not changed.
        posterior: parameter name -> standard deviation (a number or of the parameter's shape, >= 0, in units of the weight), or
            name of a Linear layer -> covariance (n, n) over its flattened [weight, bias], weight row by row. A bare Linear is
            called "network". What is not named is certain.
        inputs: the law of x, batch_shape (), with a transport; or one fixed input, a tensor of the shape of one.
        detector: network output -> margin (batch,), >= 0 at the catastrophe; None: the output is the margin.
        collapse: integrate the weights out; needs Linear layers that read (batch, n) once. Otherwise the weights themselves are
            the latents, for any module that reads tensors (batch, ...).
        name, layers, provenance: as for `RiskProblem`; layers by their names in `network`. Sites are called `model.<layer>`.

    Returns:
        A problem over Independent(Normal(0, 1), 1) of dimension `problem.network.dimension`, differentiable, with the layers as
        sites: a collapsed layer's output is its random pre-activation.

    Raises:
        UnknownNameError: posterior names no parameter and no Linear layer.
        RiskError: a spread of the wrong shape or sign; a layer that cannot be collapsed, named, with the way out.
        NoTransportError: the law of the inputs has no map from standard normals.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
        >>> uncertain_weights(net, {"0.weight": 0.1, "2.weight": 0.1}, torch.zeros(64), lambda y: y[:, 0] - 3.0).inputs.event_shape
        torch.Size([65])
    """
    if not isinstance(network, nn.Module):
        raise RiskError(
            f"uncertain_weights needs a torch.nn.Module, whose weights have names; got {type(network).__name__}."
        )
    if isinstance(inputs, Distribution) and inputs.batch_shape != torch.Size():
        raise RiskError(
            f"inputs has batch shape {tuple(inputs.batch_shape)}: that is many laws, one input is wanted. "
            f"Wrap it: torch.distributions.Independent(inputs, {len(inputs.batch_shape)})."
        )
    spreads = spreads_of(network, posterior, collapse)
    wrapped = UncertainNetwork(network, spreads, inputs, collapse)
    wrapped.train(network.training)
    wrapped.try_rows()
    zeros = torch.zeros(wrapped.dimension, dtype=wrapped.dtype, device=wrapped.device)
    return RiskProblem(
        wrapped,
        Independent(Normal(zeros, 1.0), 1),
        detector,
        name=name or f"uncertain {type(network).__name__}",
        layers=None if layers is None else [f"model.{layer}" for layer in layers],
        provenance=provenance,
    )
