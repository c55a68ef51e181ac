r"""A network as a function of the normals behind its input and its weights: u (rows, d) -> what the network returns.

While it runs, `forward` of every uncertain layer is exchanged for one that adds the noise of this row's weights; hooks on the
layers run as ever, so sites see the random output. Collapsed, a Linear layer takes as many normals as it has units. Otherwise
the layer's own forward runs with each row's weights, vectorised over rows by torch.func.vmap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.func import functional_call, vmap

from ppl_risk.errors import RiskError
from ppl_risk.inputs import Transport, transport_of
from ppl_risk.network import named_modules
from ppl_risk.weight_posterior.posterior import Joint, Spread


class UncertainNetwork(nn.Module):
    """The network with random weights; the normals are those of the input (if it has a law), then layer by layer.

    Args:
        network: the trained network, a submodule `model` of this one. spreads: what is known of which module's parameters.
        inputs: law of the input, or one fixed input. collapse: integrate Linear layers' weights out.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> spreads = {"network": Spread("network", {"bias": torch.ones(1)})}
        >>> UncertainNetwork(net, spreads, torch.zeros(2), True)(torch.zeros(5, 1)).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        network: nn.Module,
        spreads: Mapping[str, Spread | Joint],
        inputs: Distribution | Tensor,
        collapse: bool,
    ) -> None:
        super().__init__()
        self.model, self.collapse = network, collapse
        self.spreads = nn.ModuleList(spreads.values())
        first = next(p for p in network.parameters() if p.is_floating_point())
        self.dtype, self.device = first.dtype, first.device
        self.law = inputs if isinstance(inputs, Distribution) else None
        self._transport: Transport | None = None
        self.input_size = 0
        if isinstance(inputs, Distribution):
            with torch.random.fork_rng(devices=[]):
                self._draw = inputs.sample()
            self._transport = transport_of(inputs)
            self.input_size = self._transport.dimension
        else:
            self.register_buffer("fixed", self._place(inputs.detach()))
        modules = named_modules(network, None)
        self.sizes = [s.size for s in spreads.values()]
        if collapse:
            self.sizes = [len(modules[name].get_parameter("weight")) for name in spreads]
        self.dimension = self.input_size + sum(self.sizes)

    def __getstate__(self) -> dict[str, Any]:
        # A transport holds closures, which cannot be pickled; it is made again.
        return super().__getstate__() | {"_transport": None}  # pyright: ignore[reportOperatorIssue]

    def inputs_of(self, u: Float[Tensor, "rows k"]) -> Tensor:
        """Inputs (rows, *event) from their normals."""
        if self.law is None:
            fixed = self.get_buffer("fixed")
            return fixed.expand(u.shape[0], *fixed.shape)
        if self._transport is None:
            self._transport = transport_of(self.law)
        kind = self._draw.dtype if self._draw.is_floating_point() else torch.get_default_dtype()
        return self._place(self._transport(u.to(self._draw.device, kind)))

    def _place(self, x: Tensor) -> Tensor:
        like = next(p for p in self.model.parameters() if p.is_floating_point())
        return x.to(like.device, like.dtype) if x.is_floating_point() else x.to(like.device)

    def forward(self, u: Float[Tensor, "rows d"]) -> Any:
        """What the network returns, every row with its own input and weights."""
        first, *parts = u.split([self.input_size, *self.sizes], -1)
        modules, calls = named_modules(self.model, None), dict.fromkeys((str(s.owner) for s in self.spreads), 0)
        x = self.inputs_of(first)
        with ExitStack() as stack:
            for spread, part in zip(self.spreads, parts, strict=True):
                change = _collapsed if self.collapse else _drawn
                module = modules[str(spread.owner)]
                stack.enter_context(_exchanged(module, change(module, spread, part, calls)))  # pyright: ignore
            output = self.model(x)
        if idle := [name for name, count in calls.items() if count == 0]:
            raise RiskError(
                f'The network never calls "{idle[0]}", whose weights are uncertain: it uses them from outside or not at all. '
                "Leave it out of posterior, or call the module."
            )
        return output

    @torch.no_grad()
    def try_rows(self) -> None:
        """Run two rows, so that a layer that cannot be handled is named at once (RiskError)."""
        with torch.random.fork_rng(devices=[]):
            self(torch.randn(2, self.dimension, dtype=self.dtype).to(self.device))


@contextmanager
def _exchanged(module: nn.Module, forward: Callable[..., object]) -> Iterator[None]:
    """`forward` of one module exchanged, while the block runs."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


def _collapsed(
    layer: nn.Linear, spread: Spread | Joint, u: Float[Tensor, "rows units"], calls: dict[str, int]
) -> Callable[[Tensor], Tensor]:
    """W x + b with the weights integrated out."""

    def forward(x: Tensor) -> Tensor:
        name = str(spread.owner)
        calls[name] += 1
        if calls[name] > 1:
            raise RiskError(
                f'"{name}" is called twice for one row: both calls share the weights, so they cannot be integrated out in each. '
                "Use collapse=False."
            )
        if x.dim() != 2 or x.shape[0] != u.shape[0]:
            raise RiskError(
                f'"{name}" reads {tuple(x.shape)} for {u.shape[0]} rows; only a layer that reads one vector per row, (batch, n), '
                "can be collapsed: entries of a sequence share their weights. Use collapse=False."
            )
        return nn.functional.linear(x, layer.weight, layer.bias) + spread.noise(x, u)

    return forward


class _Bare(nn.Module):
    """A module's own forward, without its hooks and whatever was exchanged."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **named: Any) -> Any:
        return type(self.inner).forward(self.inner, *args, **named)


def _drawn(
    module: nn.Module, spread: Spread | Joint, u: Float[Tensor, "rows size"], calls: dict[str, int]
) -> Callable[..., Any]:
    """The module with weights of its own for each row."""
    changes, rows = spread.deviations(u), u.shape[0]
    own = {f"inner.{local}": getattr(module, local) + change for local, change in changes.items()}
    bare = _Bare(module)

    def dim(value: object) -> int | None:
        return 0 if isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == rows else None

    def forward(*args: Any, **named: Any) -> Any:
        calls[str(spread.owner)] += 1
        dims, named_dims = tuple(map(dim, args)), {key: dim(value) for key, value in named.items()}
        if 0 not in (*dims, *named_dims.values()):
            raise RiskError(
                f'"{spread.owner}" reads nothing with {rows} rows, so it is unknown which row uses which weights.'
            )

        def one(weights: dict[str, Tensor], args: tuple[Any, ...], named: dict[str, Any]) -> Any:
            args = tuple(a[None] if d == 0 else a for a, d in zip(args, dims, strict=True))
            named = {key: value[None] if named_dims[key] == 0 else value for key, value in named.items()}
            output = functional_call(bare, weights, args, named)
            return tuple(part[0] for part in output) if isinstance(output, tuple) else output[0]

        return vmap(one, in_dims=(0, dims, named_dims))(own, args, named)

    return forward
