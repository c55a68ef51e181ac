"""What the digit readers' `train.py` scripts share: the data, the loop, what is written. Not a model itself.

8 x 8 digits (scikit-learn's `load_digits`), pixels scaled to [0, 1], a fifth held back; cross-entropy in random batches.
One seed fixes the weights before training, another generator of the same seed the split and the order of the images.
"""

from __future__ import annotations

import importlib.util
import json
import math
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import sklearn
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode

HELD_BACK = 0.2
#: Added to the variance of every pixel: some pixels are 0 in every image.
JITTER = 1e-4

#: Called with the optimiser before the first step; a recorder puts its hooks on it.
Watch = Callable[[Optimizer], object]


class Split(NamedTuple):
    """Images (n, 64) in [0, 1], labels (n,), and the rows to train on and to hold back."""

    images: Tensor
    labels: Tensor
    train: Tensor
    held_back: Tensor


class Recipe(NamedTuple):
    """How a network is trained; `clip` is the largest norm of a gradient (None: any)."""

    epochs: int
    learning_rate: float
    momentum: float = 0.9
    batch: int = 32
    optimiser: str = "sgd"
    clip: float | None = None


class Trained(NamedTuple):
    """A trained network, where it started, its data, the Gaussian law of the held-back images, cost and accuracy."""

    network: nn.Module
    initial: dict[str, Tensor]
    split: Split
    mean: Tensor
    scale_tril: Tensor
    training_flops: float
    accuracy: float
    recipe: Recipe
    seed: int


def load_split(generator: torch.Generator) -> Split:
    """The data, divided at random."""
    data: Any = load_digits()
    images, labels = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=generator)
    size = round(HELD_BACK * len(labels))
    return Split(images, labels, order[size:], order[:size])


def gaussian_of(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (64,) and Cholesky factor (64, 64) of the covariance of some images."""
    covariance = torch.cov(images.double().T) + JITTER * torch.eye(images.shape[1], dtype=torch.float64)
    return images.mean(0), torch.linalg.cholesky(covariance).float().contiguous()


def optimiser_of(network: nn.Module, kind: str, learning_rate: float, momentum: float) -> Optimizer:
    """SGD with momentum, or Adam (which has its own)."""
    if kind == "sgd":
        return torch.optim.SGD(network.parameters(), lr=learning_rate, momentum=momentum)
    if kind == "adam":
        return torch.optim.Adam(network.parameters(), lr=learning_rate)
    raise ValueError(f"optimiser must be 'sgd' or 'adam', got {kind!r}.")


def train(
    network: nn.Module,
    split: Split,
    generator: torch.Generator,
    *,
    epochs: int,
    learning_rate: float,
    momentum: float = 0.9,
    batch: int = 32,
    optimiser: str = "sgd",
    clip: float | None = None,
    watch: Watch | None = None,
) -> None:
    """Minimise cross-entropy in place; arguments as in `Recipe` and `trained`."""
    stepper = optimiser_of(network, optimiser, learning_rate, momentum)
    if watch is not None:
        watch(stepper)
    for _ in range(epochs):
        for places in torch.randperm(len(split.train), generator=generator).split(batch):
            rows = split.train[places]
            loss = nn.functional.cross_entropy(network(split.images[rows]), split.labels[rows])
            stepper.zero_grad()
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(network.parameters(), clip)
            stepper.step()


@torch.no_grad()
def margins(network: nn.Module, split: Split, rows: Tensor) -> Tensor:
    """Logit of the true digit minus the best other one; positive where the image is read correctly."""
    logits, truth = network(split.images[rows]), split.labels[rows, None]
    return logits.gather(1, truth)[:, 0] - logits.scatter(1, truth, -torch.inf).amax(1)


def accuracy(network: nn.Module, split: Split, rows: Tensor) -> float:
    """Share of the images that are read correctly."""
    return float((margins(network, split, rows) > 0).float().mean())


@torch.no_grad()
def training_flops(network: nn.Module, image_row: Tensor, images: int, epochs: int) -> int:
    """3 x forward FLOPs x images x epochs: a step back costs two forward passes."""
    with FlopCounterMode(display=False) as counter:
        network(image_row)
    return 3 * counter.get_total_flops() * images * epochs


def train_from(make: Callable[[], nn.Module], recipe: Recipe, seed: int, *, watch: Watch | None = None) -> Trained:
    """Draw weights and split from a seed, train, measure; the caller's random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make()
    generator = torch.Generator().manual_seed(seed)
    split = load_split(generator)
    initial = {name: w.clone() for name, w in network.state_dict().items()}
    train(network, split, generator, **recipe._asdict(), watch=watch)
    flops = training_flops(network, split.images[:1], len(split.train), recipe.epochs)
    law = gaussian_of(split.images[split.held_back])
    return Trained(network, initial, split, *law, flops, accuracy(network, split, split.held_back), recipe, seed)


def he_(network: nn.Module) -> None:
    """He's initial weights and zero biases, in place: activations keep their size through any number of ReLU layers."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)


def problem_beside(file: str) -> ModuleType:
    """The module `problem.py` in the folder of `file`, under a name of its own: every model has one."""
    path = Path(file).with_name("problem.py")
    spec = importlib.util.spec_from_file_location(f"{path.resolve().parent.name}_problem", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(
    folder: Path,
    trained: Trained,
    *,
    inputs: Mapping[str, Tensor] | None = None,
    more: Mapping[str, object] | None = None,
) -> None:
    """Write initial.safetensors, final.safetensors, inputs.safetensors and training.json.

    Args:
        folder: where to. trained: what was made.
        inputs: the tensors of the input law; default the Gaussian of the held-back images.
        more: further entries of the record.
    """
    if not all(math.isfinite(float(w.abs().max())) for w in trained.network.state_dict().values()):
        raise RuntimeError(f"Training diverged: {trained.recipe}.")
    folder.mkdir(exist_ok=True)
    save_file(trained.initial, folder / "initial.safetensors")
    save_file(trained.network.state_dict(), folder / "final.safetensors")
    save_file(dict(inputs or {"mean": trained.mean, "scale_tril": trained.scale_tril}), folder / "inputs.safetensors")
    split, recipe = trained.split, trained.recipe._asdict()
    record = {
        "held_back_accuracy": trained.accuracy,
        "training_accuracy": accuracy(trained.network, split, split.train),
        "training_images": len(split.train),
        "held_back_images": len(split.held_back),
        "training_flops": trained.training_flops,
        "training_flops_are": "3 x forward FLOPs x images x epochs",
        **{name: value for name, value in recipe.items() if value is not None},
        "seed": trained.seed,
        **(more or {}),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "sklearn": sklearn.__version__},
    }
    (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(folder.name, json.dumps(record, indent=2))
