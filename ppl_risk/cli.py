"""The command line: `ppl-risk estimate | compare | check | list | show`.

Exit codes: 0 a number to believe, 2 none, 3 a user's mistake. Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Parameter

if TYPE_CHECKING:
    from ppl_risk.problem import RiskProblem

BELIEVE, WEAK, MISTAKE = 0, 2, 3

app = App(
    name="ppl-risk", help="How likely is a catastrophe, when it is far too rare to sample?", version_flags=["--version"]
)

Set = Annotated[
    list[str], Parameter(name="--set", help="Parameter of the model, name=value; may be repeated.", negative="")
]
Weights = Annotated[Path | None, Parameter(help="Weights for the network: .safetensors, or .pt holding a state_dict.")]


@app.command
def estimate(
    model: str = "",
    *recipes: str,
    set: Set = [],  # noqa: B006 - cyclopts copies defaults
    weights: Weights = None,
    seed: int = 0,
    out: Path = Path("runs"),
    resume: Path | None = None,
    quiet: bool = False,
) -> int:
    """Estimate the catastrophe probability of a model under recipes, and say which answer to believe.

    Parameters
    ----------
    model: a zoo name, a folder with problem.py, or package.module:function.
    recipes: names of recipes, files, or package.module:function; default every shipped recipe.
    seed: reproduces the run.
    out: where the run's folder is made.
    resume: folder of a stopped run to finish; its model, recipes and seed are used.
    quiet: no progress bars.
    """
    from ppl_risk.comparison import compare as compare_estimates
    from ppl_risk.errors import RiskError
    from ppl_risk.identity import fingerprint
    from ppl_risk.preflight import check as preflight
    from ppl_risk.runs import Request, RunFolder
    from ppl_risk.zoo import list_recipes, load_recipe, load_truth

    if resume is not None:
        request = RunFolder(resume).request()
    elif model:
        parameters = _parameters(model, set)
        request = Request(model, list(recipes) or list_recipes(), parameters, str(weights) if weights else None, seed)
    else:
        raise RiskError("Which model? For example: ppl-risk estimate digits. `ppl-risk list` names them all.")
    problem = _load(request.model, request.parameters, request.weights)
    print(problem)
    found = preflight(problem)
    print(found)
    if not found.ok:
        return MISTAKE
    known = fingerprint(problem)
    infer = {name: load_recipe(name) for name in request.recipes}
    if resume is None:
        request = Request(request.model, request.recipes, request.parameters, request.weights, request.seed, known)
        run = RunFolder.create(out, request)
    else:
        run = RunFolder(resume)
        if request.fingerprint != known:
            raise RiskError(
                f"{resume} was run on another network or input law than {request.model} is now. Start a new run."
            )
    finished = dict(run.finished(request))
    for name in request.recipes:
        if name not in finished:
            finished[name] = _infer(infer[name], problem, request.seed, not quiet)
            run.add(request, name, finished[name])
        print(f"\n[{name}]\n{finished[name]}")
    # A recipe that mitigates asks another problem: its answer is no rival of the others.
    same = {n: e for n in request.recipes if (e := finished[n]).problem in ("", problem.name)}
    changed = {n: finished[n] for n in request.recipes if n not in same}
    result = compare_estimates(same or changed, load_truth(request.model, **request.parameters) if same else None)
    run.conclude(request, result)
    if same and changed:
        print(f"\nOf another model in its place:\n{compare_estimates(changed)}")
    print(f"\n{result}\n\nsaved     {run.path}/ (report.html, result.json, one folder a recipe)")
    return BELIEVE if result.best else WEAK


def _infer(infer: Any, problem: RiskProblem, seed: int, progress: bool) -> Any:
    """One recipe; one that does not apply to the problem says so and the others go on."""
    import inspect

    from ppl_risk.errors import RiskError
    from ppl_risk.risk_estimate import RiskEstimate, Status

    options = {"progress": progress} if "progress" in inspect.signature(infer).parameters else {}
    try:
        return infer(problem, seed=seed, **options)
    except RiskError as error:
        nan = float("nan")
        return RiskEstimate("refused", nan, status=Status.REFUSED, remedy=str(error), seed=seed, problem=problem.name)


@app.command
def compare(*runs: Path) -> int:
    """Put the estimates of several runs side by side.

    Parameters
    ----------
    runs: folders of runs, or of single estimates.
    """
    from ppl_risk.comparison import compare as compare_estimates
    from ppl_risk.errors import RiskError

    if not runs:
        raise RiskError("Which runs? For example: ppl-risk compare runs/0001 runs/0002.")
    found = {}
    for folder in runs:
        found |= {f"{folder.name}/{name}" if name else folder.name: e for name, e in _estimates(folder).items()}
    result = compare_estimates(found)
    print(result)
    return BELIEVE if result.best else WEAK


@app.command
def check(model: str, *, set: Set = [], weights: Weights = None) -> int:  # noqa: B006
    """Preflight only: the mistakes that torch lets through in silence.

    Parameters
    ----------
    model: a zoo name, a folder with problem.py, or package.module:function.
    """
    from ppl_risk.preflight import check as preflight

    problem = _load(model, _parameters(model, set), str(weights) if weights else None)
    found = preflight(problem)
    print(f"{problem}\n{found}")
    return BELIEVE if found.ok else MISTAKE


@app.command(name="list")
def list_() -> int:
    """Names of models and recipes."""
    from ppl_risk.zoo import list_models, list_recipes, shelf

    print("models")
    for name in list_models():
        card = shelf("models") / name / "card.md"
        text = " ".join(card.read_text().split("\n\n")[1].split()) if card.exists() else ""
        print(f"  {name:<22} {text.removeprefix('**What it is.** ').split('. ')[0]}.")
    print("recipes")
    for name in list_recipes():
        first = (shelf("inference") / f"{name}.py").read_text().splitlines()[0]
        print(f"  {name:<22} {first.strip(chr(34))}")
    return BELIEVE


@app.command
def show(what: str) -> int:
    """A run's estimates, or a model's card and truth.

    Parameters
    ----------
    what: folder of a run or of an estimate, or the name of a model.
    """
    from ppl_risk.errors import UnknownNameError
    from ppl_risk.zoo import list_models, shelf

    if what in list_models():
        print((shelf("models") / what / "card.md").read_text())
        return BELIEVE
    if not Path(what).is_dir():
        raise UnknownNameError(f"No run folder and no model {what!r}. Models: {', '.join(list_models())}.")
    from ppl_risk.comparison import compare as compare_estimates

    estimates = _estimates(Path(what))
    for name, value in estimates.items():
        print(f"[{name}]\n{value}\n" if name else value)
    result = compare_estimates(estimates)
    if len(estimates) > 1:
        print(result)
    return BELIEVE if result.best else WEAK


def _estimates(folder: Path) -> dict[str, Any]:
    from ppl_risk.errors import RiskError
    from ppl_risk.runs import RunFolder
    from ppl_risk.storage import load

    if (folder / "run.json").exists():
        run = RunFolder(folder)
        found = dict(run.finished(run.request()))
        if not found:
            raise RiskError(f"{folder} has no finished estimate yet. Finish it: ppl-risk estimate --resume {folder}.")
        return found
    return {"": load(folder)}


def _load(model: str, parameters: dict[str, object], weights: str | None) -> RiskProblem:
    from torch import nn

    from ppl_risk.errors import RiskError
    from ppl_risk.weights import load_weights
    from ppl_risk.zoo import load_model

    problem = load_model(model, **parameters)
    if weights:
        if not isinstance(problem.network, nn.Module):
            raise RiskError(
                f"--weights needs a network that is an nn.Module; {model} has a {type(problem.network).__name__}."
            )
        print(f"weights   {weights}  sha256 {load_weights(problem.network, weights)}")
    return problem


def _parameters(model: str, pairs: list[str]) -> dict[str, object]:
    """What --set gave, as the model's own types."""
    from ppl_risk.errors import RiskError
    from ppl_risk.zoo import read_parameters

    for pair in pairs:
        if not pair.partition("=")[0] or "=" not in pair:
            raise RiskError(f"--set takes name=value, got {pair!r}. For example: --set dimension=200.")
    return read_parameters(model, {name: value for name, _, value in (pair.partition("=") for pair in pairs)})


def main() -> None:
    """Entry point of `ppl-risk`."""
    try:
        code = app(exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        print(f"ppl-risk: {error}", file=sys.stderr)
        code = MISTAKE
    except KeyboardInterrupt:
        print("\nStopped. Finished estimates are kept: ppl-risk estimate --resume runs/NNNN goes on.", file=sys.stderr)
        code = 130
    except Exception as error:
        from ppl_risk.errors import RiskError

        if not isinstance(error, RiskError):
            raise
        print(f"ppl-risk: {error}", file=sys.stderr)
        code = MISTAKE
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
