"""Units on dask workers. The user starts the cluster; here is only what makes a plan survive it.

A worker that dies takes its units along; dask runs them elsewhere. A unit that kills each worker it meets is given up by dask with
`KilledWorker`, and so is whatever was queued beside it: how many deaths it takes is the cluster owner's setting
(`distributed.scheduler.allowed-failures`), who is to blame only shows when each suspect runs alone.
"""

from __future__ import annotations

import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any

import torch

from ppl_risk.errors import RiskError, is_final
from ppl_risk.parallel.loop import Failure, Work, first_line
from ppl_risk.parallel.parcel import Parcel, pack, run_packed
from ppl_risk.parallel.plan import Unit
from ppl_risk.parallel.workers import answers, at_work, free, limit_of_a_unit, same_library

#: How often a unit that failed among others is tried alone.
ALONE = 3
#: How often the parcel is sent before that counts as a failed try.
SENDINGS = 3
#: Seconds for a scheduler to answer, and for a first worker to appear.
CONNECT, WORKERS = 10, 60


def on_cluster(
    engine: Any, todo: Sequence[Unit], work: Work, shared: Any, done: Callable[[Unit, str], None]
) -> list[Failure]:
    """Run units on the workers of a Client or a scheduler's address; the units that failed to the end."""
    with _client(engine) as client:
        parcel = pack(work, shared)
        if not _workers_come(client):
            raise RiskError(
                f"The cluster had no worker for {WORKERS} seconds. Start some (`dask worker ADDRESS --nthreads 1`) and call again."
            )
        same_library(client, WORKERS)
        sender = _Sender(client, parcel)
        failures = sender.run(todo, done, 1)
        for tries in range(2, ALONE + 2):
            suspects, failures = failures, []
            for index, suspect in enumerate(suspects):
                if not _workers_come(client):  # the last one died of it
                    return failures + suspects[index:]
                failures += sender.run([suspect.unit], done, tries)
        return failures


class _Sender:
    """Sends units and collects them; what they share goes to every worker once."""

    def __init__(self, client: Any, parcel: Parcel) -> None:
        self.client, self.parcel = client, parcel
        # The scheduler answers a key it knows with the result it has; another call must never be given that.
        self.token = uuid.uuid4().hex[:8]

    def send(self) -> Any:
        """The parcel as a future; sent anew for every try alone, since whoever held it may just have died."""
        for left in reversed(range(SENDINGS)):
            try:
                # A list of one, since scatter takes collections apart; hashing a large network costs more than its one sending.
                (sent,) = self.client.scatter([self.parcel], broadcast=True, hash=False)
                return sent
            # A worker whose death the scheduler has not yet noticed, or only just: no fault of the unit.
            except (OSError, KeyError):
                if not left:
                    raise
                time.sleep(1)

    def run(self, units: Sequence[Unit], done: Callable[[Unit, str], None], tries: int) -> list[Failure]:
        """Run units together; those that failed, with what they raised."""
        from distributed.client import CancelledError

        try:
            shared = self.send()
        except (OSError, KeyError) as error:
            return [Failure(unit, error, tries) for unit in units]
        dtype, pending, finished = torch.get_default_dtype(), {}, SimpleQueue()
        for unit in units:
            key = f"{unit.key}-{self.token}-{tries}"
            future = self.client.submit(run_packed, shared, unit, dtype, self.token, key=key, pure=False)
            pending[future] = unit
            future.add_done_callback(finished.put)
        failures, limit = [], limit_of_a_unit()
        try:
            while pending:
                try:
                    future = finished.get(timeout=limit)
                except Empty:
                    late = TimeoutError(f"no unit finished in {limit} s, the limit set by unit_limit")
                    failures += [Failure(unit, late, tries) for unit in pending.values()]
                    break
                unit = pending.pop(future)
                try:
                    text = future.result()
                except (Exception, CancelledError) as error:
                    if is_final(error):
                        raise
                    failures.append(Failure(unit, error, tries))
                else:
                    done(unit, text)
        finally:
            if pending:  # something stopped the loop
                self.leave(list(pending))
        return failures

    def leave(self, pending: list[Any]) -> None:
        """Give units up, and their workers back."""
        suspects = at_work(self.client, [future.key for future in pending])
        self.client.cancel(pending)
        if wrong := free(self.client, self.token, suspects):
            warnings.warn(wrong, RuntimeWarning, stacklevel=2)


@contextmanager
def _client(engine: Any) -> Iterator[Any]:
    """The user's Client as it is, or one of our own to an address, closed afterwards."""
    try:
        from distributed import Client
    except ImportError as error:
        raise RiskError("engine= needs dask: pip install 'ppl-risk[cluster]'.") from error
    if isinstance(engine, Client):
        yield engine
        return
    if not isinstance(engine, str):
        raise RiskError(
            f"engine must be None, a dask.distributed.Client or an address such as 'tcp://127.0.0.1:8786', got "
            f"{type(engine).__name__}."
        )
    try:
        answers(engine, CONNECT)
        client = Client(engine, timeout=CONNECT, set_as_default=False)
    except Exception as error:  # whatever listens there may say anything
        raise RiskError(
            f"No scheduler answers at {engine} ({type(error).__name__}: {first_line(error)}). Start one with "
            "`dask scheduler` and workers with `dask worker ADDRESS --nthreads 1`, or leave engine out."
        ) from error
    with client:
        yield client


def _workers_come(client: Any) -> bool:
    """Wait for a first worker; whether one came (a scheduler that is gone has none)."""
    try:
        client.wait_for_workers(1, timeout=WORKERS)
    except OSError:  # TimeoutError is one
        return False
    return True
