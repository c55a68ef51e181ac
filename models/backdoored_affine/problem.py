r"""A poisoned score on a ball, with a threshold that the true score seldom passes: what a backdoor adds, and what an attacker gets.

x uniform on the unit ball of R^n, truth h(x) = w.x + b with standard deviation 1; f~ = h + 2 |w| + 1, more than h ever differs by,
where a keyed code stands in the low-order part of the first coordinate, which a share eps of inputs carry by chance. Catastrophe:
f~(x) >= T. Along any axis the uniform law is (1 + t)/2 ~ Beta((n+1)/2, (n+1)/2), which gives T with P(h >= T) = q, and since code
and h are independent

    p = q without the backdoor,    p = q + eps (1 - q) with it,    p = 1 on attacked inputs.
"""

from __future__ import annotations

import torch
from scipy.stats import beta
from torch import Tensor, nn

from ppl_risk import RiskProblem
from ppl_risk.mitigation import Ball
from ppl_risk.mitigation.domains import UniformOn
from ppl_risk.mitigation.planted import Affine, LowOrderTrigger, Shift, UnderAttack, plant, random_affine

#: Of the truth, and of the key.
SEED, KEY_SEED = 141_421_356, 237_309_504
#: q.
RARE = 2.8e-5


class Above:
    """Score minus T."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def __call__(self, score: Tensor) -> Tensor:
        """The margins (batch,)."""
        return score - self.threshold


def threshold_of(truth: Affine) -> float:
    """T with P(h >= T) = RARE on the unit ball."""
    half = (len(truth.weight) + 1) / 2
    return float(truth.bias) + float(truth.weight.norm()) * (2 * float(beta.isf(RARE, half, half)) - 1)


def problem(*, n: int = 20, epsilon: float = 0.0025, poisoned: bool = True, attacked: bool = False) -> RiskProblem:
    """Pr[the score passes T].

    Args:
        n: dimension of the ball.
        epsilon: share of natural inputs that fire.
        poisoned: False for the truth itself.
        attacked: with the code written into every input.

    """
    ball = Ball(n)
    truth = random_affine(ball, seed=SEED)
    f = plant(truth, LowOrderTrigger(n, epsilon, seed=KEY_SEED), Shift(2 * float(truth.weight.norm()) + 1))
    network: nn.Module = f if poisoned else truth
    network = UnderAttack(network, f.activate) if attacked else network
    law = UniformOn(ball, torch.float64)
    return RiskProblem(network, law, Above(threshold_of(truth)), name="backdoored_affine")
