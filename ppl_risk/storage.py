"""Estimates on disk and in ArviZ: `result.json`, `posterior.nc`, and the `xarray.DataTree` behind it.

Groups (dims first): /posterior (chain, draw, ...) equal-weight draws given catastrophe; /sample_stats (chain, draw)
log_weight and margin; /smc_history (chain, level); /svi_history (step); /rounds (round); /survival (threshold); any other history
group under its own name, with a dimension a variable. Root attributes carry the number, its error, the diagnostics, the seed, the
settings as JSON, and the versions. A folder is data: loading one runs nothing, and refuses in words what no estimate can be.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ppl_risk.errors import RiskError
from ppl_risk.files import read_json, write_whole
from ppl_risk.netcdf import read_tree, write_tree
from ppl_risk.risk_estimate import RiskEstimate, Status

HISTORY_DIMS = {"smc_history": ("chain", "level"), "svi_history": ("step",), "rounds": ("round",)}
ARRAYS = {"posterior", "stats", "history", "survival", "guide"}
#: Groups of a file that are no history.
OWN_GROUPS = {"posterior", "sample_stats", "survival"}
#: A log P above 0 is noise up to this many standard errors; more is not a probability.
ABOVE_ONE = 10.0


def to_datatree(estimate: RiskEstimate) -> xr.DataTree:
    """The estimate as a DataTree; netCDF of it is what `save` writes."""
    groups: dict[str, xr.Dataset] = {"/": xr.Dataset(attrs=_attributes(estimate))}
    if estimate.posterior:
        groups["/posterior"] = _dataset(estimate.posterior, ("chain", "draw"))
    if estimate.stats:
        groups["/sample_stats"] = _dataset(estimate.stats, ("chain", "draw"))
    for group, values in estimate.history.items():
        groups[f"/{group}"] = _dataset(values, HISTORY_DIMS.get(group, ()))
    if estimate.survival is not None:
        thresholds, log_prob = estimate.survival
        groups["/survival"] = xr.Dataset({"log_prob": ("threshold", log_prob)}, {"threshold": thresholds})
    return xr.DataTree.from_dict(groups)


def to_arviz(estimate: RiskEstimate) -> Any:
    """What `arviz.summary`, `arviz.plot_forest` and the rest take: ArviZ 0.x wants its own container, 1.x the DataTree.

    Example:
        >>> type(to_arviz(RiskEstimate("by hand", -1.0))).__name__ in {"InferenceData", "DataTree"}
        True
    """
    import arviz as az  # slow to import, and wanted only here

    tree = to_datatree(estimate)
    return az.from_datatree(tree) if version("arviz").startswith("0.") else tree


def _dataset(values: Mapping[str, np.ndarray], dims: tuple[str, ...]) -> xr.Dataset:
    """Name -> array, laid out as (*dims, name_dim_0, ...); a dot would be a path in a tree and becomes an underscore."""
    variables = {}
    for name, array in values.items():
        own = tuple(f"{name.replace('.', '_')}_dim_{i}" for i in range(array.ndim - len(dims)))
        variables[name.replace(".", "_")] = (dims + own, np.asarray(array))
    first = np.asarray(next(iter(values.values()), np.empty((0,) * len(dims))))
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


def save(estimate: RiskEstimate, path: str | Path) -> None:
    """Write `posterior.nc`, then `result.json`: where the second stands, the first is complete."""
    folder = Path(path)
    write_tree(to_datatree(estimate), folder / "posterior.nc")
    write_whole(folder / "result.json", json.dumps(summary(estimate), indent=2) + "\n")


def load(path: str | Path) -> RiskEstimate:
    """Read an estimate back.

    Raises:
        RiskError: the folder holds no readable result, or one that no estimate can be.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise RiskError(f"There is no folder {folder}, so it is not a saved estimate.")
    record = read_json(folder / "result.json", "a saved estimate")
    try:
        values = _fields(record)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        reason = error if isinstance(error, RiskError) else repr(error)
        raise RiskError(
            f"{folder / 'result.json'} is not the record of an estimate ({reason}). Run it again."
        ) from error
    file = folder / "posterior.nc"
    return RiskEstimate(**values, **(_arrays(read_tree(file), values, file) if file.exists() else {}))


