"""A convolutional digit reader: how often is it far too sure that it sees an 8?

x ~ N(m, S), mean and covariance of held-back images; catastrophe: logit 8 minus the best other logit is at least t.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from ppl_risk import Provenance, RiskError, RiskProblem

HERE = Path(__file__).parent
RARITIES = ("1e-2", "1e-4", "1e-6")
READ_AS = 8


def digit_reader() -> nn.Sequential:
    """The network, freshly initialised: two convolutions, a layer of 64 units, 10 logits."""
    return nn.Sequential(
        OrderedDict(
            image=nn.Unflatten(1, (1, 8, 8)),
            conv1=nn.Conv2d(1, 8, 3, padding=1), relu1=nn.ReLU(),
            conv2=nn.Conv2d(8, 16, 3, stride=2, padding=1), relu2=nn.ReLU(),
            flat=nn.Flatten(),
            fc=nn.Linear(256, 64), relu3=nn.ReLU(),
            logits=nn.Linear(64, 10),
        )
    )  # fmt: skip


def at(threshold: float) -> RiskProblem:
    """Pr[the network prefers 8 by `threshold` or more]."""

    def too_sure(logits: Tensor) -> Tensor:
        others = torch.cat([logits[:, :READ_AS], logits[:, READ_AS + 1 :]], dim=1)
        return logits[:, READ_AS] - others.amax(dim=1) - threshold

    with torch.device("meta"):  # no weights are drawn, so the caller's random state stays as it was
        network = digit_reader()
    network.load_state_dict(load_file(HERE / "final.safetensors"), assign=True)
    images = load_file(HERE / "inputs.safetensors")
    law = MultivariateNormal(images["mean"], scale_tril=images["scale_tril"])
    trained = Provenance.read(initial=HERE / "initial.safetensors", record=HERE / "training.json")
    network.eval().requires_grad_(False)
    return RiskProblem(network, law, too_sure, name="digits_conv", provenance=trained)


def problem(*, rarity: str = "1e-4") -> RiskProblem:
    """Pr[the network is far too sure of an 8].

    Args:
        rarity: about how rare, "1e-2", "1e-4" or "1e-6"; it sets the margin that counts as far too sure.

    """
    if rarity not in RARITIES:
        raise RiskError(f"rarity must be one of {', '.join(map(repr, RARITIES))} (a string), got {rarity!r}.")
    return at(json.loads((HERE / "thresholds.json").read_text())[rarity])
