"""Write truth.json: importance sampling at the design points, checked by rare-event SMC and a second proposal. Minutes."""

from __future__ import annotations

import sys

import torch
from design_points import design_points, importance_at
from problem import HERE, problem

sys.path.append(str(HERE.resolve().parent))
from truth_making import entry, particles, write_entries  # pyright: ignore[reportMissingImports]

DRAWS = 2_000_000


def main() -> None:
    """Estimate, check, write."""
    hard = problem()
    points, lines = design_points(hard, 0)
    print(*lines, sep="\n", flush=True)
    answers = [
        importance_at(hard, points, 1.0, DRAWS, 1),
        importance_at(hard, points[:1], 1.01, DRAWS // 2, 2),
        particles(hard, 2000, 16),
    ]
    made = entry({}, answers)
    made["checks"].append(f"distances of the design points: {'; '.join(lines)}")
    write_entries(HERE, [made])


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
