"""Other systems on our problems: OpenTURNS 1.27 and PyStRA 1.6, each as a function (model, seed, truth) -> Answer.

All work on the standard normals u behind the input (`problem.transport`) and on the limit state g = -margin, failure g <= 0; a
gradient is torch's, and counts as one more call. Budget: `BUDGET` calls. Methods that climb in levels are told how many draws
to take at each: BUDGET over the levels that the known answer needs, so that they too end near the budget. Rules that stop on
the coefficient of variation are off, for the budget to be used. `Model` raises beyond `HARD` times the budget.

Each is set up as its manual does. FORM starts near the origin; where Abdo and Rackwitz' search fails, OpenTURNS' SQP is tried,
and up to 20 inputs then Cobyla, which needs no gradient.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import ppl_risk as pr

BUDGET, HARD = 10_000, 3
#: Rows a block of simulation methods.
BLOCK = 100


class OverBudget(RuntimeError):
    """The method asked for more calls than it may."""


@dataclass(frozen=True)
class Answer:
    """p, its relative standard error as reported (nan: none), and a reported 95 % interval for p."""

    p: float
    relative_error: float = math.nan
    low: float = math.nan
    high: float = math.nan


class Model:
    """The limit state of a problem in numpy, with its calls counted."""

    def __init__(self, problem: pr.RiskProblem) -> None:
        self.problem, self.dimension, self.calls, self.over = problem, problem.transport.dimension, 0, False

    def _book(self, rows: int) -> None:
        self.calls += rows
        if self.calls > HARD * BUDGET:
            self.calls, self.over = self.calls - rows, True
            raise OverBudget(f"stopped: more than {HARD * BUDGET:,} calls")

    @torch.no_grad()
    def values(self, u: np.ndarray) -> np.ndarray:
        """Limit states (n,) of rows (n, d)."""
        self._book(len(u))
        x = self.problem.from_normal(torch.as_tensor(u, dtype=torch.float32))
        # A margin of 0 is a failure; some peers ask for g < 0.
        return -self.problem.margin(x).double().numpy() - 1e-12

    def gradient(self, u: np.ndarray) -> np.ndarray:
        """Gradient (d,) of the limit state at one point."""
        self._book(1)
        _, gradient = self.problem.margin_and_gradient(torch.as_tensor(u, dtype=torch.float32)[None])
        return -gradient[0].double().numpy()

    @property
    def left(self) -> int:
        """Calls left of the budget."""
        return BUDGET - self.calls


def draws_a_level(log_prob: float) -> int:
    """Draws at each level of a method whose levels are a tenth of each other, a tenth of them kept."""
    levels = max(1, math.ceil(-log_prob / math.log(10.0)))
    return int(BUDGET / (1 + 0.9 * (levels - 1)) / BLOCK) * BLOCK


def _start(model: Model, seed: int) -> np.ndarray:
    """Where a search for the design point starts: near the origin, where a symmetric limit state has a gradient."""
    return 0.1 * np.random.default_rng(seed).standard_normal(model.dimension)


def _event(model: Model, seed: int) -> tuple[Any, Any]:
    import openturns as ot

    ot.RandomGenerator.SetSeed(seed)
    ot.Log.Show(ot.Log.NONE)

    function = ot.Function(
        ot.PythonFunction(
            model.dimension, 1,
            func_sample=lambda rows: model.values(np.asarray(rows))[:, None],
            gradient=lambda point: model.gradient(np.array(point))[:, None].tolist(),
        )
    )  # fmt: skip
    # The first is faster, but holds a dense correlation matrix.
    law = (
        ot.Normal(model.dimension) if model.dimension <= 200 else ot.JointDistribution([ot.Normal()] * model.dimension)
    )
    return ot.ThresholdEvent(ot.CompositeRandomVector(function, ot.RandomVector(law)), ot.LessOrEqual(), 0.0), ot


def _simulated(algorithm: Any, draws: int) -> Answer:
    algorithm.setMaximumCoefficientOfVariation(0.0)
    algorithm.setMaximumStandardDeviation(0.0)
    block = min(BLOCK, draws)
    algorithm.setBlockSize(block)
    algorithm.setMaximumOuterSampling(max(1, draws // block))
    algorithm.run()
    result = algorithm.getResult()
    p, half = result.getProbabilityEstimate(), result.getConfidenceLength(0.95) / 2
    return Answer(p, result.getStandardDeviation() / p if p > 0 else math.nan, p - half, p + half)


def openturns_form_is(model: Model, seed: int, log_prob: float) -> Answer:
    """FORM, then importance sampling from the unit Gaussian at the design point with the calls that are left."""
    event, ot = _event(model, seed)
    trouble = ""
    solvers = [ot.AbdoRackwitz(), ot.SQP()] + [ot.Cobyla()] * (model.dimension <= 20)
    for solver in solvers:
        solver.setStartingPoint(_start(model, seed).tolist())
        solver.setMaximumIterationNumber(100)
        solver.setMaximumCallsNumber(BUDGET // 4)
        solver.setMaximumAbsoluteError(1e-3)  # of the default 1e-5 single precision is not capable
        solver.setMaximumRelativeError(1e-3)
        solver.setMaximumResidualError(1e-3)
        solver.setMaximumConstraintError(1e-3)
        try:
            form = ot.FORM(solver, event)
            form.run()
            return _simulated(ot.PostAnalyticalImportanceSampling(form.getResult()), max(model.left, BLOCK))
        except (RuntimeError, TypeError) as error:
            trouble = f"{trouble} {type(solver).__name__}: {str(error)[:150]}".strip()
    raise RuntimeError(trouble)


def openturns_subset(model: Model, seed: int, log_prob: float) -> Answer:
    """Subset simulation."""
    event, ot = _event(model, seed)
    return _simulated(ot.SubsetSampling(event), draws_a_level(log_prob))


def openturns_nais(model: Model, seed: int, log_prob: float) -> Answer:
    """Nonparametric adaptive importance sampling."""
    event, ot = _event(model, seed)
    return _simulated(ot.NAIS(event, 0.1), draws_a_level(log_prob))


def openturns_cross_entropy(model: Model, seed: int, log_prob: float) -> Answer:
    """Cross entropy with one Gaussian in the standard space."""
    event, ot = _event(model, seed)
    return _simulated(ot.StandardSpaceCrossEntropyImportanceSampling(event, 0.1), draws_a_level(log_prob))


def openturns_directional(model: Model, seed: int, log_prob: float) -> Answer:
    """Directional sampling with the root search that the manual names first for accuracy; some 10 calls a direction."""
    event, ot = _event(model, seed)
    search = ot.MediumSafe()
    search.setMaximumDistance(
        8 + math.sqrt(model.dimension)
    )  # 8, the default, is nearer than most draws from 64 inputs on
    algorithm = ot.DirectionalSampling(event, search, ot.RandomDirection())
    algorithm.setMaximumCoefficientOfVariation(0.0)
    algorithm.setMaximumStandardDeviation(0.0)
    algorithm.setBlockSize(1)
    algorithm.setMaximumOuterSampling(BUDGET)

    def spent() -> bool:  # named, as the algorithm keeps no reference to it
        return model.calls >= BUDGET

    algorithm.setStopCallback(spent)
    algorithm.run()
    result = algorithm.getResult()
    p, half = result.getProbabilityEstimate(), result.getConfidenceLength(0.95) / 2
    return Answer(p, result.getStandardDeviation() / p if p > 0 else math.nan, p - half, p + half)


def _pystra(model: Model, seed: int, draws: int) -> tuple[Any, Any]:
    import pystra

    np.random.seed(seed)  # noqa: NPY002 - the only one that it reads
    stochastic = pystra.StochasticModel()
    for place, value in enumerate(_start(model, seed)):
        stochastic.addVariable(pystra.Normal(f"u{place}", 0.0, 1.0, startpoint=float(value)))

    def limit_state(**columns: np.ndarray) -> Any:
        rows = np.stack([columns[f"u{place}"] for place in range(model.dimension)], axis=-1)
        values = model.values(rows)
        if options.getDiffMode() == "ddm" and len(rows) == 1 and searching:
            return values, model.gradient(rows[0])[:, None]
        return values

    searching: list[bool] = []
    options = pystra.AnalysisOptions()
    options.setPrintOutput(False)
    options.setDiffMode("ddm")
    options.setSamples(draws)
    options.setBlockSize(1000)
    told = {
        "analysis_options": options, "limit_state": pystra.LimitState(limit_state), "stochastic_model": stochastic,
    }  # fmt: skip
    return told, searching


def pystra_subset(model: Model, seed: int, log_prob: float) -> Answer:
    """Subset simulation; it evaluates the chains one point at a time."""
    import pystra

    told, _ = _pystra(model, seed, draws_a_level(log_prob))
    method = pystra.SubsetSimulation(**told)
    method.run()
    return _normal_interval(method.Pf, method.cov)


def pystra_line(model: Model, seed: int, log_prob: float) -> Answer:
    """FORM, then line sampling; 40 calls and a root search a line."""
    import pystra

    told, searching = _pystra(model, seed, 1)
    searching.append(True)
    form = pystra.Form(**told)
    form.run()
    searching.clear()
    told["analysis_options"].setSamples(max(2, model.left // 48))
    method = pystra.LineSampling(**told, form=form)
    method.run()
    return _normal_interval(method.Pf, method.cov)


def _normal_interval(p: float, error: float) -> Answer:
    half = 1.959964 * error * p
    return Answer(p, error, p - half, p + half)


METHODS: dict[str, Callable[[Model, int, float], Answer]] = {
    "OpenTURNS FORM+IS": openturns_form_is,
    "OpenTURNS subset": openturns_subset,
    "OpenTURNS NAIS": openturns_nais,
    "OpenTURNS cross entropy": openturns_cross_entropy,
    "OpenTURNS directional": openturns_directional,
    "PyStRA subset": pystra_subset,
    "PyStRA FORM+line": pystra_line,
}
_BRIDGE = "its Python bridge takes about a minute for 10,000 points"
_LOOP = "a Python loop over the coordinates of every point, about a minute a run"
#: Beyond this many inputs a method is not run, and why.
LARGEST: dict[str, tuple[int, str]] = {
    "OpenTURNS FORM+IS": (650, "its densities have underflowed to 0 / 0 at 650 already; SQP runs out of memory"),
    "OpenTURNS subset": (5000, _BRIDGE),
    "OpenTURNS NAIS": (200, "a kernel density; 2 minutes a run at 650 inputs, and no number"),
    "OpenTURNS cross entropy": (650, "a covariance of that many inputs, which is nan at 650 already"),
    "OpenTURNS directional": (5000, _BRIDGE),
    "PyStRA subset": (100, _LOOP),
    "PyStRA FORM+line": (100, _LOOP),
}