def _fields(record: Mapping[str, Any]) -> dict[str, Any]:
    known = {f.name for f in fields(RiskEstimate)} - ARRAYS
    values = {k: v for k, v in record.items() if k in known}
    for name in ("log_prob", "std_error", "flops", "seconds"):
        values[name] = _number(values[name])
    for name in ("elbo", "dof", "training_flops"):
        values[name] = None if values.get(name) is None else _number(values[name])
    values["status"] = Status[values["status"]]
    values["hits"] = tuple(values["hits"]) if values.get("hits") else None
    values["evidence"] = {k: _number(v) for k, v in values["evidence"].items()}
    _plausible(values)
    return values


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise RiskError(f"a number is wanted, got {type(value).__name__}")
    return float(value)


def _plausible(values: Mapping[str, Any]) -> None:
    """Refuse what no estimate can be: the file was changed, or is somebody's own."""
    log_prob, error, status = values["log_prob"], values["std_error"], values["status"]
    for name in ("method", "remedy", "problem", "fingerprint"):
        if not isinstance(values.get(name, ""), str):
            raise RiskError(f"{name} is text")
    counts = [values.get(name, 0) for name in ("forward_calls", "gradient_calls")]
    if not all(type(v) is int and v >= 0 for v in [*counts, *(values["hits"] or ())]):
        raise RiskError("calls and hits are counts")
    if values["hits"] and not (len(values["hits"]) == 2 and values["hits"][0] <= values["hits"][1] > 0):
        raise RiskError("hits are (hits, draws), not more hits than draws")
    if not isinstance(values.get("settings", {}), Mapping) or type(values.get("seed")) not in (int, type(None)):
        raise RiskError("settings are a table and the seed is a whole number")
    if error < 0 or values["seconds"] < 0 or (values["dof"] is not None and values["dof"] <= 0):
        raise RiskError("an error, a time or degrees of freedom is negative")
    if log_prob > max(1e-6, ABOVE_ONE * error if math.isfinite(error) else 0.0):
        raise RiskError(f"log_prob is {log_prob:g}, and no probability is above 1")
    if status.believable and math.isnan(log_prob):
        raise RiskError(f"its status is {status.name} and it has no number")


def _arrays(tree: xr.DataTree, values: Mapping[str, Any], file: Path) -> dict[str, Any]:
    told = {"log_probability": values["log_prob"], "log_probability_se": values["std_error"]}
    if any(not _equal(tree.attrs[name], value) for name, value in told.items() if name in tree.attrs):
        raise RiskError(f"{file} belongs to another estimate than the result.json beside it. Delete one of them.")

    def group(name: str) -> dict[str, np.ndarray]:
        return {str(k): v.values for k, v in tree[name].data_vars.items()} if name in tree.children else {}

    for name in {"posterior", "sample_stats"} & set(tree.children):
        if thin := [v for v, array in group(name).items() if array.ndim < 2]:
            raise RiskError(f"{file}: {thin[0]!r} wants the dimensions (chain, draw, ...).")
    survival = None
    if "survival" in tree.children:
        held = tree["survival"]
        if {"threshold", "log_prob"} - {str(name) for name in held.variables}:
            raise RiskError(f"{file}: survival wants threshold and log_prob.")
        survival = (held["threshold"].values, held["log_prob"].values)
    return {
        "posterior": group("posterior"),
        "stats": group("sample_stats"),
        "history": {str(name): group(str(name)) for name in tree.children if name not in OWN_GROUPS},
        "survival": survival,
    }


def _equal(held: Any, value: float) -> bool:
    try:
        return float(held) == value or (math.isnan(float(held)) and math.isnan(value))
    except (TypeError, ValueError):
        return False
