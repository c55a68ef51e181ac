"""How networks are wired and how they arrive: writes through views, shared layers, wrappers, types, states, margins."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.operators.case import Apply, Case, standard, total
from benchmarks.operators.odd_networks import (
    Branch,
    Checkpointed,
    Counter,
    EarlyExit,
    Experts,
    Force,
    Loop,
    PerSample,
    Tied,
    Under,
    mlp,
)


class Written(nn.Module):
    """A layered network whose hidden value is written to through a view."""

    def __init__(self, write: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.first, self.last, self.write = nn.Linear(4, 8), nn.Linear(8, 1), write

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        self.write(h)
        return self.last(torch.relu(h))


def _fill(h: Tensor) -> None:
    h[:, 0].fill_(0.5)


def _index_put(h: Tensor) -> None:
    h[:, [1, 4]] = h[:, [4, 1]] * 2.0


def _column(h: Tensor) -> None:
    h[:, 2] = h[:, 3].square()


def _scale_slice(h: Tensor) -> None:
    h[:, :4] *= 3.0


def _mask(h: Tensor) -> None:
    h[h < 0] = 0.1


WRITES: dict[str, Callable[[Tensor], object]] = {
    "view_scale": _scale_slice,
    "view_fill": _fill,
    "view_index_put": _index_put,
    "view_column": _column,
    "view_mask": _mask,
    "view_relu": lambda h: F.relu(h[:, 4:], inplace=True),
    "view_chunk_mul": lambda h: h.chunk(2, -1)[1].mul_(2.5),
    "view_transposed": lambda h: h.mT[:2].mul_(-1.5),
    "view_of_view": lambda h: h[:, 2:][:, :3].add_(0.7),
    "view_copy": lambda h: h[:, :4].copy_(h[:, 4:] * 1.5),
    "view_reshape": lambda h: h.view(-1, 2, 4)[:, 0].clamp_(min=-0.2),
    "view_unbind": lambda h: h.unbind(-1)[5].exp_(),
    "view_as_strided": lambda h: h.narrow(1, 0, 2).neg_(),
    "view_masked_fill": lambda h: h[:, :6].masked_fill_(h[:, :6] < 0, 0.3),
    "view_sigmoid": lambda h: h[..., -1].sigmoid_(),
    "inplace_whole": lambda h: h.mul_(1.5),
    "inplace_add": lambda h: h.add_(h.square()),
}


def assembled(x: Tensor) -> Tensor:
    """An output filled in column by column."""
    out = torch.zeros(x.shape[0], 3)
    for k in range(3):
        out[:, k] = (k + 1.0) * x[:, k]
    return out


def _numpy(x: Tensor) -> Tensor:
    return torch.as_tensor(x.detach().numpy().clip(min=-0.5)).sum(-1)


def _hooked() -> nn.Module:
    net = mlp()
    net[0].register_forward_hook(lambda _m, _a, y: torch.mul(y, 1.5))  # pyright: ignore[reportArgumentType]
    return net


def _normalise(x: Tensor) -> Tensor:
    x -= 0.5
    x /= 2.0
    return x


def _random(x: Tensor) -> Tensor:
    return x + torch.randn_like(x)


def _mixing(x: Tensor) -> Tensor:
    return x - x.mean(0)


def _quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(mlp(), {nn.Linear}, dtype=torch.qint8)


def _exported() -> nn.Module:
    shapes = {"input": {0: torch.export.Dim("rows")}}
    return torch.export.export(mlp(), (torch.zeros(2, 4),), dynamic_shapes=shapes).module()


def _functional() -> Callable[[Tensor], Tensor]:
    net = mlp()
    weights = dict(net.named_parameters())
    return lambda x: torch.func.functional_call(net, weights, (x,))


def _two_pieces(y: Tensor) -> Tensor:
    return torch.maximum(y[:, 0], -y[:, 1])


def _sequence_of(*parts: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: functools.reduce(lambda value, part: part(value), parts, x)


double = standard(4, dtype=torch.float64)
ARRIVALS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "assembled": (lambda: assembled, {}),
    "numpy_inside": (lambda: _numpy, {"score": lambda y: y}),
    "experts": (Experts, {}),
    "early_exit": (EarlyExit, {}),
    "force": (Force, {}),
    "vmap": (PerSample, {}),
    "jacobian": (lambda: PerSample(True), {}),
    "loop": (Loop, {}),
    "tied": (Tied, {}),
    "no_grad_inside": (lambda: Under(torch.no_grad), {}),
    "inference_mode": (lambda: Under(torch.inference_mode), {}),
    "autocast": (lambda: Under(lambda: torch.autocast("cpu", torch.bfloat16)), {}),
    "counter": (Counter, {}),
    "branch": (Branch, {"refuse": True}),
    "random": (lambda: _random, {"refuse": True}),
    "mixing": (lambda: _mixing, {"refuse": True}),
    "dynamic_int8": (_quantised, {"refuse": True}),
    "batch_norm_no_statistics": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 1)),
        {"refuse": True},
    ),
    "checkpoint": (Checkpointed, {}),
    "hooked": (_hooked, {}),
    "input_inplace": (lambda: _normalise, {}),
    "input_relu_": (lambda: torch.relu_, {}),
    "exported": (_exported, {}),
    "fx": (lambda: torch.fx.symbolic_trace(mlp()), {}),
    "scripted": (lambda: torch.jit.script(mlp()), {}),
    "jit_traced": (lambda: torch.jit.trace(mlp(), torch.zeros(2, 4)), {}),
    "scripted_inside": (lambda: nn.Sequential(torch.jit.script(mlp()), nn.Linear(1, 1)), {}),
    "compiled": (lambda: torch.compile(mlp(), backend="eager"), {}),
    "data_parallel": (lambda: nn.DataParallel(mlp()), {}),
    "lambda": (lambda: (lambda net: lambda x: net(x))(mlp()), {}),
    "partial": (lambda: functools.partial(lambda x, k, net: net(k * x), k=1.1, net=mlp()), {}),
    "functional_call": (_functional, {}),
    "bound_method": (lambda: mlp().forward, {}),
    "double": (lambda: mlp().double(), {"law": double}),
    "double_law_float_net": (mlp, {"law": double}),
    "half": (lambda: mlp().half(), {"score": lambda y: y[:, 0].float()}),
    "bfloat16": (lambda: mlp().bfloat16(), {"score": lambda y: y[:, 0].float()}),
    "bfloat16_margin": (lambda: mlp().bfloat16(), {"score": lambda y: y[:, 0]}),
    "dict_output": (lambda: lambda x: {"logit": x.relu().sum(-1)}, {"score": lambda y: y["logit"]}),
    "tuple_output": (
        lambda: nn.LSTM(4, 3, batch_first=True),
        {"law": standard(3, 4), "score": lambda y: y[0][:, -1].sum(-1)},
    ),
    "squeeze": (mlp, {"score": lambda y: y.squeeze()}),
    "squeeze_last": (mlp, {"score": lambda y: y.squeeze(-1)}),
    "residual_inplace": (lambda: Written(lambda h: h.add_(torch.tanh(h))), {}),
    "ring": (lambda: lambda x: x, {"score": lambda y: y.norm(dim=-1)}),
    "two_sided": (lambda: lambda x: x, {"score": lambda y: y[:, 0].abs()}),
    "any_of_eight": (lambda: lambda x: x, {"score": lambda y: y.abs().amax(-1)}),
    "two_pieces": (lambda: nn.Linear(4, 2), {"score": _two_pieces}),
    "far_and_near": (lambda: lambda x: x, {"score": lambda y: torch.maximum(y[:, 0] - 0.3, -y[:, 1] * 0.95)}),
    "band": (lambda: nn.Linear(4, 1), {"score": lambda y: (y[:, 0] - 0.2).abs()}),
    "product_of_two": (lambda: lambda x: x, {"score": lambda y: y[:, 0] * y[:, 1]}),
    "periodic": (lambda: lambda x: x, {"score": lambda y: torch.sin(y[:, 0]) + 0.5 * y[:, 1]}),
    "tiny_margin": (mlp, {"score": lambda y: 1e-12 * y[:, 0]}),
    "huge_margin": (mlp, {"score": lambda y: 1e12 * y[:, 0]}),
    "sigmoid_margin": (mlp, {"score": lambda y: torch.sigmoid(3 * y[:, 0])}),
    "softmax_margin": (lambda: nn.Linear(4, 2), {"score": lambda y: torch.softmax(2 * y, -1)[:, 1]}),
    "exp_margin": (mlp, {"score": lambda y: torch.exp(3 * y[:, 0])}),
    "log_ratio": (lambda: nn.Linear(4, 3), {"score": lambda y: F.log_softmax(y, -1)[:, 1]}),
    "logit_gap": (lambda: nn.Linear(4, 5), {"score": lambda y: y[:, 2] - y[:, [0, 1, 3, 4]].amax(-1)}),
    "top_two": (
        lambda: nn.Linear(4, 5),
        {"score": lambda y: -(y.topk(2, -1).values @ torch.tensor([1.0, -1.0])), "tail": 1e-2},
    ),
    "skip_cat": (lambda: Apply(lambda x: torch.cat([x, x.relu(), (x[:, :2] * x[:, 2:])], -1)), {}),
    "composite": (lambda: _sequence_of(lambda x: x * 0.5, torch.tanh, lambda x: x.cumsum(-1)), {}),
}

CASES = [Case(name, functools.partial(Written, write)) for name, write in WRITES.items()] + [
    Case(name, build, **({"law": standard(4), "score": total} | options)) for name, (build, options) in ARRIVALS.items()
]
