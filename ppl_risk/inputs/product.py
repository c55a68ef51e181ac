r"""Several independent laws of different kinds as one input: x = (x_1, x_2, ...), each flattened, end to end.

The mixed case: some coordinates continuous, some discrete. log p(x) = sum_i log p_i(x_i); the transport is that of each law on
its own block of normals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
import torch.distributions as td
from jaxtyping import Shaped
from torch import Tensor
from torch.distributions import constraints

from ppl_risk.errors import RiskError
from ppl_risk.inputs.transport import Part, part_of


class Product(td.Distribution):
    """Independent laws, flattened and concatenated into one vector (n,); n counts the numbers of all laws together.

    Args:
        laws: name -> law, or a sequence of laws, each with batch_shape (). Integer laws become floating where another law is.

        apart: a network gets each part as an argument of its own, in the shape and type of its law: by name if `laws` is a
            mapping, else in order. Without it the network gets the flat vector. `RiskProblem` sets it where its inputs are given
            as a dict, a tuple or a list of laws.

    `slices` says where each law's numbers lie: x[..., law.slices["name"]].

    Raises:
        RiskError: no laws, something that is no distribution, or a law with a batch shape.

    Example:
        >>> law = Product({"wear": td.Gamma(2.0, 1.0), "faults": td.Independent(td.Bernoulli(torch.full((3,), 0.01)), 1)})
        >>> law.sample((5,)).shape
        torch.Size([5, 4])
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - the name and type are torch's
    support: Any = constraints.real_vector

    def __init__(self, laws: Mapping[str, td.Distribution] | Sequence[td.Distribution], *, apart: bool = False) -> None:
        self.apart, self.by_name = apart, isinstance(laws, Mapping)
        named = dict(laws) if isinstance(laws, Mapping) else {str(i): law for i, law in enumerate(laws)}
        if not named:
            raise RiskError("Product needs at least one law.")
        self.slices: dict[str, slice] = {}
        self._types: dict[str, torch.dtype] = {}
        size = 0
        for name, law in named.items():
            if not isinstance(law, td.Distribution):
                raise RiskError(f'"{name}" in Product must be a torch or Pyro distribution, got {type(law).__name__}.')
            if law.batch_shape != torch.Size():
                raise RiskError(
                    f'"{name}" in Product has batch shape {tuple(law.batch_shape)}: wrap it, '
                    f"torch.distributions.Independent(law, {len(law.batch_shape)})."
                )
            self.slices[name] = slice(size, size + law.event_shape.numel())
            size = self.slices[name].stop
            with torch.random.fork_rng(devices=[]):
                self._types[name] = law.sample().dtype
        self.laws = named
        self.dtype = reduce(torch.promote_types, self._types.values())
        super().__init__(torch.Size(), torch.Size([size]), validate_args=False)

    def __repr__(self) -> str:
        """The laws by name."""
        return f"Product({', '.join(f'{name}: {type(law).__name__}' for name, law in self.laws.items())})"

    def unpack(self, x: Shaped[Tensor, "*batch n"]) -> dict[str, Tensor]:
        """Name -> part (*batch, *event), whole numbers in the type of their law.

        Example:
            >>> law = Product({"state": td.Normal(0.0, 1.0), "word": td.Categorical(torch.ones(9))})
            >>> law.unpack(torch.tensor([[0.5, 8.0]]))["word"]
            tensor([8])
        """
        parts: dict[str, Tensor] = {}
        for name, law in self.laws.items():
            part = x[..., self.slices[name]].reshape(x.shape[:-1] + law.event_shape)
            parts[name] = part if self._types[name].is_floating_point else part.to(self._types[name])
        return parts

    def pack(self, parts: Mapping[str, Tensor] | Sequence[Tensor]) -> Shaped[Tensor, "*batch n"]:
        """The flat vector of parts, by name or in order.

        Raises:
            RiskError: other parts than the laws', or of other shapes.
        """
        named = dict(parts) if isinstance(parts, Mapping) else dict(zip(self.laws, parts, strict=False))
        if set(named) != set(self.laws) or len(parts) != len(self.laws):
            raise RiskError(f"The parts of an input are {', '.join(self.laws)}; got {', '.join(named) or 'none'}.")
        flat = []
        for name, law in self.laws.items():
            part, event = torch.as_tensor(named[name]), law.event_shape
            lead = part.shape[: part.dim() - len(event)]
            if part.shape != lead + event:
                raise RiskError(
                    f'Part "{name}" of an input has shape {tuple(event)} behind the batch; got {tuple(part.shape)}.'
                )
            flat.append(part.reshape(*lead, event.numel()))
        if len({part.shape[:-1] for part in flat}) > 1:
            raise RiskError(f"The parts have different numbers of rows: {[tuple(p.shape[:-1]) for p in flat]}.")
        kind = reduce(torch.promote_types, (part.dtype for part in flat))
        return torch.cat([part.to(kind) for part in flat], -1)

    def arguments(self, x: Shaped[Tensor, "*batch n"]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """How a network is called on x: positional and named arguments."""
        if not self.apart:
            return (x,), {}
        parts = self.unpack(x)
        return ((), parts) if self.by_name else (tuple(parts.values()), {})

    def sample(self, sample_shape: Sequence[int] = ()) -> Shaped[Tensor, "*sample n"]:
        """Draw (*sample_shape, n)."""
        shape = torch.Size(sample_shape)
        return torch.cat([law.sample(shape).reshape(*shape, -1).to(self.dtype) for law in self.laws.values()], -1)

    def log_prob(self, value: Shaped[Tensor, "*batch n"]) -> Shaped[Tensor, "*batch"]:
        """Sum of the laws' log densities (log probabilities where discrete), nats."""
        total = torch.zeros(value.shape[:-1], device=value.device)
        for name, law in self.laws.items():
            own = value[..., self.slices[name]].reshape(value.shape[:-1] + law.event_shape)
            total = total + law.log_prob(own.to(self._types[name]))
        return total


@part_of.register
def _(law: Product) -> Part:
    parts = [(one.event_shape, part_of(one)) for one in law.laws.values()]
    sizes = [part.normals.numel() for _, part in parts]

    def push(maps: Sequence[Callable[[Tensor], Tensor]], u: Tensor, kind: torch.dtype) -> Tensor:
        lead, blocks = u.shape[:-1], u.split(sizes, -1)
        values = [
            map_(block.reshape(lead + part.normals)).reshape(*lead, event.numel()).to(kind)
            for map_, block, (event, part) in zip(maps, blocks, parts, strict=True)
        ]
        return torch.cat(values, -1)

    def kind_of(u: Tensor) -> torch.dtype:
        return torch.promote_types(law.dtype, u.dtype) if law.dtype.is_floating_point else law.dtype

    maps, linear = [part.map for _, part in parts], [part.linear for _, part in parts if part.linear is not None]
    marks = torch.cat([part.marks().reshape(-1) for _, part in parts])
    return Part(
        torch.Size([sum(sizes)]),
        lambda u: push(maps, u, kind_of(u)),
        marks,
        (lambda u: push(linear, u, kind_of(u))) if len(linear) == len(parts) else None,
        all(part.monotone() for _, part in parts),
    )
