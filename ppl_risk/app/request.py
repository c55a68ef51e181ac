"""What a run was asked for, as its `run.json` has it, and which of that may be done without being typed.

`run.json` may come from somebody else. It names a model and recipes, which are code: a shipped one (its bare name, looked up in
the installed catalogue alone) may be run on its word, anything else only if it was typed in this command. Parameters are plain
values; weights are data, opened by readers that execute nothing.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ppl_risk.errors import RiskError
from ppl_risk.files import hold_no_links, read_json
from ppl_risk.zoo import list_models, list_recipes, locate

#: More recipes than anybody types.
MOST_RECIPES = 1000
LARGEST_SEED = 2**63


@dataclass(frozen=True)
class Request:
    """What a run was asked for; paths are absolute, so that a run can be resumed from any folder."""

    model: str
    recipes: list[str]
    parameters: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    seed: int = 0
    fingerprint: str = ""

    def labels(self) -> dict[str, str]:
        """Recipe -> what tables call it: a file by its stem, with as much of its path as tells it from the others."""
        for parts in range(1, 1 + max(r.count("/") for r in self.recipes)):
            short = {r: "/".join(Path(r).with_suffix("").parts[-parts:]) if "/" in r else r for r in self.recipes}
            if len(set(short.values())) == len(short):
                return short
        return {r: r for r in self.recipes}


def spec(kind: str, name: str) -> str:
    """How a run remembers a model or a recipe: a shipped one and `package.module:function` by name, a path made absolute.

    Raises:
        UnknownNameError: there is none of that name.
    """
    path = locate(kind, name)
    if path is None or name in _shipped(kind):
        return name
    return str((path.parent if kind == "models" else path).resolve())


def folder_name(recipe: str) -> str:
    """The folder of a recipe's results: a shipped recipe's name, or a stem with a digest of the whole name.

    Example:
        >>> folder_name("smc"), folder_name("/a/r.py") == folder_name("/b/r.py")
        ('smc', False)
    """
    if recipe in list_recipes():
        return recipe
    stem = re.sub(r"[^A-Za-z0-9_]+", "_", Path(recipe).stem if "/" in recipe else recipe)[:40]
    return f"{stem}-{hashlib.sha256(recipe.encode(errors='surrogatepass')).hexdigest()[:12]}"


def read_request(folder: Path) -> Request:
    """The request in a run's folder.

    Raises:
        RiskError: the folder is not a run's, its record is damaged, or it holds links or pipes.
    """
    if not folder.is_dir():
        raise RiskError(f"There is no folder {folder}.")
    hold_no_links(folder)
    record = read_json(folder / "run.json", "a run's folder")
    if reason := _wrong(record):
        raise RiskError(f"{folder / 'run.json'} is not the record of a run: {reason}.")
    return Request(**{f.name: record[f.name] for f in fields(Request) if f.name in record})


def _wrong(record: Mapping[str, Any]) -> str:
    """Why a record is none; empty if it is one."""
    recipes, parameters, seed = record.get("recipes"), record.get("parameters", {}), record.get("seed", 0)
    if unknown := set(record) - {f.name for f in fields(Request)}:
        return f"it has an entry {min(unknown)!r}"
    if not isinstance(record.get("model"), str) or not record["model"]:
        return "its model is no text"
    if not isinstance(recipes, list) or not 0 < len(recipes) <= MOST_RECIPES:
        return "its recipes are no list of names"
    if not all(isinstance(r, str) and r for r in recipes) or len(set(recipes)) < len(recipes):
        return "its recipes are no list of different names"
    if not isinstance(parameters, dict) or not all(
        isinstance(v, str | int | float | bool) for v in parameters.values()
    ):
        return "its parameters are no plain values"
    if type(seed) is not int or not 0 <= seed < LARGEST_SEED:
        return "its seed is no whole number from 0 to 2^63"
    if not isinstance(record.get("weights"), str | None) or not isinstance(record.get("fingerprint", ""), str):
        return "its weights or its fingerprint are no text"
    return ""


def allow(
    request: Request,
    folder: Path,
    model: str,
    recipes: Sequence[str],
    weights: Path | None,
    seed: int | None,
) -> None:
    """Hold a run's record against what was typed, before anything that it names is looked at.

    Raises:
        RiskError: it names code that was not typed, or something else than what was typed.
    """
    untyped = []
    if not model and request.model not in list_models():
        untyped.append(f"its model {_quoted(request.model)}")
    if not recipes:
        untyped += [f"its recipe {_quoted(r)}" for r in request.recipes if r not in list_recipes()]
    if untyped:
        raise RiskError(
            f"Models and recipes are code, and code runs only if you type it. {folder} names {', '.join(untyped)}. If you trust "
            f"that, type it again: {resume_command(request, folder)}"
        )
    if model and not _agree("models", model, request.model):
        raise RiskError(f"{folder} is a run of the model {_quoted(request.model)}, and you typed {_quoted(model)}.")
    if recipes and sorted(spec("inference", r) for r in recipes) != sorted(request.recipes):
        named = " ".join(map(_quoted, request.recipes))
        raise RiskError(f"{folder} is a run of the recipes {named}; type all of them, or none if all are shipped ones.")
    if weights is not None and str(weights.resolve()) != request.weights:
        was = "without --weights" if request.weights is None else f"with --weights {_quoted(request.weights)}"
        raise RiskError(f"{folder} was started {was}, and you typed --weights {_quoted(str(weights))}.")
    if seed is not None and seed != request.seed:
        raise RiskError(
            f"{folder} has seed {request.seed}, and you typed --seed {seed}. Leave it out, or start a new run."
        )


def allow_parameters(request: Request, folder: Path, typed: Mapping[str, object]) -> None:
    """The same for `--set`: what is typed must be what the run has; a model of your own gets nothing that was not typed.

    Raises:
        RiskError: a parameter differs, or is missing.
    """
    own = request.model not in list_models()
    for name in sorted(typed.keys() | (request.parameters.keys() if own else set())):
        if name not in typed or name not in request.parameters or typed[name] != request.parameters[name]:
            has = f"{name}={request.parameters[name]}" if name in request.parameters else f"no {name}"
            said = f"{name}={typed[name]}" if name in typed else f"no {name}"
            raise RiskError(
                f"{folder} has {_quoted(has)}, and you typed {_quoted(said)}. Type what the run has: "
                f"{resume_command(request, folder)}"
            )


def resume_command(request: Request, folder: Path) -> str:
    """The command that goes on with a run: code of one's own has to be typed again."""
    words, own = ["ppl-risk", "estimate"], [r for r in request.recipes if r not in list_recipes()]
    if request.model not in list_models() or own:
        words.append(_quoted(request.model))
        words += [_quoted(r) for r in request.recipes] if own else []
        for name, value in request.parameters.items():
            words += ["--set", _quoted(f"{name}={value}")] if request.model not in list_models() else []
    return " ".join([*words, "--resume", _quoted(str(folder))])


def _agree(kind: str, typed: str, recorded: str) -> bool:
    """Whether the typed name is the recorded one; a folder may have moved, then the fingerprint decides."""
    now = spec(kind, typed)
    moved = "/" in now and "/" in recorded and Path(now).name == Path(recorded).name
    return now == recorded or moved


def _shipped(kind: str) -> list[str]:
    return list_models() if kind == "models" else list_recipes()


def _quoted(text: str) -> str:
    """For a shell, and harmless on a terminal."""
    return shlex.quote(text) if text.isprintable() else repr(text)
