r"""What a few passes of the true network say of a propagated probability, which by itself cannot know whether it is right.

No single alarm suffices, so there are four: depth over width; two slice directions; a thousand plain passes, whose mean and
spread the propagated law must have; and a few hundred inputs drawn from the slices' own posterior. The last give an unbiased
estimate: with the ratio of densities w(u) = phi(u) / q(u), E_q[w 1{margin >= 0}] = p.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import CubicSpline
from scipy.stats import binom
from torch import Tensor

from ppl_risk.importance.places import Places, again, missed, places_of
from ppl_risk.problem import RiskProblem
from ppl_risk.propagation.interpret import evaluate
from ppl_risk.propagation.linear_map import is_affine
from ppl_risk.propagation.orthant import log_quantile
from ppl_risk.propagation.propagator import Propagator
from ppl_risk.propagation.slices import At, Slices, slices_along, step_from
from ppl_risk.risk_estimate import LOG10, decades

#: Plain passes, draws from the slices' posterior, and the share of those that come from the input law.
PLAIN, DRAWS, DEFENSIVE = 1000, 500, 0.1
#: What is refused: decades between the number and the draws (beyond twice their error), decades between two directions,
#: standard deviations of the layer too small or too large by this factor, fewer effective draws than this.
APART, DIRECTIONS_APART, SPREAD, EFFECTIVE = 0.3, 1.0, 1.25, 5.0
#: Chance of the plain passes' hits, under the number, below which it is refused.
UNLIKELY = 1e-3
#: The factor for the standard deviations where two independent sets of draws give the number.
WIDE = 1.6
#: Decades by which draws around every place found on the network may stand above the number, beyond twice their error.
LEFT_OUT = 0.08
#: Decades within which draws confirm a number, and effective draws that one of the two sets must have.
CLOSE, FEW = 0.15, 20.0
#: Decades that no number may be off by, as far as passes of the network tell: a factor of 2, two errors of theirs included.
FACTOR = math.log10(2)
#: So many times the draws where the first ones leave that open.
MORE = 5
#: Effective draws around the places from which on their number is given in place of the laws'.
ENOUGH = 50.0
#: Depth over width from which plain networks were seen to fail; it is named, not refused.
DEEP = 0.1


@dataclass
class Trust:
    """Evidence by name, why the number is refused, what the laws leave out ("" where not), and weighted catastrophes."""

    evidence: dict[str, float] = field(default_factory=dict)
    refused: str = ""
    left_out: str = ""
    log_prob: float = math.nan
    std_error: float = math.nan
    u: Tensor | None = None
    weight: Tensor | None = None


class SlicePosterior:
    """u given the event, as the slices have it: first v, then u across, tilted along the gradient at v.

    With q = Phi^{-1}(Pr[event | v]) and h = grad q across the directions, kappa = |h| < 1, the coordinate w along h has density
    phi(w) Phi((q + kappa w) / sqrt(1 - kappa^2)) / Phi(q); the rest is standard normal.
    """

    def __init__(self, slices: Slices) -> None:
        self.slices = slices
        self.shape = [len(points) for points in slices.points()]
        self.log_p, log_mass = slices.masses
        self.log_share = torch.log_softmax(log_mass, 0)
        nodes = slices.event.log_prob(
            slices.mean.reshape(-1, slices.mean.shape[-1]),
            (slices.root @ slices.root.mT).reshape(-1, *slices.root.shape[-2:]),
        )
        q = log_quantile(nodes.clamp(-1e5, -1e-12))
        slope = (nodes + 0.5 * q.square() + 0.5 * math.log(2 * math.pi)).clamp_max(600.0).exp()
        gradient = slope[:, None] * slices.gradient.reshape(len(nodes), -1)
        a = slices.directions
        self.tilt = torch.nan_to_num(gradient - gradient @ a @ a.mT)

    def sample(self, draws: int) -> Float[Tensor, "draws d"]:
        """Draws of u."""
        a, d = self.slices.directions, self.slices.directions.shape[0]
        cell = torch.multinomial(self.log_share.exp(), draws, replacement=True)
        v = torch.stack([p[i] for p, i in zip(self.slices.points(), self._places(cell), strict=True)], -1)
        width = torch.stack([p[1] - p[0] for p in self.slices.points()])
        v = v + width * (torch.rand(draws, len(width), dtype=torch.float64, device=a.device) - 0.5)
        direction, kappa, q = self._across(v, cell)
        log_u = torch.rand(draws, dtype=torch.float64, device=a.device).clamp_min(1e-300).log()
        y = -log_quantile(torch.special.log_ndtr(q) + log_u)
        z = torch.randn(draws, d, dtype=torch.float64, device=a.device)
        w = kappa * y + (1 - kappa.square()).sqrt() * torch.randn(draws, dtype=torch.float64, device=a.device)
        z = z - (z @ a) @ a.mT
        z = z + (w - (z * direction).sum(-1))[:, None] * direction
        return z + v @ a.mT

    def log_ratio(self, u: Float[Tensor, "draws d"]) -> Float[Tensor, " draws"]:
        """log of q(u) / phi(u); -inf where the slices do not reach."""
        a = self.slices.directions
        v = u @ a
        places, inside = [], torch.ones(len(u), dtype=torch.bool, device=u.device)
        for points, column in zip(self.slices.points(), v.unbind(-1), strict=True):
            place = ((column - points[0]) / (points[1] - points[0])).round().long()
            inside &= (place >= 0) & (place < len(points))
            places.append(place.clamp(0, len(points) - 1))
        cell = places[0] if len(places) == 1 else places[0] * self.shape[1] + places[1]
        width = sum(math.log(float(p[1] - p[0])) for p in self.slices.points())
        log_phi = -0.5 * v.square().sum(-1) - 0.5 * v.shape[-1] * math.log(2 * math.pi)
        direction, kappa, q = self._across(v, cell)
        w = (u * direction).sum(-1)
        tilted = torch.special.log_ndtr((q + kappa * w) / (1 - kappa.square()).sqrt()) - torch.special.log_ndtr(q)
        return torch.where(inside, self.log_share[cell] - width - log_phi + tilted, -torch.inf)

    def _places(self, cell: Tensor) -> list[Tensor]:
        return [cell] if len(self.shape) == 1 else [cell // self.shape[1], cell % self.shape[1]]

    def _across(self, v: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit direction of the tilt (draws, d), kappa and q (draws,) at points v in cells."""
        weights = [
            torch.tensor(
                CubicSpline(axis.cpu().numpy(), torch.eye(len(axis)).numpy(), bc_type="natural")(
                    column.clamp(axis[0], axis[-1]).cpu().numpy()
                ),
                dtype=v.dtype, device=v.device,
            )
            for axis, column in zip(self.slices.axes, v.unbind(-1), strict=True)
        ]  # fmt: skip
        matrix = weights[0] if len(weights) == 1 else (weights[0][:, :, None] * weights[1][:, None, :]).flatten(1)
        h = matrix @ self.tilt
        size = h.norm(dim=-1)
        # A proposal that is too sure of its direction has weights without bound.
        kappa = size.clamp_max(0.95)
        direction = h / size.clamp_min(1e-12)[:, None]
        return direction, torch.where(size > 1e-9, kappa, 0.0), log_quantile(self.log_p[cell].clamp(-1e5, -1e-12))


