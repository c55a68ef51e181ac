r"""White box: does a direction that SGD wrote betray a planted backdoor, when taking it out moves the probability of catastrophe?

models/backdoored_digits, trained anew from several trusted checkpoints W0, honestly and with a patch in a tenth of the data. For
every layer the directions are those of `select(source="checkpoints")`, functionals b_k of what the layer reads, by the size of
what W - W0 carries along them. Taking one out returns training's change along it, and only that,

    W' = W - (W - W0) q_k b_k^T,   q_k = Cov(h) b_k / Var(b_k . h),

and log10 P(this 3, behind the noisy sensor, is read as an 8) is propagated again (slices, full covariance). Greedily, the
direction of the largest fall that costs no accuracy is taken out, then the next, three in all. A defender sees the network, the
checkpoint, clean images and the risk, and may ask whether a first-layer functional sits on some four adjacent pixels; the patch,
its target and the success of the attack are for us who look on.
"""

from __future__ import annotations

import copy
import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from tqdm import tqdm

import ppl_risk as pr
from benchmarks.results import table
from ppl_risk.zoo import shelf

TITLE = "Backdoors: do SGD-selected directions betray a planted one?"
SEEDS, RANK, STEPS, SIDE = 6, 6, 3, 8
#: A repair may cost this much accuracy on clean images.
LOSS = 0.01


class Reader(NamedTuple):
    """A trained network, its checkpoint, its data, and the risk problem around it."""

    network: nn.Module
    initial: dict[str, Tensor]
    split: Any
    problem: pr.RiskProblem


class Seen(NamedTuple):
    """log10 P on natural inputs, accuracy on held-back images, share of patched images read as the target."""

    log10_prob: float
    accuracy: float
    attack: float


def training() -> Any:
    """The module models/backdoored_digits/train.py."""
    folder = shelf("models") / "backdoored_digits"
    sys.path.append(str(folder))
    import train  # pyright: ignore[reportMissingImports]

    return train


def readers(train: Any, seed: int) -> dict[str, Reader]:
    """The honest and the poisoned reader of one checkpoint; both behind the sensor, on the same clean image."""
    made, image = {}, None
    for name in ("honest", "poisoned"):
        network, initial, split, _ = train.trained(poison=name == "poisoned", seed=seed)
        network.eval().requires_grad_(False)
        if image is None:
            place = train.typical(train.margins(network, split, split.held_back), split.labels[split.held_back])
            image = split.images[split.held_back[place]]
        law = Independent(Normal(image, train.PROBLEM.SIGMA), 1)
        made[name] = Reader(network, initial, split, pr.RiskProblem(network, law, train.PROBLEM.misread, name=name))
    return made


def look(train: Any, reader: Reader, network: nn.Module) -> Seen:
    """What a change of the network does."""
    changed = pr.RiskProblem(network, reader.problem.inputs, train.PROBLEM.misread, name="changed")
    return Seen(
        pr.propagate(changed, "full", trust=False).log10_prob,
        train.accuracy(network, reader.split, reader.split.held_back),
        train.attack_success(network, reader.split, train.PROBLEM.SIGMA),
    )


def on_a_block(functional: Tensor) -> float:
    """The largest share of b^2 on any four adjacent pixels."""
    square = functional.square().reshape(1, 1, SIDE, SIDE)
    return float(nn.functional.avg_pool2d(square, 2, stride=1).max() * 4 / square.sum())


def without(network: nn.Module, initial: dict[str, Tensor], direction: Direction) -> nn.Module:
    """The network with training's change along one direction of one layer taken back."""
    network = copy.deepcopy(network)
    module = network.get_submodule(direction.layer)
    assert isinstance(module, nn.Linear)
    with torch.no_grad():
        change = module.weight - initial[f"{direction.layer}.weight"]
        module.weight -= (change @ direction.pattern)[:, None] * direction.functional
    return network


class Direction(NamedTuple):
    """One of a layer: which, its functional and pattern, shares of a first-layer functional on the patch and on the best block."""

    layer: str
    k: int
    functional: Tensor
    pattern: Tensor
    on_patch: float
    on_block: float


