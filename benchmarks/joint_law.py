"""Two layers read together: layer-by-layer laws that forget how layers move together are wrong, the joint law is right."""

from __future__ import annotations

import math

import torch
from scipy.stats import norm
from torch import Tensor, nn

import ppl_risk as pr
from benchmarks.results import table
from ppl_risk.risk_estimate import LOG10

TITLE = "joint_law: a detector that reads two layers, and a residual stream"
WIDTH = 20


class TwoReadings(nn.Module):
    """h1 = W1 x, h2 = W2 h1; both are returned, end to end."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.late = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        for layer in (self.early, self.late):
            nn.init.orthogonal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Both layers."""
        early = self.early(x)
        return torch.cat([early, self.late(early)], 1)


def linear_problem(z: float, sign: float) -> pr.RiskProblem:
    """The detector weighs an early unit against a late reading of it (sign -1: they cancel; +1: they add up); exact z."""
    torch.manual_seed(0)
    network = TwoReadings().requires_grad_(False).eval()
    early = torch.randn(WIDTH) / math.sqrt(WIDTH)
    late = torch.linalg.solve(network.late.weight.T, sign * early + 0.2 * torch.randn(WIDTH) / math.sqrt(WIDTH))
    reading = torch.cat([early, late])
    row = early @ network.early.weight + late @ network.late.weight @ network.early.weight
    threshold = z * float(row.norm())
    law = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(WIDTH), 1.0), 1)
    return pr.RiskProblem(network, law, lambda y: y @ reading - threshold, name=f"two readings, {sign:+.0f}")


def families(problem: pr.RiskProblem) -> dict[str, object]:
    """From no correlation to all."""
    selection = pr.select(problem)
    return {
        "mean-field": pr.guides.MeanField(), "block": pr.guides.Block(), "low-rank(8)": pr.guides.LowRank(8),
        "full": pr.guides.Full(), "selected, an eighth": pr.guides.Selected(selection.at_share(1 / 8)),
        "selected, a quarter": pr.guides.Selected(selection.at_share(1 / 4)),
    }  # fmt: skip


def run() -> str:
    """Signed errors of every family."""
    rows = []
    cases = [
        (linear_problem(z, sign), float(norm.logsf(z)), f"1e{norm.logsf(z) / LOG10:.1f}")
        for sign in (-1.0, 1.0)
        for z in (3.0, 4.9)
    ]
    for rarity in ("1e-2", "1e-4", "1e-6"):
        truth = pr.load_truth("digits_residual", rarity=rarity)
        assert truth is not None
        cases.append((pr.load_model("digits_residual", rarity=rarity), truth.log_prob, rarity))
    for problem, truth, name in cases:
        cells = {}
        for label, family in families(problem).items():
            found = pr.fit_layerwise(problem, family, draws=40_000, particles=2000, progress=False)  # pyright: ignore[reportArgumentType]
            gap = (found.log_prob - truth) / LOG10
            cells[label] = f"{gap:+.2f}" if math.isfinite(gap) else found.status.name
        rows.append({"problem": problem.name, "p": name} | cells)
    return f"Signed log10 p error of each family's own tail (truth exact, or of the zoo)\n\n{table(rows)}"
