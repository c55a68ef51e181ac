"""The checks of the preflight, in the order in which they run: each later one needs what the earlier ones establish."""

from __future__ import annotations

from collections.abc import Callable

import psutil
import torch
from torch import Tensor

from ppl_risk.errors import RiskError, first_line
from ppl_risk.memory import is_out_of_memory
from ppl_risk.network import is_half
from ppl_risk.preflight.layers import mixing_layer, watching
from ppl_risk.preflight.margins import not_real
from ppl_risk.preflight.modules import Result, all_modules, mode, placement, tensors_of, weights
from ppl_risk.problem import RiskProblem

TOLERANCE = 1e-4  # relative to the spread of the margins; batched and single products differ in the last bits


def _first_layer_width(problem: RiskProblem) -> str:
    for name, module in problem.modules.items():
        for attribute in ("in_features", "in_channels"):
            if hasattr(module, attribute):
                return f' The first layer "{name}" expects {getattr(module, attribute)} {attribute[3:]}.'
    return ""


def _shapes(problem: RiskProblem) -> Result:
    # Two batch sizes: one alone may equal the number of outputs by chance.
    for rows in (3, 2):
        fault = _shape_fault(problem, problem.sample(rows))
        if fault:
            return "error", fault
    return f"input {tuple(problem.inputs.event_shape)} -> one margin per row"


def _shape_fault(problem: RiskProblem, x: Tensor) -> str:
    try:
        output = problem.output(x)
    except RiskError as error:
        return str(error)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if "does not require grad" in str(error):
            return (
                f'The network differentiates inside forward and finds no graph: "{first_line(error)}". Estimates run under '
                "torch.no_grad(): write that part as `with torch.enable_grad():` on x.detach().requires_grad_()."
            )
        return (
            f'The network rejects inputs of shape {tuple(x.shape)} and type {x.dtype}: "{first_line(error)}". The input '
            f"law gives event shape {tuple(x.shape[1:])}.{_first_layer_width(problem)} Give the law the shape of one input."
        )
    name = "Network" if problem.detector is None else "Detector"
    try:
        margin = output if problem.detector is None else problem.detector(output)
    except RiskError as error:
        return str(error)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        return f'The detector rejects the network\'s output of shape {shape}: "{first_line(error)}".'
    rows = x.shape[0]
    if not isinstance(margin, Tensor):
        return f"{name} returned {type(margin).__name__}; it must return a tensor of shape ({rows},) for {rows} inputs."
    if margin.shape != (rows,):
        hint = (
            "Did you forget to choose an output, e.g. y[:, 3]?" if margin.dim() > 1 else "Did a reduction lose dim=-1?"
        )
        return (
            f"{name} returned shape {tuple(margin.shape)} for {rows} inputs; it must return one margin per row, "
            f"shape ({rows},). {hint}"
        )
    if margin.is_complex():
        return f"{name} returned complex numbers ({margin.dtype}); return a real margin, e.g. margin.abs() - threshold."
    return not_real(name, margin)


def _memory(problem: RiskProblem) -> Result:
    held = sum(p.numel() * p.element_size() for p in problem.parameters())
    batch = problem.batch_size * problem.bytes_per_row
    free = (
        psutil.virtual_memory().available
        if problem.device.type == "cpu"
        else torch.cuda.mem_get_info(problem.device)[0]
    )
    if batch > free:
        return "error", (
            f"The smallest batch ({problem.batch_size} rows) needs {batch / 2**30:.1f} GiB of activations, free are "
            f"{free / 2**30:.1f} GiB. Use a smaller network, a smaller dtype (network.to(torch.bfloat16)), or a larger machine."
        )
    return f"weights {held / 2**20:.1f} MiB, batches of {problem.batch_size:,} rows"


def _outputs(problem: RiskProblem) -> Result:
    x = problem.sample(64)
    culprit: list[str] = []

    def look(name: str, value: Tensor) -> None:
        if not culprit and not bool(torch.isfinite(value).all()):
            culprit.append(name)

    with watching(problem, look):
        margin = problem.run(x)
    wrong = int((~torch.isfinite(margin)).sum())
    if bool(torch.isnan(margin).any()) or wrong == len(margin):
        where = f' The first module to return one is "{culprit[0]}".' if culprit else ""
        return "error", (
            f"{wrong} of 64 margins are NaN or infinite.{where} A NaN margin counts as no catastrophe, so any probability "
            "would be wrong. Look for log(0), division by zero or overflow there."
        )
    if wrong:
        return "note", (
            f"{wrong} of 64 margins are infinite: +inf counts as a catastrophe and -inf as none. If that is overflow, or the "
            "logarithm of a rounded 0, clamp the score."
        )
    return "64 margins, all finite"


def _deterministic(problem: RiskProblem) -> Result:
    x = problem.sample(8)
    once, twice = problem.run(x), problem.run(x)
    scale = max(float(once.std()), float(once.abs().max()) * 1e-2, 1e-12)
    # Half precision: a few units in the last place of a margin, whose terms may be larger than itself.
    last = max((torch.finfo(t).eps for t in _float_types(problem) if is_half(t)), default=0.0)
    allowed = max(TOLERANCE * scale, 8 * last * float(once.abs().max() + 1.0) if last else 0.0)
    if (gap := float((once - twice).abs().max())) > allowed:
        return "error", (
            f"Same inputs, two answers (largest difference {gap:.1e}): the network draws random numbers, or keeps something from "
            "call to call. If the noise is intended, make it part of the input law; otherwise fix the seed inside forward."
        )
    alone = torch.cat([problem.run(row[None]) for row in x])
    if (gap := float((once - alone).abs().max())) > allowed:
        layer = mixing_layer(problem, x)
        where = (
            f' The first module that shows it is {type(problem.modules[layer]).__name__} at "{layer}".' if layer else ""
        )
        return "error", (
            f"A row alone and the same row in a batch differ by {gap:.1e}: rows influence each other.{where} {_why_mixed(problem)}"
        )
    return "same rows twice, alone and in a batch agree"


def _float_types(problem: RiskProblem) -> set[torch.dtype]:
    return {t.dtype for t in tensors_of(problem).values() if t.is_floating_point()}


def _why_mixed(problem: RiskProblem) -> str:
    if any("quantized.dynamic" in type(m).__module__ for m in all_modules(problem).values()):
        return (
            "Dynamic int8 quantisation scales activations by the largest one in the batch. Use the network before "
            "quantisation, or static quantisation."
        )
    return "Batch statistics do that, and reductions without dim=-1. Every row must stand for itself."


def _input_law(problem: RiskProblem) -> Result:
    try:
        transport = problem.transport
    except ValueError as error:
        return "note", str(error)
    found = f"{type(problem.inputs).__name__}, {transport.dimension} standard normals"
    if transport.discrete is None:
        return found
    return "note", (
        f"{found}; {int(transport.discrete.sum())} of {transport.dimension} normals act through steps: no gradients there; "
        "pCN redraws them."
    )


CHECKS: tuple[tuple[str, Callable[[RiskProblem], Result]], ...] = (
    ("placement", placement),
    ("mode", mode),
    ("weights", weights),
    ("shapes", _shapes),
    ("memory", _memory),
    ("outputs", _outputs),
    ("deterministic", _deterministic),
    ("input law", _input_law),
)
