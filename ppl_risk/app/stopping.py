"""SIGINT and SIGTERM: say where the finished work is and how to go on, then exit with 128 + the signal's number."""

from __future__ import annotations

import contextlib
import signal
import sys
from typing import Any

#: The signal that came, and the command that goes on where this one stopped.
_state: dict[str, Any] = {"signal": None, "resume": None}


class Stopped(KeyboardInterrupt):
    """A signal asked this process to stop."""


def listen() -> None:
    """Turn both signals into `Stopped`; a second one ends the process at once."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's background job
            with contextlib.suppress(ValueError):  # not the main thread: signals are the caller's
                signal.signal(number, _stop)


def _stop(number: int, _frame: Any) -> None:
    _state["signal"] = number
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_DFL)
    raise Stopped


def resume_with(command: str | None) -> None:
    """The command that goes on with what now runs."""
    _state["resume"] = command


def resuming() -> str | None:
    """That command, if a run has begun."""
    return _state["resume"]


def look() -> None:
    """Stop here if a signal came and what it raised was swallowed (Python ignores what is raised while it cleans up)."""
    if _state["signal"] is not None:
        raise Stopped


def stopped() -> bool:
    """Whether a signal came, whatever was raised on the way out."""
    return _state["signal"] is not None


def say_goodbye() -> int:
    """Print how to go on; returns the exit code."""
    command = _state["resume"]
    kept = f"Finished estimates are kept. Go on with: {command}" if command else "No run had begun, so nothing is kept."
    print(f"\nStopped. {kept}", file=sys.stderr)
    return 128 + (_state["signal"] or signal.SIGINT)
