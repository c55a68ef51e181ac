r"""The digit reader with uncertain weights: how often is a clean 3 read as an 8?

The network and the image are those of `../digits`; here the image is clean and every uncertain number of the network, weights
and biases alike, is w = trained + sigma u, u ~ N(0, I_d). Catastrophe: logit 8 is at least every other logit.

`layers` = "last": the last layer is uncertain, d = 10 (64 + 1) = 650. With h what it reads, the logits are then independent
N(m_k, s^2), m = W h + b, s^2 = sigma^2 (|h|^2 + 1), which leaves an integral in one dimension (`exact_log_prob`):

    p = int phi(z) prod_{k != 8} Phi((m_8 + s z - m_k) / s) dz.

`layers` = "all": all four layers are, d = 3 (64 64 + 64) + 650 = 13,130.

`collapsed`: the same law through `uncertain_weights`, which draws pre-activations instead of weights: d = 10 and 202.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from scipy.special import log_ndtr, logsumexp
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from ppl_risk import RiskError, RiskProblem, uncertain_weights

DIGITS = Path(__file__).resolve().parent.parent / "digits"
NAMES = ("fc1", "fc2", "fc3", "logits")
MISREADING = 8
#: Standard deviation of every uncertain number.
SIGMA = {"last": 0.24, "all": 0.1}


class UncertainReader(nn.Module):
    """The digit reader as a function of its disturbed weights: u (batch, d) -> logits (batch, 10).

    Row by row the weights of an uncertain layer are W + sigma E; E h is one batched product, W h is shared. The numbers in u
    are ordered by layer, and within a layer first E, row by row, then the disturbance of the biases.
    """

    def __init__(self, sigma: float, uncertain: int) -> None:
        super().__init__()
        self.sigma, self.certain = sigma, len(NAMES) - uncertain
        trained = load_file(DIGITS / "final.safetensors")
        for name in NAMES:
            # Buffers, not Linear modules: a Linear of fixed weights is not what is computed.
            self.register_buffer(f"{name}_weight", trained[f"{name}.weight"])
            self.register_buffer(f"{name}_bias", trained[f"{name}.bias"])
        hidden = load_file(DIGITS / "inputs.safetensors")["image"]
        for place in range(self.certain):
            weight, bias = self.affine(place)
            hidden = (weight @ hidden + bias).relu()
        self.register_buffer("reads", hidden)
        shapes = [self.affine(place)[0].shape for place in range(self.certain, len(NAMES))]
        self.dimension = sum(rows * (columns + 1) for rows, columns in shapes)

    def affine(self, place: int) -> tuple[Tensor, Tensor]:
        """Trained weight and bias of a layer."""
        return self.get_buffer(f"{NAMES[place]}_weight"), self.get_buffer(f"{NAMES[place]}_bias")

    def forward(self, u: Tensor) -> Tensor:
        """Logits of the image under the disturbances u."""
        hidden, start = self.get_buffer("reads").expand(u.shape[0], -1), 0
        for place in range(self.certain, len(NAMES)):
            weight, bias = self.affine(place)
            rows, columns = weight.shape
            change = u[:, start : start + rows * columns].unflatten(-1, (rows, columns))
            start += rows * columns
            shift = (change @ hidden.unsqueeze(-1)).squeeze(-1) + u[:, start : start + rows]
            start += rows
            hidden = torch.addmm(bias, hidden, weight.T) + self.sigma * shift
            if place + 1 < len(NAMES):
                hidden = hidden.relu()
        return hidden


def misread(logits: Tensor) -> Tensor:
    """Logit of the misreading minus the best other one."""
    others = torch.cat([logits[:, :MISREADING], logits[:, MISREADING + 1 :]], dim=1)
    return logits[:, MISREADING] - others.amax(dim=1)


def exact_log_prob(sigma: float) -> float:
    """Log p, nats, of "last" at any sigma: trapezoidal rule over z in double precision, 40,001 points."""
    reader = UncertainReader(sigma, 1)
    weight, bias = (part.double() for part in reader.affine(len(NAMES) - 1))
    hidden = reader.get_buffer("reads").double()
    mean, spread = (weight @ hidden + bias).numpy(), sigma * math.sqrt(float(hidden @ hidden) + 1)
    z, step = np.linspace(-10.0, 30.0, 40_001), 40.0 / 40_000
    others = np.delete(mean, MISREADING)[:, None]
    log_integrand = -(z**2) / 2 + log_ndtr((mean[MISREADING] + spread * z - others) / spread).sum(0)
    return float(logsumexp(log_integrand)) + math.log(step) - math.log(2 * math.pi) / 2


def collapsed_problem(layers: str, sigma: float) -> RiskProblem:
    """The digit reader itself, its weights integrated out layer by layer."""
    trained = load_file(DIGITS / "final.safetensors")
    with torch.device("meta"):
        parts = OrderedDict[str, nn.Module]()
        for name in NAMES:
            rows, columns = trained[f"{name}.weight"].shape
            parts[name] = nn.Linear(columns, rows)
            if name != NAMES[-1]:
                parts[f"relu_{name}"] = nn.ReLU()
        network = nn.Sequential(parts)
    network.load_state_dict(trained, assign=True)
    uncertain = NAMES if layers == "all" else NAMES[-1:]
    posterior = {f"{name}.{part}": sigma for name in uncertain for part in ("weight", "bias")}
    image = load_file(DIGITS / "inputs.safetensors")["image"]
    return uncertain_weights(network.eval().requires_grad_(False), posterior, image, misread, name="digits_weights")


def problem(*, layers: str = "last", sigma: float = 0.0, collapsed: bool = False) -> RiskProblem:
    """Pr[the clean 3 is read as an 8] under uncertain weights.

    Args:
        layers: which are uncertain, "last" or "all".
        sigma: standard deviation of every uncertain number; 0 for the one that makes the answer about 1e-6 ("last") or
            1e-4 ("all").
        collapsed: draw pre-activations instead of weights, which is the same law in far fewer dimensions.

    """
    if layers not in SIGMA or sigma < 0:
        raise RiskError(
            f"Wanted layers one of {', '.join(map(repr, SIGMA))} and sigma >= 0, got {layers!r} and {sigma}."
        )
    if collapsed:
        return collapsed_problem(layers, sigma or SIGMA[layers])
    network = UncertainReader(sigma or SIGMA[layers], 1 if layers == "last" else len(NAMES)).eval()
    law = Independent(Normal(torch.zeros(network.dimension), 1.0), 1)
    return RiskProblem(network, law, misread, name="digits_weights")
