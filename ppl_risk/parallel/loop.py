"""Running a plan: here in a loop, or on the workers of a cluster; the results are the same bits.

Every unit runs with one thread and with its own random state, so it matters neither where it runs nor beside what. A unit that
fails is tried again with the *same* seed and never left out: leaving out what crashes (on odd inputs, say) would bias the answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from ppl_risk.errors import RiskError, UnitFailedError, is_final
from ppl_risk.parallel.journal import Journal, Sound, folder_of
from ppl_risk.parallel.plan import Unit
from ppl_risk.parallel.records import Record, read, write
from ppl_risk.problem import RiskProblem
from ppl_risk.randomness import seeded

#: A unit: (what all units share, the unit) -> numbers, strings, arrays and tensors by name. Pure, at the top level of a module.
Work = Callable[[Any, Unit], Mapping[str, Any]]
#: torch's random state and Pyro's stack belong to the process: threads of a worker take turns.
ONE_AT_A_TIME = threading.RLock()


class Failure(NamedTuple):
    """A unit that failed, what it raised last, and how often it was tried."""

    unit: Unit
    error: Exception
    tries: int


def run_units(
    plan: Sequence[Unit],
    work: Work,
    shared: Any,
    *,
    engine: Any = None,
    folder: str | Path | None = None,
    progress: bool = True,
    note: Callable[[dict[str, Any]], str] | None = None,
    sound: Sound | None = None,
) -> list[dict[str, Any]]:
    """Results of all units, in order of index, whatever ran them.

    Calls on a `RiskProblem` in `shared` are booked on its meters here, also for units run elsewhere or read from the folder.

    Args:
        plan: from `plan_units`. work: the unit's function. shared: a problem, or a tuple that holds one; sent to workers once.
        engine: None for a loop in this process; a `dask.distributed.Client`, which stays open; or a scheduler's address
            ("tcp://host:8786"). One unit at a time runs in a worker process: start workers with one thread each.
        folder: where `units.jsonl` keeps finished units; they are not run again. Default that of `units_folder`, if any.
        progress: show a bar of finished units.
        note: what the bar says of a result.
        sound: (unit, result read from the folder) -> whether this is what the unit returns; if not, it is run again.

    Raises:
        UnitFailedError: a unit failed however often it was tried; all others are finished. RiskError: raised by a unit (at
            once), no cluster, a problem that cannot be sent there, or a folder that cannot be written to.

    Example:
        >>> from ppl_risk.parallel import plan_units
        >>> plan = plan_units("f00d", "roll", [{"dice": 3}] * 2, seed=0)
        >>> [r["sum"] > 2 for r in run_units(plan, lambda _, u: {"sum": u.arguments["dice"]}, None, progress=False)]
        [True, True]
    """
    if len({unit.key for unit in plan}) < len(plan):
        raise RiskError("Two units of the plan have the same key: plan them in one call of plan_units.")
    journal, problems = Journal(folder_of(folder)), problems_in(shared)
    found = journal.finished(plan, len(problems), sound)
    for record in found.values():
        _book(problems, record)
    todo = [unit for unit in plan if unit.key not in found]
    if todo:
        journal.prepare()
    label = plan[0].method if plan else "units"
    with tqdm(total=len(plan), initial=len(found), disable=not progress, desc=label, unit="unit") as bar:

        def done(unit: Unit, text: str) -> None:
            journal.add(unit, text)
            found[unit.key] = read(text)
            if engine is not None:
                _book(problems, found[unit.key])
            if note is not None:
                bar.set_postfix_str(note(found[unit.key].result), refresh=False)
            bar.update()

        if engine is None or not todo:
            failures = _loop(todo, work, shared, done)
        else:
            from ppl_risk.parallel.cluster import on_cluster

            failures = on_cluster(engine, todo, work, shared, done)
    if failures:
        failures.sort(key=lambda failure: failure.unit.index)
        raise _failed(failures, len(found), len(plan), journal.path) from failures[0].error
    return [found[unit.key].result for unit in sorted(plan, key=lambda unit: unit.index)]


def _loop(todo: Sequence[Unit], work: Work, shared: Any, done: Callable[[Unit, str], None]) -> list[Failure]:
    """Every unit, then once more those that raised."""
    failures: list[Failure] = []
    for tries in (1, 2):
        again, failures = todo if tries == 1 else [f.unit for f in failures], []
        for unit in again:
            try:
                with undone_if_it_fails(problems_in(shared)):
                    text = execute(work, shared, unit, torch.get_default_dtype())
            except Exception as error:
                if is_final(error):
                    raise
                failures.append(Failure(unit, error, tries))
            else:
                done(unit, text)
    return failures


def execute(work: Work, shared: Any, unit: Unit, dtype: torch.dtype) -> str:
    """Run one unit, here or on a worker, and return its record."""
    problems = problems_in(shared)
    device = next((p.device for p in problems if p.device.type == "cuda"), "cpu")
    with ONE_AT_A_TIME, _settings(dtype), seeded(unit.seed, device), ExitStack() as stack:
        meters = [stack.enter_context(problem.metered()) for problem in problems]
        result = work(shared, unit)
        return write(result, [[meter.forward_calls, meter.gradient_calls] for meter in meters])


@contextmanager
def _settings(dtype: torch.dtype) -> Iterator[None]:
    """One thread, and the caller's default type: both can change bits."""
    before, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(dtype)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
        torch.set_num_threads(threads)


def problems_in(shared: Any) -> list[RiskProblem]:
    """The problems among what units share: itself, or entries of a tuple."""
    entries = shared if isinstance(shared, tuple | list) else [shared]
    return [entry for entry in entries if isinstance(entry, RiskProblem)]


@contextmanager
def undone_if_it_fails(problems: Sequence[RiskProblem]) -> Iterator[None]:
    """Calls of a block that raises are taken back: what comes after a second try finds the meters as after a first."""
    meters = {id(meter): meter for problem in problems for meter in problem._meters}.values()
    booked = [(meter, meter.forward_calls, meter.gradient_calls) for meter in meters]
    try:
        yield
    except BaseException:
        for meter, forward, gradient in booked:
            meter.forward_calls, meter.gradient_calls = forward, gradient
        raise


def _book(problems: Sequence[RiskProblem], record: Record) -> None:
    for problem, (forward, gradient) in zip(problems, record.calls, strict=True):
        problem.book(forward, gradient)


def _failed(failures: Sequence[Failure], finished: int, total: int, kept: Path | None) -> UnitFailedError:
    unit, error, tries = failures[0]
    lost = type(error).__name__ in ("KilledWorker", "FutureCancelledError", "CancelledError")
    cause = (
        f"{type(error).__name__}: its worker is gone (killed, out of memory, or cut off)"
        if lost
        else f"{type(error).__name__}: {first_line(error)}"
    )
    others = ", ".join(str(failure.unit.index) for failure in failures[1:])
    return UnitFailedError(
        f"{str(unit).capitalize()} failed {tries} time{'s' * (tries > 1)}, at last with {cause}. "
        + (f"So did {len(failures) - 1} more: {others}. " if others else "")
        + f"The {finished} of {total} units that finished are "
        + (
            f"kept in {kept}: mend the cause and make the same call, it goes on from there. "
            if kept
            else "lost; folder= keeps them. "
        )
        + "No unit is left out, since that would bias the answer."
    )


def first_line(error: BaseException) -> str:
    """What an error says, without the pages that some libraries add to it."""
    return (str(error).strip().splitlines() or ["no message"])[0][:300]
