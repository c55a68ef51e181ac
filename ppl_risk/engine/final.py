"""The number: fresh draws of the last proposal, in chunks that are units of a plan, and what their weights say."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_risk.importance.control import controlled_mean
from ppl_risk.importance.mixture import Mixture
from ppl_risk.importance.pareto import effective_sample_size, pareto_khat
from ppl_risk.parallel import Unit, digest, fits
from ppl_risk.problem import RiskProblem
from ppl_risk.randomness import seeded

#: Chunks at least, draws of one at most, and catastrophes kept of each for the posterior.
CHUNKS, CHUNK, KEPT = 8, 20_000, 200


class Weights(NamedTuple):
    """log p and its standard error in nats, and what the weights behind them say."""

    log_prob: float
    std_error: float
    k_hat: float
    ess: float
    hits: int
    draws: int
    log_weight: Tensor
    margin: Tensor


@torch.no_grad()
def chunk(shared: tuple[RiskProblem, Mixture], unit: Unit) -> dict[str, Any]:
    """Draws of the proposal: margins, tilts of every component, and some of the catastrophes in proportion to their weights."""
    problem, mixture = shared
    drawn = mixture.sample(unit.arguments["draws"])
    margin = problem.margin_of_normal(drawn.points.u.to(problem.dtype))
    tilts = mixture.log_tilts(drawn.points)
    log_weight = torch.where(margin >= 0, -(tilts + drawn.shares.log()).logsumexp(-1), -torch.inf)
    mass = float(log_weight.logsumexp(0))
    chosen = torch.multinomial(log_weight.softmax(0), KEPT, replacement=True) if math.isfinite(mass) else []
    kept = drawn.points.u[chosen].to(problem.dtype)
    return {"margin": margin.double(), "tilts": tilts, "stratum": drawn.stratum, "kept": kept, "mass": mass}


def is_chunk(unit: Unit, result: dict[str, Any]) -> bool:
    """Whether a result read from a file is what `chunk` returned."""
    form = {"margin": "float n", "tilts": "float n c", "stratum": "int n", "kept": "float m d", "mass": "float"}
    return fits(result, form, n=unit.arguments["draws"])


def name_of(mixture: Mixture) -> str:
    """Names a mixture by seeded draws and their densities: part of a unit's key."""
    with seeded(0, mixture.shares.device):
        drawn = mixture.sample(64)
    return digest([{"u": drawn.points.u, "tilts": mixture.log_tilts(drawn.points)}])


def weigh(results: list[dict[str, Any]], components: int) -> Weights:
    """All chunks as one sample, each draw against the mixture in the proportions really drawn."""
    margin, tilts, stratum = (
        torch.cat([torch.as_tensor(r[name]) for r in results]) for name in ("margin", "tilts", "stratum")
    )
    shares = torch.bincount(stratum, minlength=components).to(tilts) / len(stratum)
    log_ratio = tilts - (tilts + shares.log()).logsumexp(-1, keepdim=True)
    log_weight = torch.where(margin >= 0, -(tilts + shares.log()).logsumexp(-1), -torch.inf)
    hits = log_weight[torch.isfinite(log_weight)]
    mean = controlled_mean(log_weight, log_ratio, stratum, replicates=[len(r["margin"]) for r in results])
    known = len(hits) > 0 and not bool(torch.isnan(margin).any())
    return Weights(
        mean.log_prob if known else math.nan, mean.std_error, pareto_khat(hits), effective_sample_size(hits), len(hits),
        len(margin), log_weight, margin,
    )  # fmt: skip


def posterior_rows(results: list[dict[str, Any]], rows: int) -> Tensor:
    """Equal-weight draws of u given catastrophe: from each chunk in proportion to the mass of its weights."""
    mass = torch.tensor([r["mass"] for r in results], dtype=torch.float64).softmax(0)
    wanted = (mass * rows).floor().long()
    return torch.cat([torch.as_tensor(r["kept"])[:n] for r, n in zip(results, wanted.tolist(), strict=True)])
