r"""Killed at any moment, resumed, compared bit for bit with a run that nobody disturbed.

Five calls on a small network keep their units in a folder: `estimate`, `estimate(target_cv=)`, `run_smc`, `monte_carlo`,
`fit_svi`. Each runs in a process forked from this one, so that a trial costs what the call costs.

- *random*: SIGKILL at a moment uniform over the length of an undisturbed call; a trial is killed three times on one folder.
- *exact*: SIGKILL before, in the middle of, one byte before the end of, and after a line of `units.jsonl`; the first line, the
  last, and two between.
- *at once*: two and three processes on one folder.

After each kill a copy of the folder is resumed. Identical means: the digest over every number, array and evidence of the
estimate, its calls included (not its seconds).
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributions import Independent, Normal

import ppl_risk as pr
from benchmarks.results import table
from ppl_risk.parallel import digest, journal

TITLE = "Kills: the same bits after any of them"
MOMENTS, KILLS, POINTS, SEED = 74, 3, 4, 0
PLACES = ("before", "middle", "last byte", "after")
#: Fields of an estimate that are no part of the answer, and the guide, which is compared by its parameters.
APART = ("seconds", "guide")

Call = Callable[[Path | None], Any]


def problem() -> pr.RiskProblem:
    """A network of 8 inputs and 16 ReLUs; p is about 0.01. Small batches give the folder lines to be killed at."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)).requires_grad_(False)
        law = Independent(Normal(torch.zeros(8), 1.0), 1)
        level = float(network(law.sample((20_000,)))[:, 0].quantile(0.99))
    made = pr.RiskProblem(network, law, lambda y: y[:, 0] - level, name="kills")
    made.batch_size = 100
    return made


def calls(known: pr.RiskProblem) -> dict[str, Call]:
    """The calls, folder -> estimate."""
    quiet = {"progress": False}
    return {
        "estimate": lambda f: pr.estimate(known, max_calls=4000, folder=f, **quiet),
        "estimate(target_cv)": lambda f: pr.estimate(known, max_calls=8000, target_cv=0.06, folder=f, **quiet),
        "run_smc": lambda f: pr.run_smc(known, particles=200, folder=f, **quiet),
        "monte_carlo": lambda f: pr.monte_carlo(known, calls=20_000, folder=f, **quiet),
        "fit_svi": lambda f: pr.fit_svi(known, steps=60, draws=1000, folder=f, **quiet),
    }


def digest_of(found: Any) -> str:
    """One digest over all of an estimate."""
    parts = {f.name: _plain(getattr(found, f.name)) for f in fields(found) if f.name not in APART}
    return digest([parts | {"guide": [] if found.guide is None else list(found.guide.state_dict().values())}])


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return (
        value if isinstance(value, np.ndarray | np.generic | torch.Tensor | float | int | str | None) else repr(value)
    )


def begin(call: Call, folder: Path | None, before: Callable[[], None] = lambda: None) -> tuple[int, int]:
    """The call in a forked process: its number, and where its digest will be written."""
    ear, mouth = os.pipe()
    child = os.fork()
    if child:
        os.close(mouth)
        return child, ear
    code = 1
    try:
        before()
        os.write(mouth, pickle.dumps(digest_of(call(folder))))
        code = 0
    finally:
        os._exit(code)


def end(child: int, ear: int) -> str | None:
    """What a process wrote before it ended; None where it was killed."""
    with os.fdopen(ear, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return None
    assert os.WEXITSTATUS(status) == 0, "a trial failed"
    return pickle.loads(said)


def resumed(call: Call, folder: Path) -> str | None:
    """The digest of the call made again on a copy of the folder."""
    copy = folder.with_name(folder.name + "-copy")
    if folder.exists():
        shutil.copytree(folder, copy)
    found = end(*begin(call, copy))
    shutil.rmtree(copy, ignore_errors=True)
    return found


def random_kills(call: Call, truth: str, length: float, wanted: int, home: Path, draw: np.random.Generator) -> int:
    """How many of `wanted` kills at random moments left the answer as it was."""
    same, done, folder = 0, 0, home / "random"
    while done < wanted:
        if done % KILLS == 0:
            shutil.rmtree(folder, ignore_errors=True)
        child, ear = begin(call, folder)
        time.sleep(draw.uniform(0, length))
        os.kill(child, signal.SIGKILL)
        if end(child, ear) is not None:  # it was faster: no kill
            shutil.rmtree(folder, ignore_errors=True)
            continue
        done += 1
        same += resumed(call, folder) == truth
    return same


def exact_kills(call: Call, truth: str, lines: int, home: Path) -> tuple[int, int]:
    """The same for kills around lines of the journal: identical, of how many."""
    same, total = 0, 0
    for line in sorted({round(k * (lines - 1) / (POINTS - 1)) for k in range(POINTS)}):
        for place in PLACES:
            folder = home / f"exact-{line}-{place.split()[0]}"
            assert end(*begin(call, folder, lambda line=line, place=place: die_at(line, place))) is None
            total += 1
            same += resumed(call, folder) == truth
    return same, total


def die_at(line: int, place: str) -> None:
    """From now on this process dies at the given line of its journal."""
    written = 0

    def write(file: int, text: bytes) -> int:
        nonlocal written
        if written == line:
            part = {"before": 0, "middle": len(text) // 2, "last byte": len(text) - 1, "after": len(text)}[place]
            os.write(file, text[:part])
            os.kill(os.getpid(), signal.SIGKILL)
        written += 1
        return os.write(file, text)

    journal.os = SimpleNamespace(**(vars(os) | {"write": write}))


def run() -> str:
    """The study."""
    draw, rows = np.random.default_rng(SEED), []
    made = calls(problem())
    with tempfile.TemporaryDirectory() as place:
        for index, (name, call) in enumerate(made.items()):
            home = Path(place) / str(index)
            truth = digest_of(call(None))
            started = time.perf_counter()
            kept = end(*begin(call, home / "whole"))
            length = time.perf_counter() - started
            lines = len((home / "whole" / "units.jsonl").read_bytes().splitlines())
            wanted = MOMENTS // len(made) + (index < MOMENTS % len(made))
            random = random_kills(call, truth, length, wanted, home, draw)
            exact, points = exact_kills(call, truth, lines, home)
            together = [
                end(*child) for many in (2, 3) for child in [begin(call, home / f"by {many}") for _ in range(many)]
            ]
            rows.append({
                "call": name, "lines": lines, "with and without folder": "same" if kept == truth else "OTHER",
                "random kills identical": f"{random} of {wanted}", "exact kills identical": f"{exact} of {points}",
                "two and three at once": f"{sum(found == truth for found in together)} of {len(together)}",
            })  # fmt: skip
    return table(rows)
