"""The poisoned model inside a risk problem, and the same problem with another model in its place.

A network that holds another in an attribute `model` is a wrapper of it (an attack on every input, a comparison with the truth), and
what is mitigated is the innermost; any other network is itself the model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ppl_risk.errors import RiskError
from ppl_risk.mitigation.mitigated import BlackBox
from ppl_risk.mitigation.wanted import function
from ppl_risk.problem import RiskProblem


def model_of(problem: RiskProblem) -> Callable[..., Tensor]:
    """What is asked: the innermost `model` of the network, or the network.

    Example:
        >>> import torch
        >>> law = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> model_of(RiskProblem(torch.sum, law)) is torch.sum
        True

    """
    network = _problem(problem).network
    while hasattr(network, "model"):
        network = network.model  # pyright: ignore[reportFunctionMemberAccess]
    return network  # pyright: ignore[reportReturnType]


def with_model(problem: RiskProblem, model: BlackBox) -> RiskProblem:
    """The same problem, law, wrapper and detector, asked of another model.

    Example:
        >>> import torch
        >>> law = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> with_model(RiskProblem(lambda x: x[:, 0], law), lambda x: x[:, 1] + 7).margin(torch.zeros(1, 2)).item()
        7.0

    """
    function("model", model, "rows to one number a row")
    network = _replaced(_problem(problem).network, model)
    return RiskProblem(network, problem.inputs, problem.detector, name=f"{problem.name}, mitigated")


def _problem(problem: Any) -> RiskProblem:
    if not isinstance(problem, RiskProblem):
        raise RiskError(f"Wanted a RiskProblem, got {type(problem).__name__}.")
    return problem


def _replaced(network: Any, model: BlackBox) -> Any:
    if not hasattr(network, "model"):
        return model
    inner, network = network.model, copy.copy(network)
    if isinstance(network, nn.Module):
        # A shallow copy shares its table of modules with the original.
        network._modules = {name: m for name, m in network._modules.items() if name != "model"}
    network.model = _replaced(inner, model)
    return network
