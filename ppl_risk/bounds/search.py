"""Which radii to try: a grid, then finer ones beside the largest certified radius and beside the radius of PROVEN's least bound.

Whether a radius is certified need not be monotone in it, and need not be: each one that is stands for itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tqdm.auto import tqdm

#: Radii of the first round, in units of sqrt(d), the typical |u|; then so many between two neighbours, so many times.
GRID = [1e-3 * 10 ** (k * 4.5 / 23) for k in range(24)]
FINER, ROUNDS = 8, 3


@dataclass
class Clock:
    """A time after which no further radius is begun; `rang`: whether one was left out."""

    started: float
    seconds: float | None = None
    rang: bool = False

    def over(self) -> bool:
        """Whether to stop."""
        self.rang = self.rang or (self.seconds is not None and time.perf_counter() - self.started > self.seconds)
        return self.rang


@dataclass
class Search:
    """Radii tried, in standard deviations, and what each proves; log bounds in nats, 0 where nothing."""

    radii: list[float] = field(default_factory=list)
    certified: list[bool] = field(default_factory=list)
    ball: list[float] = field(default_factory=list)
    proven: list[float] = field(default_factory=list)

    @property
    def radius(self) -> float:
        """Largest certified; 0 where none is."""
        return max((r for r, ok in zip(self.radii, self.certified, strict=True) if ok), default=0.0)

    def between(self, radius: float) -> list[float]:
        """Radii between the neighbours of one of those tried, itself left out."""
        low = max((r for r in self.radii if r < radius), default=0.0)
        high = min((r for r in self.radii if r > radius), default=2 * radius)
        return [low + (high - low) * k / (FINER + 1) for k in range(1, FINER + 1)]

    def next(self) -> list[float]:
        """Radii worth trying now: around the largest certified one, and around PROVEN's best."""
        largest = self.radius
        above = min((r for r in self.radii if r > largest), default=30 * largest)
        fresh = [largest + (above - largest) * k / (FINER + 1) for k in range(1, FINER + 1)]
        best = min(self.proven, default=0.0)
        return fresh + (self.between(self.radii[self.proven.index(best)]) if best < 0 else [])


def rounds(
    prove: Callable[[list[float]], None],
    search: Search,
    first: list[float],
    radii: Sequence[float] | None,
    progress: bool,
) -> None:
    """Try the radii given, or a grid and then, several times, the gaps where the answer lies."""
    with tqdm(total=1 if radii is not None else 1 + ROUNDS, disable=not progress, desc="bounds", unit="round") as bar:
        prove(list(radii) if radii is not None else first)
        bar.update()
        for _ in range(0 if radii is not None else ROUNDS):
            fresh = search.next()
            if search.radius > 0 or min(search.proven, default=0.0) < 0:
                prove([r for r in fresh if r > 0])
            bar.update()
