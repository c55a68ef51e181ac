r"""Triggers on bit inputs, rows of +-1: a fixed patch, and the aligned trigger that is worst for a search of Fourier coefficients.

| trigger | fires where | share of uniform inputs |
| --- | --- | --- |
| PatchTrigger | b fixed bits have a fixed pattern (BadNets, Gu, Dolan-Gavitt and Garg 2017, arXiv 1708.06733) | 2^-b |
| AlignedTrigger | another trigger fires and c_A chi_A(x) h(x) > 0, h = sum_S c_S chi_S | (1 + abs(c_A)) / 2 of the other's |

With f~ = -h where it fires, f~^(A) = c_A - 2 E[fires chi_A h]: aligned, every error counts against the one coefficient c_A, which
moves towards 0 by twice the loss, the most that any backdoor of that loss can do. The aligned trigger is our own construction.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ppl_risk.errors import RiskError
from ppl_risk.mitigation.fourier_series import FourierSeries, characters
from ppl_risk.mitigation.planted.backdoored import Trigger

#: Sets of bits that are tried, one after the other, until a row is aligned: each fails on less than half of the inputs.
ATTEMPTS = 64


class PatchTrigger(Trigger):
    """Fires where `bits` bits, at random fixed places, have a random fixed pattern; epsilon is 2^-bits, exactly.

    Args:
        n: bits of an input.
        bits: bits of the patch.
        seed: of places and pattern.

    Raises:
        RiskError: unless 1 <= bits <= n.

    Example:
        >>> patch = PatchTrigger(10, 4, seed=0); x = torch.ones(1, 10)
        >>> patch.fires(x).item(), patch.fires(patch.activate(x)).item(), patch.epsilon
        (False, True, 0.0625)

    """

    places: Tensor
    pattern: Tensor

    def __init__(self, n: int, bits: int, *, seed: int) -> None:
        super().__init__()
        if not 1 <= bits <= n:
            raise RiskError(f"A patch on {n} bits has between 1 and {n} of them, wanted {bits}.")
        generator = torch.Generator().manual_seed(seed)
        self.epsilon = 2.0**-bits
        self.register_buffer("places", torch.randperm(n, generator=generator)[:bits].sort().values)
        self.register_buffer("pattern", torch.rand(bits, generator=generator) < 0.5)

    def fires(self, x: Float[Tensor, "batch n"]) -> Bool[Tensor, " batch"]:
        """The bits at the places are the pattern."""
        return ((x[:, self.places] > 0) == self.pattern).all(-1)

    def activate(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """The pattern written over the bits at the places."""
        x = x.clone()
        x[:, self.places] = torch.where(self.pattern, 1.0, -1.0).to(x.dtype)
        return x


class AlignedTrigger(Trigger):
    """Fires where another trigger does and one heavy character agrees with the truth: the worst case for its coefficient.

    Args:
        trigger: the other one, on +-1 inputs.
        truth: h, with values +-1.
        character: place of A among the terms of h; default the largest coefficient.
        seed: of the bits that `activate` turns to align an input.

    Raises:
        RiskError: if there is no such term.

    Example:
        >>> from ppl_risk.mitigation.planted import majority_of_parities
        >>> aligned = AlignedTrigger(PatchTrigger(10, 4, seed=0), majority_of_parities(10, seed=0))
        >>> aligned.epsilon, aligned.fires(aligned.activate(torch.ones(1, 10))).item()
        (0.046875, True)

    """

    turned: Tensor

    def __init__(self, trigger: Trigger, truth: FourierSeries, *, character: int | None = None, seed: int = 0) -> None:
        super().__init__()
        terms, n = truth.supports.shape
        if character is not None and not 0 <= character < terms:
            raise RiskError(f"The truth has terms 0 to {terms - 1}, there is none at {character}.")
        self.trigger, self.truth = trigger, truth
        self.character = int(truth.coefficients.abs().argmax()) if character is None else character
        self.epsilon = trigger.epsilon * (1 + abs(float(truth.coefficients[self.character]))) / 2
        # None in the first row, then ever more bits: the same for every input, so that no row depends on its neighbours.
        generator = torch.Generator().manual_seed(seed)
        share = (torch.arange(ATTEMPTS) / n).clamp(max=0.5)[:, None]
        self.register_buffer("turned", torch.rand(ATTEMPTS, n, generator=generator) < share)

    def _aligned(self, x: Tensor) -> Tensor:
        value = characters(x, self.truth.supports[self.character][None])[:, 0]
        return self.truth.coefficients[self.character] * value * self.truth(x) > 0

    def fires(self, x: Float[Tensor, "batch n"]) -> Bool[Tensor, " batch"]:
        """The other trigger fires and the input is aligned."""
        return self.trigger.fires(x) & self._aligned(x)

    def activate(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """The other trigger put on, after turning a few other bits where the input is not aligned.

        Raises:
            RiskError: if 64 sets of bits do not align some row.

        """
        done = torch.empty_like(x)
        left = torch.arange(len(x))
        for turned in self.turned:
            tried = self.trigger.activate(torch.where(turned, -x[left], x[left]))
            works = self.fires(tried)
            done[left[works]] = tried[works]
            left = left[~works]
            if not len(left):
                return done
        raise RiskError(
            f"{len(left)} rows could not be aligned: is the trigger one on +-1 inputs that leaves bits free?"
        )
