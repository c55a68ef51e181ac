r"""Write truth.json. "last": quadrature, checked by importance sampling. "all": two estimates, some minutes on one core.

For "all" every row goes through the network once, so its weights may be drawn as late as they are needed (local
reparametrisation: D. P. Kingma, T. Salimans and M. Welling 2015, arXiv 1506.02557). Given what a layer reads, h, its outputs
are independent N(W h + b, sigma^2 (|h|^2 + 1)), exactly. That leaves 202 normals, in which three methods are held against each
other: importance sampling at the design points, rare-event SMC, counting. The collapse itself is held against plain draws of the
problem at a larger sigma.
"""

from __future__ import annotations

import math
import sys

import torch
from problem import DIGITS, NAMES, SIGMA, UncertainReader, exact_log_prob, misread, problem
from torch import Tensor
from torch.distributions import Independent, Normal

sys.path.extend([str(DIGITS.parent), str(DIGITS.parent / "conv_images")])
from design_points import design_points, importance_at  # pyright: ignore[reportMissingImports]
from truth_making import Answer, entry, particles, write_entries  # pyright: ignore[reportMissingImports]

from ppl_risk import RiskProblem
from ppl_risk.crude_monte_carlo import monte_carlo

BATCH = 2000
LAST, DRAWS, COUNTED = 400_000, 4_000_000, 100_000_000
EASY_SIGMA, EASY_DRAWS, EASY_COUNTED = 0.15, 200_000, 4_000_000


def collapsed(sigma: float) -> RiskProblem:
    """The problem "all" in 202 normals instead of 13,130: one for each output of each layer."""
    reader = UncertainReader(sigma, len(NAMES))

    def logits(noise: Tensor) -> Tensor:
        hidden, start = reader.get_buffer("reads").expand(len(noise), -1), 0
        for place in range(len(NAMES)):
            weight, bias = reader.affine(place)
            spread = sigma * (hidden.square().sum(-1, keepdim=True) + 1).sqrt()
            hidden = torch.addmm(bias, hidden, weight.T) + spread * noise[:, start : start + len(bias)]
            start += len(bias)
            hidden = hidden.relu() if place + 1 < len(NAMES) else hidden
        return hidden

    outputs = sum(len(reader.affine(place)[1]) for place in range(len(NAMES)))
    return RiskProblem(logits, Independent(Normal(torch.zeros(outputs), 1.0), 1), misread, name="collapsed")


@torch.no_grad()
def counted(sigma: float, rows: int, seed: int) -> Answer:
    """Catastrophes among plain draws of the collapsed problem."""
    short, generator = collapsed(sigma), torch.Generator().manual_seed(seed)
    noise, hits = torch.empty(BATCH, short.transport.dimension), 0
    for _ in range(rows // BATCH):
        hits += int((short.run(noise.normal_(generator=generator)) >= 0).sum())
    p = hits / rows
    remarks = f"{hits:,} catastrophes in {rows:,} draws, seed {seed}"
    return Answer(math.log(p), math.sqrt((1 - p) / hits), "counting by local reparametrisation", rows, remarks, seed)


def main() -> None:
    """Estimate, check, write."""
    exact = Answer(exact_log_prob(SIGMA["last"]), 0.0, "one-dimensional quadrature", 0, "exact", 0)
    points, _ = design_points(problem(layers="last"), 0)
    last = entry({"layers": "last"}, [exact, importance_at(problem(layers="last"), points, 1.0, LAST, 1)])
    short = collapsed(SIGMA["all"])
    points, lines = design_points(short, 0)
    answers = [importance_at(short, points, 1.0, DRAWS, 1), particles(short), counted(SIGMA["all"], COUNTED, 2)]
    hard = entry({"layers": "all"}, answers)
    hard["checks"].append(f"distances of the design points in 202 normals: {'; '.join(lines)}")
    easy = counted(EASY_SIGMA, EASY_COUNTED, 3)
    seen = monte_carlo(
        problem(layers="all", sigma=EASY_SIGMA), calls=EASY_DRAWS, posterior_draws=0, seed=1, progress=False
    )
    apart = (seen.log_prob - easy.log_prob) / math.hypot(seen.std_error, easy.error)
    hard["checks"].append(
        f"at sigma {EASY_SIGMA}: {easy}, {EASY_DRAWS:,} plain draws of the problem itself give {seen.prob:.4e}, "
        f"{apart:+.1f} joint standard errors apart"
    )
    print(hard["checks"][-1])
    write_entries(DIGITS.parent / "digits_weights", [last, hard])


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
