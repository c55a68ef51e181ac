r"""The canonical output as a Pyro model: mitigation is a draw from a law over functions.

A mitigator M with its coins is a random function g = M(f, samples; coins). Its promise is about that law: with the canonical law G,
which depends on the population only,

    TV(law of M(f), G) = 1/2 sum over g of |Pr[M(f) = g] - G(g)| <= failure probability, for every admissible f,

so that two models, however differently poisoned, give nearly the same law and nobody can steer g. Here the coins are a latent of
a Pyro model, 62 fair tosses read as a seed, and the function is its return: whatever works on Pyro models (Predictive, condition,
replay) works on mitigated models. `ppl_risk.mitigation.total_variation` tests the promise.

The canonical distribution and its security are the paper's definitions (arXiv 2411.03279); the Pyro view is ours.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor

from ppl_risk.errors import RiskError
from ppl_risk.mitigation.mitigated import BlackBox, Mitigated

#: Tosses of a fair coin that make one seed.
COINS = 62


@runtime_checkable
class Mitigator(Protocol):
    """Whatever turns a poisoned model into a mitigated one, reproducibly from a seed."""

    def mitigate(self, model: BlackBox, samples: Any = None, *, seed: int = 0) -> Mitigated:
        """The mitigated model."""
        ...


def seed_of(coins: Float[Tensor, " coins"]) -> int:
    """The number whose binary digits the coins are, lowest first.

    Example:
        >>> seed_of(torch.tensor([1.0, 0.0, 1.0]))
        5

    """
    return sum(1 << k for k, side in enumerate(coins.tolist()) if side)


class CanonicalOutput:
    """A Pyro model `(x=None) -> Mitigated` whose return is a draw of the mitigated function.

    Sites: the latent "coins", (62,) fair tosses; and, given inputs x, the deterministic "values", g(x).

    Args:
        mitigator: an object with `mitigate(model, samples, seed=...)`.
        model: the poisoned model.
        samples: clean rows, where the mitigator wants them; they are data, not drawn anew.

    Raises:
        RiskError: for an object that does not mitigate; inside a plate, which would toss many coins at once.

    Example:
        >>> class Clip:
        ...     def mitigate(self, model, samples=None, *, seed=0):
        ...         return resample(model, lambda x, generator: x.clamp(-1, 1), times=1, seed=seed)
        >>> from ppl_risk.mitigation.control import resample
        >>> out = CanonicalOutput(Clip(), lambda x: x.sum(-1))
        >>> draws = pyro.infer.Predictive(out, num_samples=3)(torch.full((1, 2), 9.0))
        >>> draws["values"].flatten().tolist(), draws["coins"].shape
        ([2.0, 2.0, 2.0], torch.Size([3, 62]))

    """

    def __init__(self, mitigator: Mitigator, model: BlackBox, samples: Any = None) -> None:
        if not callable(getattr(mitigator, "mitigate", None)):
            raise RiskError(
                f"A mitigator has a method mitigate(model, samples, seed=...), and {type(mitigator).__name__} has none."
            )
        self.mitigator, self.model, self.samples = mitigator, model, samples

    def __call__(self, x: Float[Tensor, "batch n"] | None = None) -> Mitigated:
        """One draw; runs under any of Pyro's handlers."""
        fair = dist.Bernoulli(probs=torch.full((COINS,), 0.5)).to_event(1)
        coins = pyro.sample("coins", fair)
        if coins.shape != (COINS,):
            raise RiskError(
                f"One run of the mitigator takes {COINS} coins, got {tuple(coins.shape)}: draw one function at a time, with "
                "parallel=False and outside plates."
            )
        g = self.mitigator.mitigate(self.model, self.samples, seed=seed_of(coins))
        if x is not None:
            pyro.deterministic("values", g(x), event_dim=1)
        return g


def mitigation_model(mitigator: Mitigator, model: BlackBox, samples: Any = None) -> CanonicalOutput:
    """Mitigation as a Pyro model: see `CanonicalOutput`.

    Example:
        >>> from ppl_risk.mitigation.global_fourier import GlobalFourier
        >>> x = 1 - 2 * torch.randint(0, 2, (100, 6), generator=torch.Generator().manual_seed(0)).double()
        >>> model = mitigation_model(GlobalFourier(tau=1.0), lambda x: x[:, 0] * x[:, 3], (x, x[:, 0] * x[:, 3]))
        >>> with pyro.poutine.seed(rng_seed=0):
        ...     print(model().answer)
        FourierSeries(+1.000 chi[0, 3])

    """
    return CanonicalOutput(mitigator, model, samples)
