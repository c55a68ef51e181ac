"""A plan of units: what runs with which seed, fixed before anything runs.

Chunk sizes and seeds follow from the root seed and the budget alone, never from the number of workers: `randn(1000)` is not two
`randn(500)`, so a plan cut to fit the workers would give another answer on another machine.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ppl_risk.errors import RiskError
from ppl_risk.identity import fingerprint
from ppl_risk.problem import RiskProblem
from ppl_risk.randomness import child_seeds


@dataclass(frozen=True)
class Unit:
    """One piece of work.

    Attributes:
        key: names problem, method, index, seed and arguments; a result is found again under this key and no other.
        index: place in the plan, and in the list of results. seed: of the unit's random state.
        method: what it is, for people. arguments: what it was told, as JSON has it (tuples are lists).
    """

    key: str
    index: int
    seed: int
    method: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """What an error calls it."""
        return f"unit {self.index} ({self.method}, seed {self.seed}, {json.dumps(self.arguments)})"


def plan_units(
    problem: RiskProblem | str, method: str, arguments: Sequence[Mapping[str, Any]], *, seed: int
) -> list[Unit]:
    """One unit per entry of `arguments`; the first k seeds are the same however many there are.

    Args:
        problem: the problem, or its fingerprint where that is known. method: names the work; goes into every key.
        arguments: what each unit is told. seed: root of the units' seeds.

    Raises:
        RiskError: arguments that JSON cannot hold.

    Example:
        >>> plan = plan_units("f00d", "count", [{"rows": rows} for rows in chunks(2500, 1000)], seed=0)
        >>> [unit.arguments["rows"] for unit in plan]
        [1000, 1000, 500]
    """
    known = problem if isinstance(problem, str) else fingerprint(unmetered(problem))
    return [
        _unit(known, method, index, child, told)
        for index, (child, told) in enumerate(zip(child_seeds(seed, len(arguments)), arguments, strict=True))
    ]


def _unit(known: str, method: str, index: int, seed: int, told: Mapping[str, Any]) -> Unit:
    try:
        text = json.dumps(told, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise RiskError(
            f"The arguments of unit {index} ({method}) must be JSON: {error}. Tensors belong into what is shared."
        ) from error
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Unit(f"{known[:32]}-{method}-{index}-{seed}-{digest[:16]}", index, seed, method, json.loads(text))


def chunks(total: int, size: int) -> list[int]:
    """Sizes that add up to `total`, all `size` but the last.

    Example:
        >>> chunks(25, 10)
        [10, 10, 5]
    """
    return [size] * (total // size) + ([rest] if (rest := total % size) else [])


def unmetered(problem: RiskProblem) -> RiskProblem:
    """The same network and law, without the meters that watch it: looking at a problem costs nothing, and meters do not travel."""
    quiet = copy.copy(problem)
    quiet._meters = []
    return quiet