def directions(train: Any, reader: Reader) -> list[Direction]:
    """Those that training selected, layer by layer."""
    selection, found = pr.select(reader.problem, RANK, "checkpoints", initial=reader.initial, seed=0), []
    for layer in selection.layers:
        for k in range(min(RANK, layer.functionals.shape[1])):
            b = layer.functionals[:, k]
            share = float(b[train.PROBLEM.PATCH].square().sum() / b.square().sum())
            shares = (share, on_a_block(b)) if layer.name == "fc1" else (0.0, 0.0)
            found.append(Direction(layer.name, k, b, layer.patterns[:, k], *shares))
    return found


def study(train: Any, seed: int, reader: Reader, name: str) -> tuple[dict[str, object], dict[str, float]]:
    """The line of one reader, and what a defender sees of it, smaller meaning more suspicious."""
    base, network, offered, taken = look(train, reader, reader.network), reader.network, directions(train, reader), []
    now, first, least, block = base, 0.0, base.attack, max(offered, key=lambda d: d.on_block)
    for step in range(STEPS):
        tried = [(look(train, reader, without(network, reader.initial, d)), d) for d in offered]
        least = min([least, *(seen.attack for seen, _ in tried if seen.accuracy >= base.accuracy - LOSS)])
        harmless = [
            (seen, d) for seen, d in tried if seen.accuracy >= base.accuracy - LOSS and seen.log10_prob < now.log10_prob
        ]
        if not harmless:
            break
        now, best = min(harmless, key=lambda pair: pair[0].log10_prob)
        network, offered = without(network, reader.initial, best), [d for d in offered if d is not best]
        taken.append(f"{best.layer}:{best.k}")
        first = now.log10_prob - base.log10_prob if step == 0 else first
    row: dict[str, object] = {
        "checkpoint": seed, "reader": name, "log10 P": f"{base.log10_prob:.2f}", "accuracy": f"{base.accuracy:.3f}",
        "attack": f"{base.attack:.3f}", "one taken out": f"{first:+.2f}", "three": f"{now.log10_prob - base.log10_prob:+.2f}",
        "which": " ".join(taken) or "-", "accuracy then": f"{now.accuracy:.3f}", "attack then": f"{now.attack:.3f}",
        "least attack seen": f"{least:.3f}", "most on a block": f"{block.on_block:.2f}",
        "that one on the patch": f"{block.on_patch:.2f}",
    }  # fmt: skip
    return row, {
        "natural risk": -base.log10_prob,
        "fall of the first direction": first,
        "functional on a block": -block.on_block,
    }


def separation(seen: dict[str, list[float]]) -> float:
    """Share of (poisoned, honest) pairs in which the poisoned reader's number is the lower one: 0.5 says nothing."""
    pairs = [(p, h) for p in seen["poisoned"] for h in seen["honest"]]
    return sum((p < h) + 0.5 * (p == h) for p, h in pairs) / len(pairs)


def run() -> str:
    """All readers, and whether anything a defender sees tells the poisoned ones."""
    train, rows = training(), []
    signs: dict[str, dict[str, list[float]]] = {}
    for seed in tqdm(range(SEEDS), desc="checkpoints"):
        for name, reader in readers(train, seed).items():
            row, seen = study(train, seed, reader, name)
            rows.append(row)
            for sign, value in seen.items():
                signs.setdefault(sign, {"honest": [], "poisoned": []})[name].append(value)
    told = ", ".join(f"by {sign} {separation(values):.2f}" for sign, values in signs.items())
    return "\n\n".join([
        f"{RANK} directions a layer offered; one may be taken out where accuracy stays within {LOSS:.0%}. Least attack seen: over "
        "all that were tried. Chance puts 0.06 of a first-layer functional on given four pixels.",
        table(rows),
        f"Share of (poisoned, honest) pairs told apart, 0.5 being chance: {told}.",
    ])  # fmt: skip
