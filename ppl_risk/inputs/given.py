"""What a user gives as `inputs`, as one law: a law itself, or several that the network takes as several arguments.

A dict of laws is a `Product` whose parts reach the network by name, network(**parts); a tuple or list of laws one whose parts
reach it in order, network(*parts). Data are no law: without noise nothing beyond them could be seen.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.utils.data import DataLoader, Dataset

from ppl_risk.errors import RiskError
from ppl_risk.inputs.product import Product

FOR_EXAMPLE = "For example: torch.distributions.Independent(torch.distributions.Normal(torch.zeros(64), 1.0), 1)."
DATA = (
    "a law is wanted, because data alone show nothing beyond themselves. To draw a recorded input at random and add noise: "
    "ppl_risk.inputs.EmpiricalWithNoise(data, noise), data a tensor (points, *event), noise in the units of the data."
)


def law_of(inputs: object) -> Distribution:
    """The law that a user means, batch_shape ().

    Raises:
        RiskError: data, a class, a batch of laws, or anything else that is no law; the message says what to write.

    Example:
        >>> law_of({"x": torch.distributions.Normal(0.0, 1.0), "n": torch.distributions.Poisson(3.0)})
        Product(x: Normal, n: Poisson)
    """
    if isinstance(inputs, Mapping | tuple | list) and inputs:
        parts = list(inputs.values()) if isinstance(inputs, Mapping) else list(inputs)
        if any(isinstance(part, Distribution) for part in parts):
            _require_laws(inputs)
            return Product(inputs, apart=True)
    if isinstance(inputs, Mapping):
        raise RiskError(
            "inputs is a dict without a law in it. Give the law of each argument of the network by name, "
            "{'state': law, 'goal': law}: the network is called network(state=..., goal=...). ppl_risk.inputs.Product with "
            "the same dict is one flat vector instead. For recorded data see ppl_risk.inputs.EmpiricalWithNoise."
        )
    if isinstance(inputs, Tensor | np.ndarray | list | tuple | DataLoader | Dataset):
        raise RiskError(f"inputs is data ({type(inputs).__name__}); {DATA}")
    if isinstance(inputs, type):
        raise RiskError(f"inputs is the class {inputs.__name__}; a law is wanted, with its parameters. {FOR_EXAMPLE}")
    if not isinstance(inputs, Distribution):
        raise RiskError(f"inputs must be a torch or Pyro distribution, got {type(inputs).__name__}. {FOR_EXAMPLE}")
    if inputs.batch_shape != torch.Size():
        raise RiskError(
            f"inputs has batch shape {tuple(inputs.batch_shape)}: that is many laws, one input is wanted. "
            f"Wrap it: torch.distributions.Independent(inputs, {len(inputs.batch_shape)})."
        )
    return inputs


def _require_laws(inputs: Mapping[Any, Any] | tuple[Any, ...] | list[Any]) -> None:
    for name, part in inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs):
        if isinstance(part, Tensor):
            raise RiskError(
                f"Part {name!r} of inputs is a tensor. If it is the same for every input, make it a law: "
                f"pyro.distributions.Delta(tensor).to_event({part.dim()}). If it is data, {DATA}"
            )
        if isinstance(inputs, Mapping) and not isinstance(name, str):
            raise RiskError(f"The parts of inputs reach the network by name, so names are texts; got {name!r}.")


def require_arguments(network: Callable[..., object], parts: Product) -> None:
    """Whether the network takes the parts, as far as its signature says.

    Raises:
        RiskError: it does not; the message shows both.
    """
    called = network.forward if isinstance(network, nn.Module) else network
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):
        return
    args, named = parts.arguments(torch.zeros(1, parts.event_shape[0]))
    try:
        signature.bind(*args, **named)
    except TypeError as error:
        taken = "by name: " + ", ".join(named) if named else f"in order, {len(args)} of them"
        raise RiskError(
            f"inputs has several parts, which reach the network {taken}; the network takes {signature}: {error}. Name the parts "
            "as the network names its arguments."
        ) from error
