r"""Heavy Fourier coefficients through queries, prefix by prefix (Kushilevitz and Mansour 1991, after Goldreich and Levin 1989).

After k bits a bucket is a set S' of the first k; its weight is the energy of all sets that begin so,

    W(S') = sum over T in the other bits of f^(S' u T)^2 = E f(y) f(y') chi_S'(y xor y'),

y and y' uniform, equal beyond bit k and independent before. Buckets below 5 tau^2 / 16 are dropped, the others split in two.
One sample of M pairs a level serves all buckets, so a level costs 2M queries however many are alive:

    M = ceil(32 ln(2B / delta) / tau^4), B = 32 n / tau^2.

The paper's proof rests on this search [as reported by a public reading note]. The shared sample, the threshold and M are ours:
with heavy coefficients >= 3 tau / 4 and others <= tau / 4, tau^2 / 2 is too high a threshold (an aligned backdoor then loses
one coefficient in eight runs). `heavy_hashing` asks tens of times fewer queries; this file is its check.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool
from torch import Tensor

from ppl_risk.errors import RiskError
from ppl_risk.mitigation.fourier_series import characters
from ppl_risk.mitigation.mitigated import Oracle

#: In units of tau^2, and the number of buckets alive at which the premise is given up.
THRESHOLD, MOST_ALIVE = 5 / 16, 64
ROWS = 65_536


def pairs_per_level(n: int, tau: float, delta: float) -> int:
    """M of the head of this file.

    Example:
        >>> 2 * 20 * pairs_per_level(20, 0.5, 1e-3)
        316400

    """
    return math.ceil(32 * math.log(2 * (32 * n / tau**2) / delta) / tau**4)


def find_by_prefix(oracle: Oracle, n: int, tau: float, delta: float, generator: torch.Generator) -> Bool[Tensor, "k n"]:
    """All sets of heavy coefficient, in a fixed order.

    Raises:
        RiskError: if more buckets stay alive than any function with |f| <= 1 and such coefficients has.

    Example:
        >>> f = Oracle(lambda x: x[:, 0] * x[:, 2])
        >>> find_by_prefix(f, 4, 0.9, 1e-2, torch.Generator().manual_seed(0)).tolist()
        [[True, False, True, False]]

    """
    pairs = pairs_per_level(n, tau, delta)
    alive = torch.zeros(1, n, dtype=torch.bool)
    for k in range(1, n + 1):
        split = alive.clone()
        split[:, k - 1] = True
        alive = torch.cat([alive, split])
        weight = torch.zeros(len(alive), dtype=torch.float64)
        for start in range(0, pairs, ROWS):
            rows = min(ROWS, pairs - start)
            coins = torch.randint(0, 2, (2, rows, n), generator=generator, dtype=torch.int8)
            coins[1, :, k:] = coins[0, :, k:]
            y, other = 1 - 2 * coins.double()
            product = oracle(y).clamp(-1.0, 1.0) * oracle(other).clamp(-1.0, 1.0)
            weight += product @ characters(y * other, alive)
        alive = alive[weight / pairs >= THRESHOLD * tau**2]
        if len(alive) > MOST_ALIVE / tau**2:
            raise RiskError(
                f"{len(alive)} buckets are alive after {k} of {n} bits; a function of heavy coefficients >= {tau:g} has at most "
                f"{1 / tau**2:.0f}. Its spectrum is not of this kind: give a larger tau, or relearn from clean rows."
            )
    return alive.unique(dim=0)
