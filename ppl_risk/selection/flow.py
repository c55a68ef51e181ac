r"""What flows into a layer, and what the catastrophe reads of its output: one forward and one backward pass over draws.

For a layer a = W h + b: the mean and covariance C of h, and two second moments of the gradient delta = d margin / d a, over
all draws (D) and over the tenth with the largest margin (D_tail). A gradient of typical inputs alone is blind to what is read
only near the catastrophe; one of the tail alone to how inputs get there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ppl_risk.errors import RiskError
from ppl_risk.network import own
from ppl_risk.one_pass import differentiate, gather, refusal
from ppl_risk.problem import RiskProblem
from ppl_risk.selection.affine import is_affine

#: Share of the draws, those of largest margin, that stand for the neighbourhood of the catastrophe.
TAIL = 0.1
NOTHING = "There are no layers to select in: no affine layer is among the sites of the problem. Use ppl_risk.run_smc."


@dataclass(frozen=True)
class Flow:
    """One layer: the site it writes, its module, the shape of what it reads, and the moments above (float64)."""

    name: str
    module: nn.Module
    shape: torch.Size
    mean: Float[Tensor, " width"]
    covariance: Float[Tensor, "width width"]
    reading: Float[Tensor, "out out"]
    tail_reading: Float[Tensor, "out out"]


def flow_of(problem: RiskProblem, u: Float[Tensor, "draws d"], *, reading: bool = True) -> list[Flow]:
    """The flow through every affine layer at which the problem is cut, in the order they run.

    Args:
        problem: the problem. u: rows of standard normals. reading: whether to take gradients; without, D and D_tail are 0.

    Raises:
        RiskError: no affine layer among the sites, or a margin without a gradient.
    """
    skipped: dict[str, str] = {}

    def look(rows: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        reads: dict[str, Tensor] = {}
        seen: dict[str, Tensor] = {}

        def read(name: str, value: Tensor) -> Tensor:
            reads[name] = own(value.detach())
            return value

        def visit(name: str, value: Tensor) -> Tensor:
            seen[name] = value
            return own(value)  # the next layer may work in place, and the gradient is wanted before it does

        with torch.set_grad_enabled(reading):
            margin = problem.run(problem.from_normal(rows.detach().requires_grad_(reading)), visit, read, skipped)
        if skipped:
            raise refusal(skipped)
        if not seen:
            raise RiskError(NOTHING)
        deltas = _gradients(margin, seen) if reading else seen
        problem.count_gradients(len(rows) if reading else 0)
        return margin.detach(), reads, deltas

    margins, reads, deltas = zip(*problem.in_batches(u, look), strict=True)
    margin, rows = torch.cat(margins), [len(part) for part in margins]
    (read, unread), (delta_of, unseen) = gather(reads, rows, {}), gather(deltas, rows, {})
    if left_out := unread | unseen:
        raise refusal(left_out)
    tail = margin.topk(max(1, round(TAIL * len(margin)))).indices
    flows = []
    for name, value in read.items():
        module = problem.cut[name.split("#")[0]]
        if is_affine(module):
            h = value.flatten(1).double()
            delta = delta_of[name].flatten(1).double() * reading
            _require_finite(name, h, delta)
            flows.append(
                Flow(
                    name, module, value.shape[1:], h.mean(0), h.mT.cov().reshape(h.shape[1], h.shape[1]),
                    delta.mT @ delta / len(delta), delta[tail].mT @ delta[tail] / len(tail),
                )
            )  # fmt: skip
    if not flows:
        raise RiskError(NOTHING)
    return flows


def _require_finite(name: str, h: Tensor, delta: Tensor) -> None:
    for what, value in (("activations", h), ("gradients", delta)):
        if wrong := int((~torch.isfinite(value)).any(1).sum()):
            raise RiskError(
                f'{wrong:,} of {len(value):,} rows have {what} at layer "{name}" that are NaN or infinite (sqrt or log at 0 under '
                "a where, or an overflow), so nothing says what the catastrophe reads. Mend that step"
                + (
                    ", or select without gradients: source='pca', 'weights' or 'random'."
                    if what == "gradients"
                    else "."
                )
            )


def _gradients(margin: Tensor, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """d margin / d output, row by row, for every layer."""
    if not margin.requires_grad or not all(value.requires_grad for value in outputs.values()):
        raise RiskError(
            "The margin has no gradient with respect to the layers, so nothing says what the catastrophe reads. Select "
            "without it: source='pca', 'weights' or 'random'."
        )
    found = differentiate(margin.sum(), list(outputs.values()), materialize_grads=True)
    return dict(zip(outputs, found, strict=True))


def square_root(covariance: Float[Tensor, "n n"], power: float = 0.5) -> Float[Tensor, "n n"]:
    """Symmetric power of a covariance; directions without variance stay at 0, also for negative powers."""
    values, vectors = torch.linalg.eigh(covariance)
    alive = values > 1e-10 * values[-1].clamp(min=1e-300)
    return (vectors * torch.where(alive, values.clamp(min=1e-300) ** power, torch.zeros_like(values))) @ vectors.mT
