"""The file that keeps finished units: `units.jsonl`, a line per unit, in a folder that one call or one block names.

Several processes may write to one file: a line is one append, and nobody shortens a file that another may be writing to.
What cannot be read (cut short, damaged, of an older version, no text at all) counts as not there, and its unit is run again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from ppl_risk.errors import FolderError, RiskError
from ppl_risk.parallel.plan import Unit
from ppl_risk.parallel.records import Record, read

#: Bytes written before any work is done, to learn whether the folder takes them.
PROBE = 64 * 1024
#: Whether the result of a unit is what the unit returns; anything it raises is a no.
Sound = Callable[[Unit, dict[str, Any]], bool]

_FOLDER: ContextVar[Path | None] = ContextVar("units_folder", default=None)


@contextmanager
def units_folder(path: str | Path | None) -> Iterator[None]:
    """Every call in the block that can keep units keeps them in `path`, unless it names a folder of its own.

    A call that was stopped goes on from there when it is made again, in this process or in another, with the same bits.

    Args:
        path: a folder; it is made when the first unit is kept. None: nothing is kept in the block.

    Example:
        >>> with units_folder("runs/0001/smc"):
        ...     folder_of(None) == Path("runs/0001/smc"), folder_of("mine") == Path("mine")
        (True, True)
    """
    before = _FOLDER.set(None if path is None else Path(path))
    try:
        yield
    finally:
        _FOLDER.reset(before)


def folder_of(folder: str | Path | None) -> Path | None:
    """The folder that a call was given, else that of the block it stands in, else None.

    Raises:
        RiskError: what was given is no path.
    """
    if not isinstance(folder, str | os.PathLike | None):
        raise RiskError(f"folder is a path, as text or a pathlib.Path, got {folder!r}.")
    return _FOLDER.get() if folder is None else Path(folder)


class Journal:
    """`units.jsonl` in a folder; without a folder nothing is kept.

    A line is one unit: {"key", "index", "seed", "checksum", "record"}. The file may hold other units and other kinds of lines.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.path = None if folder is None else Path(folder) / "units.jsonl"

    def finished(self, plan: Sequence[Unit], problems: int, sound: Sound | None = None) -> dict[str, Record]:
        """Records of the plan's units that are on file, by key.

        Args:
            plan: the units that are wanted. problems: how many problems they share: a record books calls on each of them.
            sound: whether a result is one; without it every result counts.

        Raises:
            FolderError: the file is there and may not be read.
        """
        if self.path is None:
            return {}
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise _refused(self.path, "read", error) from error
        wanted = {unit.key: unit for unit in plan}
        found = {}
        # A last line without an end may be one that another process is writing: it is read where it is whole, and left alone.
        for line in raw.split(b"\n"):
            try:
                kept = json.loads(line)
                unit = wanted.get(kept["key"])
                if unit is None:
                    continue
                text = json.dumps(kept["record"])
                if kept["checksum"] != checksum(text):
                    continue
                record = read(text)
                if len(record.calls) == problems and (sound is None or sound(unit, record.result)):
                    found[unit.key] = record
            except Exception:
                continue
        return found

    def prepare(self) -> None:
        """Try the folder before hours are spent on what it then would not take.

        Raises:
            FolderError: the folder cannot be made or written to, or the disk is full.
        """
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(self._open())
            with tempfile.TemporaryFile(dir=self.path.parent) as probe:
                probe.write(b"\n" * PROBE)
                probe.flush()
                os.fsync(probe.fileno())
        except OSError as error:
            raise _refused(self.path, "written to", error) from error

    def add(self, unit: Unit, text: str) -> None:
        """Append a unit; when this returns it is on the disk.

        Raises:
            FolderError: the disk is full, or the folder may no longer be written to.
        """
        if self.path is None:
            return
        head = {"key": unit.key, "index": unit.index, "seed": unit.seed, "checksum": checksum(text)}
        line = f'{json.dumps(head)[:-1]}, "record": {text}}}\n'.encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self._open()
            try:
                # In one call, which the system keeps apart from those of others. What was cut short before stays a line of its own.
                written = os.write(file, (b"" if _ends_a_line(file) else b"\n") + line)
                while written < len(line):
                    written = os.write(file, b"\n" + line)
                os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            raise _refused(self.path, "written to", error) from error

    def _open(self) -> int:
        assert self.path is not None
        return os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)


def _ends_a_line(file: int) -> bool:
    size = os.lseek(file, 0, os.SEEK_END)
    if size == 0:
        return True
    os.lseek(file, size - 1, os.SEEK_SET)
    return os.read(file, 1) == b"\n"


def checksum(text: str) -> str:
    """16 digits that tell a damaged record."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _refused(path: Path, what: str, error: OSError) -> FolderError:
    full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
    cause = "the disk is full" if full else error.strerror or type(error).__name__
    remedy = (
        "Make room" if full else "Give a folder that you may write to" if what != "read" else "Mend or move the file"
    )
    return FolderError(
        f"{path} cannot be {what}: {cause}. {remedy} and make the same call again: units that are on file are not run again."
    )
