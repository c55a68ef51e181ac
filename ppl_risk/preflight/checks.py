"""The checks of the preflight, in the order in which they run: each later one needs what the earlier ones establish."""

from __future__ import annotations

from collections.abc import Callable

import psutil
import torch
from torch import Tensor, nn

from ppl_risk.preflight.margins import not_real
from ppl_risk.problem import RiskProblem

TOLERANCE = 1e-4  # relative to the spread of the margins; batched and single products differ in the last bits
_RANDOM = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_MIXING = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d)

Result = str | tuple[str, str]


def _placement(problem: RiskProblem) -> Result:
    tensors = {
        name: t
        for part in (problem.network, problem.detector)
        if isinstance(part, nn.Module)
        for name, t in [*part.named_parameters(), *part.named_buffers()]
    }
    devices = {str(t.device) for t in tensors.values()}
    if len(devices) > 1:
        odd = [n for n, t in tensors.items() if t.device != problem.device][:3]
        return "error", (
            f"Weights and buffers lie on several devices ({', '.join(sorted(devices))}); for example {odd} not on "
            f"{problem.device}. Move everything to one: network.to('{problem.device}')."
        )
    types = {t.dtype for t in tensors.values() if t.is_floating_point()}
    if len(types) > 1:
        return "error", (
            f"Weights have several floating types ({', '.join(sorted(map(str, types)))}). Use one: network.to({problem.dtype})."
        )
    return f"{problem.device}, {problem.dtype}; inputs follow"


def _mode(problem: RiskProblem) -> Result:
    live = {name: m for name, m in problem.modules.items() if m.training}
    random = [f'{type(m).__name__} at "{n}"' for n, m in live.items() if isinstance(m, _RANDOM)]
    mixing = [f'{type(m).__name__} at "{n}"' for n, m in live.items() if isinstance(m, _MIXING)]
    if random or mixing:
        what = [f"{random[0]} makes it random"] if random else []
        what += [f"{mixing[0]} mixes the rows of a batch"] if mixing else []
        return "error", f"The network is in train mode: {', '.join(what)}. Call network.eval()."
    if live:
        return "note", "train mode, but no module behaves differently in it"
    return "eval mode" if problem.modules else "plain callable"


def _weights(problem: RiskProblem) -> Result:
    bad, total, first = 0, 0, ""
    for part in (problem.network, problem.detector):
        if isinstance(part, nn.Module):
            for name, p in [*part.named_parameters(), *part.named_buffers()]:
                total += p.numel()
                wrong = int((~torch.isfinite(p)).sum()) if p.is_floating_point() else 0
                bad, first = bad + wrong, first or (name if wrong else "")
    if bad:
        return "error", (
            f'{bad:,} of {total:,} weights are NaN or infinite (first: "{first}"). A NaN margin counts as no '
            "catastrophe, so any probability would be wrong. Load or train the weights again."
        )
    return f"{total:,} weights, all finite"


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
        output = problem.network(x)
    except Exception as error:
        return (
            f'The network rejects inputs of shape {tuple(x.shape)} and type {x.dtype}: "{_first_line(error)}". The input '
            f"law gives event shape {tuple(x.shape[1:])}.{_first_layer_width(problem)} Give the law the shape of one input."
        )
    name = "Network" if problem.detector is None else "Detector"
    try:
        margin = output if problem.detector is None else problem.detector(output)
    except Exception as error:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        return f'The detector rejects the network\'s output of shape {shape}: "{_first_line(error)}".'
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
    return not_real(name, margin)


def _memory(problem: RiskProblem) -> Result:
    weights = sum(p.numel() * p.element_size() for p in problem.parameters())
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
    return f"weights {weights / 2**20:.1f} MiB, batches of {problem.batch_size:,} rows"


def _outputs(problem: RiskProblem) -> Result:
    x = problem.sample(64)
    culprit: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: object, output: object) -> None:
            if not culprit and isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                culprit.append(name)

        return hook

    handles = [m.register_forward_hook(watch(n)) for n, m in problem.modules.items() if not list(m.children())]
    try:
        margin = problem.run(x)
    finally:
        for handle in handles:
            handle.remove()
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
    if (gap := float((once - twice).abs().max())) > TOLERANCE * scale:
        return "error", (
            f"Same inputs, two answers (largest difference {gap:.1e}). If the noise is intended, make it part of the input "
            "law; otherwise fix the seed inside forward."
        )
    alone = torch.cat([problem.run(row[None]) for row in x])
    if (gap := float((once - alone).abs().max())) > TOLERANCE * scale:
        return "error", (
            f"A row alone and the same row in a batch differ by {gap:.1e}: rows influence each other (batch "
            "statistics, or a reduction without dim=-1). Every row must stand for itself."
        )
    return "same rows twice, alone and in a batch agree"


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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


CHECKS: tuple[tuple[str, Callable[[RiskProblem], Result]], ...] = (
    ("placement", _placement),
    ("mode", _mode),
    ("weights", _weights),
    ("shapes", _shapes),
    ("memory", _memory),
    ("outputs", _outputs),
    ("deterministic", _deterministic),
    ("input law", _input_law),
)
