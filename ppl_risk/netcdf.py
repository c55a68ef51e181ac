"""Trees of arrays as netCDF files: written through memory, and looked at before they are read.

A netCDF file is an HDF5 file, which may name other files (external links, external storage, virtual datasets), describe arrays far
larger than itself, or hold itself. None of that is in a file of ours, so a file with any of it is not opened by xarray.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import xarray as xr
from h5py import h5o  # pyright: ignore[reportAttributeAccessIssue]

from ppl_risk.errors import RiskError
from ppl_risk.files import write_whole

#: deflate, shuffle, fletcher32: what every HDF5 library has, and no plug-in.
FILTERS = {1, 2, 3}
#: Arrays may be this many times as large as their file (we never compress, others may), and this much in any case.
INFLATION, ALWAYS = 4, 2**20
#: Groups within groups: ours go one deep.
DEEPEST = 8


def write_tree(tree: xr.DataTree, path: Path) -> None:
    """Write a tree. HDF5 meets no full disk this way: it would bring the process down when it closes the file.

    Raises:
        RiskError: the file cannot be written.
    """
    write_whole(path, bytes(tree.to_netcdf(None, engine="h5netcdf")))


def read_tree(path: Path) -> xr.DataTree:
    """Read a tree, whole, so that the file can be written over.

    Raises:
        RiskError: the file is damaged, or is not one that `write_tree` could have made.
    """
    if not path.is_file():
        raise RiskError(f"{path} is not a file.")
    try:
        with h5py.File(path, "r") as file:
            declared = _declared(file, path, {_address(file)}, DEEPEST)
        if declared > max(ALWAYS, INFLATION * path.stat().st_size):
            raise RiskError(
                f"{path} has {path.stat().st_size:,} bytes and says that it holds {declared:,}. That is not a posterior; not read."
            )
        with xr.open_datatree(path, engine="h5netcdf") as lazy:
            return lazy.load()
    except RiskError:
        raise
    except Exception as error:  # whatever HDF5, h5netcdf and xarray raise on bytes that are not theirs
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise RiskError(f"{path} cannot be read: {reason}. Delete it to load the number alone.") from error


def _declared(group: h5py.Group, path: Path, seen: set[tuple[int, int]], deepest: int) -> int:
    """Bytes of all arrays under a group, as they would be in memory."""
    total = 0
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise RiskError(f"{path}: {name!r} is a link to another place or file. Not opened.")
        found = group[name]
        if isinstance(found, h5py.Dataset):
            total += _size(found, path)
            continue
        if not isinstance(found, h5py.Group):
            continue  # a named type
        if _address(found) in seen or deepest == 0:
            raise RiskError(f"{path}: the group {name!r} holds itself, or groups too deep. Not opened.")
        seen.add(_address(found))
        total += _declared(found, path, seen, deepest - 1)
    return total


def _size(data: h5py.Dataset, path: Path) -> int:
    if data.external or data.is_virtual:
        raise RiskError(f"{path}: the values of {data.name!r} are in another file. Not opened.")
    plan = data.id.get_create_plist()
    if {plan.get_filter(i)[0] for i in range(plan.get_nfilters())} - FILTERS:
        raise RiskError(f"{path}: {data.name!r} needs a plug-in to be read. Not opened.")
    size = 1
    for length in data.shape or ():
        size *= int(length)
    return size * data.dtype.itemsize


def _address(thing: h5py.Group) -> tuple[int, int]:
    info = h5o.get_info(thing.id)
    return int(info.fileno), int(info.addr)
