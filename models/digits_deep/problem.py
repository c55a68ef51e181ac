"""A deep digit reader: how often is it far too sure that it sees an 8?

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
DEPTHS, RARITIES = (8, 32), ("1e-2", "1e-4", "1e-6")
READ_AS = 8


def digit_reader(depth: int) -> nn.Sequential:
    """The network, freshly initialised: `depth` affine layers, all 64 wide but the last, which gives 10 logits."""
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    for layer in range(1, depth):
        modules[f"fc{layer}"], modules[f"relu{layer}"] = nn.Linear(64, 64), nn.ReLU()
    modules["logits"] = nn.Linear(64, 10)
    return nn.Sequential(modules)


def at(threshold: float, depth: int) -> RiskProblem:
    """Pr[the network prefers 8 by `threshold` or more]."""

    def too_sure(logits: Tensor) -> Tensor:
        others = torch.cat([logits[:, :READ_AS], logits[:, READ_AS + 1 :]], dim=1)
        return logits[:, READ_AS] - others.amax(dim=1) - threshold

    files = HERE / str(depth)
    with torch.device("meta"):  # no weights are drawn, so the caller's random state stays as it was
        network = digit_reader(depth)
    network.load_state_dict(load_file(files / "final.safetensors"), assign=True)
    images = load_file(files / "inputs.safetensors")
    law = MultivariateNormal(images["mean"], scale_tril=images["scale_tril"])
    trained = Provenance.read(initial=files / "initial.safetensors", record=files / "training.json")
    network.eval().requires_grad_(False)
    return RiskProblem(network, law, too_sure, name="digits_deep", provenance=trained)


def problem(*, depth: int = 8, rarity: str = "1e-4") -> RiskProblem:
    """Pr[the network is far too sure of an 8].

    Args:
        depth: affine layers, 8 or 32.
        rarity: about how rare, "1e-2", "1e-4" or "1e-6"; it sets the margin that counts as far too sure.

    """
    if depth not in DEPTHS:
        raise RiskError(f"depth must be one of {', '.join(map(str, DEPTHS))}, got {depth!r}.")
    if rarity not in RARITIES:
        raise RiskError(f"rarity must be one of {', '.join(map(repr, RARITIES))} (a string), got {rarity!r}.")
    return at(json.loads((HERE / str(depth) / "thresholds.json").read_text())[rarity], depth)
