"""What the commands do once torch is loaded: load a problem, run the recipes that are left, and conclude."""

from __future__ import annotations

import inspect
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ppl_risk.app import BELIEVE, MISTAKE, WEAK, stopping
from ppl_risk.app.request import Request, allow_parameters, folder_name, read_request, resume_command
from ppl_risk.comparison import Comparison
from ppl_risk.comparison import compare as compare_estimates
from ppl_risk.errors import FolderError, RiskError, UnitFailedError
from ppl_risk.identity import fingerprint, same_problem
from ppl_risk.parallel import units_folder
from ppl_risk.preflight import check as preflight
from ppl_risk.problem import RiskProblem
from ppl_risk.risk_estimate import RiskEstimate, Status
from ppl_risk.runs import RunFolder
from ppl_risk.storage import load
from ppl_risk.weights import load_weights
from ppl_risk.zoo import load_model, load_recipe, load_truth, read_parameters, where


def work(request: Request, model: str, pairs: Sequence[str], out: Path, resume: Path | None, quiet: bool) -> int:
    """Run what a request asks for and is not finished; returns the exit code.

    Args:
        request: what was typed, or what the folder has and `app.request` allows. model: where its model is now.
        pairs: what --set gave. out: where a new run's folder is made. resume: the run's folder, or None. quiet: no bars.
    """
    typed = parameters_of(model, pairs)
    if resume is None:
        request = replace(request, parameters=typed)
    elif pairs or ":" in model or "/" in model:
        allow_parameters(request, resume, typed)
    problem = load_problem(model, request.parameters, request.weights)
    print(problem)
    found = preflight(problem)
    print(found)
    if not found.ok:
        return MISTAKE
    known = fingerprint(problem)
    infer = {recipe: load_recipe(recipe) for recipe in request.recipes}
    if resume is None:
        request = replace(request, fingerprint=known)
        run = RunFolder.create(out, request)
    else:
        run = RunFolder(resume)
        if not same_problem(request.fingerprint, known):
            raise RiskError(
                f"{resume} was run on another network or input law than {request.model} is now. Start a new run."
            )
    stopping.resume_with(resume_command(request, run.path))
    finished = _finish(run, request, infer, problem, known, not quiet and sys.stderr.isatty())
    return _conclude(run, request, finished, problem, known)


def _finish(
    run: RunFolder,
    request: Request,
    infer: Mapping[str, Callable[..., Any]],
    problem: RiskProblem,
    known: str,
    progress: bool,
) -> dict[str, RiskEstimate]:
    """Label -> estimate, of every recipe: read back where it is finished, made where it is not."""
    done, damaged = run.finished(request)
    found = {}
    for recipe, label in request.labels().items():
        stopping.look()
        if recipe in damaged:
            print(f"\n[{label}] is run again: {damaged[recipe]}")
        if recipe not in done:
            units = run.path / "units" / folder_name(recipe)
            # A recipe that is stopped goes on from the units it has finished.
            with units_folder(units):
                done[recipe], keep = _infer(infer[recipe], label, problem, known, request.seed, progress)
            if keep:
                run.add(request, recipe, done[recipe])
                shutil.rmtree(units, ignore_errors=True)
        found[label] = done[recipe]
        print(f"\n[{label}]\n{found[label]}")
    with suppress(OSError):
        (run.path / "units").rmdir()  # stays where a recipe has units left
    return found


