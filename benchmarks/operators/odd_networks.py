"""Networks whose forward pass does something unusual: gates, loops, gradients inside, states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def mlp(d: int = 4) -> nn.Sequential:
    """Two layers."""
    return nn.Sequential(nn.Linear(d, 8), nn.ReLU(), nn.Linear(8, 1)).eval()


class Experts(nn.Module):
    """A gate that sends each row to one of three experts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(4, 3), nn.ModuleList(nn.Linear(4, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        best, out = self.gate(x).argmax(-1), torch.zeros(x.shape[0])
        for k, expert in enumerate(self.experts):
            rows = best == k
            if rows.any():
                out[rows] = expert(x[rows])[:, 0]
        return out


class EarlyExit(nn.Module):
    """Rows that are sure leave after the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        unsure = h[:, 0].abs() < 0.5
        out = h.clone()
        if unsure.any():
            out[unsure] = torch.tanh(self.second(h[unsure])) * 1.2
        return out


class Force(nn.Module):
    """The gradient of an energy."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            q = x if x.requires_grad else x.detach().requires_grad_()
            return torch.autograd.grad(self.energy(q).sum(), q, create_graph=True)[0].norm(dim=-1)


class PerSample(nn.Module):
    """torch.func inside."""

    def __init__(self, jacobian: bool = False) -> None:
        super().__init__()
        self.net, self.jacobian = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1)), jacobian

    def forward(self, x: Tensor) -> Tensor:
        one = torch.func.jacrev(lambda r: self.net(r)[0]) if self.jacobian else lambda r: self.net(r)[0]
        y = torch.func.vmap(one)(x)
        return y.norm(dim=-1) if self.jacobian else y


class Loop(nn.Module):
    """One layer called four times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(4):
            x = x + torch.tanh(self.layer(x))
        return x


class Tied(nn.Module):
    """Encoder and decoder of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.relu(F.linear(x, self.weight)), self.weight.mT)


class Under(nn.Module):
    """A network run under a context."""

    def __init__(self, context: Callable[[], Any], net: nn.Module | None = None) -> None:
        super().__init__()
        self.net, self.context = net or mlp(), context

    def forward(self, x: Tensor) -> Tensor:
        with self.context():
            return self.net(x)


class Counter(nn.Module):
    """Another answer from the 60th call on."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.calls = mlp(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.net(x) + 0.5 * (self.calls > 60)


class Branch(nn.Module):
    """A Python branch on the values of the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(-1) if bool(x.sum() > 0) else 0.5 * x.sum(-1)


class Checkpointed(nn.Module):
    """Activation checkpointing."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.net, x, use_reentrant=False)  # pyright: ignore[reportReturnType]
