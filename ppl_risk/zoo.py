"""Models and recipes by name or path: `models/` and `inference/` of a checkout, or the copies that the wheel carries.

A model is a folder with `problem.py` (a function `problem(**parameters) -> RiskProblem`), `card.md` and `truth.json`; a recipe
is a Python file with `infer(problem, *, seed) -> RiskEstimate`. Both are code, so only a name, path or `package.module:function`
that the user typed is ever run (`app.request` sees to it); weights beside them load from safetensors.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ppl_risk.errors import RiskError, UnknownNameError
from ppl_risk.files import read_json

if TYPE_CHECKING:
    from ppl_risk.problem import RiskProblem
    from ppl_risk.risk_estimate import RiskEstimate

_HERE = Path(__file__).resolve().parent


def shelf(kind: str) -> Path:
    """The folder of `kind` ("models" or "inference"): that of the checkout, else the one shipped in the wheel."""
    checkout = _HERE.parent
    # Only beside our own pyproject: in site-packages a neighbour called `models` is somebody else's.
    folder = checkout / kind if (checkout / "pyproject.toml").exists() else _HERE / "_shipped" / kind
    if not folder.is_dir():
        raise RiskError(f"This installation carries no {kind}/. Install ppl-risk again, or give a path.")
    return folder


def list_models() -> list[str]:
    """Names of the zoo's models."""
    return sorted(p.parent.name for p in shelf("models").glob("*/problem.py"))


def list_recipes() -> list[str]:
    """Names of the recipes."""
    return sorted(p.stem for p in shelf("inference").glob("*.py") if not p.stem.startswith("_"))


def load_model(model: str, **parameters: object) -> RiskProblem:
    """A risk problem by zoo name, by folder, or as `package.module:function`.

    Args:
        model: for example "digits", "path/to/folder", "mypackage.nets:problem". parameters: passed to the function.

    Raises:
        UnknownNameError: no such model; the message lists those there are.
        RiskError: the file does not define what it should, or does not take a parameter.

    Example:
        >>> load_model("linear_gaussian", dimension=2).name
        'linear_gaussian'
    """
    from ppl_risk.problem import RiskProblem  # torch: not for a list of names

    make = _find(model, "models", "problem")
    _check_parameters(make, model, parameters)
    try:
        problem = make(**parameters)
    except RiskError:
        raise
    except Exception as error:
        raise RiskError(f"The model {model} failed with {where(error)}") from error
    if not isinstance(problem, RiskProblem):
        raise RiskError(f"{model} returned {type(problem).__name__}; its function must return a RiskProblem.")
    return problem


def load_recipe(recipe: str) -> Callable[..., RiskEstimate]:
    """A recipe's `infer(problem, *, seed)` by name, by file, or as `package.module:function`.

    Raises:
        UnknownNameError: no such recipe; the message lists those there are.

    Example:
        >>> load_recipe("smc").__name__
        'infer'
    """
    return _find(recipe, "inference", "infer")


def read_parameters(model: str, texts: dict[str, str]) -> dict[str, object]:
    """Parameters typed as text, each read as the type of the model's default for it.

    Raises:
        RiskError: a text that does not read as that type. UnknownNameError: a parameter the model does not take.
    """
    make = _find(model, "models", "problem")
    _check_parameters(make, model, texts)
    accepted = inspect.signature(make).parameters
    return {
        name: _read_as(accepted[name].default if name in accepted else "", name, text) for name, text in texts.items()
    }


def _read_as(default: object, name: str, text: str) -> object:
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise RiskError(f"{name} is true or false, got {text!r}.")
        return text.lower() == "true"
    if isinstance(default, int | float):
        kind = type(default)
        try:
            return kind(text)
        except ValueError as error:
            raise RiskError(f"{name} is a number like {default!r}, got {text!r}.") from error
    return text


