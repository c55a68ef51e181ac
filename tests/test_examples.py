"""The examples in docstrings run, and importing the package alone does not load torch."""

import ast
import doctest
import inspect
import math
import subprocess
import sys
from importlib import import_module

import pytest

MODULES = [
    "activations", "crude_monte_carlo", "risk_estimate", "guides.families", "importance.pareto", "inputs.transport", "normal",
    "preflight", "problem", "smc.resampling",
]  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    """Read from the source: the checked functions of a test run hide their module from doctest's own finder."""
    module = import_module(f"ppl_risk.{name}")
    names = {"torch": import_module("torch"), "math": math} | vars(module)
    nodes = [n for n in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    texts = {n.name: text for n in nodes if ">>>" in (text := ast.get_docstring(n) or "")}
    assert texts
    runner = doctest.DocTestRunner()
    for where, text in texts.items():
        runner.run(doctest.DocTestParser().get_doctest(text, dict(names), where, name, 0))
    assert runner.summarize(verbose=False).failed == 0


def test_package_is_lazy_and_complete():
    code = (
        "import sys, ppl_risk; assert 'torch' not in sys.modules, 'torch was loaded'; "
        "found = {n: getattr(ppl_risk, n) for n in ppl_risk.__all__}; import types; "
        "rooms = {n for n, v in found.items() if isinstance(v, types.ModuleType)}; "
        "assert rooms == {'guides', 'inputs', 'plots'}, rooms; assert all(getattr(ppl_risk, n) is v for n, v in found.items())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="nothing_like_it"):
        import_module("ppl_risk").nothing_like_it  # noqa: B018
