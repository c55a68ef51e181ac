"""Seeds: reproducible draws that leave the caller's random state untouched.

`torch.distributions` takes no generator, so a seeded block forks torch's global state and restores it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Run a block under `seed`; afterwards the global random state is as it was before."""
    device = torch.device(device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def child_seeds(seed: int, count: int) -> list[int]:
    """Independent seeds for the units of a plan; the first `k` are the same whatever `count` is."""
    return [int(s.generate_state(1, np.uint64)[0]) >> 1 for s in np.random.SeedSequence(seed).spawn(count)]