def examine(propagator: Propagator, slices: Slices, log_prob: float, prior: At) -> Trust:
    """Run the passes and judge a number; `prior` is the event's layer under the input law."""
    problem, trust = propagator.inputs.problem, Trust()
    trust.evidence["log10_p_of_the_law"] = log_prob / LOG10
    plain_spread(propagator, prior, trust)
    trust.evidence["depth_over_width"] = depth_over_width(propagator)
    first, reach = step_from(propagator, torch.zeros_like(slices.directions[None, :, 0]), prior)
    other = slices_along(propagator, first[:, None], reach).log_prob() if bool(first.any()) else torch.tensor(log_prob)
    apart = abs(log_prob - float(other)) / LOG10
    trust.evidence["directions_apart"] = apart
    posterior = SlicePosterior(slices)
    look_here(problem, posterior, log_prob, DRAWS, trust)
    places = places_of(problem, slices.directions.mT, log_prob)
    look_elsewhere(places, log_prob, trust)
    gap, error = nearest_check(trust.evidence)
    if gap - 2 * error <= FACTOR < gap + 2 * error:
        look_here(problem, posterior, log_prob, MORE * DRAWS, trust)
        look_elsewhere(again(problem, places, MORE), log_prob, trust)
        gap, error = nearest_check(trust.evidence)
    if math.isfinite(gap):
        trust.std_error = np.fmax(trust.std_error, math.hypot(gap, error) * LOG10).item()
    trust.refused = refusal(trust.evidence)
    if trust.evidence["left_out"] > LEFT_OUT:
        here = trust.evidence["log10_p_of_the_law"]
        said = (
            f"the laws give {decades(here)}, draws around {trust.evidence['places']:.0f} places where the network fails"
        )
        said = f"{said} give {decades(trust.evidence['log10_p_of_places'])}: the slices miss a part of the catastrophe"
        # Few draws that carry the rest are no number of their own, and laws that plain passes contradict are not made one.
        if trust.evidence["effective_at_places"] >= ENOUGH and not unexplained(trust.evidence):
            trust.left_out = f"{said}. The number is that of the draws"
        elif not trust.refused:
            trust.refused = said
    return trust


