"""A run's folder: every finished estimate, and a report; a stopped run goes on where it was.

runs/NNNN/: `run.json` (the request), `units.jsonl` (a line per finished recipe, with digests of its files),
`<recipe>/result.json` and `<recipe>/posterior.nc`, `result.json` (the comparison), `report.html`. All of it is data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from ppl_risk.app.request import Request, folder_name
from ppl_risk.comparison import Comparison
from ppl_risk.errors import RiskError
from ppl_risk.files import append_line, write_whole, writing
from ppl_risk.report import report
from ppl_risk.risk_estimate import RiskEstimate
from ppl_risk.storage import load, save, summary

FILES = ("result.json", "posterior.nc")
#: Of `units.jsonl`; a line has a few hundred bytes.
LARGEST_JOURNAL = 64 * 2**20


class Finished(NamedTuple):
    """Recipe -> its estimate, and recipe -> why its estimate cannot be read."""

    estimates: dict[str, RiskEstimate]
    damaged: dict[str, str]


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, parent: Path, request: Request) -> RunFolder:
        """The next free number under `parent`; a folder is taken by making it, so two commands never share one.

        Raises:
            RiskError: the folder cannot be made or written.
        """
        try:
            parent.mkdir(parents=True, exist_ok=True)
            number = max((int(p.name) for p in parent.iterdir() if p.name.isdecimal()), default=0) + 1
            while True:
                try:
                    (parent / f"{number:04d}").mkdir()
                    break
                except FileExistsError:
                    number += 1
        except OSError as error:
            raise writing(parent, error) from error
        run = cls(parent / f"{number:04d}")
        write_whole(run.path / "run.json", json.dumps(asdict(request), indent=2) + "\n")
        return run

    @staticmethod
    def key(request: Request, recipe: str) -> str:
        """Names the whole unit: another model, recipe or seed never finds this result."""
        return f"{request.fingerprint}-{recipe}-{request.seed}"

    def finished(self, request: Request) -> Finished:
        """The request's recipes that are booked as finished: what each found, or why that cannot be read.

        Raises:
            RiskError: `units.jsonl` is far too large.
        """
        booked = self._booked()
        found = Finished({}, {})
        for recipe in request.recipes:
            if (key := self.key(request, recipe)) not in booked:
                continue
            folder = self.path / folder_name(recipe)
            try:
                if _digests(folder) not in booked[key]:
                    raise RiskError(f"the files in {folder} are not those that were saved there.")
                found.estimates[recipe] = load(folder)
            except RiskError as error:
                found.damaged[recipe] = str(error)
        return found

    def _booked(self) -> dict[str, list[dict[str, str]]]:
        """Key -> digests of the files, one table a line; a line that is none (cut short, damaged) is as if it were not there."""
        file = self.path / "units.jsonl"
        if not file.is_file():
            return {}
        if file.stat().st_size > LARGEST_JOURNAL:
            raise RiskError(f"{file} has {file.stat().st_size:,} bytes, far more than a run writes.")
        booked: dict[str, list[dict[str, str]]] = {}
        for line in file.read_bytes().splitlines():
            try:
                record = json.loads(line)
                booked.setdefault(record["key"], []).append(record["files"])
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
        return booked

    def add(self, request: Request, recipe: str, estimate: RiskEstimate) -> None:
        """Save an estimate, then book it."""
        folder = self.path / folder_name(recipe)
        save(estimate, folder)
        record = {
            "key": self.key(request, recipe), "recipe": recipe, "status": estimate.status.name,
            "log_prob": str(estimate.log_prob), "seconds": estimate.seconds, "files": _digests(folder),
        }  # fmt: skip
        append_line(self.path / "units.jsonl", json.dumps(record))

    def conclude(self, request: Request, comparison: Comparison) -> None:
        """Write the comparison and the report."""
        estimates: Mapping[str, Any] = {name: summary(e) for name, e in comparison.estimates.items()}
        record = {
            "request": asdict(request), "best": comparison.best, "verdict": comparison.verdict(),
            "truth": None if comparison.truth is None else str(comparison.truth), "estimates": estimates,
        }  # fmt: skip
        write_whole(self.path / "result.json", json.dumps(record, indent=2) + "\n")
        write_whole(self.path / "report.html", report(comparison, request))


def _digests(folder: Path) -> dict[str, str]:
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES if (folder / name).is_file()
    }
