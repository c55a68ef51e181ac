"""A convolutional reader of colour images, 3 x 32 x 32: how often does sensor noise turn this clean 3 into an 8?

x = image + sigma u, u ~ N(0, I_3072); catastrophe: logit 8 is at least every other logit.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from ppl_risk import Provenance, RiskError, RiskProblem

HERE = Path(__file__).parent
SIDE, COLOURS = 32, 3
DIGIT, MISREADING = 3, 8
#: Standard deviation of the noise on every colour of every pixel, in units of full scale.
SIGMA = 0.33


def digit_reader() -> nn.Sequential:
    """The network, freshly initialised: two convolutions of stride 2, a layer of 32 units, 10 logits."""
    return nn.Sequential(
        OrderedDict(
            image=nn.Unflatten(1, (COLOURS, SIDE, SIDE)),
            conv1=nn.Conv2d(COLOURS, 8, 3, stride=2, padding=1), relu1=nn.ReLU(),
            conv2=nn.Conv2d(8, 16, 3, stride=2, padding=1), relu2=nn.ReLU(),
            flat=nn.Flatten(),
            fc=nn.Linear(1024, 32), relu3=nn.ReLU(),
            logits=nn.Linear(32, 10),
        )
    )  # fmt: skip


def misread(logits: Tensor) -> Tensor:
    """Logit of the misreading minus the best other one."""
    others = torch.cat([logits[:, :MISREADING], logits[:, MISREADING + 1 :]], dim=1)
    return logits[:, MISREADING] - others.amax(dim=1)


def problem(*, sigma: float = SIGMA) -> RiskProblem:
    """Pr[the 3 is read as an 8] under sensor noise.

    Args:
        sigma: standard deviation of the noise, in units of full scale.

    """
    if not sigma > 0:
        raise RiskError(f"sigma must be above 0, got {sigma}.")
    with torch.device("meta"):  # no weights are drawn, so the caller's random state stays as it was
        network = digit_reader()
    network.load_state_dict(load_file(HERE / "final.safetensors"), assign=True)
    law = Independent(Normal(load_file(HERE / "inputs.safetensors")["image"], sigma), 1)
    trained = Provenance.read(initial=HERE / "initial.safetensors", record=HERE / "training.json")
    return RiskProblem(network.eval().requires_grad_(False), law, misread, name="conv_images", provenance=trained)
