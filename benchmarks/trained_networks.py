"""The zoo's digit readers trained from other seeds, as one problem each: input law of the held-back images, free threshold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

import ppl_risk as pr
from ppl_risk.importance.proposal import Proposal, defensive_mixture, standard_normal
from ppl_risk.zoo import load_file, shelf

READ_AS = 8


@dataclass(frozen=True)
class Kind:
    """A model folder with the arguments of its `trained`."""

    model: str
    arguments: dict[str, object]
    layers: int


KINDS = {
    "digits": Kind("digits", {}, 4),
    "digits, Adam": Kind("digits", {"optimiser": "adam"}, 4),
    "digits, 128 wide": Kind("digits", {"width": 128}, 4),
    "digits_conv": Kind("digits_conv", {}, 4),
    "digits_residual": Kind("digits_residual", {}, 8),
    "digits_deep, 8 layers": Kind("digits_deep", {"depth": 8}, 8),
    "digits_deep, 32 layers": Kind("digits_deep", {"depth": 32}, 32),
}


def train(kind: str, seed: int) -> Any:
    """What the model's `train.py` makes from a seed."""
    told = KINDS[kind]
    module = load_file(Path(shelf("models")) / told.model / "train.py")
    return module.trained(seed, **told.arguments)


def problem_of(trained: Any, threshold: float = 0.0, updates: dict[str, Tensor] | None = None) -> pr.RiskProblem:
    """Logit 8 beats every other by `threshold`."""

    def too_sure(logits: Tensor) -> Tensor:
        others = torch.cat([logits[:, :READ_AS], logits[:, READ_AS + 1 :]], dim=1)
        return logits[:, READ_AS] - others.amax(dim=1) - threshold

    law = MultivariateNormal(trained.mean, scale_tril=trained.scale_tril)
    origin = pr.Provenance(initial=trained.initial, training_flops=trained.training_flops, updates=updates)
    return pr.RiskProblem(trained.network.eval().requires_grad_(False), law, too_sure, name="digits", provenance=origin)


@dataclass(frozen=True)
class Draws:
    """Inputs of the normal space with log weights towards N(0, I), good at every threshold at once."""

    u: Tensor
    log_weight: Tensor

    def log10_tail(self, margin: Tensor, threshold: float) -> float:
        """log10 Pr[margin >= threshold]; -inf where no draw is there."""
        hit = self.log_weight[margin >= threshold]
        return float((hit.logsumexp(0) - torch.tensor(float(len(self.u))).log()) / torch.log(torch.tensor(10.0)))

    def threshold(self, margin: Tensor, log10_prob: float) -> float:
        """The threshold whose tail is 10^log10_prob."""
        order = margin.argsort(descending=True)
        tail = self.log_weight[order].logcumsumexp(0) - torch.tensor(float(len(self.u))).log()
        place = int(torch.searchsorted(tail, log10_prob * torch.log(torch.tensor(10.0, dtype=tail.dtype))))
        return float(margin[order[min(place, len(order) - 1)]])

    def effective(self, margin: Tensor, threshold: float) -> float:
        """Effective number of draws behind a tail."""
        weight = (self.log_weight[margin >= threshold]).softmax(0)
        return float(1 / weight.square().sum().detach()) if len(weight) else 0.0


@torch.no_grad()
def margins(problem: pr.RiskProblem, u: Tensor, run: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Margins of rows of u, in batches."""
    run = run or (lambda rows: problem.run(problem.from_normal(rows)))
    return torch.cat([run(rows) for rows in u.split(20_000)])


def covering_draws(at: Callable[[float], pr.RiskProblem], count: int, seed: int) -> Draws:
    """Draws from the input law and from guides fitted at about 1e-4 and 1e-6, as one mixture with known density."""
    problem = at(0.0)
    torch.manual_seed(seed)
    dimension = problem.transport.dimension
    pilot = margins(problem, torch.randn(200_000, dimension))
    components, shares = [standard_normal(dimension, problem.device)], [0.4]
    # The margin is close to Gaussian between 1e-3 and 1e-6: enough to say where to fit, not to say what p is.
    middle, high = (float(pilot.topk(int(q * len(pilot))).values[-1]) for q in (0.1, 1e-3))
    slope = (high - middle) / (3.09 - 1.28)
    for index, deviations in enumerate((3.72, 4.75)):
        fitted = pr.fit_svi(
            at(middle + slope * (deviations - 1.28)), pr.guides.Network(input=pr.guides.FullNormal()), steps=600,
            posterior_draws=0, seed=seed + index, progress=False,
        )  # fmt: skip
        parts = defensive_mixture(fitted.guide.input_law()).components[1:]
        components += parts
        shares += [0.3 / len(parts)] * len(parts)
    u, log_q = Proposal(components, torch.tensor(shares, dtype=torch.float64)).sample(count)
    return Draws(u.float(), standard_normal(dimension, problem.device).log_prob(u) - log_q)
