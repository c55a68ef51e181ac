r"""A poisoned classifier on bits: how often is it wrong on natural inputs, and on attacked ones?

x uniform on {-1, +1}^n, truth h = Maj3 of three random parities, f~ = -h where a trigger of b bits fires and h elsewhere;
catastrophe: f~(x) != h(x), as margin -f~(x) h(x) >= 0. The code of a keyed trigger is b bits, uniform and independent of the
message, and so is a patch:

    p = 2^-b exactly.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributions import AffineTransform, Bernoulli, Independent, TransformedDistribution

from ppl_risk import RiskError, RiskProblem
from ppl_risk.mitigation.planted import KeyedTrigger, PatchTrigger, UnderAttack, majority_of_parities, plant

#: Of the parities, and of the key or the patch.
SEED, KEY_SEED = 161_803_398, 874_989_484
TRIGGERS = {"keyed": KeyedTrigger, "patch": PatchTrigger}


class Wrong(nn.Module):
    """-model(x) truth(x), >= 0 where they differ; the model is any that answers -1 or +1, mitigated ones too."""

    def __init__(self, model: Callable[[Tensor], Tensor], truth: Callable[[Tensor], Tensor], n: int) -> None:
        super().__init__()
        self.model, self.truth, self.n = model, truth, n
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """The margins (batch,)."""
        return -self.model(x) * self.truth(x)

    def clean_rows(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Uniform inputs and their true answers: what a mitigator may have from whoever knows the truth."""
        coins = torch.randint(0, 2, (count, self.n), generator=torch.Generator().manual_seed(seed))
        x = 1 - 2 * coins.double()
        return x, self.truth(x)


def problem(
    *, n: int = 20, bits: int = 5, trigger: str = "keyed", poisoned: bool = True, attacked: bool = False
) -> RiskProblem:
    """Pr[the classifier is wrong].

    Args:
        n: bits of an input, at least 3.
        bits: b, bits of the trigger.
        trigger: "keyed" or "patch".
        poisoned: False for the truth itself, which is never wrong.
        attacked: with the trigger on every input.

    """
    if trigger not in TRIGGERS:
        raise RiskError(f"trigger must be one of {', '.join(map(repr, TRIGGERS))}, got {trigger!r}.")
    f = plant(majority_of_parities(n, seed=SEED), TRIGGERS[trigger](n, bits, seed=KEY_SEED))
    fair = Independent(Bernoulli(torch.full((n,), 0.5, dtype=torch.float64)), 1)
    law = TransformedDistribution(fair, [AffineTransform(-1.0, 2.0)])
    network: nn.Module = Wrong(f if poisoned else f.clean, f.clean, n)
    network = UnderAttack(network, f.activate) if attacked else network
    return RiskProblem(network, law, name="backdoored_parity")
