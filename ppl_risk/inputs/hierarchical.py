r"""A Pyro program as an input law: `PyroModel(model)`, where `model()` draws sites one after another and returns the input x.

Every `pyro.sample` site gets its own block of standard normals, in the order of the program, and is replaced by the transport of
its law, which may depend on earlier sites: the Rosenblatt map (1952, doi:10.1214/aoms/1177729394) of a hierarchical law, with the
program as the conditional laws. Sites may be discrete and may stand in plates.

Rows are vectorised as Pyro's vectorised particles are: the program runs once inside an outer plate, on the left of its own plates,
so a site has the shape (rows, *plates, *event), with 1 for a plate it is not in. The program must broadcast over leading
dimensions: `x[..., 0]`, `torch.stack(parts, -1)`, `.sum(-1)`; no `if` on a drawn value. Several rows are compared with single
ones at construction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
import torch.distributions as td
from jaxtyping import Float, Shaped
from pyro.poutine import runtime
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_risk.errors import NoTransportError, RiskError
from ppl_risk.inputs.transport import Part, part_of

ROWS = "_rows_of_inputs"
TRIALS = 3


class _Block(NamedTuple):
    """A site of the program: which normals are its own, and which of them act through a step function."""

    start: int
    stop: int
    marks: Tensor


class _Drawn(Messenger):
    """Replaces each sample by the transport of its law, of a block of normals; u is None while the blocks are counted."""

    def __init__(self, rows: int | None, u: Tensor | None, blocks: dict[str, _Block], name: str) -> None:
        super().__init__()
        self.rows, self.u, self.blocks, self.name = rows, u, blocks, name
        self.nesting = 0

    def _pyro_sample(self, msg: Any) -> None:
        site, law = msg["name"], msg["fn"]
        if site_is_subsample(msg):
            if law.subsample_size not in (None, law.size):
                raise RiskError(f'The plate "{site}" in {self.name} subsamples, which is not a law of one input.')
            return
        if msg["infer"].get("_deterministic"):
            return
        if msg["is_observed"]:
            raise RiskError(
                f'The site "{site}" in {self.name} is observed. The law of the input is not conditioned: remove obs= to draw '
                "the site, or condition first (e.g. by MCMC) and give the draws as inputs.EmpiricalWithNoise."
            )
        try:
            part = part_of(law)
        except NoTransportError as error:
            raise NoTransportError(f'Site "{site}" in {self.name}: {error}') from error
        shape = law.batch_shape + part.normals
        if self.u is None:
            start = max((block.stop for block in self.blocks.values()), default=0)
            marks = part.marks().expand(shape).reshape(-1)
            self.blocks[site] = _Block(start, start + shape.numel(), marks)
            self.nesting = max(self.nesting, len(law.batch_shape))
            msg["value"] = part.map(torch.randn(shape))
        else:
            block = self.blocks.get(site)
            own = shape if self.rows is None else shape[1:]
            if block is None or own.numel() != block.stop - block.start:
                raise RiskError(f'The site "{site}" in {self.name} is not there, or not of this size, on every run.')
            msg["value"] = part.map(self.u[..., block.start : block.stop].reshape(shape))
        msg["done"] = True


@contextmanager
def _alone() -> Iterator[None]:
    """Outside of every Pyro handler: the sites of a guide or of an activation model around this one are no part of it."""
    handlers, dims = runtime._PYRO_STACK[:], runtime._DIM_ALLOCATOR._stack[:]
    runtime._PYRO_STACK.clear()
    runtime._DIM_ALLOCATOR._stack.clear()
    try:
        yield
    finally:
        runtime._PYRO_STACK[:], runtime._DIM_ALLOCATOR._stack[:] = handlers, dims


class PyroModel(td.Distribution):
    """The law of what a Pyro program returns; batch_shape (), event_shape that of one returned tensor.

    Args:
        model: a function without arguments (or a PyroModule) of `pyro.sample` statements that returns the input as a tensor, and
            broadcasts over leading dimensions as the head of this file says.
        event_shape: shape of one input, checked against what the program returns; default what it returns.

    `sample` pushes normals through the transport; a density is not known, since x is whatever the program makes of its sites.

    Raises:
        RiskError: an observed site, a subsampling plate, no tensor returned, the wrong event_shape, or a program that gives other
            values for several rows at once than one by one.
        NoTransportError: a site has a law without a transport.

    Example:
        >>> def model():
        ...     scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
        ...     with pyro.plate("sensors", 3):
        ...         return pyro.sample("x", dist.Normal(0.0, scale))
        >>> PyroModel(model).sample((5,)).shape
        torch.Size([5, 3])
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - the name and type are torch's
    has_rsample = False

    def __init__(self, model: Callable[[], Any], *, event_shape: Sequence[int] | None = None) -> None:
        if not callable(model):
            raise RiskError(f"model must be a function of pyro.sample statements, got {type(model).__name__}.")
        self.model = model
        self.name = getattr(model, "__name__", type(model).__name__)
        self._blocks: dict[str, _Block] = {}
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            counting = _Drawn(None, None, self._blocks, self.name)
            with _alone(), counting:
                x = model()
            if not isinstance(x, Tensor):
                raise RiskError(f"{self.name} must return the input as a tensor, got {type(x).__name__}.")
            if event_shape is not None and x.shape != torch.Size(event_shape):
                raise RiskError(f"{self.name} returns {tuple(x.shape)}, not event_shape {tuple(event_shape)}.")
            self._nesting = counting.nesting
            self.device = x.device
            self.dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
            self.dimension = max((block.stop for block in self._blocks.values()), default=0)
            super().__init__(torch.Size(), x.shape, validate_args=False)
            self._check_rows()

    def _check_rows(self) -> None:
        """Several rows at once against single rows run as the program stands, without a plate around it."""
        u = torch.randn(TRIALS, self.dimension, dtype=self.dtype, device=self.device)
        rule = (
            f"{self.name} must broadcast over a leading batch dimension: write x[..., 0] for x[0], torch.stack(parts, -1), "
            ".sum(-1) for .sum(), torch.where for `if`"
        )
        singles = torch.stack([self._run(row, None) for row in u])
        try:
            together = self.push(u)
        except NoTransportError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            raise RiskError(f"{rule}. With {TRIALS} rows at once it fails: {str(error).splitlines()[0]}") from error
        if not torch.allclose(together.double(), singles.double(), rtol=1e-4, atol=1e-6):
            gap = float((together.double() - singles.double()).abs().max())
            raise RiskError(f"{rule}. {TRIALS} rows at once differ from the same rows one by one by {gap:.2g}.")

    def _run(self, u: Tensor, rows: int | None) -> Tensor:
        with _alone(), _Drawn(rows, u, self._blocks, self.name):
            if rows is None:
                return self.model()
            with pyro.plate(ROWS, rows, dim=-1 - self._nesting):
                return self.model()

    def push(self, u: Float[Tensor, "*batch d"]) -> Shaped[Tensor, "*batch_and_event"]:
        """x (*batch, *event) from standard normals."""
        rows = u.reshape(-1, self.dimension) if self.dimension else u.reshape(u.shape[:-1].numel(), 0)
        x = self._run(rows, len(rows))
        if x.shape[:1] != (len(rows),) or x.numel() != len(rows) * self.event_shape.numel():
            raise RiskError(
                f"{self.name} returned {tuple(x.shape)} for {len(rows)} rows of inputs of shape {tuple(self.event_shape)}; "
                f"wanted {(len(rows), *self.event_shape)}."
            )
        return x.reshape(u.shape[:-1] + self.event_shape)

    def sample(self, sample_shape: Sequence[int] = ()) -> Shaped[Tensor, "*sample_and_event"]:
        """Draw (*sample_shape, *event_shape)."""
        with torch.no_grad():
            return self.push(torch.randn(*sample_shape, self.dimension, dtype=self.dtype, device=self.device))


@part_of.register
def _(law: PyroModel) -> Part:
    marks = torch.cat([torch.zeros(0, dtype=torch.bool), *(block.marks for block in law._blocks.values())])
    return Part(torch.Size([law.dimension]), law.push, marks)


@part_of.register
def _(law: dist.Delta) -> Part:
    def constant(u: Tensor) -> Tensor:
        return law.v.expand(*u.shape[:-1], *law.event_shape)

    return Part(torch.Size([0]), constant, linear=lambda u: torch.zeros_like(constant(u)))
