"""What can be proved: radii on which CROWN and intervals certify the margin, and the bounds on P that follow, beside estimates.

First, whole laws: the largest region in the normal space, in standard deviations, on which margin < 0 is certified, with the event
at p about 1e-6. To bound P by 1e-5 .. 1e-7 in 64 dimensions a ball must reach 11.3 .. 11.9, a box 5.1 .. 6.0. Then pixel noise
around single held-back images of digits, x = image + sigma u, event: read as anything but the label.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from scipy.stats import chi
from torch import Tensor, nn
from torch.distributions import Independent, Normal

import ppl_risk as pr
from benchmarks.propagation_cells import CELLS, network, problem, truths
from benchmarks.results import table
from ppl_risk.bounds import Ball, Box, Program, certify, crown_bounds, interval_bounds, program_of, upper_planes
from ppl_risk.bounds.laws import affine_of, leading
from ppl_risk.risk_estimate import Status
from ppl_risk.tracing import trace
from ppl_risk.zoo import load_file, shelf

TITLE = "The formal column: certified radii and proved bounds"
NAMES, SEEDS, READOUTS, RARITY = ("rand 3x64", "digits 3x64", "rand 8x64", "digits 8x64"), (0, 1, 2), (0, 1), "1e-6"
SIGMAS, IMAGES, CALLS = (0.02, 0.05, 0.1, 0.2), 3, 100_000
#: Images of which a share is certified, and the mass of the noise that must be without a misreading.
MANY, MASS = 100, 0.999
FINER, ROUNDS = 16, 2

Regions = Callable[[Tensor, int], "Box | Ball"]
REGIONS: dict[str, tuple[Callable[..., dict[str, tuple[Tensor, Tensor]]], Regions]] = {
    "IBP box": (interval_bounds, lambda r, d: Box(torch.zeros(len(r), d).double(), r[:, None].expand(-1, d))),
    "CROWN box": (crown_bounds, lambda r, d: Box(torch.zeros(len(r), d).double(), r[:, None].expand(-1, d))),
    "CROWN L2": (crown_bounds, lambda r, d: Ball(torch.zeros(len(r), d).double(), r)),
}


def program_in_normals(told: pr.RiskProblem) -> tuple[Program, int]:
    """The margin as a program of u, and the dimension of u."""
    affine = affine_of(told.inputs)
    assert affine is not None
    return program_of(trace(told), told.device, leading(affine, told.inputs.event_shape)), affine.dimension


def largest_radius(program: Program, dimension: int, name: str) -> float:
    """The largest radius, in standard deviations, on which margin < 0 is certified: a grid, then finer ones beside it."""
    bound, region = REGIONS[name]
    radii, found = torch.logspace(-3, 1.5, 32, dtype=torch.float64), 0.0
    for _ in range(1 + ROUNDS):
        certified = bound(program, region(radii, dimension))[program.output.name][1].flatten() < 0
        if not certified.any():
            break
        found = float(radii[certified].max())
        above = radii[radii > found]
        radii = torch.linspace(found, float(above.min()) if len(above) else 2 * found, FINER, dtype=torch.float64)
    return found


def whole_laws() -> str:
    """Radii and verdicts at p about 1e-6."""
    rows: list[dict[str, object]] = []
    for name in NAMES:
        radii: dict[str, list[float]] = {region: [] for region in REGIONS}
        verdicts, best, started = [], 0.0, time.perf_counter()
        for seed in SEEDS:
            for index in READOUTS:
                truth = truths(CELLS[name], seed)[index, RARITY]
                if truth is None:
                    continue
                told = problem(CELLS[name], seed, index, truth.threshold)
                program, dimension = program_in_normals(told)
                for region, found in radii.items():
                    found.append(largest_radius(program, dimension, region))
                made = certify(told, inputs=0, seed=seed, progress=False)
                verdicts.append(made.status)
                best = min(best, made.log10_prob)
        vacuous = sum(v is Status.VACUOUS for v in verdicts)
        row: dict[str, object] = {"network": name}
        row |= {f"{region} (sd)": span(found) for region, found in radii.items()}
        row |= {"VACUOUS": f"{vacuous} of {len(verdicts)}", "best bound, log10": f"{best:.2f}"}
        rows.append(row | {"s each": f"{(time.perf_counter() - started) / len(verdicts):.1f}"})
    return table(rows)


def span(values: list[float]) -> str:
    """Median, and the range."""
    ordered = sorted(values)
    return f"{ordered[len(ordered) // 2]:.3f} ({ordered[0]:.3f} .. {ordered[-1]:.3f})"


def misread(label: int) -> Callable[[Tensor], Tensor]:
    """The best other logit minus the label's."""
    return lambda logits: torch.cat([logits[:, :label], logits[:, label + 1 :]], 1).amax(1) - logits[:, label]


