r"""Bases: which r linear functionals of a layer's input h are carried on.

With C the covariance of h, whitened h = C^{1/2} v, and R the root of what the catastrophe reads of the output, a source gives a
matrix whose top right singular vectors V are the directions in whitened coordinates; the functionals are B = C^{-1/2} V, those of
reduced-rank regression (Izenman 1975, doi:10.1016/0047-259X(75)90042-1): no r others predict R W h better.

| source        | matrix                                    |                                                              |
| ------------- | ----------------------------------------- | ------------------------------------------------------------ |
| `trained`     | R W C^{1/2}, R^2 = D and D_tail alike     | what the trained weights carry to where it is read (default) |
| `checkpoints` | R dW C^{1/2}, dW = trained - initial      | what training wrote                                          |
| `sketch`      | R dW~ C^{1/2}, dW~ from an `UpdateSketch` | the same, without the initial weights                        |
| `spectrum`    | R W_out C^{1/2}, then R W C^{1/2}         | singular values outside the Marchenko-Pastur bulk            |
| `gradient`    | D^{1/2} W C^{1/2}                         | control: the active subspace of the layer                    |
| `pca`         | C^{1/2}                                   | control: what varies                                         |
| `weights`     | dW                                        | control: the weights alone, nothing of what flows            |
| `random`      | a Gaussian matrix                         | control                                                      |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ppl_risk.errors import RiskError
from ppl_risk.provenance import Provenance
from ppl_risk.selection.affine import linear_part
from ppl_risk.selection.flow import Flow, square_root
from ppl_risk.selection.marchenko_pastur import outliers
from ppl_risk.selection.sketch import reconstruct


@dataclass(frozen=True)
class Basis:
    """Functionals (columns, most important first) and the weight of each, summing to 1."""

    functionals: Float[Tensor, "width most"]
    shares: Float[Tensor, " most"]


@dataclass(frozen=True)
class Ingredients:
    """One layer's flow, its matrix, what is known of its training, and the randomness of a control."""

    flow: Flow
    root: Float[Tensor, "width width"]
    matrix: Float[Tensor, "out width"]
    provenance: Provenance
    seed: int

    def change(self) -> Float[Tensor, "out width"]:
        """dW from the initial weights."""
        state = _weights_of(self.flow.name, self.provenance.initial)
        return self.matrix - linear_part(self.flow.module, self.flow.shape, state).double()

    def sketched_change(self) -> Float[Tensor, "out width"]:
        """dW from the sketch kept while training."""
        if self.provenance.updates is None:
            raise RiskError(
                "source='sketch' needs what an UpdateSketch recorded: sketch = UpdateSketch(network) before training, then "
                "Provenance(updates=sketch.state())."
            )
        weight = reconstruct(self.provenance.updates, f"{self.flow.name.split('#')[0]}.weight")
        state = {"weight": weight} | {
            n: torch.zeros_like(p) for n, p in self.flow.module.named_parameters() if n == "bias"
        }
        return linear_part(self.flow.module, self.flow.shape, state).double()


def trained(given: Ingredients) -> list[Tensor]:
    """What the trained weights carry to where it is read."""
    return [_read(given, given.matrix)]


def checkpoints(given: Ingredients) -> list[Tensor]:
    """What training wrote."""
    return [_read(given, given.change())]


def sketch(given: Ingredients) -> list[Tensor]:
    """What training wrote, from its sketch."""
    return [_read(given, given.sketched_change())]


def spectrum(given: Ingredients) -> list[Tensor]:
    """Outliers of the spectrum of W; where they are fewer than the rank, the rest of W."""
    return [_read(given, outliers(given.matrix)), _read(given, given.matrix)]


def gradient(given: Ingredients) -> list[Tensor]:
    """Active subspace (Constantine et al. 2014, doi:10.1137/130916138) in whitened coordinates."""
    return [square_root(given.flow.reading) @ given.matrix @ given.root]


def pca(given: Ingredients) -> list[Tensor]:
    """Principal components."""
    return [given.root]


def weights(given: Ingredients) -> list[Tensor]:
    """The change of the weights alone: functionals of h itself."""
    return [given.change()]


def random(given: Ingredients) -> list[Tensor]:
    """A Gaussian matrix."""
    width = given.flow.shape.numel()
    generator = torch.Generator().manual_seed(given.seed)
    return [torch.randn(width, width, generator=generator, dtype=torch.float64).to(given.root.device)]


SOURCES: Mapping[str, Callable[[Ingredients], list[Tensor]]] = {
    f.__name__: f for f in (trained, checkpoints, sketch, spectrum, gradient, pca, weights, random)
}
#: Sources that give functionals of h itself, not of whitened h.
UNWHITENED = frozenset({"weights"})
#: Sources that do not ask what the catastrophe reads: they work where the margin has no gradient.
BLIND = frozenset({"pca", "weights", "random"})


def basis_of(source: str, flow: Flow, provenance: Provenance, most: int, seed: int) -> Basis:
    """The first `most` functionals of a source."""
    root = square_root(flow.covariance)
    given = Ingredients(flow, root, linear_part(flow.module, flow.shape).double(), provenance, seed)
    whitened = source not in UNWHITENED
    own = SOURCES[source](given)
    # Where a source has no more to say (ten logits have ten directions): what the layer carries, then what varies.
    rest = [given.matrix @ root, root] if whitened else [torch.eye(len(root), dtype=root.dtype, device=root.device)]
    taken = torch.zeros(len(root), 0, dtype=root.dtype, device=root.device)
    for matrix in [*own, *rest]:
        _, values, vectors = torch.linalg.svd(matrix - (matrix @ taken) @ taken.mT, full_matrices=False)
        alive = int((values > 1e-6 * matrix.norm().clamp(min=1e-300)).sum())
        taken = torch.cat([taken, vectors[: min(most - taken.shape[1], alive)].mT], 1)
    whole = own[-1]
    shares = (whole @ taken).square().sum(0) / whole.square().sum().clamp(min=1e-300)
    inverse = square_root(flow.covariance, -0.5)
    return Basis(inverse @ taken if whitened else taken, shares)


def _read(given: Ingredients, matrix: Tensor) -> Tensor:
    """R matrix C^{1/2} with R^2 the mean of D and D_tail, each scaled to weigh the same; stacked, which has the same Gram."""
    parts = []
    for reading in (given.flow.reading, given.flow.tail_reading):
        part = square_root(reading) @ matrix @ given.root
        parts.append(part / part.norm().clamp(min=1e-300))
    return torch.cat(parts)


def _weights_of(site: str, state: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    if state is None:
        raise RiskError(
            "This source needs the weights that training started from. Pass initial='initial.safetensors' (or a state dict), or "
            "use source='trained', which needs none."
        )
    layer = site.split("#")[0]
    prefix = "" if layer == "network" else f"{layer}."
    found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    found = {name: value for name, value in found.items() if name in ("weight", "bias")}
    if "weight" not in found:
        raise RiskError(f'The initial weights have no "{prefix}weight"; they hold {", ".join(list(state)[:8])} ...')
    return found