def where(error: BaseException) -> str:
    """An error of somebody's code in one line: its type, where it was raised last, its message."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    place = "".join(f" at {Path(frame.filename).name}:{frame.lineno}" for frame in last)
    # torch appends its own C++ frames.
    message = " ".join(str(error).partition("Exception raised from")[0].split())[:300]
    return f"{type(error).__name__}{place}: {message}"


@dataclass(frozen=True)
class Truth:
    """A reference answer: log_prob in nats with its standard error (0: exact), how it was obtained, and what was checked."""

    log_prob: float
    std_error: float
    method: str


def load_truth(model: str, *, fingerprint: str | None = None, **parameters: object) -> Truth | None:
    """The reference answer for a zoo model or folder at these parameters (its defaults where none are given), or None.

    Args:
        model: as for `load_model`. fingerprint: of the problem in hand (`identity.fingerprint`): with it, an answer is
            returned only if it was made for that network and law, so not for other weights. parameters: of the model.
    """
    if ":" in model:
        return None
    file = _folder(model) / "truth.json"
    if not file.exists():
        return None
    make = _find(model, "models", "problem")
    defaults = {n: p.default for n, p in inspect.signature(make).parameters.items()}
    wanted = defaults | parameters
    for entry in read_json(file, "a model's truth").get("entries", ()):
        if defaults | entry["parameters"] == wanted:
            if fingerprint is not None and not _made_for(fingerprint, entry.get("fingerprint", "")):
                return None
            return Truth(float(entry["log_prob"]), float(entry["standard_error"]), entry["method"])
    return None


def _made_for(fingerprint: str, held: str) -> bool:
    from ppl_risk.identity import same_problem  # torch

    return bool(held) and same_problem(fingerprint, held)


def locate(kind: str, name: str) -> Path | None:
    """The file of a model (kind "models") or a recipe ("inference"), found without running it; None for `package.module:function`.

    A name of the catalogue is that of the catalogue, whatever lies in the folder where it was typed.

    Raises:
        UnknownNameError: there is none; the message lists those there are.

    Example:
        >>> locate("inference", "smc").name
        'smc.py'
    """
    models = kind == "models"
    known = list_models() if models else list_recipes()
    if name in known:
        return shelf(kind) / name / "problem.py" if models else shelf(kind) / f"{name}.py"
    if ":" in name:
        _find_spec(name.partition(":")[0])
        return None
    path = Path(name, "problem.py") if models else Path(name)
    if "\0" in name or path.suffix != ".py" or not path.is_file():
        raise UnknownNameError(
            f"No {'model' if models else 'recipe'} {name!r}.{_near(name, known)} There are: {', '.join(known)}. A "
            f"{'folder with a problem.py' if models else 'Python file'} or package.module:function works too."
        )
    return path


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _folder(model: str) -> Path:
    return shelf("models") / model if model in list_models() else Path(model)


def _find(name: str, kind: str, function: str) -> Callable[..., Any]:
    if not isinstance(name, str | Path):
        raise RiskError(f"A name, a path or 'package.module:function' is wanted from {kind}/, got {type(name).__name__}.")
    path = locate(kind, str(name))
    if path is None:
        source, _, function = str(name).partition(":")
        module = _import(source)
    else:
        source = str(path)
        try:
            module = load_file(path)
        except RiskError:
            raise
        except Exception as error:
            raise RiskError(f"{path} cannot be run: {where(error)}") from error
    made = getattr(module, function, None)
    if not callable(made):
        raise RiskError(f"{source} defines no function {function!r}.")
    return made


def _find_spec(module: str) -> None:
    """Look for the outermost package, which imports nothing."""
    outermost = module.partition(".")[0]
    _look_here()
    try:
        found = importlib.util.find_spec(outermost) if outermost else None
    except (ImportError, ValueError):
        found = None
    if found is None:
        raise UnknownNameError(f"Python finds no module {outermost!r} (looked for {module!r} from {Path.cwd()}).")


def _look_here() -> None:
    # As `python -m` does: the user's own modules are in the folder the command was typed in.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def _import(name: str) -> ModuleType:
    _look_here()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UnknownNameError(
            f"Python finds no module {error.name!r} (looked for {name!r} from {Path.cwd()})."
        ) from error
    except RiskError:
        raise
    except Exception as error:
        raise RiskError(f"{name} cannot be imported: {where(error)}") from error


def load_file(path: Path) -> ModuleType:
    """A Python file as a module of its own, without a name that others could import; it is run, so only a trusted one."""
    name = f"ppl_risk_zoo_{path.resolve().parent.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # a .py file always has a spec and a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _check_parameters(make: Callable[..., Any], model: str, parameters: Mapping[str, object]) -> None:
    accepted = inspect.signature(make).parameters
    if any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        return
    unknown = [name for name in parameters if name not in accepted]
    if unknown:
        takes = ", ".join(f"{p}" for p in accepted.values()) or "none"
        raise UnknownNameError(f"{model} takes no parameter {unknown[0]!r}. Its parameters: {takes}.")