def _infer(
    infer: Callable[..., Any], label: str, problem: RiskProblem, known: str, seed: int, progress: bool
) -> tuple[RiskEstimate, bool]:
    """One recipe, and whether to keep it; one that does not apply, or fails, says so and the others go on."""
    options = {"progress": progress} if "progress" in inspect.signature(infer).parameters else {}
    keep, why = True, ""
    try:
        estimate = infer(problem, seed=seed, **options)
        if isinstance(estimate, RiskEstimate):
            return estimate, True
        why, keep = f"The recipe returned {type(estimate).__name__}, not a RiskEstimate.", False
    except FolderError:
        raise  # the folder cannot be written: that is no finding of the recipe
    except UnitFailedError as error:
        why, keep = str(error), False
    except RiskError as error:
        why = str(error)
    except Exception as error:  # of a recipe: its author's, or ours; a resumed run tries it again
        why, keep = f"The recipe failed with {where(error)}", False
    refused = RiskEstimate(
        "refused" if keep else f"recipe {label}, which failed", float("nan"), status=Status.REFUSED, remedy=why, seed=seed,
        problem=problem.name, fingerprint=known,
    )  # fmt: skip
    return refused, keep


def _conclude(
    run: RunFolder, request: Request, finished: Mapping[str, RiskEstimate], problem: RiskProblem, known: str
) -> int:
    # A recipe that mitigates asks another problem: its answer is no rival of the others.
    same = {
        name: e
        for name, e in finished.items()
        if (same_problem(e.fingerprint, known) if e.fingerprint else e.problem in ("", problem.name))
    }
    changed = {name: e for name, e in finished.items() if name not in same}
    truth = load_truth(request.model, **request.parameters, fingerprint=known) if same else None
    result = compare_estimates(same, truth) if same else _side_by_side(changed)[0]
    run.conclude(request, result)
    for other in _side_by_side(changed)[0 if same else 1 :]:
        print(f"\nOf another model in its place:\n{other}")
    print(f"\n{result}\n\nsaved     {run.path}/ (report.html, result.json, one folder a recipe)")
    return BELIEVE if result.best else WEAK


def _side_by_side(estimates: Mapping[str, RiskEstimate]) -> list[Comparison]:
    """One comparison for each problem among the estimates."""
    groups: list[dict[str, RiskEstimate]] = []
    for name, estimate in estimates.items():
        for group in groups:
            first = next(iter(group.values()))
            if same_problem(first.fingerprint, estimate.fingerprint) and (
                first.fingerprint or first.problem == estimate.problem
            ):
                group[name] = estimate
                break
        else:
            groups.append({name: estimate})
    return [compare_estimates(group) for group in groups]


def estimates_in(folder: Path) -> dict[str, RiskEstimate]:
    """Label -> estimate of a run's folder, or "" -> the one estimate of a folder. Reads data and runs nothing.

    Raises:
        RiskError: neither, or nothing in it is finished.
    """
    if not (folder / "run.json").exists():
        return {"": load(folder)}
    request = read_request(folder)
    estimates, damaged = RunFolder(folder).finished(request)
    again = f"Run it again: {resume_command(request, folder)}"
    labels = request.labels()
    for recipe, reason in damaged.items():
        print(f"[{labels[recipe]}] is left out: {reason} {again}")
    if not estimates:
        raise RiskError(f"{folder} has no finished estimate that can be read. {again}")
    return {labels[recipe]: estimate for recipe, estimate in estimates.items()}


def load_problem(model: str, parameters: Mapping[str, Any], weights: str | None) -> RiskProblem:
    """The problem, with the weights of a file where one is given.

    Raises:
        RiskError: no such model, a parameter that it does not take, or weights that do not fit.
    """
    problem = load_model(model, **parameters)
    if weights:
        if not isinstance(problem.network, nn.Module):
            raise RiskError(
                f"--weights needs a network that is an nn.Module; {model} has a {type(problem.network).__name__}."
            )
        print(f"weights   {weights}  sha256 {load_weights(problem.network, weights)}")
    return problem


def parameters_of(model: str, pairs: Sequence[str]) -> dict[str, object]:
    """What --set gave, as the model's own types.

    Raises:
        RiskError: no name=value, or a value that does not read as the parameter's type.
    """
    for pair in pairs:
        if not pair.partition("=")[0] or "=" not in pair:
            raise RiskError(f"--set takes name=value, got {pair!r}. For example: --set dimension=200.")
    return read_parameters(model, {name: value for name, _, value in (pair.partition("=") for pair in pairs)})
