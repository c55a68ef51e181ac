"""What a row costs: calls on a meter, FLOPs of one pass, bytes of its activations.

FLOPs are those of matrix products, 2 m n k of an (m, n) by (n, k) one. They are read off the operators that run, not off
modules, so a network that differentiates or maps over rows inside `forward` is counted like any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from ppl_risk.errors import CallLimitError


@dataclass
class Meter:
    """Rows that went through the network while the meter was on, and how many may at most."""

    forward_calls: int = 0
    gradient_calls: int = 0
    limit: int | None = None

    @property
    def calls(self) -> int:
        """Forward and gradient calls together."""
        return self.forward_calls + self.gradient_calls

    @property
    def left(self) -> int:
        """Calls that may still be made; a very large number where there is no limit."""
        return 2**62 if self.limit is None else self.limit - self.calls


class Metered:
    """Whose calls are counted on every meter that is on."""

    _meters: list[Meter]

    def _afford(self, calls: int) -> None:
        """Stop before a limit is passed, not after."""
        for meter in self._meters:
            if calls > meter.left:
                raise CallLimitError(
                    f"{calls:,} more calls would pass the limit of {meter.limit:,}; {meter.calls:,} are spent. "
                    "Raise the limit."
                )

    @contextmanager
    def metered(self, limit: int | None = None) -> Iterator[Meter]:
        """Count the calls made inside the block; with a limit, `CallLimitError` before it would be passed."""
        meter = Meter(limit=limit)
        self._meters.append(meter)
        try:
            yield meter
        finally:
            self._meters = [m for m in self._meters if m is not meter]

    def count_gradients(self, rows: int) -> None:
        """Book `rows` gradients; whoever calls backward through `run` says so here."""
        for meter in self._meters:
            meter.gradient_calls += rows

    def book(self, forward: int, gradient: int) -> None:
        """Book calls made elsewhere: on a worker, or in an earlier process."""
        for meter in self._meters:
            meter.forward_calls += forward
            meter.gradient_calls += gradient


def _vector_product(*args: Any, **_named: Any) -> int:
    """2 per entry of the largest operand: matrix times vector, vector times vector."""
    return 2 * max(a.numel() for a in args if isinstance(a, Tensor))


def _distances(a: Tensor, b: Tensor, *_args: Any, **_named: Any) -> int:
    return 2 * a.numel() * b.shape[-2]


def _trilinear(one: Tensor, two: Tensor, three: Tensor, *expand: Any, **_named: Any) -> int:
    """sum_ij x_i W_kij y_j, by PyTorch's `Bilinear`: every entry of the expanded product is two multiplications and a sum."""
    for_one, for_two, for_three = expand[:3]
    shapes = []
    for value, dims in ((one, for_one), (two, for_two), (three, for_three)):
        for dim in dims:
            value = value.unsqueeze(dim)
        shapes.append(value.shape)
    return 3 * torch.broadcast_shapes(*shapes).numel()


def _recurrent(value: Tensor, *weights: Any, **_named: Any) -> int:
    """Every step of every sequence passes every weight matrix once."""
    flat = [w for item in weights for w in (item if isinstance(item, list | tuple) else [item])]
    matrices = [w for w in flat if isinstance(w, Tensor) and w.dim() == 2 and w.is_floating_point()]
    return 2 * (value.numel() // value.shape[-1]) * sum(w.numel() for w in matrices)


def _attention(query: Tensor, key: Tensor, value: Tensor, *_args: Any, **_named: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _fused_layer(value: Tensor, first: Tensor, second: Tensor, *_args: Any, **_named: Any) -> int:
    return _recurrent(value, first, second)


aten: Any = torch.ops.aten
#: Operators that `torch.utils.flop_counter` has no formula for; each takes the operator's own arguments.
FORMULAS: Mapping[Any, Callable[..., int]] = {
    aten.mv: _vector_product, aten.addmv: _vector_product, aten.dot: _vector_product, aten.vdot: _vector_product,
    aten._cdist_forward: _distances, aten._trilinear: _trilinear, aten.mkldnn_rnn_layer: _fused_layer,
    aten._cudnn_rnn: _recurrent, aten.miopen_rnn: _recurrent,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
}  # fmt: skip
#: Libraries of operators whose work is either in a formula or small beside the products.
KNOWN = ("aten", "prim", "prims", "profiler", "ppl_risk")


class FlopCounter(TorchDispatchMode):
    """FLOPs of the matrix products that run inside the block, and the operators about which nothing is known.

    Example:
        >>> with FlopCounter() as counter:
        ...     _ = torch.ones(2, 3) @ torch.ones(3, 5)
        >>> counter.total
        60.0
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops, self.unknown, self.bytes = 0, set[str](), 0

    @property
    def total(self) -> float:
        """FLOPs; nan where an operator ran whose work is not known."""
        return math.nan if self.unknown else float(self.flops)

    def __torch_dispatch__(
        self, func: Any, types: Iterable[Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator and add what it does."""
        named = kwargs or {}
        packet = func._overloadpacket
        formula = FORMULAS.get(packet) or flop_registry.get(packet)
        if formula is None:
            with self:  # an operator that is made of others is counted by them
                made = func.decompose(*args, **named)
            if made is not NotImplemented:
                return made
        found = func(*args, **named)
        self.bytes += found.numel() * found.element_size() if isinstance(found, Tensor) else 0
        if formula is not None:
            self.flops += int(formula(*args, **named) if packet in FORMULAS else formula(*args, **named, out_val=found))
        elif func.namespace not in KNOWN:
            self.unknown.add(str(packet))
        return found


def row_cost(run: Callable[[], object], leaves: Iterable[nn.Module], *, scripted: bool) -> tuple[float, int]:
    """FLOPs (nan: not known) and activation bytes of one pass; bytes are what modules without children return.

    Args:
        run: makes the pass.
        leaves: the modules.
        scripted: some modules take no hooks, so bytes are those of every operator.
    """
    seen = 0

    def weigh(_module: nn.Module, _args: object, output: object) -> None:
        nonlocal seen
        if isinstance(output, Tensor):
            seen += output.numel() * output.element_size()

    handles = [m.register_forward_hook(weigh) for m in leaves]
    # The fused paths of attention hide their products in one operator.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    counter = FlopCounter()
    try:
        with torch.no_grad():
            try:
                with counter:
                    run()
                flops = counter.total
            except Exception:  # whatever a counter cannot follow: if the pass itself fails, the next line says so
                seen, flops = 0, math.nan
                run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for handle in handles:
            handle.remove()
    return flops, max(seen, counter.bytes if scripted else 0)
