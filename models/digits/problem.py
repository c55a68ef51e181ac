"""A digit reader and a noisy sensor: how often is this clean 3 read as an 8?

x = image + sigma u, u ~ N(0, I_64); catastrophe: logit 8 is at least every other logit.
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
DIGIT, MISREADING = 3, 8
#: Standard deviation of the noise, in units of full scale, by how rare the misreading then is.
SIGMA = {"1e-4": 0.12, "1e-7": 0.087}


def digit_reader(width: int = 64) -> nn.Sequential:
    """The network, freshly initialised: 64 pixels, three hidden layers (64 units in the model itself), 10 logits."""
    return nn.Sequential(
        OrderedDict(
            fc1=nn.Linear(64, width), relu1=nn.ReLU(),
            fc2=nn.Linear(width, width), relu2=nn.ReLU(),
            fc3=nn.Linear(width, width), relu3=nn.ReLU(),
            logits=nn.Linear(width, 10),
        )
    )  # fmt: skip


def misread(logits: Tensor) -> Tensor:
    """Logit of the misreading minus the best other one."""
    others = torch.cat([logits[:, :MISREADING], logits[:, MISREADING + 1 :]], dim=1)
    return logits[:, MISREADING] - others.amax(dim=1)


def problem(*, rarity: str = "1e-4") -> RiskProblem:
    """Pr[the 3 is read as an 8] under sensor noise.

    Args:
        rarity: about how rare, "1e-4" or "1e-7"; it sets the strength of the noise.

    """
    if rarity not in SIGMA:
        raise RiskError(f"rarity must be one of {', '.join(map(repr, SIGMA))} (a string), got {rarity!r}.")
    with torch.device("meta"):  # no weights are drawn, so the caller's random state stays as it was
        network = digit_reader()
    network.load_state_dict(load_file(HERE / "final.safetensors"), assign=True)
    image = load_file(HERE / "inputs.safetensors")["image"]
    law = Independent(Normal(image, SIGMA[rarity]), 1)
    trained = Provenance.read(initial=HERE / "initial.safetensors", record=HERE / "training.json")
    return RiskProblem(network.eval().requires_grad_(False), law, misread, name="digits", provenance=trained)
