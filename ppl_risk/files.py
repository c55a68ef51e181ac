"""Files that somebody else may have written, read within limits and without running anything; files of ours, written whole.

Nothing here imports torch: the command line reads a run's record before it loads anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ppl_risk.errors import RiskError

#: Records are a few kilobytes, with a curve or a table of settings perhaps a megabyte.
LARGEST_RECORD = 64 * 2**20


def read_text(path: Path, what: str, most: int = LARGEST_RECORD) -> str:
    """The text of a regular file.

    Raises:
        RiskError: no such file, no regular file (a pipe, a device), larger than `most` bytes, or not UTF-8.
    """
    if not path.is_file():
        raise RiskError(f"{path.parent} holds no {path.name}, so it is not {what}.")
    with _readable(path):
        if (size := path.stat().st_size) > most:
            raise RiskError(f"{path} has {size:,} bytes; {what} has at most {most:,}.")
        try:
            return path.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise RiskError(
                f"{path} is not text (UTF-8) at byte {error.start}, so it is damaged or not ours."
            ) from error


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        RiskError: as in `read_text`, or the text is not one JSON object.
    """
    try:
        record = json.loads(read_text(path, what))
    except json.JSONDecodeError as error:
        raise RiskError(f"{path} is not JSON (line {error.lineno}): {error.msg}.") from error
    except RecursionError as error:
        raise RiskError(f"{path} is nested too deeply to be {what}.") from error
    except ValueError as error:
        if isinstance(error, RiskError):
            raise
        raise RiskError(f"{path} cannot be read: it holds a number with thousands of digits.") from error
    if not isinstance(record, dict):
        raise RiskError(f"{path} holds a {type(record).__name__}, not the record of {what}.")
    return record


def hold_no_links(folder: Path) -> None:
    """Look through a folder that somebody else may have made and that we are going to write in and clear up.

    A link in it would have us append to, replace or remove files elsewhere; reading a pipe would wait for ever.

    Raises:
        RiskError: it holds a link, a pipe or a device, at any depth, or cannot be looked through.
    """

    def refuse(error: OSError) -> None:
        raise RiskError(f"{folder} cannot be read: {error.strerror or error}.") from error

    for place, folders, files in os.walk(folder, onerror=refuse):
        for path in (Path(place, name) for name in (*folders, *files)):
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                kind = "a link to another place" if path.is_symlink() else "a pipe or a device"
                raise RiskError(
                    f"{path} is {kind}; a run writes only files and folders. Remove it, if you trust the rest."
                )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RiskError(f"{path} cannot be read: {error.strerror or error}.") from error


def writing(path: Path, error: OSError) -> RiskError:
    """What is said of a file that could not be written."""
    return RiskError(
        f"{path} cannot be written: {error.strerror or error}. Make room, or choose another folder; what was finished "
        "before is kept."
    )


def write_whole(path: Path, content: str | bytes) -> None:
    """Write to a temporary neighbour of this process's own and rename: a file is there whole or not at all.

    Raises:
        RiskError: the disk is full, the folder is read-only, ...
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise writing(path, error) from error


def append_line(path: Path, line: str) -> None:
    """Append a line; a last line that a stop cut short is closed first. When this returns the line is on the disk.

    Raises:
        RiskError: the disk is full, the folder is read-only, ...
    """
    try:
        with path.open("a+b") as file:
            file.seek(0, os.SEEK_END)
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else "\n" + line
            file.write(f"{line}\n".encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise writing(path, error) from error


def writable(folder: Path) -> None:
    """Try to write where the folder is or will be, before any work is done for it.

    Raises:
        RiskError: it cannot be written, or cannot be made.
    """
    there = next((p for p in (folder, *folder.absolute().parents) if p.exists()), folder)
    trial = there / f".{uuid.uuid4().hex[:12]}.tmp"
    try:
        trial.write_bytes(b"-")
        trial.unlink()
    except OSError as error:
        with contextlib.suppress(OSError):
            trial.unlink(missing_ok=True)
        raise RiskError(f"The folder {folder} cannot be written: {error.strerror or error}. Choose another.") from error
