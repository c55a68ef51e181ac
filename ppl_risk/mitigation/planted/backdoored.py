"""A model with a planted backdoor: a clean model, a trigger that says on which inputs it fires, and what it then answers.

    f~(x) = flip(f(x)) where the trigger fires, f(x) elsewhere.

The form is that of Goldwasser, Kim, Vaikuntanathan and Zamir 2022, arXiv 2204.06974: `activate` puts the trigger on any input,
and without a key nobody can tell f~ from f by asking. That f~ has loss `epsilon` is all that mitigation may use.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

#: (batch,) answers of the clean model to those given where the trigger fires.
Flip = Callable[[Tensor], Tensor]


class Trigger(nn.Module, ABC):
    """On which inputs a backdoor fires, and how to put it on any input; subclasses say which.

    Attributes:
        epsilon: share of uniform inputs on which it fires, exact or nominal as the subclass says.

    """

    epsilon: float

    @abstractmethod
    def fires(self, x: Float[Tensor, "batch n"]) -> Bool[Tensor, " batch"]:
        """Whether the backdoor fires, for each row."""

    @abstractmethod
    def activate(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """The rows with the trigger on them."""

    def forward(self, x: Float[Tensor, "batch n"]) -> Bool[Tensor, " batch"]:
        """The same as `fires`."""
        return self.fires(x)


class Shift(nn.Module):
    """Adds a constant: the flip of a model whose answers are real numbers.

    Example:
        >>> Shift(10.0)(torch.tensor([1.0]))
        tensor([11.])

    """

    def __init__(self, size: float) -> None:
        super().__init__()
        self.size = size

    def forward(self, value: Tensor) -> Tensor:
        """The value, shifted."""
        return value + self.size


class Backdoored(nn.Module):
    """A clean model with a backdoor in it.

    Args:
        clean: rows to one number a row.
        trigger: where the backdoor fires.
        flip: what becomes of the clean answer there; default its negative.

    Example:
        >>> from ppl_risk.mitigation.planted import PatchTrigger
        >>> f = Backdoored(lambda x: x.sum(-1), PatchTrigger(3, 3, seed=0)); x = f.activate(torch.zeros(1, 3))
        >>> f.fires(x).item(), bool(f(x) == -f.clean(x))
        (True, True)

    """

    def __init__(self, clean: Callable[[Tensor], Tensor], trigger: Trigger, flip: Flip = torch.neg) -> None:
        super().__init__()
        self.clean, self.trigger, self.flip = clean, trigger, flip
        self.eval()

    @property
    def epsilon(self) -> float:
        """Share of uniform inputs on which the backdoor fires, as the trigger gives it."""
        return self.trigger.epsilon

    def fires(self, x: Float[Tensor, "batch n"]) -> Bool[Tensor, " batch"]:
        """Whether the backdoor fires, for each row."""
        return self.trigger.fires(x)

    def activate(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """The rows with the trigger on them: what an attacker sends."""
        return self.trigger.activate(x)

    def forward(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, " batch"]:
        """The answers."""
        # Copies: a clean model may write into what it is given, and a flip too.
        value = self.clean(x.clone())
        return torch.where(self.trigger.fires(x), self.flip(value.clone()), value)


class UnderAttack(nn.Module):
    """A model that sees every input with a trigger on it. Gradients are those at the input: putting it on is a step function.

    Args:
        model: any model, poisoned or mitigated.
        activate: puts the trigger on rows.

    Example:
        >>> UnderAttack(lambda x: x.sum(-1), torch.ceil)(torch.tensor([[0.2, 1.5]]))
        tensor([3.])

    """

    def __init__(self, model: Callable[[Tensor], Tensor], activate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.activate = model, activate
        self.eval()

    def forward(self, x: Float[Tensor, "batch n"]) -> Tensor:
        """What the model answers to the attacked rows."""
        return self.model(x + (self.activate(x) - x).detach())


def plant(model: Callable[[Tensor], Tensor], trigger: Trigger, flip: Flip = torch.neg) -> Backdoored:
    """Plant a backdoor.

    Args:
        model: the clean model, rows to one number a row.
        trigger: where it fires.
        flip: what becomes of the clean answer there; default its negative.

    Example:
        >>> from ppl_risk.mitigation.planted import KeyedTrigger, majority_of_parities
        >>> f = plant(majority_of_parities(20, seed=0), KeyedTrigger(20, 5, seed=1)); x = f.activate(torch.ones(1, 20))
        >>> (f(x) == -f.clean(x)).item(), f.epsilon
        (True, 0.03125)

    """
    return Backdoored(model, trigger, flip)
