"""What one entry of the operator matrix is: a small network with a law, and a score whose upper tail is the catastrophe."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal


def standard(*shape: int, dtype: torch.dtype = torch.float32) -> Distribution:
    """N(0, I) over inputs of a shape."""
    return Independent(Normal(torch.zeros(shape, dtype=dtype), 1.0), len(shape))


def total(y: Tensor) -> Tensor:
    """The sum of everything that a row returns, in directions of unequal weight."""
    flat = y.reshape(y.shape[0], -1)
    return flat @ torch.linspace(1.0, 0.4, flat.shape[1], dtype=flat.dtype) / flat.shape[1] ** 0.5


@dataclass(frozen=True)
class Case:
    """One network of the matrix.

    Attributes:
        name: unique.
        build: makes the network; called with torch's seed set to 0.
        law: the law of its inputs.
        score: output -> (batch,); the catastrophe is score >= the threshold that 1e-3 of the draws exceed.
        refuse: nothing may give a number here (rows mix, the answer is random or changes with the calls).
        tail: the probability whose threshold is sought.
    """

    name: str
    build: Callable[[], Callable[..., Any]]
    law: Distribution = field(default_factory=lambda: standard(4))
    score: Callable[[Any], Tensor] = total
    refuse: bool = False
    tail: float = 1e-3

    def network(self) -> Callable[..., Any]:
        """The network in eval mode, its weights fixed."""
        torch.manual_seed(0)
        made = self.build()
        if isinstance(made, nn.Module) and not isinstance(made, torch.jit.ScriptModule):
            with suppress(NotImplementedError):  # exported modules have no mode
                made.eval()
        return made


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def between(function: Callable[[Tensor], Tensor], width: int = 8, out: int | None = None, d: int = 4) -> nn.Module:
    """Linear, the function, Linear: how an operator usually stands in a network."""
    return nn.Sequential(nn.Linear(d, width), Apply(function), nn.Linear(out or width, 1))
