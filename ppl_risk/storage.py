"""Estimates on disk and in ArviZ: `result.json`, `posterior.nc`, and the `xarray.DataTree` behind it.

Groups (dims first): /posterior (chain, draw, ...) equal-weight draws given catastrophe; /sample_stats (chain, draw)
log_weight and margin; /smc_history (chain, level); /svi_history (step); /rounds (round); /survival (threshold). Root attributes
carry the number, its error, the diagnostics, the seed, the settings as JSON, and the versions.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ppl_risk.errors import RiskError
from ppl_risk.risk_estimate import RiskEstimate, Status

HISTORY_DIMS = {"smc_history": ("chain", "level"), "svi_history": ("step",), "rounds": ("round",)}
ARRAYS = {"posterior", "stats", "history", "survival", "guide"}


def to_datatree(estimate: RiskEstimate) -> xr.DataTree:
    """The estimate as a DataTree; netCDF of it is what `save` writes."""
    groups: dict[str, xr.Dataset] = {"/": xr.Dataset(attrs=_attributes(estimate))}
    if estimate.posterior:
        groups["/posterior"] = _dataset(estimate.posterior, ("chain", "draw"))
    if estimate.stats:
        groups["/sample_stats"] = _dataset(estimate.stats, ("chain", "draw"))
    for group, values in estimate.history.items():
        groups[f"/{group}"] = _dataset(values, HISTORY_DIMS[group])
    if estimate.survival is not None:
        thresholds, log_prob = estimate.survival
        groups["/survival"] = xr.Dataset({"log_prob": ("threshold", log_prob)}, {"threshold": thresholds})
    return xr.DataTree.from_dict(groups)


def _dataset(values: Mapping[str, np.ndarray], dims: tuple[str, ...]) -> xr.Dataset:
    """Name -> array, laid out as (*dims, name_dim_0, ...); a dot would be a path in a tree and becomes an underscore."""
    variables = {}
    for name, array in values.items():
        own = tuple(f"{name.replace('.', '_')}_dim_{i}" for i in range(array.ndim - len(dims)))
        variables[name.replace(".", "_")] = (dims + own, np.asarray(array))
    first = np.asarray(next(iter(values.values())))
    return xr.Dataset(variables, coords={dim: np.arange(first.shape[i]) for i, dim in enumerate(dims)})


def _attributes(estimate: RiskEstimate) -> dict[str, Any]:
    record = summary(estimate)
    flat = {k: v for k, v in record.items() if isinstance(v, str | int | float)}
    return flat | {
        "log_probability": estimate.log_prob,
        "log_probability_se": estimate.std_error,
        "evidence": json.dumps(record["evidence"]),
        "settings": json.dumps(record["settings"]),
        "inference_library": "ppl_risk",
        "inference_library_version": version("ppl-risk"),
        "torch_version": version("torch"),
    }


def summary(estimate: RiskEstimate) -> dict[str, Any]:
    """Everything but the arrays, ready for JSON; numbers that JSON lacks become the strings 'nan' and '-inf'."""
    record = {f.name: getattr(estimate, f.name) for f in fields(estimate) if f.name not in ARRAYS}
    record["status"] = estimate.status.name
    record["interval_90"] = list(estimate.interval(0.9))
    record["log10_prob"] = estimate.log10_prob
    return _plain(record)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write to a temporary neighbour and rename: a file is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    os.replace(temporary, path)


def save(estimate: RiskEstimate, path: str | Path) -> None:
    """Write `posterior.nc`, then `result.json`: where the second stands, the first is complete."""
    folder = Path(path)
    tree = to_datatree(estimate)
    write_whole(folder / "posterior.nc", lambda p: tree.to_netcdf(p, engine="h5netcdf"))
    text = json.dumps(summary(estimate), indent=2) + "\n"
    write_whole(folder / "result.json", lambda p: p.write_text(text))


def load(path: str | Path) -> RiskEstimate:
    """Read an estimate back.

    Raises:
        RiskError: the folder holds no readable result.
    """
    folder = Path(path)
    try:
        record = json.loads((folder / "result.json").read_text())
    except FileNotFoundError as error:
        raise RiskError(f"{folder} holds no result.json, so it is not a saved estimate.") from error
    except json.JSONDecodeError as error:
        raise RiskError(f"{folder / 'result.json'} is not JSON (line {error.lineno}): {error.msg}.") from error
    try:
        values = _fields(record)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RiskError(
            f"{folder / 'result.json'} is not the record of an estimate ({error!r}). Run it again."
        ) from error
    try:
        arrays = _arrays(folder / "posterior.nc")
    except (OSError, KeyError, ValueError) as error:
        raise RiskError(
            f"{folder / 'posterior.nc'} cannot be read: {error}. Delete it to load the number alone."
        ) from error
    return RiskEstimate(**values, **arrays)


def _fields(record: Mapping[str, Any]) -> dict[str, Any]:
    known = {f.name for f in fields(RiskEstimate)} - ARRAYS
    values = {k: v for k, v in record.items() if k in known}
    for name in ("log_prob", "std_error", "flops", "seconds"):
        values[name] = float(values[name])
    for name in ("elbo", "dof", "training_flops"):
        values[name] = None if values.get(name) is None else float(values[name])
    values["status"] = Status[values["status"]]
    values["hits"] = tuple(values["hits"]) if values.get("hits") else None
    values["evidence"] = {k: float(v) for k, v in values["evidence"].items()}
    return values


def _arrays(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    # Loaded whole and closed: a lazy file cannot be written over.
    with xr.open_datatree(file, engine="h5netcdf") as lazy:
        tree = lazy.load()

    def group(name: str) -> dict[str, np.ndarray]:
        return {str(k): v.values for k, v in tree[name].data_vars.items()} if name in tree.children else {}

    survival = None
    if "survival" in tree.children:
        survival = (tree["survival"]["threshold"].values, tree["survival"]["log_prob"].values)
    return {
        "posterior": group("posterior"),
        "stats": group("sample_stats"),
        "history": {name: group(name) for name in HISTORY_DIMS if name in tree.children},
        "survival": survival,
    }
