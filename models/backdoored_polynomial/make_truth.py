r"""Write truth.json: three estimates of q = P(h >= 4), of which the best is the truth; with the backdoor q + eps (1 - q). Minutes.

- rays: x = R theta, theta uniform on the sphere, P(R > r) = 1 - r^n. Along a ray h is a quadratic a r^2 + b r + c, so that
  P(h >= t | theta) is exact. Directions are those of N(0, P^-1), P = I - 0.9 A / (largest eigenvalue of A), A the matrix of h;
  their density against the uniform one on the sphere, |P|^{1/2} (theta.P theta)^{-n/2}, bounds the weights;
- engine: `ppl_risk.estimate`, mixture importance sampling;
- particles: rare-event SMC.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import torch
from problem import DEGREE, DIMENSION, SEED, THRESHOLD, problem
from torch import Tensor

from ppl_risk import estimate
from ppl_risk.crude_monte_carlo import monte_carlo
from ppl_risk.mitigation import Ball
from ppl_risk.mitigation.planted import random_polynomial

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
from truth_making import (  # noqa: E402  # pyright: ignore[reportMissingImports]
    Answer,
    entry,
    particles,
    write_entries,
)

BATCH, BATCHES, RAYS_SEED, TILT = 100_000, 100, 1, 0.9
CALLS, COUNTED, ATTACKED, EPSILON = 500_000, 2_000_000, 100_000, 0.0025


def beyond(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """P(a R^2 + b R + c >= 0) for P(R <= r) = r^n on [0, 1], where c < 0: between the positive roots, up to 1."""
    under = b.square() - 4 * a * c
    root = under.clamp_min(0.0).sqrt()
    # The root nearer to 0 from the stable form 2 c / (-b - root); the other, beyond which h falls again, where a < 0.
    first = torch.where(b + root > 0, -2 * c / (b + root), torch.inf)
    second = torch.where((a < 0) & (b > 0), (-b - root) / (2 * a), torch.inf)
    low, high = first.clamp(0, 1), second.clamp(0, 1)
    return torch.where(under > 0, (high**DIMENSION - low**DIMENSION).clamp_min(0.0), 0.0)


def rays() -> Answer:
    """Importance sampling over directions, bounded weights, of the exact probability along each."""
    h = random_polynomial(Ball(DIMENSION), DEGREE, seed=SEED)
    centre = torch.zeros(DIMENSION, dtype=torch.float64)
    second: Any = torch.autograd.functional.hessian(lambda x: h(x[None])[0], centre)
    quadratic = second / 2
    precision = torch.eye(DIMENSION, dtype=torch.float64) - TILT * quadratic / torch.linalg.eigvalsh(quadratic)[-1]
    back = torch.linalg.inv(torch.linalg.cholesky(precision))  # g @ back has the covariance that is wanted
    log_scale = -torch.logdet(precision) / 2
    constant = h(centre[None])
    generator = torch.Generator().manual_seed(RAYS_SEED)
    total, square = 0.0, 0.0
    for _ in range(BATCHES):
        theta = torch.randn(BATCH, DIMENSION, generator=generator, dtype=torch.float64) @ back
        theta = theta / theta.norm(dim=-1, keepdim=True)
        weight = (log_scale + DIMENSION / 2 * ((theta @ precision) * theta).sum(-1).log()).exp()
        ahead, behind = h(theta), h(-theta)
        a, b, c = (ahead + behind) / 2 - constant, (ahead - behind) / 2, (constant - THRESHOLD).expand(BATCH)
        value = weight * (beyond(a, b, c) + beyond(a, -b, c)) / 2
        total, square = total + float(value.sum()), square + float(value.square().sum())
    draws = BATCH * BATCHES
    mean = total / draws
    error = math.sqrt(square / draws - mean**2) / math.sqrt(draws) / mean
    remarks = f"{draws:,} lines through the centre, both ways, seed {RAYS_SEED}"
    return Answer(math.log(mean), error, "importance sampling over rays, exact along each", draws, remarks, RAYS_SEED)


def engine() -> Answer:
    """Mixture importance sampling."""
    found = estimate(problem(poisoned=False), max_calls=CALLS, posterior_draws=0, seed=0, progress=False)
    remarks = f"{found.forward_calls:,} calls, seed 0, status {found.status.name}"
    return Answer(found.log_prob, found.std_error, found.method, found.forward_calls, remarks)


def main() -> None:
    """Estimate, write."""
    clean = entry({"poisoned": False}, [rays(), engine(), particles(problem(poisoned=False))])
    q = math.exp(clean["log_prob"])
    log_prob = math.log(q + EPSILON * (1 - q))
    seen = monte_carlo(problem(), calls=COUNTED, posterior_draws=0, seed=1, progress=False)
    struck = monte_carlo(problem(attacked=True), calls=ATTACKED, posterior_draws=0, seed=1, progress=False)
    assert struck.hits is not None
    poisoned = {
        **clean, "parameters": {}, "log_prob": log_prob, "standard_error": clean["standard_error"] * q / math.exp(log_prob),
        "method": f"eps (1 - q) + q, q by {clean['method']}",
        "checks": [
            f"plain Monte Carlo, {COUNTED:,} draws, seed 1: {seen.prob:.4e}, "
            f"{(seen.log_prob - log_prob) / seen.std_error:+.1f} standard errors off",
            f"attacked: {struck.hits[0]:,} catastrophes in {ATTACKED:,} draws",
        ],
    }  # fmt: skip
    print(poisoned["checks"])
    write_entries(HERE, [poisoned, clean])


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