def held_back(net: nn.Module) -> tuple[Tensor, Tensor]:
    """Held-back images that the network reads correctly, and their labels."""
    digits = load_file(shelf("models") / "digits_training.py")
    split = digits.load_split(torch.Generator().manual_seed(0))
    images, labels = split.images[split.held_back], split.labels[split.held_back]
    right = net(images).argmax(1) == labels
    return images[right], labels[right]


def noise(name: str) -> str:
    """Bounds and counts around single images."""
    net, rows = network(CELLS[name], 0), list[dict[str, object]]()
    images, labels = held_back(net)
    for k in range(IMAGES):
        for sigma in SIGMAS:
            law = Independent(Normal(images[k], sigma), 1)
            told = pr.RiskProblem(net, law, misread(int(labels[k])), name=f"{name}, image {k}")
            made = certify(told, inputs=0, progress=False)
            counted = pr.monte_carlo(told, calls=CALLS, posterior_draws=0, progress=False)
            seen = (
                f"{counted.prob:.1e}"
                if counted.status is not Status.NO_HITS
                else f"< {math.exp(counted.interval()[1]):.0e}"
            )
            ev = made.evidence
            rows.append({
                "image": f"{k} (a {int(labels[k])})", "sigma": sigma, "CROWN L2 radius (sd)": f"{ev['certified_radius']:.2f}",
                "ball, log10 P <=": f"{ev['log10_bound_region']:.2f}", "PROVEN, log10 P <=": f"{ev['log10_bound_proven']:.2f}",
                "status": made.status.name, "counted P": seen, "s": f"{made.seconds:.1f}",
            })  # fmt: skip
    return table(rows)


@torch.no_grad()
def shares(name: str) -> str:
    """Of many images, the share with a certified ball that has 99.9 % of the noise, and the share of noisy images misread."""
    net, rows = network(CELLS[name], 0), list[dict[str, object]]()
    images, labels = held_back(net)
    x, y = images[:MANY], labels[:MANY]
    radius = float(chi(x.shape[1]).ppf(MASS))
    generator = torch.Generator().manual_seed(0)
    for sigma in SIGMAS:
        certified = torch.zeros(len(x), dtype=torch.bool)
        for label in range(10):
            own = (y == label).nonzero().flatten()
            told = pr.RiskProblem(net, Independent(Normal(x[0], sigma), 1), misread(label))
            program = program_of(trace(told), told.device)
            ball = Ball(x[own][:, None].double(), torch.full((len(own),), sigma * radius, dtype=torch.float64))
            certified[own] = upper_planes(program, ball, crown_bounds(program, ball))[1].amax(1) < 0
        noisy = x + sigma * torch.randn(1000, *x.shape, generator=generator)
        wrong = net(noisy.flatten(0, 1)).argmax(1).reshape(noisy.shape[:2]) != y
        rows.append({
            "sigma": sigma, f"share of {len(x)} images certified": f"{float(certified.float().mean()):.2f}",
            "share of noisy images misread": f"{float(wrong.float().mean()):.1e}",
        })  # fmt: skip
    return table(rows)


def run() -> str:
    """The text of the section."""
    parts = [
        "### Whole laws, p about 1e-6\n\nMedian and range over three networks and two readouts each.\n\n" + whole_laws()
    ]
    for name in ("digits 3x64", "digits 8x64"):
        parts.append(f"### {name}: pixel noise around single images\n\n{noise(name)}")
        parts.append(
            f"Images certified: no misreading within the radius that holds {MASS:.1%} of the noise.\n\n{shares(name)}"
        )
    return "\n\n".join(parts)
