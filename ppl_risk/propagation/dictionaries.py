r"""Where directions of features come from: a sparse autoencoder, random unit vectors, or the user.

A sparse autoencoder minimises |x - c - V z|^2 + l1 |z|_1, z = relu(W (x - c) + a) with the columns of V of unit length, or keeps
the `top` largest z of a row and no penalty (Gao et al. 2024, arXiv 2406.04093). Given directions take z from least squares, random
ones from ridge regression: nearly parallel directions would otherwise get huge activations of opposite signs, which independence
adds up.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from ppl_risk.errors import RiskError
from ppl_risk.propagation.features import Dictionary
from ppl_risk.randomness import seeded

#: Rows of a step of training, its first rate, the least singular value of given directions relative to the largest, and the ridge
#: of random ones, which are of unit length.
BATCH, RATE, LEAST, RIDGE = 512, 3e-3, 1e-9, 1.0


def given_directions(directions: Float[Tensor, "n j"], name: str = "given") -> Dictionary:
    """Activations by least squares; the smallest ones where there are more directions than numbers.

    Raises:
        RiskError: directions are not a finite matrix.

    Example:
        >>> given_directions(torch.eye(2)).encode(torch.ones(1, 2).double()).round(decimals=6).tolist()
        [[1.0, 1.0]]
    """
    if directions.dim() != 2 or not bool(torch.isfinite(directions).all()):
        raise RiskError(f"Directions must be a finite matrix (n, features), got {tuple(directions.shape)}.")
    directions = directions.double()
    solve = torch.linalg.pinv(directions, rtol=LEAST)
    return Dictionary(directions, lambda x: x.double() @ solve.mT, name)


def random_dictionary(size: int, count: int, seed: int = 0) -> Dictionary:
    """`count` random unit vectors of R^size.

    Example:
        >>> random_dictionary(4, 2).directions.norm(dim=0).round(decimals=6).tolist()
        [1.0, 1.0]
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(size, count, generator=generator, dtype=torch.float64)
    directions = drawn / drawn.norm(dim=0)
    ridge = directions.mT @ directions + RIDGE * torch.eye(count, dtype=torch.float64)
    solve = torch.linalg.solve(ridge, directions.mT)
    return Dictionary(directions, lambda x: x.double() @ solve.mT.to(x.device), "random")


def train_sae(
    x: Float[Tensor, "rows n"],
    count: int,
    *,
    l1: float = 0.03,
    top: int | None = None,
    steps: int = 600,
    seed: int = 0,
    progress: bool = True,
) -> Dictionary:
    """A sparse autoencoder with `count` features, trained on rows; a few seconds.

    Args:
        x: draws. count: features. l1: penalty, in units of the rows' standard deviation. top: features that a row keeps; then
            there is no penalty. steps: of Adam, 512 rows each.

    Raises:
        RiskError: fewer rows than 100, no feature, or no spread in the rows.

    Example:
        >>> x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> train_sae(x, 4, steps=5, progress=False).encode(x).shape
        torch.Size([200, 4])
    """
    x = x.double()
    scale = x.std(0).square().mean().sqrt() if len(x) > 1 else x.new_zeros(())
    if len(x) < 100 or count < 1 or not bool(scale > 0) or (top is not None and not 1 <= top <= count):
        raise RiskError(
            f"A sparse autoencoder takes at least 100 rows that differ, a feature or more and 1 <= top <= count; got "
            f"{len(x)} rows, {count} features, top {top}."
        )
    with seeded(seed), torch.enable_grad():
        centre = x.mean(0)
        rows = ((x - centre) / scale).detach()
        decoder = torch.randn(x.shape[1], count, dtype=torch.float64).to(x.device)
        decoder = (decoder / decoder.norm(dim=0)).requires_grad_()
        encoder, bias = decoder.detach().mT.clone().requires_grad_(), x.new_zeros(count).requires_grad_()
        optimiser = torch.optim.Adam([decoder, encoder, bias], lr=RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in tqdm(range(steps), disable=not progress, desc="autoencoder", unit="step"):
            batch = rows[torch.randint(len(rows), (BATCH,)).to(x.device)]
            z = _code(batch, encoder, bias, top)
            # Activations are measured along unit directions, so that the penalty cannot be passed on to the decoder.
            loss = (batch - z @ (decoder / decoder.norm(dim=0)).mT).square().sum(-1).mean()
            loss = loss + (0.0 if top is not None else l1 * z.sum(-1).mean())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    directions = (decoder / decoder.norm(dim=0)).detach()
    weight, start = encoder.detach(), bias.detach()

    def encode(given: Tensor) -> Tensor:
        return scale * _code((given.double() - centre) / scale, weight, start, top)

    return Dictionary(directions, encode, "sae")


def _code(rows: Tensor, encoder: Tensor, bias: Tensor, top: int | None) -> Tensor:
    z = torch.relu(rows @ encoder.mT + bias)
    if top is None or top >= z.shape[-1]:
        return z
    return torch.where(z >= z.topk(top, -1).values[..., -1:], z, 0.0)
