"""What makes a problem that problem: a digest that tells whether a stored result belongs to it."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import nn

from ppl_risk.problem import RiskProblem
from ppl_risk.randomness import seeded


@torch.no_grad()
def fingerprint(problem: RiskProblem) -> str:
    """sha256 over weights, buffers, and the margins of 16 seeded inputs: changes when network, detector or law do.

    Args:
        problem: the problem; its meters count the 16 calls.

    Example:
        >>> law = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> near, far = (RiskProblem(lambda x, c=c: x[:, 0] - c, law) for c in (1.0, 2.0))
        >>> fingerprint(near) == fingerprint(near), fingerprint(near) == fingerprint(far)
        (True, False)
    """
    digest = hashlib.sha256(repr(tuple(problem.inputs.event_shape)).encode())
    for part in (problem.network, problem.detector):
        if isinstance(part, nn.Module):
            for name, tensor in part.state_dict().items():
                digest.update(name.encode() + tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    with seeded(0, problem.device):
        x = problem.sample(16)
    margins = problem.run(x).double().cpu().numpy()
    digest.update(np.array([f"{m:.4e}" for m in margins]).tobytes())
    return digest.hexdigest()
