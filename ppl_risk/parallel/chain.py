"""Steps that follow one another in one stream of random numbers, each kept when it is done.

Units of a plan have random states of their own. A chain has one, which goes from step to step: a step is kept together with the
random state after it, so a chain that was stopped goes on with the same bits, and numbers are those of a call without folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

import torch

from ppl_risk.errors import UnitFailedError, is_final
from ppl_risk.memory import is_out_of_memory
from ppl_risk.parallel.journal import Journal, Sound, folder_of
from ppl_risk.parallel.loop import first_line, undone_if_it_fails
from ppl_risk.parallel.plan import plan_units
from ppl_risk.parallel.records import write
from ppl_risk.problem import RiskProblem
from ppl_risk.randomness import random_state, set_random_state

Answer = TypeVar("Answer")
#: A step: (its index, results of all steps before it) -> numbers, strings, arrays and tensors by name.
Step = Callable[[int, Sequence[Mapping[str, Any]]], dict[str, Any]]
#: Names in a kept result that are the chain's own.
_STATE, _RANDOM = "chain state", "chain random"


def run_chain(
    problem: RiskProblem,
    method: str,
    arguments: Sequence[Mapping[str, Any]],
    step: Step,
    *,
    seed: int,
    folder: str | Path | None = None,
    sound: Sound | None = None,
    save: Callable[[], dict[str, Any]] = dict,
    load: Callable[[dict[str, Any]], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Results of all steps, in order; a step that raises is done once more from the state before it.

    Run it in a `seeded` block: the steps draw from its random state. Their calls are booked on the problem's meters, also
    where they are read from the folder.

    Args:
        problem: whose network the steps call. method: names the work in every key. arguments: what each step depends on.
        step: does one step. seed: of the stream, part of every key.
        folder: where `units.jsonl` keeps finished steps; default that of `units_folder`, if any.
        sound: (unit, result read from the folder) -> whether it is one; if not, the chain goes on from the step before.
        save, load: what the steps change beside their results, as numbers and tensors, and how it is put back.

    Raises:
        UnitFailedError: a step failed twice; the steps before it are kept. RiskError: raised by a step, or a folder that
            cannot be written to.

    Example:
        >>> law = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> problem = RiskProblem(lambda x: x[:, 0], law)
        >>> run_chain(problem, "count", [{}] * 3, lambda k, before: {"sum": k + sum(r["sum"] for r in before)}, seed=0)
        [{'sum': 0}, {'sum': 1}, {'sum': 3}]
    """
    journal, device = Journal(folder_of(folder)), problem.device
    plan = plan_units("" if journal.path is None else problem, method, arguments, seed=seed)
    results: list[dict[str, Any]] = []
    if journal.path is not None:

        def whole(unit: Any, kept: dict[str, Any]) -> bool:
            own = {name: value for name, value in kept.items() if name not in (_STATE, _RANDOM)}
            return _STATE in kept and _RANDOM in kept and (sound is None or sound(unit, own))

        found = journal.finished(plan, 1, whole)
        known = [found[unit.key] for unit in takewhile(lambda unit: unit.key in found, plan)]
        begin = save(), random_state(device)
        while known and not _goes_on(known[-1].result, load, device):
            load(begin[0])
            set_random_state(begin[1], device)
            known.pop()
        for record in known:
            problem.book(*record.calls[0])
            results.append({name: value for name, value in record.result.items() if name not in (_STATE, _RANDOM)})
        if len(results) < len(plan):
            journal.prepare()
    for unit in plan[len(results) :]:
        before = save()
        with problem.metered() as meter:
            result = tried_twice(
                problem, lambda: step(unit.index, results), str(unit.method), lambda: load(before), journal.path  # noqa: B023
            )  # fmt: skip
        results.append(result)
        if journal.path is not None:
            own = {_STATE: save(), _RANDOM: random_state(device)}
            journal.add(unit, write(result | own, [[meter.forward_calls, meter.gradient_calls]]))
    return results


def _goes_on(kept: Mapping[str, Any], load: Callable[[dict[str, Any]], None], device: torch.device) -> bool:
    """Put back what a step left; False where that cannot be."""
    try:
        load(kept[_STATE])
        set_random_state(kept[_RANDOM], device)
    except Exception:
        return False
    return True


def tried_twice(
    problem: RiskProblem,
    work: Callable[[], Answer],
    what: str,
    undo: Callable[[], None] = lambda: None,
    kept: Path | None = None,
) -> Answer:
    """`work()`; if it raises, once more with the same random state and the same meters, as if nothing had been.

    Args:
        problem: whose meters count. work: what is done. what: its name in the message.
        undo: puts back what else the work has changed. kept: the file that holds what was done before, for the message.

    Raises:
        UnitFailedError: it raised twice. RiskError: raised by the work, at once.

    Example:
        >>> law, tries = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)), iter([0, 2])
        >>> tried_twice(RiskProblem(lambda x: x[:, 0], law), lambda: 1 / next(tries), "halving")
        0.5
    """
    before = random_state(problem.device)
    for last in (False, True):
        try:
            with undone_if_it_fails([problem]):
                return work()
        except Exception as error:
            if is_final(error) or (last and is_out_of_memory(error)):
                raise
            if last:
                where = f"What was done before is kept in {kept}" if kept else "folder= keeps what was done before"
                raise UnitFailedError(
                    f"{what} failed twice, at last with {type(error).__name__}: {first_line(error)}. {where}: mend the cause and "
                    "make the same call."
                ) from error
        set_random_state(before, problem.device)
        undo()
    raise AssertionError("the second try returns or raises")
