"""What is estimated: Pr[C(M(x)) >= 0], x ~ P, for a network M, a detector C and an input law P."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, Independent
from torch.utils.flop_counter import FlopCounterMode

from ppl_risk.errors import CallLimitError, RiskError
from ppl_risk.inputs import Transport, transport_of
from ppl_risk.memory import Part, in_batches
from ppl_risk.network import Visitor, layers_to_cut, named_modules, visiting
from ppl_risk.provenance import Provenance

#: What one batch may take for activations; the batch size follows from the bytes that one row was seen to need.
BATCH_BYTES = 64 * 2**20


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


class RiskProblem:
    """A network, an input law and a detector; the catastrophe is `margin >= 0`.

    Args:
        network: (batch, *event) -> (batch, ...), any `nn.Module` or callable.
        inputs: torch or Pyro distribution with batch_shape () and event_shape one input.
        detector: network output -> margin (batch,); None means that the output is the margin.
        name: for printing and for files.
        layers: dotted names of the modules whose outputs become sites; default every affine module. Modules of a
            detector are named `detector.<name>`.
        provenance: what is known of the network's training: initial weights for `select`, FLOPs for cost accounting.

    Raises:
        RiskError: the input law has a batch shape, or network or detector cannot be called.
        UnknownNameError: `layers` names a module that does not exist.

    Example:
        >>> law = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> RiskProblem(lambda x: x.sum(-1) - 9.0, law).margin(torch.zeros(4, 2)).shape
        torch.Size([4])
    """

    def __init__(
        self,
        network: Callable[..., object],
        inputs: Distribution,
        detector: Callable[..., object] | None = None,
        *,
        name: str = "",
        layers: Sequence[str] | None = None,
        provenance: Provenance | None = None,
    ) -> None:
        for role, part in (("network", network), ("detector", detector)):
            if part is not None and not callable(part):
                raise RiskError(f"The {role} must be callable, got {type(part).__name__}.")
        if not isinstance(inputs, Distribution):
            raise RiskError(
                f"inputs must be a torch or Pyro distribution, got {type(inputs).__name__}. "
                "For example: torch.distributions.Independent(torch.distributions.Normal(torch.zeros(64), 1.0), 1)."
            )
        if inputs.batch_shape != torch.Size():
            raise RiskError(
                f"inputs has batch shape {tuple(inputs.batch_shape)}: that is many laws, one input is wanted. "
                f"Wrap it: torch.distributions.Independent(inputs, {len(inputs.batch_shape)})."
            )
        self.network = network
        self.inputs = inputs
        self.detector = detector
        self.name = name or getattr(network, "__name__", type(network).__name__)
        self.provenance = provenance or Provenance()
        self.modules = named_modules(network, detector)
        self.cut = layers_to_cut(self.modules, list(layers) if layers is not None else None)
        self._meters: list[Meter] = []

    def __repr__(self) -> str:
        """One line: what goes in, through how many layers, and where it is cut."""
        weights = sum(p.numel() for p in self.parameters())
        sites = ", ".join(self.cut) or "none"
        return (
            f"RiskProblem({self.name!r}: input {tuple(self.inputs.event_shape)} ~ {_name_of(self.inputs)}, "
            f"{weights:,} weights, layers: {sites})"
        )

    def parameters(self) -> Iterator[nn.Parameter]:
        """Weights of network and detector."""
        for part in (self.network, self.detector):
            if isinstance(part, nn.Module):
                yield from part.parameters()

    @cached_property
    def device(self) -> torch.device:
        """Where the network lives; inputs follow it. A plain callable is asked where its inputs live."""
        first = next(self.parameters(), None)
        return self._one_draw.device if first is None else first.device

    @cached_property
    def dtype(self) -> torch.dtype:
        """The network's floating type; inputs follow it, unless they are integers."""
        first = next((p for p in self.parameters() if p.is_floating_point()), None)
        return self._law_dtype if first is None else first.dtype

    @cached_property
    def transport(self) -> Transport:
        """The map from standard normals to inputs."""
        return transport_of(self.inputs)

    @property
    def _law_dtype(self) -> torch.dtype:
        """The floating type of the input law; torch's default where it draws integers."""
        return self._one_draw.dtype if self._one_draw.is_floating_point() else torch.get_default_dtype()

    @cached_property
    def _one_draw(self) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            return self.inputs.sample()

    def sample(self, rows: int) -> Tensor:
        """Draw inputs (rows, *event), where the network lives and, unless they are integers, in its type."""
        return self._place(self.inputs.sample((rows,)))

    def from_normal(self, u: Float[Tensor, "*batch d"]) -> Tensor:
        """Inputs (*batch, *event) from standard normals, through the transport of the input law."""
        # The map runs where the law's own tensors live, in their type; only its result follows the network.
        return self._place(self.transport(u.to(self._one_draw.device, self._law_dtype)))

    def _place(self, x: Tensor) -> Tensor:
        return x.to(self.device, self.dtype) if x.is_floating_point() else x.to(self.device)

    def run(self, x: Tensor, visit: Visitor | None = None, read: Visitor | None = None) -> Float[Tensor, " batch"]:
        """Margins of one batch; what a named layer returns passes through `visit`, what it reads through `read`."""
        self._afford(x.shape[0])
        for meter in self._meters:
            meter.forward_calls += x.shape[0]
        with ExitStack() as stack:
            if visit is not None or read is not None:
                stack.enter_context(visiting(self.cut, visit, read))
            output = self.network(x)
            return output if self.detector is None else self.detector(output)  # pyright: ignore[reportReturnType]

    def margin(self, x: Tensor) -> Float[Tensor, " batch"]:
        """Margins C(M(x)) (batch,) of inputs (batch, *event), in batches that fit; catastrophe where >= 0."""
        margins = self.in_batches(x, self.run)
        return margins[0] if len(margins) == 1 else torch.cat(margins)

    def margin_of_normal(self, u: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """Margins of T(u), in batches that fit; T is the transport of the input law."""
        return torch.cat(self.in_batches(u, lambda rows: self.run(self.from_normal(rows))))

    def margin_and_gradient(
        self, u: Float[Tensor, "batch d"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch d"]]:
        """Margins of T(u) and their gradients with respect to u, row by row; 0 where nothing can be differentiated."""

        def both(rows: Tensor) -> tuple[Tensor, Tensor]:
            self._afford(2 * rows.shape[0])
            rows = rows.detach().requires_grad_()
            with torch.enable_grad():
                margin = self.run(self.from_normal(rows))
                # Without a graph (every coordinate acts through steps, or a detached margin) there is nothing to differentiate.
                flat = not margin.requires_grad
                gradient = None if flat else torch.autograd.grad(margin.sum(), rows, allow_unused=True)[0]
            self.count_gradients(0 if flat else rows.shape[0])
            return margin.detach(), torch.zeros_like(rows) if gradient is None else gradient

        margins, gradients = zip(*self.in_batches(u, both), strict=True)
        return torch.cat(margins), torch.cat(gradients)

    @torch.no_grad()
    def activations(self, x: Tensor) -> tuple[dict[str, Tensor], Float[Tensor, " batch"]]:
        """What the named layers return on inputs (batch, *event), and the margins."""

        def look(rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
            kept: dict[str, Tensor] = {}

            def keep(name: str, value: Tensor) -> Tensor:
                kept[name] = value.detach()
                return value

            return kept, self.run(rows, keep)

        kept, margins = zip(*self.in_batches(x, look), strict=True)
        return {name: torch.cat([part[name] for part in kept]) for name in kept[0]}, torch.cat(margins)

    def in_batches(self, x: Tensor, work: Callable[[Tensor], Part]) -> list[Part]:
        """`work` on batches of the rows of x; where memory runs out `batch_size` is halved for good and the batch tried again."""
        done, self.batch_size = in_batches(work, x, self.batch_size, self._meters)
        return done

    def _afford(self, calls: int) -> None:
        """Stop before a limit is passed, not after."""
        for meter in self._meters:
            if calls > meter.left:
                raise CallLimitError(
                    f"{calls:,} more calls would pass the limit of {meter.limit:,}; {meter.calls:,} are spent. Raise the limit."
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

    @cached_property
    def _row_cost(self) -> tuple[float, int]:
        """FLOPs and activation bytes of one row, read off one forward pass."""
        seen = 0

        def weigh(_module: nn.Module, _args: object, output: object) -> None:
            nonlocal seen
            if isinstance(output, Tensor):
                seen += output.numel() * output.element_size()

        handles = [m.register_forward_hook(weigh) for m in self.modules.values() if not list(m.children())]
        x = self._place(self._one_draw)[None]
        meters, self._meters = self._meters, []
        try:
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                self.run(x)
        finally:
            self._meters = meters
            for handle in handles:
                handle.remove()
        return float(counter.get_total_flops()), max(seen, x.numel() * x.element_size())

    @property
    def flops_per_row(self) -> float:
        """FLOPs of one row through network and detector (matrix products, as torch counts them)."""
        return self._row_cost[0]

    @property
    def bytes_per_row(self) -> int:
        """Activation bytes of one row, all modules together."""
        return self._row_cost[1]

    @cached_property
    def batch_size(self) -> int:
        """Rows that fit in one batch, from the activation bytes of one row."""
        return int(min(2**16, max(16, BATCH_BYTES // self.bytes_per_row)))

    def flops(self, meter: Meter) -> float:
        """FLOPs of what a meter counted; a gradient costs two forward passes more."""
        return self.flops_per_row * (meter.forward_calls + 2 * meter.gradient_calls)

    def cost(self, meter: Meter) -> dict[str, Any]:
        """The fields of a `RiskEstimate` that say what it cost, and of which problem it is."""
        from ppl_risk.parallel.plan import fingerprint, unmetered  # which are about problems

        return {
            "forward_calls": meter.forward_calls, "gradient_calls": meter.gradient_calls, "flops": self.flops(meter),
            "training_flops": self.provenance.training_flops, "fingerprint": fingerprint(unmetered(self)),
        }  # fmt: skip


def _name_of(law: Distribution) -> str:
    """Type of a law; of independent coordinates, that of one of them."""
    return f"independent {_name_of(law.base_dist)}" if isinstance(law, Independent) else type(law).__name__
