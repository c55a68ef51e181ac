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

    def __init__(self, laws: Mapping[str, td.Distribution] | Sequence[td.Distribution]) -> None:
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
