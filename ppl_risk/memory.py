"""Out of memory: the batch is halved and the same rows are tried again.

A smaller batch changes the last bits of what a network returns and never what is estimated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from ppl_risk.errors import RiskError

Part = TypeVar("Part")


@runtime_checkable
class Counts(Protocol):
    """What a meter has booked."""

    forward_calls: int
    gradient_calls: int


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: torch has an error of its own for a device, and on a CPU only the message says it.

    Example:
        >>> is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
        True
    """
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def in_batches(
    work: Callable[[Tensor], Part], x: Tensor, size: int, meters: Sequence[Counts] = ()
) -> tuple[list[Part], int]:
    """`work` on consecutive batches of rows, and the batch size that fitted.

    Args:
        work: batch of rows -> anything. x: (rows, ...). size: rows of a batch, halved whenever memory runs out.
        meters: what a failed batch booked on them is taken back, so that no row counts twice.

    Raises:
        RiskError: a single row does not fit.

    Example:
        >>> in_batches(lambda rows: rows.sum().item(), torch.ones(5), 2)
        ([2.0, 2.0, 1.0], 2)
    """
    done: list[Part] = []
    start = 0
    while start < x.shape[0] or not done:
        rows = x[start : start + size]
        booked = [(meter, meter.forward_calls, meter.gradient_calls) for meter in meters]
        try:
            done.append(work(rows))
            start += rows.shape[0]
            continue
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if rows.shape[0] <= 1:
                raise RiskError(
                    "One row through the network does not fit into memory. Free memory, or move the network to a device "
                    "that has more."
                ) from error
        # Outside the handler, whose traceback would keep the failed batch alive.
        for meter, forward, gradient in booked:
            meter.forward_calls, meter.gradient_calls = forward, gradient
        size = rows.shape[0] // 2
    return done, size
