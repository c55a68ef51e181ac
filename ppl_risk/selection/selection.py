"""A selection: per layer, which few linear functionals of what the layer reads are carried on exactly."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from ppl_risk.errors import RiskError
from ppl_risk.problem import RiskProblem
from ppl_risk.weights import read_weights


@dataclass(frozen=True)
class LayerSelection:
    """One layer.

    Attributes:
        name: the site that the layer writes. shape: of what it reads, without batch.
        functionals: columns b_k; carried are b_k . h, the most important first, all that were found.
        patterns: columns Cov(h, b_k . h) / Var(b_k . h): how the units move with the functional (what it shows).
        shares: weight of each functional in the matrix of its source; they sum to at most 1.
    """

    name: str
    shape: torch.Size
    functionals: Float[Tensor, "width most"]
    patterns: Float[Tensor, "width most"]
    shares: Float[Tensor, " most"]

    @property
    def width(self) -> int:
        """Values that the layer reads."""
        return self.shape.numel()

    def kept(self, rank: int) -> int:
        """Functionals carried at this rank: never more than there are."""
        return min(rank, self.functionals.shape[1])

    def explained(self, rank: int) -> float:
        """Share of the source's matrix that `rank` functionals hold."""
        return float(self.shares[: self.kept(rank)].sum())


@dataclass(frozen=True, repr=False)
class Selection:
    """What `select` returns; printing it gives a table, `plots.plot_selection` draws it.

    Attributes:
        layers: one `LayerSelection` a layer, in the order they run. rank: functionals carried a layer.
        ranks: other ranks for single layers, name -> rank. source: where the directions come from.
        draws: rows they were found from, gradient_calls: of them with a gradient. flops: what that cost.
        problem: what they belong to.
    """

    layers: tuple[LayerSelection, ...]
    rank: int
    source: str
    draws: int = 0
    gradient_calls: int = 0
    flops: float = 0.0
    ranks: dict[str, int] = field(default_factory=dict)
    problem: RiskProblem | None = field(default=None, compare=False)

    def at(self, rank: int, **ranks: int) -> Selection:
        """The same directions cut at another rank, everywhere or, by name, in single layers; costs nothing.

        Raises:
            RiskError: a rank below 0, or a layer that the selection does not have.
        """
        if min([rank, *ranks.values()]) < 0:
            raise RiskError(f"A rank is at least 0, got {min([rank, *ranks.values()])}.")
        for name in ranks:
            self.layer(name)
        return replace(self, rank=rank, ranks=dict(ranks))

    def at_share(self, share: float) -> Selection:
        """The same directions cut at a share of each layer's own width, at least one.

        Raises:
            RiskError: a share that is not in (0, 1].
        """
        if not 0 < share <= 1:
            raise RiskError(f"A share of the width lies in (0, 1], got {share}.")
        ranks = {layer.name: max(1, round(share * layer.width)) for layer in self.layers}
        return self.at(max(ranks.values()), **ranks)

    def rank_of(self, layer: LayerSelection) -> int:
        """Functionals carried in one layer."""
        return layer.kept(self.ranks.get(layer.name, self.rank))

    def layer(self, name: str) -> LayerSelection:
        """A layer by name.

        Raises:
            RiskError: no such layer; the message lists them.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise RiskError(f"The selection has no layer {name!r}; it has {', '.join(x.name for x in self.layers)}.")

    def rows(self) -> list[dict[str, str]]:
        """The table, one dict a layer, as text."""
        return [
            {
                "layer": layer.name, "reads": str(layer.width), "carried": str(self.rank_of(layer)),
                "explained": f"{layer.explained(self.rank_of(layer)):.0%}",
            }
            for layer in self.layers
        ]  # fmt: skip

    def __repr__(self) -> str:
        """The table."""
        rows = [f"  {r['layer']:<20} {r['carried']:>4} of {r['reads']:>5}   {r['explained']:>4}" for r in self.rows()]
        head = f"Selection from {self.source}, rank {self.rank} ({self.draws:,} draws, {self.flops:.1e} FLOPs)"
        return "\n".join([head, f"  {'layer':<20} carried of width   explained", *rows])

    def save(self, path: str | Path) -> None:
        """Write it as one safetensors file."""
        tensors = {
            "": torch.tensor([self.rank, self.draws, self.gradient_calls]),
            f"source|{self.source}": torch.tensor(self.flops),
        }
        for index, layer in enumerate(self.layers):
            for part in ("functionals", "patterns", "shares"):
                tensors[f"{index}|{part}|{layer.name}"] = getattr(layer, part).contiguous().cpu()
            tensors[f"{index}|shape|{layer.name}"] = torch.tensor(layer.shape)
            if layer.name in self.ranks:
                tensors[f"{index}|rank|{layer.name}"] = torch.tensor(self.ranks[layer.name])
        save_file(tensors, path)

    @staticmethod
    def load(path: str | Path, problem: RiskProblem) -> Selection:
        """Read back what `save` wrote, for the problem it was made on.

        Raises:
            RiskError: no such file, or layers that the problem does not have.
        """
        tensors = read_weights(path)
        try:
            rank, draws, gradients = tensors.pop("").tolist()
            source = next(key for key in tensors if key.startswith("source|"))
            flops = float(tensors.pop(source))
        except (KeyError, StopIteration) as error:
            raise RiskError(f"{path} is not a saved selection.") from error
        parts: dict[tuple[int, str], dict[str, Tensor]] = {}
        for key, value in tensors.items():
            index, part, name = key.split("|", 2)
            parts.setdefault((int(index), name), {})[part] = value.to(problem.device)
        missing = [name for _, name in parts if name.split("#")[0] not in problem.cut]
        if missing:
            raise RiskError(f"{path} selects in {missing}, which {problem.name} is not cut at.")
        layers = tuple(
            LayerSelection(name, torch.Size(p["shape"].tolist()), p["functionals"], p["patterns"], p["shares"])
            for (_, name), p in sorted(parts.items())
        )
        ranks = {name: int(p["rank"]) for (_, name), p in parts.items() if "rank" in p}
        return Selection(layers, rank, source.removeprefix("source|"), draws, gradients, flops, ranks, problem)
