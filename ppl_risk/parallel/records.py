"""Results of units as text, bit for bit: how they travel, and what a line of `units.jsonl` holds.

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
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_risk.errors import RiskError


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
    """What `write` was given.

    Raises:
        RiskError: the text is a record by its form only: a result without names, or calls that are no counts. Other text
            raises whatever its decoding does.
    """
    found = json.loads(text)
    record = Record(decode(found["result"]), found["calls"])
    counts = [n for pair in record.calls for n in (*pair, len(pair))]
    if not isinstance(record.result, dict) or not all(type(n) is int and n >= 0 for n in counts) or set(
        map(len, record.calls)
    ) - {2}:  # fmt: skip
        raise RiskError("This is no record of a unit.")
    return record
