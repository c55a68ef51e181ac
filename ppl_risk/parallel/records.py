"""Results of units as text, bit for bit, and the file that keeps them: `units.jsonl`, a line per finished unit.

JSON has neither arrays nor infinities, and Python's own spelling of NaN is no JSON. Those become objects with one `$` key:
`$array` and `$scalar` (npy bytes), `$tensor` (bytes, type and shape), `$float` (the 8 bytes of a float that is not finite).
Finite floats are written by `repr`, which reads back exactly.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_risk.errors import RiskError
from ppl_risk.parallel.plan import Unit


class Record(NamedTuple):
    """What a finished unit left: its result, and (forward, gradient) calls on each problem it shared."""

    result: dict[str, Any]
    calls: list[list[int]]


def encode(value: Any) -> Any:
    """Scalars, arrays and tensors, nested in lists and dicts, as JSON; every bit survives (of tensors, not the device).

    Raises:
        RiskError: a type that has no exact form.

    Example:
        >>> decode(encode({"log_prob": -math.inf, "u": torch.ones(2)}))
        {'log_prob': -inf, 'u': tensor([1., 1.])}
    """
    if isinstance(value, np.generic | np.ndarray):
        if value.dtype.hasobject:
            raise RiskError("A unit returned an array of Python objects; return numbers or strings.")
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, np.asarray(value, order="C"), allow_pickle=False)
        return {"$array" if isinstance(value, np.ndarray) else "$scalar": _text(buffer.getvalue())}
    if isinstance(value, Tensor):
        flat = value.detach().cpu().resolve_conj().resolve_neg().reshape(-1)
        raw = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
        return {"$tensor": _text(raw), "dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": struct.pack(">d", value).hex()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [encode(v) for v in value]
    if isinstance(value, Mapping):
        if wrong := [k for k in value if not isinstance(k, str) or k.startswith("$")]:
            raise RiskError(f"Keys of a unit's result must be strings that do not begin with $, got {wrong[0]!r}.")
        return {k: encode(v) for k, v in value.items()}
    raise RiskError(f"A unit returned a {type(value).__name__}; return numbers, strings, arrays and tensors.")


def decode(value: Any) -> Any:
    """What `encode` was given, with lists for tuples and tensors on the CPU."""
    if isinstance(value, list):
        return [decode(v) for v in value]
    if not isinstance(value, dict):
        return value
    if "$float" in value:
        return struct.unpack(">d", bytes.fromhex(value["$float"]))[0]
    if "$array" in value or "$scalar" in value:
        array = np.lib.format.read_array(io.BytesIO(_bytes(value.get("$array") or value["$scalar"])))
        return array if "$array" in value else array[()]
    if "$tensor" in value:
        dtype, raw = getattr(torch, value["dtype"]), bytearray(_bytes(value["$tensor"]))
        flat = torch.frombuffer(raw, dtype=torch.uint8).view(dtype) if raw else torch.empty(0, dtype=dtype)
        return flat.reshape(value["shape"])
    return {k: decode(v) for k, v in value.items()}


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)


def digest(results: Sequence[Mapping[str, Any]]) -> str:
    """sha256 over results in their order: equal where every bit is.

    Example:
        >>> digest([{"a": 0.0}]) == digest([{"a": -0.0}])
        False
    """
    return hashlib.sha256(json.dumps(encode(list(results)), sort_keys=True).encode()).hexdigest()


def write(result: Mapping[str, Any], calls: Sequence[Sequence[int]]) -> str:
    """A record as it travels and as it is kept."""
    return json.dumps({"calls": encode(list(calls)), "result": encode(result)})


def read(text: str) -> Record:
    """What `write` was given."""
    found = json.loads(text)
    return Record(decode(found["result"]), found["calls"])


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Journal:
    """`units.jsonl` in a folder; without a folder nothing is kept.

    A line is one unit: {"key", "index", "seed", "checksum", "record"}. The file may hold other units and other kinds of lines.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.path = None if folder is None else Path(folder) / "units.jsonl"

    def finished(self, plan: Sequence[Unit]) -> dict[str, Record]:
        """Records of the plan's units that are on file, by key. What a stop cut short is removed from the file's end."""
        if self.path is None or not self.path.exists():
            return {}
        raw = self.path.read_bytes()
        whole = raw.rfind(b"\n") + 1
        if whole < len(raw):
            os.truncate(self.path, whole)
        wanted = {unit.key for unit in plan}
        found = {}
        for line in raw[:whole].splitlines():
            try:
                kept = json.loads(line)
                if kept["key"] not in wanted:
                    continue
                text = json.dumps(kept["record"])
                if kept["checksum"] == _checksum(text):
                    found[kept["key"]] = read(text)
            except (ValueError, KeyError, TypeError):
                continue  # no unit, or damaged: then it is simply run again
        return found

    def add(self, unit: Unit, text: str) -> None:
        """Append a unit; when this returns it is on the disk."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        head = {"key": unit.key, "index": unit.index, "seed": unit.seed, "checksum": _checksum(text)}
        with self.path.open("ab") as file:
            file.write(f'{json.dumps(head)[:-1]}, "record": {text}}}\n'.encode())
            file.flush()
            os.fsync(file.fileno())
