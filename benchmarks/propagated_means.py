r"""Means and tails of a deep network by propagation, against Monte Carlo: what covariances and third cumulants are worth.

The task is the warm-up of WhestBench (AIcrowd, Alignment Research Center, 2026): a ReLU network of eight weight layers of
width 256, weights N(0, 2 / 256), no biases, x ~ N(0, I), ReLU after every weight layer, the eighth included; asked are the
means after the eighth ReLU. The networks here are drawn by seed, not theirs.

The truth is Monte Carlo with x = r u, r = |x| independent of u uniform on the sphere: the networks are homogeneous of degree
one, so E f(x) = E[r] E f(u) with E[r] known, and u and -u are evaluated together. Its own squared error is estimated from the
spread of the pairs and subtracted from every mean squared error.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.results import table
from ppl_risk.propagation.cumulants import Cumulants
from ppl_risk.propagation.cumulants_activation import hermite_table
from ppl_risk.propagation.skewed import corrected_tail
from ppl_risk.risk_estimate import LOG10

TITLE = "Propagated means and tails of deep ReLU networks"
NETS, LAYERS, WIDTH = 8, 8, 256
#: Evaluations of each network for its truth, u and -u counting as two, and pairs at a time.
DRAWS, BATCH = 2**22, 4096
#: Networks on which covariances are set against third cumulants.
OTHERS = 64
#: Networks of which the tails of the last pre-activations are sampled, at these probabilities.
TAIL_NETS, PROBABILITIES = 2, (1e-2, 1e-3, 1e-4, 1e-5)
CACHE = Path(__file__).parent / "out" / "propagated_means.safetensors"
TAILS = Path(__file__).parent / "out" / "propagated_tails.safetensors"


def weights_of(seed: int) -> list[Tensor]:
    """He-initialised weights of one network, double precision."""
    generator = torch.Generator().manual_seed(seed)
    scale = math.sqrt(2 / WIDTH)
    return [scale * torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64) for _ in range(LAYERS)]


@torch.no_grad()
def sampled_means(seed: int) -> tuple[Tensor, Tensor]:
    """Means after the last ReLU and the squared standard error of each."""
    weights = [w.T.float() for w in weights_of(seed)]
    generator = torch.Generator().manual_seed(10_000 + seed)
    total, square = torch.zeros(2, WIDTH, dtype=torch.float64)
    pairs = DRAWS // 2
    for _ in range(pairs // BATCH):
        u = torch.randn(BATCH, WIDTH, generator=generator)
        z = (u / u.norm(dim=1, keepdim=True)) @ weights[0]
        x = torch.cat([z, -z]).relu_()
        for w in weights[1:]:
            x = (x @ w).relu_()
        pair = (x[:BATCH] + x[BATCH:]).double() / 2
        total += pair.sum(0)
        square += pair.square().sum(0)
    mean = total / pairs
    error = (square / pairs - mean**2) / pairs
    radius = math.sqrt(2) * math.exp(math.lgamma((WIDTH + 1) / 2) - math.lgamma(WIDTH / 2))
    return radius * mean, radius**2 * error


def truth() -> dict[str, Tensor]:
    """`mean` and `error`, (nets, width), from the cache, made when missing."""
    if not CACHE.exists():
        found = [sampled_means(seed) for seed in range(NETS)]
        CACHE.parent.mkdir(exist_ok=True)
        save_file({"mean": torch.stack([m for m, _ in found]), "error": torch.stack([e for _, e in found])}, CACHE)
    return load_file(CACHE)


@torch.no_grad()
def sampled_quantiles(seed: int) -> Tensor:
    """Thresholds that the last pre-activations exceed with each probability, (width, probabilities), from `DRAWS` inputs."""
    weights = [w.T.float() for w in weights_of(seed)]
    generator = torch.Generator().manual_seed(20_000 + seed)
    ranks = [round(DRAWS * p) for p in PROBABILITIES]
    largest = torch.full((WIDTH, max(ranks)), -math.inf)
    waiting: list[Tensor] = []
    for done in range(DRAWS // 2 // BATCH):
        z = torch.randn(BATCH, WIDTH, generator=generator) @ weights[0]
        z = torch.cat([z, -z])
        for w in weights[1:]:
            z = z.relu_() @ w
        waiting.append(z.T)
        if done % 16 == 15:  # sorted now and then, not batch by batch
            largest = torch.cat([largest, *waiting], dim=1).topk(max(ranks), dim=1).values
            waiting = []
    return largest[:, [rank - 1 for rank in ranks]].double()


def quantiles() -> Tensor:
    """(nets, width, probabilities), from the cache, made when missing."""
    if not TAILS.exists():
        TAILS.parent.mkdir(exist_ok=True)
        save_file({"threshold": torch.stack([sampled_quantiles(seed) for seed in range(TAIL_NETS)])}, TAILS)
    return load_file(TAILS)["threshold"]


def mean_field(weights: list[Tensor]) -> Tensor:
    """Means with every pre-activation Gaussian and independent of the others."""
    mean, variance = (
        torch.zeros(WIDTH, 1).double(),
        torch.ones(WIDTH, 1).double(),
    )  # columns: only matrix products are counted
    for w in weights:
        mean, powers = hermite_table("relu", (w @ mean)[:, 0], (w**2 @ variance).sqrt()[:, 0])
        mean, variance = mean[:, None], powers[1, 0][:, None]
    return mean[:, 0]


def propagated(weights: list[Tensor], order: int) -> Cumulants:
    """The law after the last ReLU, covariances (order 2) or third cumulants too."""
    return before_last(weights, order).activation("relu", order=order)


def before_last(weights: list[Tensor], order: int) -> Cumulants:
    """The law of the last pre-activations."""
    x = Cumulants.gaussian(torch.zeros(WIDTH), torch.eye(WIDTH))
    for w in weights[:-1]:
        x = x.affine(w).activation("relu", order=order)
    return x.affine(weights[-1])


def normal_tail(x: Cumulants, threshold: Tensor) -> Tensor:
    """log Pr with the first two moments."""
    return torch.special.log_ndtr((x.mean - threshold) / x.covariance.diagonal().sqrt())


def gamma_tail(x: Cumulants, threshold: Tensor) -> Tensor:
    """log Pr with the first three."""
    return corrected_tail(x.mean, x.covariance.diagonal().sqrt(), x.skewness(), threshold)


#: Name, order of the propagation, tail.
TAIL_LAWS: tuple[tuple[str, int, Callable[[Cumulants, Tensor], Tensor]], ...] = (
    ("covariances, normal tail", 2, normal_tail),
    ("third cumulants, normal tail", 3, normal_tail),
    ("third cumulants, gamma tail", 3, gamma_tail),
    ("third cumulants and tau, gamma mixture", 3, Cumulants.log_tail),
)


def tails() -> list[dict[str, object]]:
    """Errors of the tail of every last pre-activation at each probability."""
    thresholds = quantiles()
    rows: list[dict[str, object]] = []
    for name, order, law in TAIL_LAWS:
        laws = [before_last(weights_of(seed), order) for seed in range(TAIL_NETS)]
        row: dict[str, object] = {"tail": name}
        for k, probability in enumerate(PROBABILITIES):
            found = torch.cat([law(x, thresholds[seed, :, k]) for seed, x in enumerate(laws)])
            gap = (found - math.log(probability)) / LOG10
            row[f"p = {probability:.0e}"] = f"{float(gap.abs().mean()):.3f} ({float(gap.mean()):+.3f})"
        rows.append(row)
    return rows


ENGINES: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "mean field (variances)": mean_field,
    "covariances": lambda weights: propagated(weights, 2).mean,
    "third cumulants": lambda weights: propagated(weights, 3).mean,
}


@torch.no_grad()
def run() -> str:
    """The text of the section."""
    exact = truth()
    variance = torch.stack(
        [propagated(weights_of(seed), 3).covariance.diagonal().mean() for seed in range(NETS)]
    ).mean()
    forward = 2 * LAYERS * WIDTH**2
    rows: list[dict[str, object]] = []
    for name, engine in ENGINES.items():
        with FlopCounterMode(display=False) as counter:
            engine(weights_of(0))
        flops = counter.get_total_flops()
        errors, seconds = [], []
        for seed in range(NETS):
            weights = weights_of(seed)
            started = time.perf_counter()
            found = engine(weights)
            seconds.append(time.perf_counter() - started)
            errors.append(float(((found - exact["mean"][seed]) ** 2 - exact["error"][seed]).mean()))
        mean = sum(errors) / NETS
        rows.append({
            "engine": name, "MSE of means, 8 nets": f"{mean:.2e}", "worst net": f"{max(errors):.2e}",
            "FLOPs": f"{flops:.2e}", "in forward passes": f"{flops / forward:,.0f}",
            "draws of equal error": f"{float(variance) / mean:,.0f}", "seconds": f"{sorted(seconds)[NETS // 2]:.3f}",
        })  # fmt: skip
    others = [
        float((propagated(weights, 2).mean - propagated(weights, 3).mean).square().mean())
        for weights in map(weights_of, range(100, 100 + OTHERS))
    ]
    spread = torch.tensor(others, dtype=torch.float64)
    return (
        f"{LAYERS} weight layers of width {WIDTH}, means after the last ReLU; truth from {DRAWS:,} evaluations a network, whose "
        f"own squared error, {float(exact['error'].mean()):.1e}, is subtracted. FLOPs of matrix products, a multiply-add being "
        "two; elementwise work, of order n^2 a layer and, for third cumulants, a layer passed before, comes on top. A forward pass "
        f"is one input through the network. Draws of equal error: plain Monte Carlo's, {float(variance):.3f} / MSE."
        f"\n\n{table(rows)}\n\nEight networks do not resolve the level of the covariances: on {OTHERS} others, third "
        f"cumulants serving as truth, their MSE is {float(spread.mean()):.2e} "
        f"(standard error {float(spread.std()) / math.sqrt(OTHERS):.1e}).\n\n"
        f"Tails of the {WIDTH} last pre-activations of {TAIL_NETS} of the networks, at thresholds that {DRAWS:,} inputs exceed "
        "with the probability named: mean absolute error of log10 p, and in brackets the mean error. The thresholds' own error is "
        f"0.07 at the last.\n\n{table(tails())}"
    )
