r"""What propagation's closures lose, one by one and through a whole transformer block.

Closures take a Gaussian in and hand mean and covariance out; they are held against draws, half of them mirrored, or against
integrals. Errors of softmax are relative to the entry (mean) and to the product of two standard deviations (covariance).
The block is that of `benchmarks.transformer_block`; margin = readout of the mean token less a threshold that 1e7 draws exceed
with the probability named.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import ppl_risk as pr
from benchmarks import transformer_block as block
from benchmarks.results import table
from ppl_risk.propagation import propagate
from ppl_risk.propagation.attention import attend, softmax
from ppl_risk.propagation.full import FullJoint
from ppl_risk.propagation.hermite import Activation, PiecewiseLinear, Smooth
from ppl_risk.propagation.joint import Moments, activated_covariance
from ppl_risk.propagation.normalisation import layer_norm
from ppl_risk.risk_estimate import LOG10

TITLE = "Closures of propagation, and one transformer block"
DRAWS, BATCH = 4_000_000, 200_000
LAWS = 3
SOFTMAX = {0.4: "0.002 and 0.03", 1.4: "0.009 and 0.035", 2.7: "0.017 and 0.06"}
SPREADS = (0.36, 0.42, 0.49)
ACTIVATIONS: dict[str, tuple[Activation, Callable[[Tensor], Tensor]]] = {
    "ReLU": (PiecewiseLinear(0.0, 0.0, ((1.0, 0.0),)), torch.relu), "GELU": (Smooth(F.gelu), F.gelu),
    "SiLU": (Smooth(F.silu), F.silu), "tanh": (Smooth(torch.tanh), torch.tanh),
}  # fmt: skip
CORRELATIONS = (0.6, -0.8, 0.95)
#: The probability whose threshold the slices are turned to.
AIM = 1
#: Name, family, read-out.
WAYS = (
    ("slices, full", "full", "slices"), ("slices, low-rank 16", "low_rank", "slices"), ("one tail, full", "full", "gaussian"),
)  # fmt: skip


def gaussian(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """A mean, and a covariance of mean variance 1."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn(size, size, generator=generator, dtype=torch.float64)
    covariance = half @ half.T / size + 0.05 * torch.eye(size)
    scale = covariance.diagonal().mean()
    return torch.randn(size, generator=generator, dtype=torch.float64) / 2, covariance / scale


