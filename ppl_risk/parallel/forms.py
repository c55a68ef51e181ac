"""What a result must look like to be one: kinds and sizes by name.

A line of `units.jsonl` may be whole and still hold something else: it was written by another version of the library, or by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_KINDS = {
    "float": lambda t: t.is_floating_point(),
    "int": lambda t: not t.is_floating_point() and not t.is_complex() and t.dtype is not torch.bool,
    "bool": lambda t: t.dtype is torch.bool,
}


def fits(result: Mapping[str, Any], form: Mapping[str, str], **sizes: int) -> bool:
    """Whether a result has just these entries, of these kinds and sizes.

    Args:
        result: entries by name.
        form: name -> kind ("float", "int" or "bool"), followed by the names of a tensor's axes; without axes a number.
        sizes: lengths of axes that are known; the others must agree wherever they are named.

    Example:
        >>> fits({"u": torch.zeros(3, 2), "mass": 0.5}, {"u": "float rows d", "mass": "float"}, d=2)
        True
    """
    if set(result) != set(form):
        return False
    for name, text in form.items():
        kind, *axes = text.split()
        value = result[name]
        if not axes:
            if type(value).__name__ != kind:
                return False
            continue
        if not isinstance(value, Tensor) or value.dim() != len(axes) or not _KINDS[kind](value):
            return False
        if any(sizes.setdefault(axis, length) != length for axis, length in zip(axes, value.shape, strict=True)):
            return False
    return True
