r"""Where else the network fails: design points found on the network itself, and the probability that draws around all of them give.

Slices see what lies along one direction, a guide what it was fitted to. Here the true network is searched from many: along
coordinates, both ways along the directions known, and along random ones, each start moved to the nearest failure it leads to
(Hasofer and Lind 1974, with half steps). With Gaussians at all that are found, q = sum_k w_k N(u_k, I) + w_0 N(0, I),

    p = E_q[ phi(u) / q(u) 1{margin(u) >= 0} ]

is unbiased, and larger than a number that left a place out. (Ditlevsen and Madsen 1996, Structural Reliability Methods, ch. 5.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.special import ndtri_exp
from torch import Tensor

from ppl_risk.problem import RiskProblem
from ppl_risk.risk_estimate import LOG10, decades

#: Coordinates that are tried, both ways, random directions, and steps of each start.
COORDINATES, RANDOM, STEPS = 24, 12, 5
#: Lengths along a direction at which a failure is looked for, in units of the distance that the number asks for.
LENGTHS = (0.7, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)
#: Halvings between the last length that is safe and the first that fails.
HALVINGS = 5
#: Two failures are one place where the cosine of their directions is above ALIKE; places that are kept, and how much less
#: likely, in nats of the normal density, one may be than the likeliest.
ALIKE, MOST, LESS = 0.85, 40, 6.0
#: Draws around the places, and the share of those from the input law.
DRAWS, DEFENSIVE = 1000, 0.1


@dataclass(frozen=True)
class Places:
    """Failures nearest to the origin, one a place (places, d), and the probability from draws around them, nats."""

    points: Float[Tensor, "places d"]
    log_prob: float
    error: float
    hits: int
    effective: float


def places_of(problem: RiskProblem, along: Float[Tensor, "starts d"], log_prob: float) -> Places:
    """Search the network for failures and draw around them; `along` are directions known already.

    They need no unit length. Costs about 15 calls for each of the at most 66 + 2 k starts, and 1000 for the draws.
    """
    beta = _distance(log_prob)
    along = along / along.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    directions = _starts(problem, along, beta)
    moved = _moved(problem, beta * directions, beta)
    points = _nearest(problem, torch.cat([directions, moved]), beta)
    kept = _apart(points)
    return _drawn(problem, kept)


def _distance(log_prob: float) -> float:
    """How far out a half space of this probability lies."""
    return min(max(-float(ndtri_exp(min(log_prob, -0.7))), 0.5), 40.0)


def _starts(problem: RiskProblem, along: Tensor, beta: float) -> Tensor:
    d = along.shape[-1]
    random = torch.randn(RANDOM, d, dtype=along.dtype, device=along.device)
    random = random / random.norm(dim=-1, keepdim=True)
    if d <= COORDINATES:
        places = torch.arange(d, device=along.device)
    else:
        # The coordinates on which the margin leans most, seen from the random directions.
        _, gradient = problem.margin_and_gradient((beta * random).to(problem.dtype))
        places = torch.nan_to_num(gradient.double()).abs().sum(0).topk(COORDINATES).indices
    axes = torch.zeros(len(places), d, dtype=along.dtype, device=along.device)
    axes[torch.arange(len(places), device=along.device), places] = 1.0
    return torch.cat([along, -along, axes, -axes, random])


def _moved(problem: RiskProblem, u: Tensor, beta: float) -> Tensor:
    """Directions after some half steps to where the margin, taken as linear, is 0 nearest to the origin."""
    for _ in range(STEPS):
        margin, gradient = problem.margin_and_gradient(u.to(problem.dtype))
        margin, gradient = margin.double()[:, None], torch.nan_to_num(gradient.double())
        # The size of a gradient may be far from 1: it is taken out before it is squared.
        size = gradient.norm(dim=-1, keepdim=True)
        normal = gradient / size.clamp_min(1e-300)
        distance = (normal * u).sum(-1, keepdim=True) - margin / size.clamp_min(1e-300)
        target = torch.nan_to_num(distance, posinf=2 * beta, neginf=-2 * beta).clamp(-2 * beta, 2 * beta) * normal
        target = torch.where(size > 0, target, u)
        u = (u + target) / 2
    return u / u.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def _nearest(problem: RiskProblem, directions: Tensor, beta: float) -> Tensor:
    """First failure along each direction, by halving; directions without one are left out."""
    lengths = beta * torch.tensor(LENGTHS, dtype=directions.dtype, device=directions.device)
    rays = (directions[:, None] * lengths[:, None]).flatten(0, 1)
    with torch.no_grad():
        fails = (problem.margin_of_normal(rays.to(problem.dtype)) >= 0).reshape(len(directions), -1)
        some = fails.any(-1)
        directions, first = directions[some], fails[some].long().argmax(-1)
        high = lengths[first]
        low = torch.where(first > 0, lengths[(first - 1).clamp_min(0)], torch.zeros_like(high))
        for _ in range(HALVINGS if len(directions) else 0):
            middle = (low + high) / 2
            hit = problem.margin_of_normal((middle[:, None] * directions).to(problem.dtype)) >= 0
            low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
    return high[:, None] * directions


def _apart(points: Tensor) -> Tensor:
    """The nearest first, then each that lies in another direction than those before it and is not much less likely."""
    size = points.norm(dim=-1)
    points = points[size.argsort()]
    kept: list[Tensor] = []
    for point in points:
        length = float(point.norm())
        if len(kept) == MOST or (kept and (length**2 - float(kept[0].square().sum())) / 2 > LESS):
            break
        if all(float(point @ other) < ALIKE * length * float(other.norm()) for other in kept):
            kept.append(point)
    return torch.stack(kept) if kept else points[:0]


def again(problem: RiskProblem, places: Places, times: int) -> Places:
    """The same places with other draws around them, so many times more."""
    return _drawn(problem, places.points, times * DRAWS)


def _drawn(problem: RiskProblem, points: Tensor, draws: int = DRAWS) -> Places:
    """p and its relative error by draws around the points and from the input law, in exact proportions."""
    if not len(points):
        return Places(points, -math.inf, math.inf, 0, 0.0)
    # Less likely places get less, but never so little that their weights run away.
    share = torch.softmax(-0.25 * points.square().sum(-1), 0) * (1 - DEFENSIVE)
    share = torch.cat([share, share.new_tensor([DEFENSIVE])])
    centres = torch.cat([points, torch.zeros_like(points[:1])])
    ends = (share.cumsum(0) * draws).round().long()
    counts = torch.diff(ends, prepend=ends.new_zeros(1))
    u = centres.repeat_interleave(counts, 0)
    u = u + torch.randn_like(u)
    # log q / phi of every component: c.u - |c|^2 / 2
    log_q = u @ centres.mT - 0.5 * centres.square().sum(-1)
    log_w = -torch.logsumexp(log_q + (counts.double() / draws).log(), -1)
    with torch.no_grad():
        hit = problem.margin_of_normal(u.to(problem.dtype)) >= 0
    if not bool(hit.any()):
        return Places(points, -math.inf, math.inf, 0, 0.0)
    weight = torch.where(hit, log_w, -torch.inf)
    top = weight.max()
    relative = (weight - top).exp()
    mean = relative.mean()
    log_p = float(mean.log() + top)
    error = float(relative.std() / mean) / math.sqrt(draws)
    effective = float(relative.sum().square() / relative.square().sum())
    return Places(points, log_p, error, int(hit.sum()), effective)


def missed(places: Places, log_prob: float) -> float:
    """Decades by which the draws around all places stand above a number, less twice their error."""
    if not math.isfinite(places.log_prob) or places.effective < 5:
        return -math.inf
    # Twice the relative error, within the logarithm, so that one heavy draw cannot speak alone.
    sure = places.log_prob + math.log(max(1 - 2 * places.error, 1e-3))
    return (sure - log_prob) / LOG10


def excess(places: Places, log_prob: float, std_error: float, sigmas: float) -> float:
    """Decades by which the draws around all places stand above a number with an error of its own, less so many of both."""
    if not math.isfinite(places.log_prob) or places.effective < 5:
        return -math.inf
    return (places.log_prob - log_prob - sigmas * math.hypot(places.error, std_error)) / LOG10


def evidence_of(places: Places) -> dict[str, float]:
    """How many places were found and, where draws around them met the event, log10 of what they give and its error."""
    found = {"places": float(len(places.points))}
    if not math.isfinite(places.log_prob):
        return found
    return found | {"log10_p_of_places": places.log_prob / LOG10, "places_error": places.error / LOG10}


def disagreement(places: Places, log_prob: float, who: str) -> str:
    """One sentence for a number that left out what the draws around the places met."""
    return (
        f"The {who} gives {decades(log_prob / LOG10)}, draws around {len(places.points)} places where the network fails give "
        f"{decades(places.log_prob / LOG10)}: the {who} misses a part of the event."
    )
