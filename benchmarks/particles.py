"""What vectorised particles cost: one SVI step with 1, 32 and 1024 of them, ours beside Pyro's own guides."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pyro
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal
from pyro.optim.clipped_adam import ClippedAdam

import ppl_risk as pr
from benchmarks.results import table
from ppl_risk.activations import ActivationModel

TITLE = "particles: the cost of an SVI step against the number of vectorised particles"
COUNTS = (1, 32, 1024)
REPEATS = 60


def step_ms(model: Callable[..., object], guide: Callable[..., object], particles: int, temperature: float) -> float:
    """Median milliseconds of a step: ELBO, gradient, optimiser."""
    elbo = Trace_ELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=0)
    parameters = list(guide.parameters())  # pyright: ignore[reportFunctionMemberAccess]
    optimiser = ClippedAdam(parameters, lr=1e-4)
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        loss = elbo.differentiable_loss(model, guide, temperature)
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters, materialize_grads=True), strict=True):
            p.grad = g
        optimiser.step()
        times.append(time.perf_counter() - started)
    return 1e3 * float(np.median(times))


def run() -> str:
    """Two networks, our families and Pyro's guides on the same model."""
    rows = []
    for name, parameters in (("consistency_checks", {"checks": 32}), ("digits", {})):
        problem = pr.load_model(name, **parameters)
        for label, family in (
            ("mean-field", pr.guides.MeanField()), ("block", pr.guides.Block()), ("low-rank(8)", pr.guides.LowRank(8)),
            ("full", pr.guides.Full()), ("network", pr.guides.Network()),
        ):  # fmt: skip
            model = ActivationModel(problem, family.coordinates, resolution=family.resolution)
            guide = family.bind(model.sites)
            with pyro.validation_enabled(False):
                times = [step_ms(model, guide, n, model.margin_spread) for n in COUNTS]
            rows.append(_row(name, label, times))
        for label, auto in (("Pyro AutoNormal", AutoNormal), ("Pyro AutoLowRank(8)", AutoLowRankMultivariateNormal)):
            model = ActivationModel(problem)
            with pyro.settings.context(module_local_params=True), pyro.validation_enabled(False):
                options = {"rank": 8} if auto is AutoLowRankMultivariateNormal else {}
                guide = auto(model, **options)
                guide(model.margin_spread)
                times = [step_ms(model, guide, n, model.margin_spread) for n in COUNTS]
            rows.append(_row(name, label, times))
    return (
        f"Milliseconds a step, median of {REPEATS}; all on the same activation model, validation off.\n\n{table(rows)}"
    )


def _row(network: str, guide: str, times: list[float]) -> dict[str, object]:
    cells = {f"{n} particles": f"{t:.2f}" for n, t in zip(COUNTS, times, strict=True)}
    row: dict[str, object] = {"network": network, "guide": guide, **cells}
    return row | {"1024 / 1": f"{times[-1] / times[0]:.2f}"}
