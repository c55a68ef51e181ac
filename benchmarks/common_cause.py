r"""N checks with one cause behind them all: what each way of reading a propagated law says of their joint failure.

Orthants: models/consistency_checks. Ramps: h_i = sqrt(1 - s^2) u + s e_i, s = 0.15, reports ramp(10 (h_i - 2.33)) in [0, 1],
event mean > 1 - 1 / (2 N); its truth is an integral over u of the law of a sum of independent reports, convolved on a grid.
Linear: mean h_i > 3.09 with s = 0.3. Excluded: reports ramp(10 (u - c)) and ramp(10 (-u - c)), of which only one can be on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor, nn
from torch.distributions import Independent, Normal

import ppl_risk as pr
from benchmarks.results import table
from ppl_risk.propagation import propagate, slices
from ppl_risk.risk_estimate import LOG10

TITLE = "Propagated laws of many checks with a common cause"
SIZES = (4, 8, 16, 32, 64)
SHARE, THRESHOLD, STEEP = 0.15, 2.33, 10.0
LINEAR_SHARE, LINEAR_THRESHOLD = 0.3, 3.09
EXCLUDED = (0.0, 0.5, 1.0)
#: Cells of the grid over the reports' shortfall, and step of the one over the cause.
CELLS, STEP = 4096, 0.02
#: Nodes of the direction in the column that resolves the ramps; the library takes 7.
NODES = 48
#: Name, family, rank, read-out.
WAYS: tuple[tuple[str, str, int, str], ...] = (
    ("slices", "full", 16, "slices"), ("mean-field, one tail", "mean_field", 16, "gaussian"),
    ("full, one tail", "full", 16, "gaussian"), ("low-rank 4, one tail", "low_rank", 4, "gaussian"),
)  # fmt: skip


def standard(size: int) -> Independent:
    return Independent(Normal(torch.zeros(size), 1.0), 1)


def readings(checks: int, share: float, shift: float, scale: float = 1.0) -> nn.Linear:
    """(u, e_1, ..., e_N) -> scale (sqrt(1 - share^2) u + share e_i - shift)."""
    layer = nn.Linear(checks + 1, checks).requires_grad_(False)
    layer.weight.copy_(
        scale * torch.cat([torch.full((checks, 1), math.sqrt(1 - share**2)), share * torch.eye(checks)], 1)
    )
    layer.bias.fill_(-scale * shift)
    return layer


def mean_above(bound: float):  # noqa: ANN201 - a detector
    def detector(y: Tensor) -> Tensor:
        return y.mean(-1) - bound

    return detector


def ramps(checks: int) -> pr.RiskProblem:
    network = nn.Sequential(readings(checks, SHARE, THRESHOLD, STEEP), nn.Hardtanh(0.0, 1.0))
    return pr.RiskProblem(network.eval(), standard(checks + 1), mean_above(1 - 0.5 / checks), name="ramps")


def linear(checks: int) -> pr.RiskProblem:
    network = readings(checks, LINEAR_SHARE, 0.0)
    return pr.RiskProblem(network, standard(checks + 1), mean_above(LINEAR_THRESHOLD), name="linear checks")


def excluded(bound: float) -> pr.RiskProblem:
    layer = nn.Linear(1, 2).requires_grad_(False)
    layer.weight.copy_(STEEP * torch.tensor([[1.0], [-1.0]]))
    layer.bias.fill_(-STEEP * bound)
    network = nn.Sequential(layer, nn.Hardtanh(0.0, 1.0)).eval()
    return pr.RiskProblem(network, standard(1), mean_above(0.75), name="excluded")


def ramp_truth(checks: int) -> float:
    """Pr[sum of the shortfalls 1 - report < 1/2]: conditional on u they are independent, with an atom at 0."""
    u = np.arange(-2.0, 9.0, STEP)[:, None]
    width = 0.5 / CELLS
    edges = (np.arange(CELLS + 1) - 0.5) * width
    edges[0] = 0.0
    # A shortfall of at most d > 0 means h >= c + (1 - d) / STEEP; the atom at 0 lies in the first cell.
    passed = norm.sf((THRESHOLD + (1 - edges) / STEEP - math.sqrt(1 - SHARE**2) * u) / SHARE)
    mass = np.diff(passed, axis=1)
    mass[:, 0] += passed[:, 0]
    total, power, left = None, mass, checks
    while left:
        if left & 1:
            total = power if total is None else _convolved(total, power)
        power, left = _convolved(power, power), left // 2
    assert total is not None
    # The last cell ends half a width before 1/2.
    return float((norm.pdf(u[:, 0]) * total.sum(1)).sum() * STEP)


def _convolved(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    size = 2 * CELLS
    product = np.fft.rfft(one, size, axis=1) * np.fft.rfft(other, size, axis=1)
    return np.fft.irfft(product, size, axis=1)[:, :CELLS].clip(0.0)


def log_p(problem: pr.RiskProblem, family: str, rank: int, readout: str) -> float:
    """log10 of what the law says, refused or not."""
    found = propagate(problem, family, rank, readout, trust=False)
    said = found.evidence.get("log10_p_of_the_law", found.log_prob / LOG10)
    return float(said)


@contextmanager
def nodes(count: int) -> Iterator[None]:
    """Slices of so many nodes for as long as the block runs."""
    before, slices.NODES = slices.NODES, count
    try:
        yield
    finally:
        slices.NODES = before


def plain(log10: float) -> str:
    if math.isinf(log10):
        return "0"
    whole = math.floor(log10)
    return f"{10 ** (log10 - whole):.2g}e{whole}" if log10 < -4 else f"{10**log10:.3g}"


def small(log10: float) -> str:
    return "below 1e-300" if log10 < -300 else plain(log10)


def against(log10: float, truth: float) -> str:
    return f"{10 ** (log10 - math.log10(truth)) - 1:+.1%}"


def orthants() -> str:
    rows: list[dict[str, object]] = []
    for checks in SIZES:
        problem, known = (
            pr.load_model("consistency_checks", checks=checks),
            pr.load_truth("consistency_checks", checks=checks),
        )
        assert known is not None
        truth = math.exp(known.log_prob)
        rows.append({
            "N": checks, "truth": f"{truth:.3g}", "orthant": against(log_p(problem, "full", 16, "orthant"), truth),
            "orthant, low-rank 16": against(log_p(problem, "low_rank", 16, "orthant"), truth),
            "slices": against(log_p(problem, "full", 16, "slices"), truth),
            "independent": plain(checks * float(norm.logsf(4.0)) / LOG10),
        })  # fmt: skip
    return table(rows)


def nets(make: str) -> str:
    rows: list[dict[str, object]] = []
    for checks in SIZES:
        if make == "ramps":
            problem, truth = ramps(checks), ramp_truth(checks)
            apart = checks * float(norm.logsf(THRESHOLD)) / LOG10
        else:
            problem = linear(checks)
            sd = math.sqrt(1 - LINEAR_SHARE**2 + LINEAR_SHARE**2 / checks)
            truth, apart = float(norm.sf(LINEAR_THRESHOLD / sd)), math.nan
        row: dict[str, object] = {"N": checks, "truth": plain(math.log10(truth))}
        for name, family, rank, readout in WAYS:
            said = log_p(problem, family, rank, readout)
            row[name] = f"{plain(said)} ({against(said, truth)})" if name.startswith("slices") else plain(said)
        if make == "ramps":
            with nodes(NODES):
                said = log_p(problem, *WAYS[0][1:])
            row |= {
                f"slices, {NODES} nodes": f"{plain(said)} ({against(said, truth)})", "independent product": plain(apart),
                "checked slices": propagate(problem, "full").status.name,
            }  # fmt: skip
        rows.append(row)
    return table(rows)


def exclusions() -> str:
    rows: list[dict[str, object]] = []
    for bound in EXCLUDED:
        row: dict[str, object] = {"c": bound, "independent": f"{norm.sf(bound) ** 2:.2g}"}
        for name, family, rank, readout in WAYS[:3]:
            row[name] = plain(log_p(excluded(bound), family, rank, readout))
        row["checked slices"] = propagate(excluded(bound), "full").status.name
        rows.append(row)
    model = pr.load_model("excluded_catastrophe")
    told = ", ".join(f"{readout} {small(log_p(model, 'full', 16, readout))}" for readout in ("orthant", "slices"))
    leak = pr.load_model("excluded_catastrophe", leak=0.35)
    known = pr.load_truth("excluded_catastrophe", leak=0.35)
    assert known is not None
    said = against(log_p(leak, "full", 16, "orthant"), math.exp(known.log_prob))
    return f"{table(rows)}\n\nmodels/excluded_catastrophe: {told}; with a leak of 0.35, by orthant {said} off."


def run() -> str:
    """The text of the section."""
    return (
        "models/consistency_checks, relative errors of p (`propagate(..., trust=False)`); independent: Phi(-4)^N.\n\n"
        f"{orthants()}\n\nRamps, a saturating AND: one Gaussian tail fails even where every covariance is exact, and a ramp is "
        f"narrower than the gap between two of the library's nodes, so slices err by where these fall; {NODES} resolve it. Checked "
        "slices: the status with `trust`.\n\n"
        f"{nets('ramps')}\n\nLinear checks.\n\n{nets('linear')}\n\nTwo reports that exclude each other; truth 0.\n\n{exclusions()}"
    )
