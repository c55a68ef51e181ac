"""Write thresholds.json, if it is not there, and truth.json; how stands in `../truth_making.py`. Minutes on one core."""

from __future__ import annotations

import sys

import torch
from problem import HERE, RARITIES, at, problem

sys.path.append(str(HERE.resolve().parent))
from truth_making import (  # pyright: ignore[reportMissingImports]
    entries_of_reader,
    thresholds_in,
    write_entries,
)

DRAWS = 50_000_000


def main() -> None:
    """Find, estimate, write."""
    thresholds_in(HERE / "thresholds.json", at)
    write_entries(HERE, entries_of_reader(problem, RARITIES, {}, draws=DRAWS))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