@torch.no_grad()
def look_here(problem: RiskProblem, posterior: SlicePosterior, log_prob: float, draws: int, trust: Trust) -> None:
    """Draws of the slices' posterior, a share of them from the input law."""
    from_input = round(DEFENSIVE * draws)
    u = torch.cat([
        posterior.sample(draws - from_input),
        torch.randn(from_input, problem.transport.dimension, dtype=torch.float64, device=problem.device),
    ])  # fmt: skip
    log_w = -torch.logaddexp(math.log(1 - DEFENSIVE) + posterior.log_ratio(u), u.new_tensor(math.log(DEFENSIVE)))
    hit = problem.margin_of_normal(u.to(problem.dtype)) >= 0
    weight = torch.where(hit, log_w, -torch.inf)
    trust.evidence["draws_that_fail"] = float(hit.sum())
    if bool(hit.any()):
        share = torch.softmax(weight, 0)
        effective = 1 / float(share.square().sum())
        mean = weight.exp().mean()
        error = float(weight.exp().std() / mean) / math.sqrt(len(u))
        trust.log_prob, trust.u, trust.weight = float(mean.log()), u[hit], share[hit]
        trust.std_error = math.hypot(log_prob - trust.log_prob, error)
        trust.evidence |= {
            "log10_p_of_draws": trust.log_prob / LOG10, "draws_error": error / LOG10, "effective_draws": effective,
        }  # fmt: skip


def look_elsewhere(places: Places, log_prob: float, trust: Trust) -> None:
    """Failures that the slices' posterior would not draw, as it looks only where they do: found by a search of the network."""
    trust.evidence |= {
        "places": float(len(places.points)),
        "left_out": missed(places, log_prob),
        "effective_at_places": places.effective,
    }
    if math.isfinite(places.log_prob):
        trust.evidence |= {"log10_p_of_places": places.log_prob / LOG10, "places_error": places.error / LOG10}
    if trust.evidence["effective_at_places"] >= ENOUGH and not trust.evidence.get("effective_draws", 0.0) >= EFFECTIVE:
        trust.std_error = math.hypot(places.log_prob - log_prob, places.error)
    elif trust.evidence["left_out"] > 0:
        gap = max(places.log_prob - log_prob, 0.0 if math.isnan(trust.std_error) else trust.std_error)
        trust.std_error = math.hypot(gap, places.error)


