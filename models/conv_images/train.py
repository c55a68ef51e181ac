"""Train the reader of colour images; the split and the loop are those of `../digits_training.py`.

Every digit is enlarged from 8 x 8 to 32 x 32 and drawn in a colour of its own on a ground of its own. Writes
initial.safetensors, final.safetensors, inputs.safetensors and training.json beside this file; half a minute.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
from digits_training import (  # noqa: E402  # pyright: ignore[reportMissingImports]
    Recipe,
    Trained,
    Watch,
    accuracy,
    load_split,
    margins,
    problem_beside,
    train,
    training_flops,
    write,
)

PROBLEM = problem_beside(__file__)
RECIPE = Recipe(epochs=30, learning_rate=0.02)


def coloured(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (n, 64) as (n, 3072): ground in [0, 0.4], ink in [0.6, 1], both uniform for every image and colour."""
    grey = interpolate(images.view(-1, 1, 8, 8), size=(32, 32), mode="bilinear", align_corners=False)
    ground = 0.4 * torch.rand(len(images), 3, 1, 1, generator=generator)
    ink = 1 - 0.4 * torch.rand(len(images), 3, 1, 1, generator=generator)
    return (ground + (ink - ground) * grey).flatten(1)


def trained(seed: int = 0, *, watch: Watch | None = None) -> Trained:
    """The reader, trained.

    Args:
        seed: of the weights, the split and the colours. watch: called with the optimiser before the first step.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = PROBLEM.digit_reader()
    generator = torch.Generator().manual_seed(seed)
    split = load_split(generator)
    split = split._replace(images=coloured(split.images, generator))
    initial = {name: w.clone() for name, w in network.state_dict().items()}
    train(network, split, generator, **RECIPE._asdict(), watch=watch)
    flops = training_flops(network, split.images[:1], len(split.train), RECIPE.epochs)
    nothing = torch.empty(0)  # the law of the inputs is noise around one image
    return Trained(
        network, initial, split, nothing, nothing, flops, accuracy(network, split, split.held_back), RECIPE, seed
    )


def typical(found: Trained) -> tuple[int, float]:
    """Row and margin of the held-back 3 that is read correctly with the median margin."""
    rows = found.split.held_back[found.split.labels[found.split.held_back] == PROBLEM.DIGIT]
    margin = margins(found.network, found.split, rows)
    rows, margin = rows[margin > 0], margin[margin > 0]
    place = int(margin.argsort()[len(margin) // 2])
    return int(rows[place]), float(margin[place])


def main() -> None:
    """Train, choose the image, write."""
    found = trained()
    row, margin = typical(found)
    image = found.split.images[row].clone()
    write(HERE, found, inputs={"image": image}, more={"image_row": row, "image_margin": margin})


if __name__ == "__main__":
    torch.set_num_threads(1)  # sums in another order give other weights
    main()
