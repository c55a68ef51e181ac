"""Other systems on the classes of rare events: `PYTHON -m benchmarks.peers --out FILE [--seeds 20] [--only LABEL ...]`.

PYTHON is the interpreter of an environment of their own, for their sake and ours:

    python3 -m venv PEERS && PEERS/bin/pip install -c constraints.txt torch openturns pystra jaxtyping pyro-ppl safetensors scipy
    PEERS/bin/pip install --no-deps -e .

One JSON line a run: label, peer, seed, log_prob, std_error, low and high (95 %, nats), calls, seconds, or error. Runs that FILE
has are not made again. Every class and peer has a process of its own, which is stopped after `SECONDS_EACH`; that is recorded as
`skipped`, and so is a peer that is not run because of the number of inputs. `--table` prints FILE.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import multiprocessing
import sys
import time
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.efficiency import Score, score
from benchmarks.peers_methods import LARGEST, METHODS, Model
from benchmarks.rare_event_classes import CLASSES, problem_of, truth_of
from benchmarks.results import table

#: Of one class and peer, all seeds together; `--seconds` sets another.
SECONDS_EACH = 40.0


def _log(p: float) -> float | None:
    """Log p as JSON holds it: None for what is not a number, and a 0 is -inf for an interval only."""
    return math.log(p) if p > 0 else None


def one_run(label: str, peer: str, seed: int) -> dict[str, Any]:
    """The record of one run."""
    model, truth = Model(problem_of(label)), truth_of(label).log_prob
    record: dict[str, Any] = {"label": label, "peer": peer, "seed": seed}
    started = time.perf_counter()
    try:
        answer = METHODS[peer](model, seed, truth)
        if not 0 < answer.p <= 1:
            raise ArithmeticError(f"answered p = {answer.p}")
        known = math.isfinite(answer.low) and math.isfinite(answer.high)
        record |= {
            "log_prob": _log(answer.p),
            "std_error": answer.relative_error if math.isfinite(answer.relative_error) else None,
            "low": _log(answer.low) if known else None,
            "high": _log(answer.high) if known else None,
        }
    except Exception as error:
        record["error"] = (
            "over budget" if model.over else f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        )
    return record | {"calls": model.calls, "seconds": round(time.perf_counter() - started, 3)}


def _runs(label: str, peer: str, seeds: list[int], file: Path) -> None:
    warnings.simplefilter("ignore")
    for seed in seeds:
        record = one_run(label, peer, seed)
        with file.open("a") as out:
            out.write(json.dumps(record) + "\n")


def read(file: Path) -> list[dict[str, Any]]:
    """The records of a file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def run_all(file: Path, seeds: int, labels: list[str], peers: list[str], seconds: float) -> None:
    """Make the runs that the file does not have."""
    file.parent.mkdir(parents=True, exist_ok=True)
    for label in labels:
        dimension = problem_of(label).transport.dimension
        for peer in peers:
            done = {r["seed"] for r in read(file) if r["label"] == label and r["peer"] == peer}
            wanted = [seed for seed in range(seeds) if seed not in done]
            if not wanted or None in done:
                continue
            limit, reason = LARGEST[peer]
            if dimension > limit:
                why = f"not run: {dimension:,} inputs; {reason}"
            else:
                worker = multiprocessing.get_context("fork").Process(target=_runs, args=(label, peer, wanted, file))
                worker.start()
                worker.join(seconds)
                alive = worker.is_alive()
                worker.kill()
                worker.join()
                why = f"stopped after {seconds:.0f} s" if alive else f"the process died with code {worker.exitcode}"
                if not alive and worker.exitcode == 0:
                    why = ""
            if why:
                with file.open("a") as out:
                    out.write(json.dumps({"label": label, "peer": peer, "seed": None, "skipped": why}) + "\n")
            print(label, peer, why or "done", flush=True)


def scores(file: Path) -> dict[tuple[str, str], Score | str]:
    """Figures of every class and peer; a sentence where there are no runs."""
    runs: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    found: dict[tuple[str, str], Score | str] = {}
    for record in read(file):
        key = record["label"], record["peer"]
        if record["seed"] is None:
            found[key] = record["skipped"]
        else:
            runs[key].append(record)

    def number(record: dict[str, Any], name: str) -> float:
        value = record.get(name)
        return math.nan if value is None else value

    def interval(record: dict[str, Any]) -> tuple[float, float] | None:
        if record.get("high") is None:
            return None
        return (-math.inf if record["low"] is None else record["low"]), record["high"]

    for (label, peer), records in runs.items():
        found[label, peer] = score(
            [number(r, "log_prob") for r in records],
            truth_of(label).log_prob,
            [r["calls"] for r in records],
            [interval(r) for r in records],
            [number(r, "std_error") for r in records],
        )
    return found


def as_table(file: Path) -> str:
    """Relative RMSE / efficiency / coverage of the 95 % interval, a row a class and a column a peer."""
    found = scores(file)
    most = max((s.runs for s in found.values() if isinstance(s, Score)), default=0)

    def cell(what: Score | str) -> str:
        return f"{what} [{what.runs} runs]" if isinstance(what, Score) and what.runs < most else str(what)

    present = [label for label in CLASSES if any(label == key[0] for key in found)]
    return table([{"class": label} | {p: cell(found.get((label, p), "-")) for p in METHODS} for label in present])


def main() -> None:
    """Run what is wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", nargs="*", default=list(CLASSES), choices=list(CLASSES), metavar="LABEL")
    parser.add_argument("--peers", nargs="*", default=list(METHODS), choices=list(METHODS), metavar="PEER")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS_EACH, help="limit for a class and peer, all seeds together"
    )
    parser.add_argument("--table", action="store_true", help="print what FILE has, and run nothing")
    told = parser.parse_args()
    if not told.table:
        missing = [name for name in ("openturns", "pystra") if importlib.util.find_spec(name) is None]
        if missing:
            sys.exit(f"Not installed in this environment: {', '.join(missing)}. See the head of benchmarks/peers.py.")
        torch.set_num_threads(1)
        run_all(told.out, told.seeds, told.only, told.peers, told.seconds)
    print(as_table(told.out))


if __name__ == "__main__":
    main()
