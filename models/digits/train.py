"""Train the digit reader, and pick the clean image of which `problem.py` sends noisy copies.

8 x 8 digits (scikit-learn's `load_digits`), pixels scaled to [0, 1], a fifth held back; 64-64-64-64-10 ReLU network,
SGD with momentum 0.9. The image is a typical 3: of the held-back 3s that are read correctly, the one whose margin is
the median.

Writes initial.safetensors, final.safetensors, inputs.safetensors and training.json beside this file.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any, NamedTuple

import sklearn
import torch
from problem import DIGIT, digit_reader
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

HERE = Path(__file__).parent
SEED, HELD_BACK = 0, 0.2
EPOCHS, BATCH, LEARNING_RATE, MOMENTUM = 150, 32, 0.05, 0.9


class Split(NamedTuple):
    """Images (n, 64) in [0, 1], labels (n,), and the rows to train on and to hold back."""

    images: Tensor
    labels: Tensor
    train: Tensor
    held_back: Tensor


def load_split(generator: torch.Generator) -> Split:
    """The data, divided at random."""
    data: Any = load_digits()
    images, labels = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=generator)
    size = round(HELD_BACK * len(labels))
    return Split(images, labels, order[size:], order[:size])


def fit(network: nn.Module, split: Split, generator: torch.Generator) -> None:
    """Minimise cross-entropy in place."""
    optimiser = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(split.train), generator=generator).split(BATCH):
            rows = split.train[batch]
            loss = nn.functional.cross_entropy(network(split.images[rows]), split.labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


@torch.no_grad()
def margins(network: nn.Module, split: Split, rows: Tensor) -> Tensor:
    """Logit of the true digit minus the best other one; positive where the image is read correctly."""
    logits, truth = network(split.images[rows]), split.labels[rows, None]
    return logits.gather(1, truth)[:, 0] - logits.scatter(1, truth, -torch.inf).amax(1)


def typical(margin: Tensor, labels: Tensor) -> int:
    """Position of the median margin among the correctly read images of DIGIT (the upper one of two)."""
    read = torch.nonzero((labels == DIGIT) & (margin > 0))[:, 0]
    return int(read[margin[read].argsort()[len(read) // 2]])


def main() -> None:
    """Train, measure, pick, write."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    split = load_split(generator)
    network = digit_reader()
    save_file({name: w.clone() for name, w in network.state_dict().items()}, HERE / "initial.safetensors")
    fit(network, split, generator)
    save_file(network.state_dict(), HERE / "final.safetensors")
    margin = margins(network, split, split.held_back)
    place = typical(margin, split.labels[split.held_back])
    row = int(split.held_back[place])
    save_file({"image": split.images[row].clone()}, HERE / "inputs.safetensors")
    weights = sum(m.weight.numel() for m in network if isinstance(m, nn.Linear))
    record = {
        "held_back_accuracy": float((margin > 0).float().mean()),
        "training_accuracy": float((margins(network, split, split.train) > 0).float().mean()),
        "training_images": len(split.train),
        "held_back_images": len(split.held_back),
        "training_flops": 6 * weights * len(split.train) * EPOCHS,
        "training_flops_are": "6 x matrix weights x images x epochs",
        "epochs": EPOCHS,
        "batch": BATCH,
        "learning_rate": LEARNING_RATE,
        "momentum": MOMENTUM,
        "seed": SEED,
        "image": {"row_of_load_digits": row, "digit": DIGIT, "margin_when_clean": float(margin[place])},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "sklearn": sklearn.__version__},
    }
    (HERE / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    torch.set_num_threads(1)  # sums in another order give other weights
    main()
