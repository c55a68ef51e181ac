"""Recording a network: `torch.fx` lists PyTorch's own operators (`linear`, `relu`, `layer_norm`, ...) as one row passes through.

The record of one row holds for every row only if the network does the same with each. So it is made twice, from two rows, and then
held against the network on many (`ppl_risk.tracing.verify`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx
from torch.overrides import TorchFunctionMode

from ppl_risk.errors import CallLimitError, RiskError
from ppl_risk.problem import RiskProblem
from ppl_risk.randomness import seeded
from ppl_risk.tracing.replay import Replay
from ppl_risk.tracing.tape import SITE, Tape
from ppl_risk.tracing.twice import same_record
from ppl_risk.tracing.verify import hold, margins, sample_rows

T = TypeVar("T")


class ConstantMarginError(RiskError):
    """The margin is the same number for every input; `margin` is that number."""

    def __init__(self, text: str, margin: float) -> None:
        super().__init__(text)
        self.margin = margin


@torch.library.custom_op(SITE, mutates_args=(), schema="(Tensor value, str name) -> Tensor")
def _site(value: Tensor, name: str) -> Tensor:
    """The value itself, with a name in the record."""
    return value.clone()


@_site.register_fake
def _(value: Tensor, name: str) -> Tensor:
    return torch.empty_like(value)


class _DrawnNow(TorchFunctionMode):
    """Numbers that a network draws from a seed of its own are constants of the record: drawn again they would be others."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in {"randn", "rand", "randint", "randperm", "normal"}:
            with disable_proxy_modes_tracing():
                return func(*args, **kwargs or {})
        return func(*args, **kwargs or {})


def trace(problem: RiskProblem) -> Tape:
    """Record what one row passes through, from the input x to the margin.

    The record is held against the network on 64 rows drawn from the law and 64 from one three times as wide; like those of the
    preflight, these rows are not booked.

    Raises:
        ConstantMarginError: the margin does not depend on the input.
        RiskError: the network or its detector cannot be recorded, as it asks for the value of an activation, or its record is
            not the network: the first step that differs is named.

    Example:
        >>> law = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        >>> len(trace(RiskProblem(lambda x: x.sum(-1), law)).steps)
        2
    """
    with seeded(0, problem.device):
        x = problem.sample(1)
    with _unbooked(problem):
        rows, wide = sample_rows(problem)
        # What a network makes at its first call and keeps is made here, not in the record.
        _in_words(problem, lambda: margins(problem, x))
    graph = _graph(problem, x)
    with _unbooked(problem):
        same_record(problem.name, graph, _graph(problem, rows[-1:]))
        made = _tape(problem, graph, x)
        if made is None:
            raise _constant(problem, torch.cat([margins(problem, rows), margins(problem, wide)]))
        hold(problem, made, rows, wide, lambda row: _tape(problem, _graph(problem, row), row))
    return made


def _graph(problem: RiskProblem, x: Tensor) -> GraphModule:
    def mark(name: str, value: Tensor) -> Tensor:
        return torch.ops.ppl_risk.site(value, name)

    def record() -> GraphModule:
        with _DrawnNow():
            return make_fx(lambda row: problem.run(row, mark), pre_dispatch=True)(x.clone())

    return _in_words(problem, record)


def _tape(problem: RiskProblem, graph: GraphModule, x: Tensor) -> Tape | None:
    return _in_words(problem, Replay(graph, x).tape)


def _in_words(problem: RiskProblem, work: Callable[[], T]) -> T:
    """`work`, whose failure is the network's and is said in words."""
    try:
        return work()
    except RiskError as error:
        if isinstance(error, CallLimitError) or str(error).startswith(problem.name):
            raise
        raise RiskError(f"{problem.name}: the network or its detector cannot be read step by step: {error}") from error
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
        raise RiskError(
            f"{problem.name}: the network or its detector cannot be read step by step ({first}). A branch on the value of an "
            "activation, .item(), NumPy, a compiled part or gradients inside forward hide what happens to other inputs: write it "
            "with torch.where and other torch operators, or use run_smc, which only runs the network."
        ) from error


def _constant(problem: RiskProblem, margin: Tensor) -> RiskError:
    if bool((margin != margin[0]).any()):
        return RiskError(
            f"{problem.name}: the margin changes with the input, but no recorded operator carries the input there: NumPy, "
            ".tolist(), torch.func or gradients inside forward hide it. Write it with torch operators, or use run_smc, which "
            "only runs the network."
        )
    return ConstantMarginError(
        f"{problem.name}: The detector returns something that does not depend on the input: {float(margin[0]):.6g} for every row.",
        float(margin[0]),
    )


@contextmanager
def _unbooked(problem: RiskProblem) -> Iterator[None]:
    """Calls inside the block are not booked."""
    meters, problem._meters = problem._meters, []
    try:
        yield
    finally:
        problem._meters = meters
