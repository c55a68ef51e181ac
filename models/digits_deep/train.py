"""Train the deep digit readers, one of each depth; data and loop are those of `../digits_training.py`.

Writes initial.safetensors, final.safetensors, inputs.safetensors and training.json
into 8/ and 32/ beside this file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
from digits_training import (  # noqa: E402  # pyright: ignore[reportMissingImports]
    Recipe,
    Trained,
    Watch,
    he_,
    problem_beside,
    train_from,
    write,
)

PROBLEM = problem_beside(__file__)
#: 32 layers need their gradients held short: without that some seeds hardly learn.
RECIPES = {8: Recipe(epochs=60, learning_rate=0.01), 32: Recipe(epochs=100, learning_rate=0.01, clip=1.0)}


def trained(seed: int = 0, *, depth: int = 8, watch: Watch | None = None) -> Trained:
    """A digit reader, trained.

    Args:
        seed: of the weights and of the split. depth: affine layers, 8 or 32.
        watch: called with the optimiser before the first step.
    """

    def fresh() -> nn.Module:
        network = PROBLEM.digit_reader(depth)
        he_(network)
        return network

    return train_from(fresh, RECIPES[depth], seed, watch=watch)


def main() -> None:
    """Train, measure, write."""
    for depth in RECIPES:
        write(HERE / str(depth), trained(depth=depth))


if __name__ == "__main__":
    torch.set_num_threads(1)  # sums in another order give other weights
    main()
