r"""The law of features that makes the catastrophe most likely within a budget of KL divergence from where it starts.

Ascent of log Pr[catastrophe] over rates and scales (shifts eta_j, omega of the normals behind the features) and directions
(V + R G), measured so that KL is about |parameters|^2 / 2. On a sphere the best point is parallel to its gradient, so each step
goes there or part of the way, from the best so far. What comes out is Pr under another law than P: what to look for, not a risk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ppl_risk.propagation.feature_joint import Carrier, Nodes, log_event, log_event_near, moved, point_of
from ppl_risk.propagation.features import FeatureLaw

#: Steps, nodes of the common factor and their range.
STEPS, NODES, RANGE = 6, 17, 6.5


@dataclass(frozen=True)
class Adversary:
    """The law found, its KL divergence from the start in nats (of features and inputs together) and log p after every step."""

    law: FeatureLaw
    kl: float
    path: list[float]


def worst_law(carrier: Carrier, budget: float, *, directions: bool = True, progress: bool = True) -> Adversary:
    """Maximise the propagated log Pr[catastrophe] subject to KL(moved || start) <= budget; it never ends below its start.

    Args:
        carrier: start, event and rank. budget: nats. directions: whether directions move too, within what the residual spans.
    """
    start = carrier.law
    features, rows = len(start.shift), start.residual.shape[1] if directions else 0
    size = start.second_moments()[1].diagonal().clamp_min(1e-18).sqrt()
    place = torch.zeros(features + 1 + rows * features, dtype=torch.float64, device=start.bias.device)

    def parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        factor = x[features] if start.coactive else 0 * x[features]
        turn = x[features + 1 :].reshape(rows, features) / size
        if not directions:
            turn = turn.new_zeros(start.residual.shape[1], features)
        return x[:features], factor, turn

    def law_at(x: Tensor) -> tuple[FeatureLaw, Tensor]:
        shift, factor, turn = parts(x)
        law = moved(start, shift, factor, turn)
        return law, law.kl(turn)

    nodes = Nodes(_grid(start), start.coactive)
    weight = -0.5 * nodes.at[:, 0].square() if start.coactive else nodes.at.new_zeros(1)
    weight = torch.log_softmax(weight, 0)
    best, best_value, sphere, path, tilt = place, -math.inf, place, [], None
    fraction = 1.0
    with tqdm(total=STEPS + 1, disable=not progress, desc="adversary", unit="step") as bar:
        for _ in range(STEPS + 1):
            here = Carrier(law_at(place)[0], carrier.event, carrier.rank)
            sums, settled = here.settled(nodes, tilt, rounds=5 if tilt is None else 2)
            value = float(torch.logsumexp(weight + log_event(here.event, here.quantiles, sums), 0))
            path.append(value)
            bar.update()
            if value > best_value:
                best, best_value, tilt = place, value, settled
                fraction = 0.5 if len(path) > 1 else 1.0
                theta = point_of(here.event, here.quantiles, sums)
                with torch.enable_grad():
                    x = place.clone().requires_grad_()
                    moving = Carrier(law_at(x)[0], carrier.event, carrier.rank)
                    total = torch.logsumexp(weight + log_event_near(moving, nodes, settled, theta), 0)
                    gradient = torch.nan_to_num(torch.autograd.grad(total, x)[0])
                if not bool(gradient.any()):
                    break
                sphere = _within(gradient / gradient.norm(), budget, lambda y: float(law_at(y)[1]))
            else:
                fraction = fraction / 2
            place = best + fraction * (sphere - best)
            if float(law_at(place)[1]) > budget:
                place = _within(place, budget, lambda y: float(law_at(y)[1]))
    law, kl = law_at(best)
    return Adversary(law, float(kl), path)


def _grid(law: FeatureLaw) -> Tensor:
    if not law.coactive:
        return law.bias.new_zeros(1, 0)
    return torch.linspace(-RANGE, RANGE, NODES, dtype=torch.float64, device=law.bias.device)[:, None]


def _within(x: Tensor, budget: float, kl: Callable[[Tensor], float]) -> Tensor:
    """x scaled so that its divergence is the budget, or all but."""
    low, high = 0.0, 1.0
    while kl(high * x) < budget and high < 64:
        low, high = high, 2 * high
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if kl(middle * x) <= budget else (low, middle)
    return low * x
