"""Train the digit reader, and pick the clean image of which `problem.py` sends noisy copies.

64-64-64-64-10 ReLU network, SGD with momentum 0.9; data and loop are those of `../digits_training.py`. The image is a
typical 3: of the held-back 3s that are read correctly, the one whose margin is the median.

Writes initial.safetensors, final.safetensors, inputs.safetensors and training.json beside this file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
from digits_training import (  # noqa: E402  # pyright: ignore[reportMissingImports]
    Recipe,
    Trained,
    Watch,
    margins,
    problem_beside,
    train_from,
    write,
)

PROBLEM = problem_beside(__file__)
RECIPES = {
    "sgd": Recipe(epochs=150, learning_rate=0.05),
    "adam": Recipe(epochs=150, learning_rate=1e-3, optimiser="adam"),
}


def trained(seed: int = 0, *, width: int = 64, optimiser: str = "sgd", watch: Watch | None = None) -> Trained:
    """The digit reader, trained.

    Args:
        seed: of the weights and of the split. width: units of a hidden layer. optimiser: "sgd" or "adam".
        watch: called with the optimiser before the first step.
    """
    return train_from(lambda: PROBLEM.digit_reader(width), RECIPES[optimiser], seed, watch=watch)


def typical(margin: Tensor, labels: Tensor) -> int:
    """Position of the median margin among the correctly read images of DIGIT (the upper one of two)."""
    read = torch.nonzero((labels == PROBLEM.DIGIT) & (margin > 0))[:, 0]
    return int(read[margin[read].argsort()[len(read) // 2]])


def main() -> None:
    """Train, pick, write."""
    made = trained()
    split = made.split
    margin = margins(made.network, split, split.held_back)
    place = typical(margin, split.labels[split.held_back])
    row = int(split.held_back[place])
    image = {"row_of_load_digits": row, "digit": PROBLEM.DIGIT, "margin_when_clean": float(margin[place])}
    write(HERE, made, inputs={"image": split.images[row].clone()}, more={"image": image})


if __name__ == "__main__":
    torch.set_num_threads(1)  # sums in another order give other weights
    main()
