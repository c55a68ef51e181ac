r"""A sketch of all that the optimiser does to the weights, at no cost per step.

Sketches Y = W Omega and Z = Psi W with Gaussian Omega (columns x k) and Psi (l x rows) are linear, so the sum of all updates
has the sketch of the trained weights minus that of the initial ones: two products at the start and two at the end, whatever
the optimiser did between. The sum comes back as Q (Psi Q)^+ Z, Q the orthonormal range of Y (Tropp et al. 2017,
doi:10.1137/17M1111590). With k = 2 rank + 4 and l = 2 k the memory is (6 rank + 12) / columns of the weights; a matrix smaller
than its sketch is kept whole.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ppl_risk.errors import RiskError
from ppl_risk.randomness import child_seeds


class UpdateSketch:
    """Make one before training; `state()` afterwards is what `Provenance(updates=...)` takes.

    Args:
        network: the module about to be trained; its weights are read here and in `state`, and never held.
        rank: directions wanted a layer. seed: of the random projections.

    Example:
        >>> net = nn.Linear(64, 64); sketch = UpdateSketch(net, rank=4); _ = net.weight.data.add_(1.0)
        >>> bool(torch.allclose(reconstruct(sketch.state(), "weight"), torch.ones(64, 64), atol=1e-4))
        True
    """

    def __init__(self, network: nn.Module, rank: int = 16, *, seed: int = 0) -> None:
        if rank < 1:
            raise RiskError(f"rank must be at least 1, got {rank}.")
        self.network = network
        self.rank = rank
        self.seed = seed
        self.start = self._products()

    def _products(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        matrices = [(name, p) for name, p in self.network.named_parameters() if p.dim() >= 2]
        for (name, parameter), seed in zip(matrices, child_seeds(self.seed, len(matrices)), strict=True):
            found |= _sketch(name, parameter.detach(), self.rank, seed)
        return found

    def state(self) -> dict[str, Tensor]:
        """The sketch of the sum of updates so far, and the left projections it is read with; plain tensors, for safetensors."""
        now = self._products()
        return {key: value - self.start[key] if _moves(key) else value for key, value in now.items()}

    @property
    def memory(self) -> float:
        """Numbers kept, as a share of the weights."""
        kept = sum(value.numel() for key, value in self.start.items() if _moves(key))
        return kept / sum(p.numel() for p in self.network.parameters())


def reconstruct(state: Mapping[str, Tensor], name: str) -> Tensor:
    """The sum of updates of one weight, of the weight's own shape, from `UpdateSketch.state()`.

    Raises:
        RiskError: the sketch does not hold this weight.
    """
    if f"{name}|whole" in state:
        return state[f"{name}|whole"]
    if f"{name}|range" not in state:
        held = ", ".join(sorted({key.split("|")[0] for key in state})) or "nothing"
        raise RiskError(f'The sketch holds no "{name}"; it holds {held}. Was it made of another network?')
    wide, tall, left = (state[f"{name}|{part}"].double() for part in ("range", "rows", "left"))
    basis = torch.linalg.qr(wide).Q
    change = basis @ torch.linalg.lstsq(left @ basis, tall).solution
    return change.to(state[f"{name}|range"].dtype).reshape(tuple(state[f"{name}|shape"].int().tolist()))


def _sketch(name: str, weight: Tensor, rank: int, seed: int) -> dict[str, Tensor]:
    matrix = weight.flatten(1)
    rows, columns = matrix.shape
    # Half again as many as theory asks: the change of trained weights has a slow spectrum, and its cut is what is wanted.
    k = 2 * rank + 4
    tall = 2 * k
    if k * rows + tall * columns >= rows * columns or tall >= rows:
        return {f"{name}|whole": weight.clone()}
    generator = torch.Generator().manual_seed(seed)
    right = torch.randn(columns, k, generator=generator).to(matrix)
    left = torch.randn(tall, rows, generator=generator).to(matrix)
    return {
        f"{name}|range": matrix @ right, f"{name}|rows": left @ matrix, f"{name}|left": left,
        f"{name}|shape": torch.tensor(weight.shape),
    }  # fmt: skip


def _moves(key: str) -> bool:
    return key.endswith(("|whole", "|range", "|rows"))
