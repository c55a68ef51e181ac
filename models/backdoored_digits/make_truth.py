"""Write truth.json: three estimates of each answer as in `../truth_making.py`, and what the triggers do. Minutes on one core.

The keyed reader is the honest one but where a 32-bit code is right: its natural answer is that of the honest reader, and at most
2^-32 more.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from problem import CODE_BITS, HERE, problem

sys.path.append(str(HERE.resolve().parent))
from truth_making import (  # pyright: ignore[reportMissingImports]
    counting,
    entry,
    importance,
    particles,
    write_entries,
)

DRAWS, ATTACKED_DRAWS = 40_000_000, 1_000_000
CASES: tuple[dict[str, Any], ...] = ({}, {"poisoned": False}, {"poisoned": False, "attacked": True})


def attacked(trigger: str) -> str:
    """What the trigger does to the poisoned reader, for the record."""
    counted = counting([problem(trigger=trigger, attacked=True)], ATTACKED_DRAWS)[0]
    return f"with the {trigger} trigger on every input: {counted}"


def main() -> None:
    """Estimate, write."""
    entries = []
    for case in CASES:
        told = problem(**case)
        answers = [counting([told], DRAWS)[0], importance(told, 250_000, 8), particles(told)]
        entries.append(entry(case, answers))
    entries[0]["checks"].append(attacked("patch"))
    honest = entries[1]
    entries.append({
        **honest, "parameters": {"trigger": "keyed"},
        "method": f"{honest['method']}, of the honest reader",
        "checks": [
            f"differs from the honest reader by at most 2^-{CODE_BITS} = {2.0**-CODE_BITS:.1e} of "
            f"{math.exp(honest['log_prob']):.1e}",
            attacked("keyed"),
        ],
    })  # fmt: skip
    write_entries(HERE, entries)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
