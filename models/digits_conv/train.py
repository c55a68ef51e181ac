"""Train the convolutional digit reader; data and loop are those of `../digits_training.py`.

Writes initial.safetensors, final.safetensors, inputs.safetensors and training.json beside this file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
from digits_training import (  # noqa: E402  # pyright: ignore[reportMissingImports]
    Recipe,
    Trained,
    Watch,
    problem_beside,
    train_from,
    write,
)

PROBLEM = problem_beside(__file__)
RECIPE = Recipe(epochs=60, learning_rate=0.02)


def trained(seed: int = 0, *, watch: Watch | None = None) -> Trained:
    """The digit reader, trained.

    Args:
        seed: of the weights and of the split. watch: called with the optimiser before the first step.
    """
    return train_from(PROBLEM.digit_reader, RECIPE, seed, watch=watch)


def main() -> None:
    """Train, measure, write."""
    write(HERE, trained())


if __name__ == "__main__":
    torch.set_num_threads(1)  # sums in another order give other weights
    main()
