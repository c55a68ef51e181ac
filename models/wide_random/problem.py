"""A wide ReLU network that nobody trained: how often does its one output exceed t?

x ~ N(0, I_256); weights N(0, 2 / width) (He et al. 2015, doi:10.1109/ICCV.2015.123), biases 0; catastrophe: f(x) >= t.
"""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from ppl_risk import RiskError, RiskProblem

HERE = Path(__file__).parent
DEPTHS, RARITIES = (4, 8), ("1e-2", "1e-4", "1e-6")
WIDTH, SEED = 256, 0


def random_network(depth: int, seed: int = SEED) -> nn.Sequential:
    """`depth` affine layers, all 256 wide but the last, which gives one number."""
    stream = np.random.RandomState(seed)  # the one stream that NumPy has promised never to change
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    weights: dict[str, Tensor] = {}
    with torch.device("meta"):  # torch draws no weights, so the caller's random state stays as it was
        for layer in range(1, depth):
            modules[f"fc{layer}"], modules[f"relu{layer}"] = nn.Linear(WIDTH, WIDTH), nn.ReLU()
        modules["readout"] = nn.Linear(WIDTH, 1)
    for name, module in modules.items():
        if isinstance(module, nn.Linear):
            drawn = stream.standard_normal(tuple(module.weight.shape)) * math.sqrt(2 / WIDTH)
            weights[f"{name}.weight"] = torch.tensor(drawn, dtype=torch.float32)
            weights[f"{name}.bias"] = torch.zeros(len(drawn))
    network = nn.Sequential(modules)
    network.load_state_dict(weights, assign=True)
    return network


def at(threshold: float, depth: int) -> RiskProblem:
    """Pr[f(x) >= threshold]."""
    network = random_network(depth).eval().requires_grad_(False)
    law = Independent(Normal(torch.zeros(WIDTH), 1.0), 1)
    return RiskProblem(network, law, lambda y: y[:, 0] - threshold, name="wide_random")


def problem(*, depth: int = 4, rarity: str = "1e-4") -> RiskProblem:
    """Pr[the output is large].

    Args:
        depth: affine layers, 4 or 8, the read-out among them.
        rarity: about how rare, "1e-2", "1e-4" or "1e-6"; it sets the threshold.

    """
    if depth not in DEPTHS:
        raise RiskError(f"depth must be one of {', '.join(map(str, DEPTHS))}, got {depth!r}.")
    if rarity not in RARITIES:
        raise RiskError(f"rarity must be one of {', '.join(map(repr, RARITIES))} (a string), got {rarity!r}.")
    return at(json.loads((HERE / f"thresholds_{depth}.json").read_text())[rarity], depth)
