r"""Write the thresholds, where they are missing, and truth.json; how stands in `../truth_making.py`.

Guides are of no use here: inputs that give a large output spread over hundreds of directions, and the weights of every
guide tried have k-hat > 0.7. Instead of counting plain draws, their length is integrated out. With zero biases
f(r s) = r f(s) for r > 0, and |x| ~ chi_256 is independent of x / |x|, so

    p = E[ Pr[chi_256 >= t |x| / f(x)] ; f(x) > 0 ],

which no plain count beats. About 15 minutes on one core.
"""

from __future__ import annotations

import math
import sys
from functools import partial

import torch
from problem import DEPTHS, HERE, RARITIES, WIDTH, at, problem

from ppl_risk import RiskProblem

sys.path.append(str(HERE.resolve().parent))
from truth_making import (  # pyright: ignore[reportMissingImports]
    BATCH,
    Answer,
    entry,
    particles,
    thresholds_in,
    write_entries,
)

DRAWS = {4: 50_000_000, 8: 40_000_000}
#: Particles a run, and runs, by rarity.
PARTICLES = {"1e-2": (4000, 8), "1e-4": (20_000, 16), "1e-6": (50_000, 16)}
#: Pr[chi_256 >= 25] < 1e-30.
LONGEST = 25.0
SEED = 1


@torch.no_grad()
def directions(problems: list[RiskProblem], draws: int) -> list[Answer]:
    """Plain Monte Carlo over directions, for problems that differ in their threshold only: the same draws serve all."""
    zero = torch.zeros(1, WIDTH)
    bars = [-float(p.run(zero)) for p in problems]
    generator, x = torch.Generator().manual_seed(SEED), torch.empty(BATCH, WIDTH)
    total, square = torch.zeros(2, len(bars), dtype=torch.float64)
    batches = draws // BATCH
    for _ in range(batches):
        output = problems[0].run(x.normal_(generator=generator)) + bars[0]
        slope = output / x.norm(dim=1)
        for place, bar in enumerate(bars):
            needed = bar / slope[slope > bar / LONGEST].double()
            share = torch.special.gammaincc(torch.tensor(WIDTH / 2, dtype=torch.float64), needed**2 / 2)
            total[place] += share.sum()
            square[place] += share.square().sum()
    count = batches * BATCH
    answers = []
    for mean, second in zip((total / count).tolist(), (square / count).tolist(), strict=True):
        error = math.sqrt((second - mean**2) / count) / mean
        remarks = f"{count:,} draws, as good as {(1 - mean) / (mean * error**2):,.0f} plain ones, seed {SEED}"
        method = "plain Monte Carlo over directions, lengths integrated out"
        answers.append(Answer(math.log(mean), error, method, count, remarks, SEED))
    return answers


def main() -> None:
    """Find, estimate, write."""
    entries = []
    for depth in DEPTHS:
        thresholds_in(HERE / f"thresholds_{depth}.json", partial(at, depth=depth))
        problems = [problem(depth=depth, rarity=rarity) for rarity in RARITIES]
        answers = directions(problems, DRAWS[depth])
        for rarity, each, seen in zip(RARITIES, problems, answers, strict=True):
            entries.append(entry({"depth": depth, "rarity": rarity}, [seen, particles(each, *PARTICLES[rarity])]))
    write_entries(HERE, entries)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
