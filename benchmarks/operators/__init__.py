"""Small networks of one operator each through every public call, against plain draws.

A threshold on the network's score is exceeded by about one draw in a thousand; the truth comes from other draws. An answer that
says OK is right within 0.15 decades, or within a factor of 2 where its 99.9 % interval holds the truth, else WRONG. A bound below
the truth is UNSOUND; an exception that is no `RiskError` is a TRACEBACK. Some networks have no answer (rows mix, the answer is
random or changes): there OK is WRONG.
`python -m benchmarks.operators NAME ...` runs the named networks alone and prints what came of each.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.operators import layers, pointwise, shapes, wiring
from benchmarks.operators.calls import CALLS, row_of
from benchmarks.operators.case import Case
from benchmarks.results import table

TITLE = "The operator matrix: small networks through every call"
GROUPS: dict[str, list[Case]] = {
    "one number": pointwise.CASES, "shapes and reductions": shapes.CASES, "layers": layers.CASES,
    "wiring and arrival": wiring.CASES,
}  # fmt: skip
CASES = {case.name: case for cases in GROUPS.values() for case in cases}
RECORDS = Path(__file__).parent.parent / "results" / "operators.json"
OUTCOMES = ("right", "ok", "model", "holds", "vacuous", "doubt", "refused", "slow", "WRONG", "UNSOUND", "TRACEBACK")
WORKERS = 2


def _row(name: str) -> list[dict[str, Any]]:
    return row_of(CASES[name])


def measured(names: list[str], workers: int = WORKERS) -> list[dict[str, Any]]:
    """Records of the named networks."""
    with get_context("spawn").Pool(workers, maxtasksperchild=20) as pool:
        return [record for row in pool.imap(_row, names) for record in row]


def counted(records: list[dict[str, Any]]) -> list[dict[str, object]]:
    """Outcomes a call."""
    rows: list[dict[str, object]] = []
    for call in CALLS:
        counts = Counter(r["outcome"] for r in records if r["call"] == call)
        rows.append({"call": call} | {outcome: counts[outcome] or "" for outcome in OUTCOMES})
    return rows


def listed(records: list[dict[str, Any]], outcomes: tuple[str, ...]) -> str:
    """One line for each record of the outcomes."""
    lines = [
        f"- `{r['case']}`, {r['call']}: {r['outcome']} {r.get('status', '')} {r.get('log10_prob') or ''} against "
        f"{r['truth']:.2f}. {r.get('note', '')}"
        for r in records
        if r["outcome"] in outcomes
    ]
    return "\n".join(lines) or "None."


def run() -> str:
    """Run all networks, keep the records, and make the text of the section."""
    records = measured(list(CASES))
    RECORDS.parent.mkdir(exist_ok=True)
    RECORDS.write_text(json.dumps(records, indent=0) + "\n")
    return rendered(records)


def rendered(records: list[dict[str, Any]]) -> str:
    """The text of the section from records."""
    asked = {case.name for case in CASES.values() if not case.refuse}
    found = [r for r in records if r["call"] == "estimate" and r["case"] in asked]
    right = sum(r["outcome"] == "right" for r in found)
    names = partial(listed, records)
    sizes = ", ".join(f"{group} {len(cases)}" for group, cases in GROUPS.items())
    return (
        f"{len(CASES)} networks ({sizes}); {len(CASES) - len(asked)} of them have no answer. p = 1e-3 but for one of 1e-2, truth "
        f"from 1,000,000 draws. `estimate` has 12,000 calls, `fit_svi` 200 steps, `run_smc` 4 x 500 particles.\n\n"
        f"{table(counted(records))}\n\n`estimate` is right on {right} of the {len(found)} that have an answer "
        f"({right / len(found):.0%}).\n\nWrong, unsound, tracebacks:\n\n{names(('WRONG', 'UNSOUND', 'TRACEBACK'))}\n\n"
        f"Stopped after their time:\n\n{names(('slow',))}"
    )
