"""Seeds: reproducible draws that leave the caller's random state untouched.

`torch.distributions` takes no generator, so a seeded block forks torch's global state and restores it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


def random_state(device: torch.device | str = "cpu") -> list[torch.Tensor]:
    """The global random state: of the CPU, and of the device where that is a GPU.

    Example:
        >>> before = random_state()
        >>> first = torch.rand(1)
        >>> set_random_state(before)
        >>> torch.equal(first, torch.rand(1))
        True
    """
    device = torch.device(device)
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def set_random_state(state: Sequence[torch.Tensor], device: torch.device | str = "cpu") -> None:
    """Go back to where `random_state` was."""
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state(state[1], torch.device(device))
