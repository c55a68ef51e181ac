"""Fingerprints in truth.json: `python models/fingerprints.py` verifies all, --write writes them. Not a model itself.

A truth belongs to the network and law that it was computed for. Write them after a `make_truth.py` has run. Whoever
changes weights or a law sees here which truths no longer hold; --write without a new truth would only hide that.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ppl_risk import load_model
from ppl_risk.identity import fingerprint, same_problem
from ppl_risk.zoo import list_models, shelf


def stamp(folder: Path) -> None:
    """Write the fingerprint of its problem into every entry of a model's truth.json."""
    record = _read(folder)
    for entry in record["entries"]:
        entry["fingerprint"] = fingerprint(load_model(str(folder), **entry["parameters"]))
    (folder / "truth.json").write_text(json.dumps(record, indent=2) + "\n")


def strangers(folder: Path) -> list[dict[str, Any]]:
    """Parameters of the entries that were not made for the problem that the model now is."""
    return [
        entry["parameters"]
        for entry in _read(folder)["entries"]
        if not same_problem(entry.get("fingerprint", ""), fingerprint(load_model(str(folder), **entry["parameters"])))
    ]


def _read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "truth.json").read_text())


def main() -> int:
    """Verify or write; the exit code is the number of models with an entry that does not hold."""
    parser = argparse.ArgumentParser(description="Fingerprints in models/*/truth.json.")
    parser.add_argument("models", nargs="*", default=list_models())
    parser.add_argument("--write", action="store_true")
    told = parser.parse_args()
    wrong = 0
    for name in told.models:
        folder = shelf("models") / name
        if told.write:
            stamp(folder)
        for parameters in (found := strangers(folder)):
            print(f"{name} {parameters}: this truth was computed for other weights, another law or another detector.")
        wrong += bool(found)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
