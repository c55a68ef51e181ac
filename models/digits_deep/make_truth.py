"""Write thresholds.json, where it is missing, and truth.json; how stands in `../truth_making.py`. Minutes on one core."""

from __future__ import annotations

import sys
from functools import partial

import torch
from problem import HERE, RARITIES, at, problem

sys.path.append(str(HERE.resolve().parent))
from truth_making import (  # pyright: ignore[reportMissingImports]
    entries_of_reader,
    thresholds_in,
    write_entries,
)

#: Plain draws, and guides, by depth.
EFFORT = {8: (50_000_000, 8), 32: (30_000_000, 16)}


def main() -> None:
    """Find, estimate, write."""
    entries = []
    for depth, (draws, guides) in EFFORT.items():
        thresholds_in(HERE / str(depth) / "thresholds.json", partial(at, depth=depth))
        entries += entries_of_reader(problem, RARITIES, {"depth": depth}, draws=draws, guides=guides)
    write_entries(HERE, entries)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
