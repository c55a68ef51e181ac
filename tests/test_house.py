"""The house: a room imports only from floors below it, files stay short, and every docstring example runs."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest

import ppl_risk

ROOT = Path(ppl_risk.__file__).parent
FLOORS = (
    {
        "arguments",
        "errors",
        "files",
        "identity",
        "memory",
        "metering",
        "randomness",
        "normal",
        "network",
        "one_pass",
        "inputs",
        "netcdf",
        "problem",
        "provenance",
        "risk_estimate",
        "saturation",
        "storage",
        "parallel",
        "preflight",
        "systems",
        "tracing",
        "weight_posterior",
        "weights",
        "wrapped",
    },
    {"activations"},
    {"guides", "selection"},
    {
        "posterior",
        "importance",
        "crude_monte_carlo",
        "svi",
        "smc",
        "layerwise",
        "rank_search",
        "engine",
        "propagation",
        "bounds",
        "mitigation",
    },
    {"comparison", "diagnostics", "plots"},
    {"zoo", "report", "runs", "app", "cli"},
)
FLOOR_OF = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(p for p in ROOT.rglob("*.py") if "_shipped" not in p.parts and p.name not in ("__main__.py",))


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(path):
    """Rooms imported anywhere in a file; a lazy import inside a function is an import too."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name.split(".")[1] for name in names if name.startswith("ppl_risk."))


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.parent != ROOT or p.name != "__init__.py"], ids=lambda p: p.stem
)
def test_imports_point_downwards(path):
    room = room_of(path)
    # `storage` is how an estimate saves itself; both are floor 0.
    above = [other for other in imported_rooms(path) if other != room and FLOOR_OF[other] > FLOOR_OF[room]]
    assert not above, f"{room} (floor {FLOOR_OF[room]}) imports {above}"


def test_no_module_bears_the_name_of_a_public_function():
    assert set(FLOOR_OF) & set(ppl_risk._HOME) == set()
    assert {room_of(p) for p in FILES if p.parent != ROOT or p.name != "__init__.py"} == set(FLOOR_OF)


def test_files_stay_short():
    assert {p.name: n for p in FILES if (n := len(p.read_text().splitlines())) > 300} == {}


def modules():
    for path in FILES:
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        if ">>>" in path.read_text():
            yield name


@pytest.mark.parametrize("name", list(modules()))
def test_docstring_examples_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
