"""What all units share, packed once and opened once in every worker process.

Packed by cloudpickle itself and not by dask, which tries the plain pickle first: that names classes and functions by their
module, and a zoo's `problem.py`, or whatever else was loaded by its path, is no module that a worker could import. Such modules
travel whole.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

import torch

from ppl_risk.errors import RiskError
from ppl_risk.parallel.loop import ONE_AT_A_TIME, Work, execute
from ppl_risk.parallel.plan import Unit, unmetered
from ppl_risk.parallel.workers import noted
from ppl_risk.problem import RiskProblem


class Parcel:
    """A work function and what its units share, as bytes; `open` unpacks them the first time it is called.

    Example:
        >>> work, shared = Parcel(pickle.dumps((len, "abc"))).open()
        >>> work(shared)
        3
    """

    def __init__(self, contents: bytes) -> None:
        self.contents = contents
        self.opened: tuple[Work, Any] | None = None

    def __reduce__(self) -> tuple[type[Parcel], tuple[bytes]]:
        """Travels closed."""
        return Parcel, (self.contents,)

    def __sizeof__(self) -> int:
        """What dask books for it."""
        return 2 * len(self.contents)

    def open(self) -> tuple[Work, Any]:
        """The function and what is shared.

        Raises:
            RiskError: something in it is defined in a module that this process cannot import.
        """
        if self.opened is None:
            try:
                self.opened = pickle.loads(self.contents)
            except ImportError as error:
                raise RiskError(
                    f"A worker cannot build the problem: {error}. Install that module where workers run, or call "
                    "client.upload_file on it."
                ) from error
        assert self.opened is not None
        return self.opened


def pack(work: Work, shared: Any) -> Parcel:
    """Close a parcel.

    Raises:
        RiskError: a problem that is not on the CPU, or something that cannot be pickled.
    """
    import cloudpickle

    with _by_value():
        try:
            return Parcel(cloudpickle.dumps((work, _travelling(shared))))
        except RiskError:
            raise
        except Exception as error:
            raise RiskError(
                f"This cannot be sent to workers: {error}. Keep locks, open files and generators out of the problem and of the "
                "function of the units."
            ) from error


def run_packed(parcel: Parcel, unit: Unit, dtype: torch.dtype, call: str) -> str:
    """`execute` on a worker; `call` names who waits for it."""
    with ONE_AT_A_TIME, noted(call, unit.key):
        return execute(*parcel.open(), unit, dtype)


def _travelling(shared: Any) -> Any:
    """What is sent: problems without their meters, and on the CPU."""
    if isinstance(shared, tuple | list):
        return type(shared)(map(_travelling, shared))
    if not isinstance(shared, RiskProblem):
        return shared
    if shared.device.type != "cpu":
        raise RiskError(
            f"{shared.name} lives on {shared.device}; workers are sent problems on the CPU. Build it with the network and the "
            "input law on the CPU, or leave engine out and use the device from here."
        )
    return unmetered(shared)


@contextmanager
def _by_value() -> Iterator[None]:
    """Modules that no import would find are pickled whole inside the block."""
    import cloudpickle

    known = cloudpickle.list_registry_pickle_by_value()
    strays = [m for name, m in list(sys.modules.items()) if name not in known and _stray(name, m)]
    for module in strays:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in strays:
            cloudpickle.unregister_pickle_by_value(module)


def _stray(name: str, module: object) -> bool:
    """Whether a module was loaded from a file under a name by which it cannot be imported (__main__ cloudpickle sees to)."""
    if not isinstance(module, ModuleType) or "." in name or name == "__main__" or module.__name__ != name:
        return False
    return str(getattr(module, "__file__", None)).endswith(".py") and PathFinder.find_spec(name) is None