def drawn(function: Callable[[Tensor], Tensor], mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of a function's output."""
    generator = torch.Generator().manual_seed(0)
    root = torch.linalg.cholesky(covariance).T
    total = square = torch.zeros(())
    for _ in range(DRAWS // BATCH):
        u = torch.randn(BATCH // 2, len(mean), generator=generator, dtype=torch.float64) @ root
        y = function(mean + torch.cat([u, -u]))
        total, square = total + y.sum(0), square + y.T @ y
    centre = total / DRAWS
    return centre, square / DRAWS - centre[:, None] * centre


def gaps(found: Moments, seen: tuple[Tensor, Tensor], relative: bool = False) -> tuple[float, float]:
    """Largest error of the mean (of its entry, or of a standard deviation) and of the covariance."""
    sd = seen[1].diagonal().sqrt()
    mean = (found.mean[0] - seen[0]) / (seen[0] if relative else sd)
    return float(mean.abs().max()), float(((found.covariance[0] - seen[1]) / (sd[:, None] * sd)).abs().max())


def closure_rows() -> list[dict[str, object]]:
    """Softmax, attention and layer normalisation; mean over laws of the largest error."""
    rows: list[dict[str, object]] = []

    def add(name: str, reference: str, pairs: list[tuple[float, float]]) -> None:
        mean, covariance = np.array(pairs).mean(0)
        worst = np.array(pairs).max(0)
        rows.append({
            "closure": name, "mean": f"{mean:.4f} ({worst[0]:.4f})", "covariance": f"{covariance:.4f} ({worst[1]:.4f})",
            "reference": reference,
        })  # fmt: skip

    for (sd, reference), means in product(SOFTMAX.items(), ("equal", "unequal")):
        pairs = []
        for seed in range(LAWS):
            mean, covariance = gaussian(8, seed)
            mean, covariance = sd * mean * float(means == "unequal"), sd**2 * covariance
            found = softmax(FullJoint("l", mean[None], covariance[None]), "l", 1)
            pairs.append(gaps(found, drawn(lambda x: torch.softmax(x, -1), mean, covariance), relative=True))
        add(f"softmax of 8, logit sd {sd}, {means} means", reference, pairs)
    for sd in (0.5, 1.5):
        pairs = []
        for seed in range(LAWS):
            mean, covariance = gaussian(24, seed)
            scale = torch.cat([torch.full((8,), sd), torch.ones(16)]).double()
            mean, covariance = scale * mean, scale[:, None] * covariance * scale
            joint = FullJoint("all", mean[None], covariance[None])
            joint.places = {"l": slice(0, 8), "v": slice(8, 24)}
            found = attend(joint, "l", "v", heads=1, queries=1, keys=8)

            def attended(x: Tensor) -> Tensor:
                return torch.einsum("nj,njw->nw", torch.softmax(x[:, :8], -1), x[:, 8:].reshape(-1, 8, 2))

            pairs.append(gaps(found, drawn(attended, mean, covariance)))
        add(f"attention over 8 keys, logit sd {sd}", "0.0002 to 0.003", pairs)
    for spread in SPREADS:
        pairs = []
        for seed in range(LAWS):
            mean, covariance = gaussian(16, seed)
            # The mean is stretched until the mean square of h fluctuates as asked.
            low, high = 0.0, 20.0
            for _ in range(50):
                middle = (low + high) / 2
                low, high = (middle, high) if fluctuation(middle * mean, covariance) > spread else (low, middle)
            mean = low * mean
            found = layer_norm(FullJoint("x", mean[None], covariance[None]), "x", 1, None, None, 1e-5)
            pairs.append(gaps(found, drawn(lambda x: F.layer_norm(x, (16,)), mean, covariance)))
        add(f"LayerNorm of 16, cv {spread}", "0.008 to 0.01 and 0.019 to 0.035", pairs)
    return rows


def fluctuation(mean: Tensor, covariance: Tensor) -> float:
    """Coefficient of variation of the mean square of what LayerNorm divides."""
    n = len(mean)
    centring = torch.eye(n, dtype=torch.float64) - 1 / n
    m, s = centring @ mean, centring @ covariance @ centring
    average = (m @ m + s.trace()) / n
    return float(((2 * (s @ s).trace() + 4 * m @ s @ m) / n**2).sqrt() / average)


def activation_rows() -> list[dict[str, object]]:
    """Two Hermite terms against the double integral, at means 0 and (0.8, -0.5)."""
    z = torch.linspace(-9.0, 9.0, 9001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    rows: list[dict[str, object]] = []
    for name, (activation, function) in ACTIVATIONS.items():
        row: dict[str, object] = {"activation": name}
        for rho in CORRELATIONS:
            worst = [0.0, 0.0]
            for mean in (torch.zeros(2).double(), torch.tensor([0.8, -0.5]).double()):
                given = mean[1] + rho * z
                left = torch.full_like(z, 1 - rho**2)
                value = function(mean[0] + z)
                inner = activation.coefficients(given, left).mean
                exact = density @ (value * inner) - (density @ value) * (density @ inner)
                # Below the bound on |rho| the pair is taken by two terms; `pair_covariance` is what stands beyond it.
                covariance = torch.tensor([[1.0, rho], [rho, 1.0]]).double()
                one = torch.ones(2).double()
                c = activation.coefficients(mean[None], one[None])
                two = rho * c.first.prod() + rho**2 / 2 * c.second.prod()
                taken = activated_covariance(activation, mean[None], covariance[None], c)[0, 0, 1]
                for place, said in enumerate((two, taken)):
                    worst[place] = max(worst[place], abs(float(said / exact) - 1))
            row[f"rho {rho}"] = f"{worst[0]:.4f}, {worst[1]:.5f}"
        rows.append(row)
    return rows


def block_rows(kind: str) -> list[dict[str, object]]:
    """The block on one input law, every readout."""
    seen, network, directions = block.truth(kind), block.block(), block.readouts()
    law = block.input_law(kind)
    rows: list[dict[str, object]] = []
    for name, family, readout in WAYS:
        errors, means, spreads, cost = [], [], [], 0.0
        started = time.perf_counter()
        for i in range(block.READOUTS):
            bounds = seen["threshold"][i].tolist()
            # Slices turned to one threshold serve all.
            problem = pr.RiskProblem(network, law, margin_of(directions[:, i], bounds[AIM]), name="block")
            found = propagate(problem, family, readout=readout, trust=False)
            guide, cost = found.guide, found.evidence["forward_passes_worth"]
            mean, covariance = guide.prior[:2]
            for bound, p in zip(bounds, block.PROBABILITIES, strict=True):
                rest = bound - bounds[AIM]
                said = guide.slices.log_prob(rest) if guide.slices else guide.event.log_prob(mean, covariance, rest)[0]
                errors.append(float(said) / LOG10 - math.log10(p))
            means.append((float(mean[0, 0]) + bounds[AIM] - float(seen["mean"][i])) / float(seen["sd"][i]))
            spreads.append(math.log(float(covariance[0, 0, 0].sqrt()) / float(seen["sd"][i])))
        error = np.array(errors).reshape(block.READOUTS, -1)
        row: dict[str, object] = {"way": name, "input": kind}
        for j, p in enumerate(block.PROBABILITIES):
            row[f"p = {p:.0e}"] = f"{np.sqrt((error[:, j] ** 2).mean()):.3f} ({error[:, j].mean():+.3f})"
        row |= {
            "mean, in sd": f"{rms(means):.4f}", "sd": f"{rms(spreads):.4f}", "passes": f"{cost:,.0f}",
            "seconds": f"{(time.perf_counter() - started) / block.READOUTS:.1f}",
        }  # fmt: skip
        rows.append(row)
    return rows


def margin_of(direction: Tensor, bound: float) -> Callable[[Tensor], Tensor]:
    def margin(y: Tensor) -> Tensor:
        return y.mean(1) @ direction - bound

    return margin


def rms(values: list[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


@torch.no_grad()
def run() -> str:
    """The text of the section."""
    blocks = [row for kind in block.INPUTS for row in block_rows(kind)]
    return (
        f"Largest error over the entries, mean over {LAWS} laws (worst law), {DRAWS:,} draws: softmax's means relative, all other "
        f"means in standard deviations; covariances over products of standard deviations.\n\n{table(closure_rows())}\n\n"
        "Covariance of an activation of two numbers, relative error of two Hermite terms, and of what propagation takes (the exact "
        f"pair, or twelve terms, beyond |rho| = 0.9); the larger of two pairs of means.\n\n{table(activation_rows())}\n\n"
        f"One block, {block.READOUTS} readouts: rms error of log10 p in decades (mean error) at thresholds from {block.DRAWS:,} "
        "draws, whose own error is 0.004, 0.014 and 0.14; rms error of the readout's mean and log sd; cost of one number in "
        f"passes of one input.\n\n{table(blocks)}"
    )
