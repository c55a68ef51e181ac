"""A run's folder: what was asked, every finished estimate, and a report; a stopped run goes on where it was.

runs/NNNN/: `run.json` (model, parameters, recipes, seed, fingerprint), `units.jsonl` (a line per finished recipe),
`<recipe>/result.json` and `<recipe>/posterior.nc`, `result.json` (the comparison), `report.html`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ppl_risk.comparison import Comparison
from ppl_risk.errors import RiskError
from ppl_risk.report import write_report
from ppl_risk.risk_estimate import RiskEstimate
from ppl_risk.storage import load, save, summary, write_whole


@dataclass(frozen=True)
class Request:
    """What a run was asked for."""

    model: str
    recipes: list[str]
    parameters: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    seed: int = 0
    fingerprint: str = ""


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, parent: Path, request: Request) -> RunFolder:
        """The next free number under `parent`; a folder is taken by making it, so two commands never share one."""
        parent.mkdir(parents=True, exist_ok=True)
        taken = [int(p.name) for p in parent.iterdir() if p.name.isdigit()]
        number = max(taken, default=0) + 1
        while True:
            try:
                (parent / f"{number:04d}").mkdir()
                break
            except FileExistsError:
                number += 1
        run = cls(parent / f"{number:04d}")
        text = json.dumps(asdict(request), indent=2) + "\n"
        write_whole(run.path / "run.json", lambda p: p.write_text(text))
        return run

    def request(self) -> Request:
        """What was asked.

        Raises:
            RiskError: the folder is not a run's.
        """
        try:
            return Request(**json.loads((self.path / "run.json").read_text()))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RiskError(f"{self.path} is not a run's folder: it has no run.json.") from error
        except (json.JSONDecodeError, TypeError) as error:
            raise RiskError(f"{self.path / 'run.json'} cannot be read: {error}.") from error

    @staticmethod
    def key(request: Request, recipe: str) -> str:
        """Names the whole unit: another model, recipe or seed never finds this result."""
        return f"{request.fingerprint}-{recipe}-{request.seed}"

    def finished(self, request: Request) -> Iterator[tuple[str, RiskEstimate]]:
        """Recipes of the request whose estimates are complete."""
        file = self.path / "units.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        done = set()
        for line in lines:
            try:
                done.add(json.loads(line)["key"])
            except (json.JSONDecodeError, KeyError, TypeError):
                continue  # a line cut short by a stop: that unit is simply run again
        for recipe in request.recipes:
            if self.key(request, recipe) in done:
                yield recipe, load(self._unit(recipe))

    def add(self, request: Request, recipe: str, estimate: RiskEstimate) -> None:
        """Save an estimate, then book it."""
        save(estimate, self._unit(recipe))
        record = {"key": self.key(request, recipe), "recipe": recipe, "status": estimate.status.name}
        with (self.path / "units.jsonl").open("a") as file:
            file.write(json.dumps(record | {"log_prob": str(estimate.log_prob), "seconds": estimate.seconds}) + "\n")

    def conclude(self, request: Request, comparison: Comparison) -> None:
        """Write the comparison and the report."""
        estimates: Mapping[str, Any] = {name: summary(e) for name, e in comparison.estimates.items()}
        record = {
            "request": asdict(request), "best": comparison.best, "verdict": comparison.verdict(),
            "truth": None if comparison.truth is None else str(comparison.truth), "estimates": estimates,
        }  # fmt: skip
        text = json.dumps(record, indent=2) + "\n"
        write_whole(self.path / "result.json", lambda p: p.write_text(text))
        write_whole(self.path / "report.html", lambda p: write_report(comparison, request, p))

    def _unit(self, recipe: str) -> Path:
        # A recipe may be a path; its folder is named after the file.
        return self.path / Path(recipe.replace(":", "_")).stem
