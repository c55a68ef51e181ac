"""The commands: `estimate`, `compare`, `check`, `list`, `show`. Nothing heavy is imported before one runs."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from ppl_risk.app import BELIEVE, MISTAKE, WEAK

if TYPE_CHECKING:
    from ppl_risk.problem import RiskProblem

app = App(
    name="ppl-risk",
    help="""How likely is a catastrophe, when it is far too rare to sample?

    Models and recipes are code: naming one runs it, so name only what you trust. Run folders, weights and posteriors are data:
    `show`, `compare` and `--resume` run nothing that a file names. Exit codes: 0 a number to believe, 2 none, 3 your mistake.

    Example: ppl-risk estimate digits engine smc --seed 1""",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # app.stopping says where the finished work is
)


def _whole(_type: Any, tokens: Any) -> int:
    """A seed; cyclopts itself would read 1.5 as 2."""
    text = tokens[0].value
    if not re.fullmatch(r"\+?[0-9]{1,18}", text):
        raise ValueError(f"a seed is a whole number from 0 to 999,999,999,999,999,999, got {text!r}")
    return int(text)


Model = Annotated[
    str,
    Parameter(help="A shipped name (see list), a folder with problem.py, or package.module:function. Code: it is run."),
]
Recipes = Annotated[
    str,
    Parameter(
        help="Shipped names, Python files, or package.module:function; default every shipped one. Code: they are run."
    ),
]
Set = Annotated[
    list[str], Parameter(name="--set", help="Parameter of the model, name=value; may be repeated.", negative="")
]
Weights = Annotated[
    Path | None,
    Parameter(help="Weights for the network: .safetensors, or .pt holding a state_dict. Data: nothing is run."),
]
Seed = Annotated[int | None, Parameter(help="Reproduces the run; default 0.", converter=_whole)]
Out = Annotated[Path, Parameter(help="Where the run's folder NNNN is made.")]
Resume = Annotated[
    Path | None,
    Parameter(
        help="Folder of a stopped run to finish. It is data: a model or recipe that is not a shipped one is run only if you "
        "type it again, as ppl-risk estimate MODEL RECIPES --resume DIR."
    ),
]
Quiet = Annotated[
    bool, Parameter(help="No progress bars; there are none where the output is no terminal.", negative="")
]


@app.command
def estimate(
    model: Model = "",
    /,
    *recipes: Recipes,
    set: Set = [],  # noqa: B006 - cyclopts copies defaults
    weights: Weights = None,
    seed: Seed = None,
    out: Out = Path("runs"),
    resume: Resume = None,
    quiet: Quiet = False,
) -> int:
    """Estimate the catastrophe probability of a model under recipes, and say which answer to believe.

    Example: ppl-risk estimate linear_gaussian smc svi_network --set dimension=200
    """
    # All that can be said without torch is said before it is loaded: it takes seconds.
    from ppl_risk.app import stopping
    from ppl_risk.app.request import Request, allow, read_request, resume_command, spec
    from ppl_risk.errors import RiskError
    from ppl_risk.files import writable
    from ppl_risk.zoo import list_recipes

    if resume is not None:
        request = read_request(resume)
        allow(request, resume, model, recipes, weights, seed)
        writable(resume)
        stopping.resume_with(resume_command(request, resume))
    elif model:
        typed = list(dict.fromkeys(spec("inference", name) for name in recipes))
        kept = str(weights.resolve()) if weights else None
        request = Request(spec("models", model), typed or list_recipes(), {}, kept, seed or 0)
        writable(out)
    else:
        raise RiskError("Which model? For example: ppl-risk estimate digits. `ppl-risk list` names them all.")
    from ppl_risk.app.working import work

    return work(request, spec("models", model) if model else request.model, set, out, resume, quiet)


@app.command
def compare(*runs: Annotated[Path, Parameter(help="Folders of runs, or of single estimates.")]) -> int:
    """Put the estimates of several runs side by side.

    Example: ppl-risk compare runs/0001 runs/0002
    """
    from ppl_risk.errors import RiskError

    if not runs:
        raise RiskError("Which runs? For example: ppl-risk compare runs/0001 runs/0002.")
    if missing := [str(folder) for folder in runs if not folder.is_dir()]:
        raise RiskError(f"There is no folder {' and no folder '.join(missing)}.")
    from ppl_risk.app.working import estimates_in
    from ppl_risk.comparison import compare as compare_estimates

    found: dict[str, Any] = {}
    names = [folder.resolve().name for folder in runs]
    for folder, short in zip(runs, names, strict=True):
        label = short if names.count(short) == 1 else str(folder)
        found |= {f"{label}/{name}" if name else label: e for name, e in estimates_in(folder).items()}
    result = compare_estimates(found)
    print(result)
    return BELIEVE if result.best else WEAK


@app.command
def check(model: Model, /, *, set: Set = [], weights: Weights = None) -> int:  # noqa: B006
    """Preflight only: the mistakes that torch lets through in silence.

    Example: ppl-risk check mypackage.nets:problem --weights net.safetensors
    """
    from ppl_risk.app.request import spec

    known = spec("models", model)
    from ppl_risk.app.working import load_problem, parameters_of
    from ppl_risk.preflight import check as preflight

    problem: RiskProblem = load_problem(known, parameters_of(known, set), str(weights) if weights else None)
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
        _line(name, text.removeprefix("**What it is.** ").split(". ")[0].rstrip("."))
    print("recipes")
    for name in list_recipes():
        first = (shelf("inference") / f"{name}.py").read_text().splitlines()[0]
        _line(name, first.strip('"'))
    return BELIEVE


def _line(name: str, text: str) -> None:
    print(f"  {name:<22} {textwrap.shorten(text, 95, placeholder=' ...')}")


@app.command
def show(
    what: Annotated[str, Parameter(help="Folder of a run or of an estimate, or the name of a shipped model.")], /
) -> int:
    """A run's estimates, or a model's card.

    Example: ppl-risk show runs/0001
    """
    from ppl_risk.errors import UnknownNameError
    from ppl_risk.zoo import list_models, shelf

    if what in list_models():
        print((shelf("models") / what / "card.md").read_text())
        return BELIEVE
    if not Path(what).is_dir():
        raise UnknownNameError(f"No run folder and no model {what!r}. Models: {', '.join(list_models())}.")
    from ppl_risk.app.working import estimates_in
    from ppl_risk.comparison import compare as compare_estimates

    estimates = estimates_in(Path(what))
    for name, value in estimates.items():
        print(f"[{name}]\n{value}\n" if name else value)
    result = compare_estimates(estimates)
    if len(estimates) > 1:
        print(result)
    return BELIEVE if result.best else WEAK