def refusal(evidence: Mapping[str, float]) -> str:
    """Why a number with this evidence is refused; "" where it is not."""
    # Draws around the places check a number as well as those of the slices' posterior do.
    from_places = abs(evidence["log10_p_of_the_law"] - evidence.get("log10_p_of_places", math.inf))
    confirmed = evidence.get("effective_at_places", 0.0) >= ENOUGH and from_places < CLOSE
    if unexplained(evidence):
        p, hits = 10 ** evidence["log10_p_of_the_law"], int(evidence["plain_hits"])
        return f"{hits} of {PLAIN} plain passes fail, which a probability of {p:.1e} does not explain"
    if not evidence["draws_that_fail"] and not confirmed:
        return f"none of {DRAWS} inputs drawn from the slices' posterior fails"
    fewest = EFFECTIVE if evidence.get("effective_at_places", math.inf) >= FEW else FEW
    if evidence.get("effective_draws", 0.0) < fewest and not confirmed:
        return f"only {evidence['effective_draws']:.1f} effective draws of the slices' posterior fail: nothing checks the number"
    gap = abs(evidence["log10_p_of_the_law"] - evidence.get("log10_p_of_draws", math.inf))
    if gap > APART + 2 * evidence.get("draws_error", 0.0) and not (
        confirmed and evidence.get("effective_draws", 0.0) < EFFECTIVE
    ):
        return f"draws of the slices' posterior put it {gap:.1f} decades away"
    # A law in the middle that is somewhat off, or directions that turn, are no fault of a number that both kinds of draws give.
    twice = confirmed and gap < CLOSE and evidence.get("effective_draws", 0.0) >= ENOUGH
    spread = WIDE if twice else SPREAD
    if not 1 / spread < evidence["spread_ratio"] < spread:
        return f"the propagated spread is {evidence['spread_ratio']:.2f} of what plain passes show"
    if evidence["directions_apart"] > DIRECTIONS_APART and not twice:
        return f"two slice directions are {evidence['directions_apart']:.1f} decades apart"
    gap, error = nearest_check(evidence)
    if not gap + 2 * error <= FACTOR:
        return f"passes of the network put it {gap:.2f} decades away, with an error of {error:.2f}: a factor of 2 is not excluded"
    return ""


def nearest_check(evidence: Mapping[str, float]) -> tuple[float, float]:
    """Decades between the number and the surer of the two sets of draws, and the error of that set."""
    found = [
        ("log10_p_of_draws", "draws_error", "effective_draws"),
        ("log10_p_of_places", "places_error", "effective_at_places"),
    ]
    value, error, _ = max(found, key=lambda names: evidence.get(names[2], 0.0))
    return abs(evidence["log10_p_of_the_law"] - evidence.get(value, math.inf)), evidence.get(error, math.inf)


def unexplained(evidence: Mapping[str, float]) -> bool:
    """Whether the plain passes fail more or less often than the number allows."""
    p, hits = 10 ** evidence["log10_p_of_the_law"], int(evidence["plain_hits"])
    # As far from the number as is let pass elsewhere, so that a likely event is not held to a closer match than a rare one.
    most, least = min(p * 10**APART, 1.0), p / 10**APART
    return bool(binom.sf(hits - 1, PLAIN, most) < UNLIKELY or binom.cdf(hits, PLAIN, least) < UNLIKELY)


@torch.no_grad()
def plain_spread(propagator: Propagator, prior: At, trust: Trust) -> None:
    """Mean and standard deviation of the event's layer, propagated against seen: the number that is worst off. And hits."""
    problem, tape = propagator.inputs.problem, propagator.event.tape
    x = problem.from_normal(torch.randn(PLAIN, propagator.inputs.dimension, device=problem.device))
    problem.book(PLAIN, 0)
    seen = evaluate(tape, x)
    mean, covariance, _ = prior
    sd = covariance[0].diagonal().clamp_min(0.0).sqrt()
    wide = seen.std(0).clamp_min(1e-12)
    ratio = (sd / wide).log()
    trust.evidence["spread_ratio"] = float(ratio[ratio.abs().argmax()].exp())
    trust.evidence["plain_hits"] = float(propagator.event.happens(seen).sum())
    trust.evidence["mean_shift"] = float(((mean[0] - seen.mean(0)) / wide).abs().max())


def depth_over_width(propagator: Propagator) -> float:
    """Layers between nonlinear steps over the narrowest of those steps."""
    sizes = [s.size for s in propagator.event.tape.steps[1:] if not is_affine(s) and s.size > 1]
    return (len(sizes) + 1) / min(sizes) if sizes else 0.0
