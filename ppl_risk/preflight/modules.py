"""What the modules of a network hold: weights with values, on one device and of one type, in the mode that gives one answer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ppl_risk.network import is_scripted
from ppl_risk.problem import RiskProblem
from ppl_risk.wrapped import roots

_RANDOM = ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout", "RReLU")
_BATCH_NORMS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm", "LazyBatchNorm1d", "LazyBatchNorm2d")
_INSTANCE_NORMS = ("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d")

Result = str | tuple[str, str]


def tensors_of(problem: RiskProblem) -> dict[str, Tensor]:
    """Weights and buffers of network and detector by name."""
    return {
        name: t
        for part in roots(problem.network, problem.detector)
        for name, t in [*part.named_parameters(), *part.named_buffers()]
    }


def placement(problem: RiskProblem) -> Result:
    """Whether weights have values, on one device and of one type."""
    tensors = tensors_of(problem)
    for name, t in tensors.items():
        if nn.parameter.is_lazy(t):
            layer = name.rpartition(".")[0] or "network"
            return "error", (
                f'The weights of "{layer}" have no shape yet (a lazy module). Run the network on one batch first: '
                "network(inputs.sample((2,)))."
            )
        if t.is_meta and all(other.is_meta for other in tensors.values()):
            return "error", (
                f'"{name}" is on the device "meta", which holds shapes and no values. Load the weights: '
                "network.to_empty(device='cpu'), then network.load_state_dict(...)."
            )
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
    if types and (short := types.pop()) != problem.dtype:
        return "note", (
            f"{problem.device}, {short}: margins are known to {torch.finfo(short).eps:.1g} of their size, and inputs are rounded "
            "to it. network.float() removes that."
        )
    return f"{problem.device}, {problem.dtype}; inputs follow"


def mode(problem: RiskProblem) -> Result:
    """Whether a module is random, or normalises by the batch."""
    modules = all_modules(problem)
    live = {name: m for name, m in modules.items() if m.training}
    random = [f'{_kind(m)} at "{n}"' for n, m in live.items() if _kind(m) in _RANDOM]
    mixing = [f'{_kind(m)} at "{n}"' for n, m in live.items() if _kind(m) in _BATCH_NORMS]
    # An instance norm never mixes rows, but one that keeps statistics changes them at every call.
    mixing += [
        f'{_kind(m)} at "{n}"'
        for n, m in live.items()
        if _kind(m) in _INSTANCE_NORMS and getattr(m, "track_running_stats", False)
    ]
    if random or mixing:
        what = [f"{random[0]} makes it random"] if random else []
        what += [f"{mixing[0]} mixes the rows of a batch"] if mixing else []
        return "error", f"The network is in train mode: {', '.join(what)}. Call network.eval()."
    for name, module in modules.items():
        if _kind(module) in _BATCH_NORMS and getattr(module, "running_mean", None) is None:
            return "error", (
                f'{_kind(module)} at "{name}" keeps no running statistics (track_running_stats=False), so in eval mode too it '
                "normalises by the batch: rows influence each other. Train it with statistics, or use LayerNorm or GroupNorm."
            )
    if live:
        return "note", "train mode, but no module behaves differently in it"
    return "eval mode" if modules else "plain callable"


def all_modules(problem: RiskProblem) -> dict[str, nn.Module]:
    """Every module, those of TorchScript too, which take no hooks."""
    scripted = {
        name or "network": module
        for part in roots(problem.network, problem.detector)
        for name, module in part.named_modules()
        if is_scripted(module)
    }
    return dict(problem.modules) | scripted


def _kind(module: nn.Module) -> str:
    return str(getattr(module, "original_name", type(module).__name__))


def weights(problem: RiskProblem) -> Result:
    """Whether every weight is finite."""
    bad, total, first = 0, 0, ""
    for part in roots(problem.network, problem.detector):
        for name, p in [*part.named_parameters(), *part.named_buffers()]:
            total += p.numel()
            p = p if p.layout is torch.strided else p.to_dense()
            wrong = int((~torch.isfinite(p)).sum()) if p.is_floating_point() else 0
            bad, first = bad + wrong, first or (name if wrong else "")
    if bad:
        return "error", (
            f'{bad:,} of {total:,} weights are NaN or infinite (first: "{first}"). A NaN margin counts as no '
            "catastrophe, so any probability would be wrong. Load or train the weights again."
        )
    return f"{total:,} weights, all finite"
