"""RESULTS.md: one section a study, between markers, replaced when the study runs again."""

from __future__ import annotations

import platform
import re
from importlib.metadata import version
from pathlib import Path

FILE = Path(__file__).parent / "RESULTS.md"
HEAD = """# Measured results

Every figure is measured by the command above its table, on the machine named there, with one torch thread. Calls count
rows through the network, a gradient of a row being one call more. log10 errors are in decades.
"""


def write_section(name: str, title: str, text: str, seconds: float) -> None:
    """Replace the section `name`, or append it."""
    machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, torch {version('torch')}"
    body = (
        f"<!-- {name} -->\n## {title}\n\n`.venv/bin/python -m benchmarks {name}` ({seconds:.0f} s; {machine})\n\n"
        f"{text.strip()}\n<!-- end {name} -->\n"
    )
    old = FILE.read_text() if FILE.exists() else HEAD
    pattern = re.compile(rf"<!-- {re.escape(name)} -->.*?<!-- end {re.escape(name)} -->\n", re.DOTALL)
    new = pattern.sub(lambda _: body, old) if pattern.search(old) else f"{old.rstrip()}\n\n{body}"
    FILE.write_text(new)


def table(rows: list[dict[str, object]]) -> str:
    """Rows as a Markdown table."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(str(row[c]) for c in columns) + " |" for row in rows])
