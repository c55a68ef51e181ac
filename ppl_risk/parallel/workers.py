"""What is asked of a cluster around its work: does it answer, is it the same library, is it free again afterwards.

Whoever listens may say nothing, a worker may run other sources under the same version number, and a unit that hangs goes on
hanging on its worker after its caller has left. Each of these would make a call, or the next one, wrong or endless.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ppl_risk.errors import RiskError

#: Seconds that a worker is given to finish what nobody waits for any more, and for its restart.
GRACE, RESTART = 1, 60
#: Seconds for a worker to answer a question.
ANSWER = 10

_LIMIT: ContextVar[int | float | None] = ContextVar("unit_limit", default=None)


@contextmanager
def unit_limit(seconds: int | float | None) -> Iterator[None]:
    """On workers, a unit that is given up after so many seconds without any unit finishing; None (the default): never.

    A unit that hangs cannot be told from one that takes long, so there is no limit until one is set. What is given up counts as a
    failed try, and its worker is restarted.

    Args:
        seconds: several times what the longest unit takes.

    Raises:
        RiskError: seconds not positive.

    Example:
        >>> with unit_limit(600):
        ...     limit_of_a_unit()
        600
    """
    if seconds is not None and not seconds > 0:
        raise RiskError(f"The limit of a unit is a number of seconds above 0, or None for no limit, got {seconds}.")
    before = _LIMIT.set(seconds)
    try:
        yield
    finally:
        _LIMIT.reset(before)


def limit_of_a_unit() -> int | float | None:
    """The limit of the block."""
    return _LIMIT.get()


def _sources() -> str:
    """A digest of the package's source files."""
    digest, root = hashlib.sha256(), Path(__file__).resolve().parent.parent
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if "_shipped" not in name.parts:
            digest.update(f"{name.as_posix()}\n".encode() + path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:12]


#: Read once, when this process first meets dask: files that are edited later are not what it runs.
SOURCES = _sources()
#: Units that run in this process, key -> a name of the call that sent them.
_running: dict[str, str] = {}
_guard = threading.Lock()


@contextmanager
def noted(call: str, key: str) -> Iterator[None]:
    """On a worker: `busy_with(call)` is true inside the block."""
    with _guard:
        _running[key] = call
    try:
        yield
    finally:
        with _guard:
            _running.pop(key, None)


def busy_with(call: str) -> bool:
    """Whether a unit of a call runs in this process."""
    with _guard:
        return call in _running.values()


def versions() -> tuple[str, str, str]:
    """What decides on bits here: torch, ppl_risk, and its sources."""
    return torch.__version__.split("+")[0], version("ppl-risk"), SOURCES


def answers(address: str, seconds: int | float) -> None:
    """Return once the scheduler has said who it is.

    Raises:
        OSError: nobody listens, or nobody speaks in time. ValueError: no address, or no scheduler behind it.
    """
    from distributed.core import rpc
    from distributed.security import Security

    async def ask() -> object:
        scheduler = rpc(address, connection_args=Security().get_connection_args("client"), timeout=seconds)
        try:
            return await scheduler.identity()
        finally:
            await scheduler.close_rpc()

    async def ask_in_time() -> object:
        return await asyncio.wait_for(ask(), seconds)

    # In a thread, since a notebook already runs a loop here.
    with ThreadPoolExecutor(1) as pool:
        try:
            who = pool.submit(asyncio.run, ask_in_time()).result()
        except TimeoutError as error:
            raise TimeoutError(f"nothing was said in {seconds} s") from error
    if not isinstance(who, dict) or "Scheduler" not in str(who.get("type")):
        raise ValueError("it is not a dask scheduler")


def same_library(client: Any, seconds: int | float) -> None:
    """Another torch gives other bits, another ppl_risk perhaps another method.

    Raises:
        RiskError: a worker that would give another answer, or says nothing in so many seconds.
    """
    for worker, found in _ask(client, versions, (), list(client.nthreads()), seconds).items():
        if found == versions():
            continue
        if isinstance(found, TimeoutError):
            raise RiskError(
                f"Worker {worker} said nothing for {seconds} seconds. Restart it, or close it, and call again."
            )
        if isinstance(found, OSError):  # it is gone, which is no mistake: the others do its work
            continue
        if isinstance(found, Exception):
            raise RiskError(
                f"Worker {worker} cannot import this version of ppl_risk ({found}). Give workers the environment you run in."
            )
        if tuple(found)[:2] == versions()[:2]:
            raise RiskError(
                f"Worker {worker} runs other sources of ppl_risk {found[1]} than this process (digests {found[-1]} and {SOURCES}): "
                "results would not be the same. Give workers the same files, and restart workers and this process after an edit."
            )
        raise RiskError(
            f"Worker {worker} has torch and ppl_risk {' and '.join(found[:2])}, here they are "
            f"{' and '.join(versions()[:2])}: results would not be the same. Give workers the environment you run in."
        )


def at_work(client: Any, keys: Sequence[str]) -> list[str]:
    """Addresses of the workers to which the scheduler has sent units of these keys."""
    wanted = set(keys)
    try:
        sent = client.sync(client.scheduler.processing, workers=None, callback_timeout=ANSWER)
    except (OSError, TimeoutError):
        return []
    return [worker for worker, found in sent.items() if wanted & set(map(str, found))]


def free(client: Any, call: str, suspects: Sequence[str]) -> str:
    """Restart the workers that still run units of a call which nobody waits for; what is wrong if that cannot be.

    Args:
        client: a Client. call: its name. suspects: addresses of workers that were sent units of it.
    """
    until, busy = time.monotonic() + GRACE, list(suspects)
    while busy:
        # One that does not answer hangs where not even its Python can listen.
        told = _ask(client, busy_with, (call,), busy, ANSWER)
        busy = [worker for worker, found in told.items() if found is True or isinstance(found, TimeoutError)]
        if time.monotonic() > until:
            break
        time.sleep(0.1)
    if not busy:
        return ""
    try:
        client.restart_workers(busy, timeout=RESTART)
    except Exception as error:
        return (
            f"Workers still run what was given up ({', '.join(busy)}) and could not be restarted ({type(error).__name__}: "
            f"{str(error)[:200]}). Restart them before the next call."
        )
    return ""


def _ask(
    client: Any, question: Any, told: tuple[Any, ...], workers: Sequence[str], seconds: int | float
) -> dict[str, Any]:
    """What every worker answers in time; the error where one does not."""

    async def one(worker: str) -> Any:
        try:
            found = await asyncio.wait_for(client._run(question, *told, workers=[worker], on_error="return"), seconds)
            return found[worker]
        except (OSError, TimeoutError, KeyError) as error:  # a KeyError: it has left the cluster
            return OSError(str(error)) if isinstance(error, KeyError) else error

    async def ask() -> dict[str, Any]:
        return dict(zip(workers, await asyncio.gather(*map(one, workers)), strict=True))

    return client.sync(ask)
