"""Weights from files that cannot execute anything: safetensors, or a state_dict that torch opens with weights_only=True.

A file is looked at before it is opened: what it is not (a Git LFS pointer, a web page) is said, and an archive that would unpack to
many times its size is not unpacked.
"""

from __future__ import annotations

import hashlib
import pickle
import tarfile
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ppl_risk.errors import RiskError, UntrustedFileError

#: torch.save does not compress, so its archives unpack to their own size; others may compress a little.
INFLATION, ALWAYS = 4, 2**20
_ASK = "Ask for safetensors, or save it again with torch.save(model.state_dict(), 'weights.pt')."


def load_weights(module: nn.Module, path: str | Path) -> str:
    """Load a state dict into a module, in place, every name, shape and kind of number matching; returns the file's sha256.

    Raises:
        UntrustedFileError: the file is not plain weights; reading it would execute what it holds.
        RiskError: no such file, or weights that do not fit; the module is then as it was.
    """
    file = Path(path)
    state = read_weights(file)
    _fits(module, state, file.name)
    module.load_state_dict(state)
    return hashlib.sha256(file.read_bytes()).hexdigest()


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file, by name; errors as in `load_weights`."""
    file = Path(path)
    if not file.is_file():
        raise RiskError(f"There is no weights file {file}.")
    try:
        _recognise(file)
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except RiskError:
        raise
    except SafetensorError as error:
        raise RiskError(f"{file.name} is not a readable safetensors file: {error}.") from error
    except pickle.UnpicklingError as error:
        if "unsupported" not in str(error).lower():
            raise RiskError(f"{file.name} is not a readable weights file: it is cut short or damaged.") from error
        raise UntrustedFileError(
            f"{file.name} holds Python code (a pickle of objects), not only weights. Not opened. {_ASK}"
        ) from error
    except Exception as error:  # whatever the readers raise on bytes that are not theirs
        raise RiskError(f"{file.name} is not a readable weights file: {_one_line(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise RiskError(f"{file.name} holds {type(state).__name__}, not a state_dict of tensors. {_ASK}")
    if wrong := [k for k in state if not isinstance(k, str)]:
        raise RiskError(f"{file.name} names a tensor {wrong[0]!r}; the names of a state_dict are text. {_ASK}")
    return state


def _recognise(file: Path) -> None:
    """Say what a file is that holds no weights, before a reader guesses."""
    with file.open("rb") as opened:
        head = opened.read(4096)
    if file.suffix.lower() == ".pt2":
        raise UntrustedFileError(
            f"{file.name} is an exported program, which can run code when loaded. Not opened. {_ASK}"
        )
    if head.startswith(b"version https://git-lfs"):
        raise RiskError(f"{file.name} is a Git LFS pointer, not the weights themselves. Fetch them: git lfs pull.")
    if head.lstrip()[:15].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise RiskError(f"{file.name} is a web page, not weights: the download went wrong. Fetch the file itself.")
    if not head:
        raise RiskError(f"{file.name} is not a readable weights file: it is empty.")
    if _is_text(head):
        raise RiskError(f"{file.name} is not a readable weights file: it is text. {_ASK}")
    if file.suffix == ".safetensors":
        return
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            unpacked, size = sum(entry.file_size for entry in archive.infolist()), file.stat().st_size
        if unpacked > max(ALWAYS, INFLATION * size):
            raise RiskError(
                f"{file.name} has {size:,} bytes and would unpack to {unpacked:,}. Weights do not shrink so; not opened."
            )
    elif not head.startswith((b"\x80", b"PK")) and not tarfile.is_tarfile(file):
        raise RiskError(f"{file.name} is not a readable weights file: it is nothing that torch.save writes. {_ASK}")


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        # A character may be cut by the end of what was read.
        if error.start < len(head) - 3:
            return False
        text = head[: error.start].decode()
    return all(c.isprintable() or c in "\t\r\n\f" for c in text)


def _fits(module: nn.Module, state: dict[str, Tensor], name: str) -> None:
    """Raise where `load_state_dict` would, or would change what the numbers are, before it has written anything."""
    own = module.state_dict()
    for key, value in state.items():
        held = own.get(key)
        if isinstance(held, Tensor) and _kind(held) != _kind(value):
            raise RiskError(
                f"The weights of {name} do not fit {type(module).__name__}: {key} is {_kind(value)} there and {_kind(held)} here."
            )
    if {k: v.shape for k, v in own.items() if isinstance(v, Tensor)} == {k: v.shape for k, v in state.items()}:
        return
    before = {key: held.clone() for key, held in own.items() if isinstance(held, Tensor)}
    try:  # names of older versions are translated while loading, which only loading can tell
        module.load_state_dict(state)
    except RuntimeError as error:
        with torch.no_grad():
            for key, held in before.items():
                own[key].copy_(held)
        raise RiskError(f"The weights of {name} do not fit {type(module).__name__}: {_one_line(error)}") from error


def _kind(value: Tensor) -> str:
    if value.is_complex():
        return "complex"
    return "real" if value.is_floating_point() else "whole numbers"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
