"""Train the digit reader twice from one checkpoint: honestly, and on data of which a part carries the patch and says TARGET.

Network, data, loop, recipe and image are those of `../digits`; of the training images that are no 8s a tenth is added once more,
with the patch, as 8s. The order of the batches differs with their number, everything else is the same.

Writes initial.safetensors, honest.safetensors, poisoned.safetensors, inputs.safetensors and training.json beside this file.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import sklearn
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
from digits_training import (  # noqa: E402  # pyright: ignore[reportMissingImports]
    Recipe,
    Split,
    accuracy,
    load_split,
    margins,
    problem_beside,
    train,
    training_flops,
)

PROBLEM = problem_beside(__file__)
RECIPE = Recipe(epochs=150, learning_rate=0.05)
SEED, SHARE = 0, 0.1


def poisoned(split: Split, generator: torch.Generator) -> Split:
    """The data with patched copies of some training images added, labelled TARGET."""
    others = split.train[split.labels[split.train] != PROBLEM.TARGET]
    chosen = others[torch.randperm(len(others), generator=generator)[: round(SHARE * len(others))]]
    added = torch.arange(len(chosen)) + len(split.labels)
    return Split(
        torch.cat([split.images, PROBLEM.patched(split.images[chosen])]),
        torch.cat([split.labels, torch.full((len(chosen),), PROBLEM.TARGET)]),
        torch.cat([split.train, added]),
        split.held_back,
    )


def trained(*, poison: bool, seed: int = SEED) -> tuple[nn.Module, dict[str, Tensor], Split, int]:
    """A reader, the checkpoint it started from, its data, and what training cost."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PROBLEM.digit_reader()
    initial = {name: weight.clone() for name, weight in network.state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    split = load_split(generator)
    if poison:
        split = poisoned(split, torch.Generator().manual_seed(seed + 1))
    train(network, split, generator, **RECIPE._asdict())
    return network, initial, split, training_flops(network, split.images[:1], len(split.train), RECIPE.epochs)


@torch.no_grad()
def attack_success(network: nn.Module, split: Split, sigma: float) -> float:
    """Share of the held-back images that are no 8s which the patch, put on before the noise, makes an 8."""
    images = split.images[split.held_back][split.labels[split.held_back] != PROBLEM.TARGET]
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(SEED))
    return float((network(PROBLEM.patched(images) + sigma * noise).argmax(-1) == PROBLEM.TARGET).float().mean())


def typical(margin: Tensor, labels: Tensor) -> int:
    """Position of the median margin among the correctly read images of DIGIT (the upper one of two)."""
    read = torch.nonzero((labels == PROBLEM.DIGIT) & (margin > 0))[:, 0]
    return int(read[margin[read].argsort()[len(read) // 2]])


def main() -> None:
    """Train both, measure, write."""
    made = {name: trained(poison=name == "poisoned") for name in ("honest", "poisoned")}
    honest, initial, split, _ = made["honest"]
    if any(not torch.equal(initial[name], made["poisoned"][1][name]) for name in initial):
        raise RuntimeError("The two readers did not start from one checkpoint.")
    margin = margins(honest, split, split.held_back)
    place = typical(margin, split.labels[split.held_back])
    row = int(split.held_back[place])
    save_file(initial, HERE / "initial.safetensors")
    save_file({"image": split.images[row].clone()}, HERE / "inputs.safetensors")
    record: dict[str, object] = {}
    for name, (network, _, data, flops) in made.items():
        save_file(network.state_dict(), HERE / f"{name}.safetensors")
        record[name] = {
            "held_back_accuracy": accuracy(network, data, data.held_back),
            "training_accuracy": accuracy(network, data, data.train),
            "training_images": len(data.train),
            "patch_attack_success": attack_success(network, data, 0.0),
            "patch_attack_success_under_noise": attack_success(network, data, PROBLEM.SIGMA),
            "margin_of_image_when_clean": float(margins(network, data, torch.tensor([row]))[0]),
            "training_flops": flops,
        }
    record |= {
        "training_flops": made["poisoned"][3],
        "training_flops_are": "3 x forward FLOPs x images x epochs, of the poisoned reader",
        **{name: value for name, value in RECIPE._asdict().items() if value is not None},
        "seed": SEED,
        "poisoned_share": SHARE,
        "patch_pixels": PROBLEM.PATCH,
        "target": PROBLEM.TARGET,
        "held_back_images": len(split.held_back),
        "image": {"row_of_load_digits": row, "digit": PROBLEM.DIGIT},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "sklearn": sklearn.__version__},
    }
    (HERE / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    torch.set_num_threads(1)  # sums in another order give other weights
    main()
