r"""One transformer block and the truth of its readouts: what the propagated laws of `benchmarks.closures` are held against.

x + attention(LN x), then y + MLP(LN y): 8 tokens of 32 numbers, 4 heads, a GELU layer of 128. Query and key weights are torch's
own times `SHARPER`, so that attention is not uniform. Readouts are random directions of the mean token.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

TOKENS, WIDTH, HEADS, HIDDEN = 8, 32, 4, 128
#: Factor of the query and key weights: logits have a standard deviation of about 1.8.
SHARPER = 2.0
#: Random readouts, draws of the truth, and draws at a time.
READOUTS, DRAWS, BATCH = 8, 10**7, 2000
PROBABILITIES = (1e-2, 1e-4, 1e-6)
INPUTS = ("white", "correlated")
OUT = Path(__file__).parent / "out"


class Block(nn.Module):
    """One pre-normalised block, (batch, tokens, width) -> the same; a flat row is cut into tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.between = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Two residual additions."""
        x = x.reshape(-1, TOKENS, WIDTH)
        h = self.before(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return x + self.mlp(self.between(x))


def block() -> Block:
    """The block of the study, the same in every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Block().eval().requires_grad_(False)
        made.attention.in_proj_weight[: 2 * WIDTH] *= SHARPER
    return made


def readouts() -> Tensor:
    """(width, readouts), of unit length."""
    rows = torch.randn(WIDTH, READOUTS, generator=torch.Generator().manual_seed(1))
    return rows / rows.norm(dim=0)


def input_law(kind: str) -> Distribution:
    """N(0, I), or tokens with means of their own, directions in common and unequal spreads."""
    if kind == "white":
        return Independent(Normal(torch.zeros(TOKENS, WIDTH), 1.0), 2)
    generator = torch.Generator().manual_seed(2)
    size = TOKENS * WIDTH
    shared = torch.randn(WIDTH, 4, generator=generator) / 2
    own = torch.randn(TOKENS, 4, 4, generator=generator) / 2
    factor = torch.cat([shared.expand(TOKENS, -1, -1), shared @ own], -1).reshape(size, 8)
    mean = torch.randn(size, generator=generator) / 2
    covariance = factor @ factor.T + 0.25 * torch.eye(size)
    return MultivariateNormal(mean, covariance)


def truth(kind: str) -> dict[str, Tensor]:
    """`mean`, `sd` (readouts,) and `threshold` (readouts, probabilities), from the cache, made when missing."""
    cache = OUT / f"transformer_block_{kind}.safetensors"
    if not cache.exists():
        cache.parent.mkdir(exist_ok=True)
        save_file(_sampled(kind), cache)
    return load_file(cache)


@torch.no_grad()
def _sampled(kind: str) -> dict[str, Tensor]:
    network, directions = block(), readouts()
    law = input_law(kind)
    if isinstance(law, MultivariateNormal):
        mean, root = law.mean, law.scale_tril.T.contiguous()
    else:
        mean, root = torch.zeros(TOKENS * WIDTH), None
    generator = torch.Generator().manual_seed(3)
    values = torch.empty(READOUTS, DRAWS)
    for start in range(0, DRAWS, BATCH):
        u = torch.randn(BATCH, TOKENS * WIDTH, generator=generator)
        x = mean + (u if root is None else u @ root)
        values[:, start : start + BATCH] = (network(x.reshape(BATCH, TOKENS, WIDTH)).mean(1) @ directions).T
    deep = values.topk(math.ceil(DRAWS * max(PROBABILITIES)), dim=1).values
    ranks = [round(DRAWS * p) for p in PROBABILITIES]
    spread = values.double()
    threshold = torch.stack(
        [(deep[:, r - 1] + deep[:, r]) / 2 if r < deep.shape[1] else deep[:, r - 1] for r in ranks], 1
    )
    return {"mean": spread.mean(1), "sd": spread.std(1), "threshold": threshold.double()}
