"""What is estimated: Pr[C(M(x)) >= 0], x ~ P, for a network M, a detector C and an input law P."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

from ppl_risk.arguments import checked, names, of_type
from ppl_risk.errors import RiskError
from ppl_risk.inputs import Product, Transport, transport_of
from ppl_risk.inputs.given import law_of, require_arguments
from ppl_risk.memory import Part, in_batches
from ppl_risk.metering import Meter as Meter
from ppl_risk.metering import Metered, row_cost
from ppl_risk.network import Visitor, eagerly, has_scripted, is_half, layers_to_cut, named_modules, own, uncompiled
from ppl_risk.one_pass import differentiate, gather, one_pass, refusal
from ppl_risk.provenance import Provenance
from ppl_risk.wrapped import roots

#: What one batch may take for activations; the batch size follows from the bytes that one row was seen to need.
BATCH_BYTES = 64 * 2**20


class RiskProblem(Metered):
    """A network, an input law and a detector; the catastrophe is `margin >= 0`.

    Args:
        network: (batch, *event) -> (batch, ...), any `nn.Module` or callable.
        inputs: torch or Pyro distribution with batch_shape () and event_shape one input. Of a network of several arguments
            a dict of laws, network(**parts), or a tuple of laws, network(*parts); inside, and in what `sample` gives, the
            parts lie end to end in one vector, which `unpack` takes apart.
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

    @checked(layers=names, name=of_type(str), provenance=of_type(Provenance, type(None)))
    def __init__(
        self,
        network: Callable[..., object],
        inputs: Distribution | Mapping[str, Distribution] | Sequence[Distribution],
        detector: Callable[..., object] | None = None,
        *,
        name: str = "",
        layers: Sequence[str] | None = None,
        provenance: Provenance | None = None,
    ) -> None:
        for role, part in (("network", network), ("detector", detector)):
            if isinstance(part, type) or not (callable(part) or (part is None and role == "detector")):
                got = f"the class {part.__name__}: call it" if isinstance(part, type) else type(part).__name__
                raise RiskError(f"The {role} must be callable, got {got}.")
        self.network = uncompiled(network)
        self.inputs = law_of(inputs)
        if self.parts is not None:
            require_arguments(self.network, self.parts)
        self.detector = uncompiled(detector)
        self.name = name or getattr(network, "__name__", type(network).__name__)
        self.provenance = provenance or Provenance()
        self.modules = named_modules(network, detector)
        self.cut = layers_to_cut(self.modules, list(layers) if layers is not None else None)
        self._meters = []
        self._pair = False

    def __repr__(self) -> str:
        """One line: what goes in, through how many layers, and where it is cut."""
        weights = sum(p.numel() for p in self.parameters() if not nn.parameter.is_lazy(p))
        sites = ", ".join(self.cut) or "none"
        return (
            f"RiskProblem({self.name!r}: input {tuple(self.inputs.event_shape)} ~ {_name_of(self.inputs)}, "
            f"{weights:,} weights, layers: {sites})"
        )

    def parameters(self) -> Iterator[nn.Parameter]:
        """Weights of network and detector."""
        yield from nn.ModuleList(roots(self.network, self.detector)).parameters()

    @cached_property
    def device(self) -> torch.device:
        """Where the network lives; inputs follow it. A plain callable is asked where its inputs live."""
        first = next(self.parameters(), None)
        return self._one_draw.device if first is None else first.device

    @cached_property
    def dtype(self) -> torch.dtype:
        """The type of normals and margins: that of the network's weights, but at least single precision."""
        return torch.float32 if self.is_half else self._input_dtype

    @property
    def is_half(self) -> bool:
        """Whether the network's weights are shorter than single precision."""
        return is_half(self._input_dtype)

    @cached_property
    def _input_dtype(self) -> torch.dtype:
        """The network's floating type; inputs follow it, unless they are integers."""
        first = next((p for p in self.parameters() if p.is_floating_point()), None)
        return self._law_dtype if first is None else first.dtype

    @cached_property
    def transport(self) -> Transport:
        """The map from standard normals to inputs."""
        return transport_of(self.inputs)

    @property
    def parts(self) -> Product | None:
        """The law of the inputs where the network takes it as several arguments."""
        return self.inputs if isinstance(self.inputs, Product) and self.inputs.apart else None

    def packed(self, x: Any) -> Tensor:
        """Inputs (batch, *event); those of several parts may come as the dict or tuple that the network takes."""
        return x if self.parts is None or isinstance(x, Tensor) else self._place(self.parts.pack(x))

    def unpack(self, x: Tensor) -> dict[str, Tensor]:
        """Inputs by part, each under its name; {"x": x} where there is one part."""
        return {"x": x} if self.parts is None else self.parts.unpack(x)

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
        return x.to(self.device, self._input_dtype) if x.is_floating_point() else x.to(self.device)

    def run(
        self,
        x: Tensor,
        visit: Visitor | None = None,
        read: Visitor | None = None,
        skipped: dict[str, str] | None = None,
    ) -> Float[Tensor, " batch"]:
        """Margins of one batch; what a named layer returns passes through `visit`, what it reads through `read`.

        Layers that cannot be visited go into `skipped`, name -> reason. `NetworkError` where the network raises an error.
        """
        self._afford(x.shape[0])
        for meter in self._meters:
            meter.forward_calls += x.shape[0]
        margin, self._pair = one_pass(self._answer, self.cut, x, visit, read, skipped, self._pair)
        return margin

    def output(self, x: Tensor) -> Any:
        """What the network returns; it reads a copy, so inputs stay as they were drawn whatever is done to them in place."""
        args, named = ((own(x),), {}) if self.parts is None else self.parts.arguments(own(x))
        with eagerly(self.modules):
            return self.network(*args, **named)

    def _answer(self, x: Tensor) -> Any:
        output = self.output(x)
        return output if self.detector is None else self.detector(output)

    def margin(self, x: Any) -> Float[Tensor, " batch"]:
        """Margins C(M(x)) (batch,) of inputs (batch, *event), in batches that fit; catastrophe where >= 0."""
        margins = self.in_batches(self.packed(x), self.run)
        return margins[0] if len(margins) == 1 else torch.cat(margins)

    def margin_of_normal(self, u: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """Margins of T(u), in batches that fit; T is the transport of the input law."""
        return torch.cat(self.in_batches(u, lambda rows: self.run(self.from_normal(rows))))

    def margin_and_gradient(
        self, u: Float[Tensor, "batch d"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch d"]]:
        """Margins of T(u) and their gradients with respect to u, row by row; 0 where there is none or it is NaN."""

        def both(rows: Tensor) -> tuple[Tensor, Tensor]:
            self._afford(2 * rows.shape[0])
            rows = rows.detach().requires_grad_()
            with torch.enable_grad():
                margin = self.run(self.from_normal(rows))
                # Without a graph (every coordinate acts through steps, or a detached margin) there is nothing to differentiate.
                flat = not margin.requires_grad
                gradient = None if flat else differentiate(margin.sum(), [rows], allow_unused=True)[0]
            self.count_gradients(0 if flat else rows.shape[0])
            # NaN (the branch not taken of a square root, say) points nowhere, as 0 does.
            return margin.detach(), torch.zeros_like(rows) if gradient is None else gradient.nan_to_num(0.0, 0.0, 0.0)

        margins, gradients = zip(*self.in_batches(u, both), strict=True)
        return torch.cat(margins), torch.cat(gradients)

    @torch.no_grad()
    def activations(
        self, x: Tensor, left_out: dict[str, str] | None = None
    ) -> tuple[dict[str, Tensor], Float[Tensor, " batch"]]:
        """What the named layers return on inputs (batch, *event), and the margins.

        Args:
            x: inputs.
            left_out: takes the layers that have no value for every row, name -> reason; None: they are an error.

        Raises:
            RiskError: such a layer, named, where `left_out` is None.
        """
        skipped: dict[str, str] = {}

        def look(rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
            kept: dict[str, Tensor] = {}

            def keep(name: str, value: Tensor) -> Tensor:
                kept[name] = own(value.detach())
                return value

            return kept, self.run(rows, keep, None, skipped)

        kept, margins = zip(*self.in_batches(x, look), strict=True)
        values, unfit = gather(kept, [len(margin) for margin in margins], skipped)
        if unfit and left_out is None:
            raise refusal(unfit)
        if left_out is not None:
            left_out.update(unfit)
        return values, torch.cat(margins)

    def in_batches(self, x: Tensor, work: Callable[[Tensor], Part]) -> list[Part]:
        """`work` on batches of the rows of x; where memory runs out `batch_size` is halved for good and the batch tried again."""
        done, self.batch_size = in_batches(work, x, self.batch_size, self._meters)
        return done

    @cached_property
    def _row_cost(self) -> tuple[float, int]:
        """FLOPs and activation bytes of one row, read off one forward pass."""
        x = self._place(self._one_draw)[None]
        meters, self._meters = self._meters, []
        leaves = [m for m in self.modules.values() if not list(m.children())]
        try:
            scripted = has_scripted(self.network, self.detector)
            flops, seen = row_cost(lambda: self.run(x), leaves, scripted=scripted)
            if self._pair:  # one row ran as two
                both = torch.cat([x, x])
                flops, seen = (cost / 2 for cost in row_cost(lambda: self.run(both), leaves, scripted=scripted))
        finally:
            self._meters = meters
        return flops, max(int(seen), x.numel() * x.element_size())

    @property
    def flops_per_row(self) -> float:
        """FLOPs of one row through network and detector (matrix products); nan where an operator hides its own."""
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
        from ppl_risk.identity import fingerprint  # which are about problems
        from ppl_risk.parallel.chain import tried_twice
        from ppl_risk.parallel.plan import unmetered

        known = tried_twice(self, lambda: fingerprint(unmetered(self)), "The fingerprint of the problem")
        return {
            "forward_calls": meter.forward_calls, "gradient_calls": meter.gradient_calls, "flops": self.flops(meter),
            "training_flops": self.provenance.training_flops, "fingerprint": known,
        }  # fmt: skip


def _name_of(law: Distribution) -> str:
    """Type of a law; of independent coordinates, that of one of them."""
    return f"independent {_name_of(law.base_dist)}" if isinstance(law, Independent) else type(law).__name__
