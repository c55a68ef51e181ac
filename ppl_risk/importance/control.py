r"""The mean of importance weights from a mixture, with the mixture's own components as control variates.

Each q_k / q has mean 1 under the mixture q, exactly; regressing the weights on them makes a defensive component nearly free: the
estimate is at least as good as the best component alone would give with its share of the draws (Owen and Zhou 2000,
doi:10.1080/01621459.2000.10473909). The draws are stratified by component, and so is the error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

#: Fewer independent parts say too little of their spread.
FEWEST_REPLICATES = 5


class Mean(NamedTuple):
    """log of the mean weight, and the standard error of that log, nats."""

    log_prob: float
    std_error: float


def controlled_mean(
    log_weight: Float[Tensor, " draws"], log_ratio: Float[Tensor, "draws components"], stratum: Int[Tensor, " draws"],
    replicates: Sequence[int] | None = None,
) -> Mean:  # fmt: skip
    """Mean of the weights, less what the components explain of it.

    Args:
        log_weight: log of phi 1{hit} / q. log_ratio: log of q_k / q. stratum: the component that gave each draw.
        replicates: sizes of independent parts that the draws came in; where their means spread more than the draws say, that is
            the error: with heavy weights either figure may be low.

    Example:
        >>> flat = controlled_mean(torch.full((9,), -3.0), torch.zeros(9, 1), torch.zeros(9, dtype=torch.long))
        >>> round(flat.log_prob, 6)
        -3.0
    """
    peak = float(log_weight.max())
    if not math.isfinite(peak):
        return Mean(-math.inf, math.nan)
    weight = (log_weight.double() - peak).exp()
    controls = log_ratio.double().exp() - 1
    design = torch.cat([torch.ones_like(controls[:, :1]), controls], -1)
    design = design / design.square().mean(0).sqrt().clamp(min=1e-12)
    # The mixture itself is 1, so one component is redundant: the smallest solution is taken.
    slope = torch.linalg.lstsq(design.cpu(), weight.cpu()[:, None], driver="gelsd", rcond=1e-8).solution.to(weight)
    rest = weight - (design[:, 1:] @ slope[1:])[:, 0]
    if not float(rest.mean()) > 0:
        rest = weight
    mean = float(rest.mean())
    error = _stratified_error(rest, stratum)
    if replicates is not None and len(replicates) >= FEWEST_REPLICATES:
        error = max(error, _replicate_error(rest, replicates))
    return Mean(peak + math.log(mean), error / mean)


def _replicate_error(value: Tensor, sizes: Sequence[int]) -> float:
    """Standard error of the mean from the means of independent parts."""
    means = torch.stack([part.mean() for part in value.split(list(sizes))])
    share = torch.tensor(sizes, dtype=value.dtype, device=value.device) / len(value)
    return math.sqrt(len(sizes) / (len(sizes) - 1) * float((share * (means - value.mean())).square().sum()))


def _stratified_error(value: Tensor, stratum: Tensor) -> float:
    """Standard error of the mean of draws that were taken in fixed numbers from each stratum."""
    total = 0.0
    for k in stratum.unique().tolist():
        part = value[stratum == k]
        # A stratum of one draw says nothing of its own spread: it is measured against the mean of all.
        spread = part.var() if len(part) > 1 else (part[0] - value.mean()).square()
        total += len(part) * float(spread)
    return math.sqrt(total) / len(value)
