"""Weights from files that cannot execute anything: safetensors, or a state_dict that torch opens with weights_only=True."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ppl_risk.errors import RiskError, UntrustedFileError


def load_weights(module: nn.Module, path: str | Path) -> str:
    """Load a state dict into a module, in place, every name and shape matching; returns the sha256 of the file.

    Raises:
        UntrustedFileError: the file is not plain weights; reading it would execute what it holds.
        RiskError: no such file, or names or shapes that the module does not have.
    """
    file = Path(path)
    state = read_weights(file)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise RiskError(f"The weights of {file.name} do not fit {type(module).__name__}: {_one_line(error)}") from error
    return hashlib.sha256(file.read_bytes()).hexdigest()


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, by name; errors as in `load_weights`."""
    file = Path(path)
    if not file.is_file():
        raise RiskError(f"There is no weights file {file}.")
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except SafetensorError as error:
            raise RiskError(f"{file.name} is not a readable safetensors file: {error}.") from error
    if file.suffix == ".pt2":
        raise UntrustedFileError(
            f"{file.name} is an exported program, which can run code when loaded. Not opened. {_ASK}"
        )
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UntrustedFileError(
            f"{file.name} holds Python code (a pickle of objects), not only weights. Not opened. {_ASK}"
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise RiskError(f"{file.name} is not a readable weights file: {_one_line(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise RiskError(f"{file.name} holds {type(state).__name__}, not a state_dict of tensors. {_ASK}")
    return state


_ASK = "Ask for safetensors, or save it again with torch.save(model.state_dict(), 'weights.pt')."


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
