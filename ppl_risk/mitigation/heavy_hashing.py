r"""Heavy Fourier coefficients through queries, by hashing: n / tau queries up to logarithms, where prefixes take n / tau^4.

One trial draws a point x and t random directions, the rows of V (t, n) over GF(2). For each of the n + 1 shifts (none, or one
flipped bit e_i) the model is asked at all 2^t points x + e_i + uV, and a Walsh-Hadamard transform over u gives for every b

    U_b^i = sum over S with V S = b of f^(S) chi_S(x + e_i).

If S is alone in its bucket b, then U_b^i / U_b^0 is -1 where i is in S and +1 elsewhere: n + 1 signs spell S. With f = h + r,
k heavy sets, |f^(S)| >= mu and E r^2 <= e, a trial misspells a heavy S with probability at most

    q = (k - 1) / 2^t  +  (n + 1) e / (2^t mu^2):

another heavy set falls into its bucket (probability 2^-t each), or at one of the shifts the part of r in the bucket, whose
mean square is at most e / 2^t, reaches mu (Chebyshev). R trials miss some heavy set with probability at most k q^R. Buckets
that are not alone spell nonsense, so every spelt set is then checked on fresh points: kept if its coefficient is estimated at
tau / 2 or more, with Hoeffding's bound over all that were spelt.

The self-correcting idea is that of Goldreich and Levin 1989 (after Levin and Rackoff, pairwise independent queries) and of
sparse Walsh-Hadamard transforms; this arrangement and its bounds are ours, not the paper's.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from ppl_risk.errors import RiskError
from ppl_risk.mitigation.fourier_series import characters, walsh_hadamard
from ppl_risk.mitigation.mitigated import Oracle

#: Buckets of one trial are 2^t; beyond this a trial no longer fits into memory.
LARGEST_HASH = 22


class HeavyPremise(NamedTuple):
    """What is presumed of f = h + r: n bits, k heavy sets at most, each of |f^| >= mu, others <= light, E r^2 <= energy."""

    n: int
    heavy: int
    mu: float
    light: float
    energy: float
    tau: float


class HashPlan(NamedTuple):
    """2^bits buckets, trials, and points to check what was spelt; `queries` in all."""

    bits: int
    trials: int
    checks: int
    queries: int


def misspelling(premise: HeavyPremise, bits: int) -> float:
    """The bound q on the probability that one trial misspells a heavy set."""
    return ((premise.heavy - 1) + (premise.n + 1) * premise.energy / premise.mu**2) / 2.0**bits


def plan_hashing(premise: HeavyPremise, delta: float) -> HashPlan:
    """The cheapest plan that finds exactly the heavy sets but for a probability delta, half of it for each step.

    Raises:
        RiskError: if the light coefficients may reach tau / 2, so that nothing tells them from heavy ones.

    Example:
        >>> plan_hashing(HeavyPremise(20, 4, 0.4375, 0.0625, 0.125, 0.5), 1e-3)
        HashPlan(bits=5, trials=14, checks=780, queries=10188)

    """
    gap = premise.tau / 2 - premise.light
    if gap <= 0 or premise.mu <= premise.tau / 2:
        raise RiskError(
            f"Coefficients of the backdoor may reach {premise.light:.3g}, and heavy ones are {premise.tau:g}: nothing tells them "
            "apart. epsilon must be below tau / 4; give a larger tau, or relearn from clean rows."
        )
    plans = []
    for bits in range(1, LARGEST_HASH + 1):
        q = misspelling(premise, bits)
        if q >= 1:
            continue
        trials = max(1, math.ceil(math.log(2 * premise.heavy / delta) / -math.log(q)))
        checks = math.ceil(2 * math.log(2 * trials * 2**bits / delta) / gap**2)
        plans.append(HashPlan(bits, trials, checks, trials * (premise.n + 1) * 2**bits + checks))
    if not plans:
        raise RiskError(f"n = {premise.n} at this tau wants more than 2^{LARGEST_HASH} buckets. Give a larger tau.")
    return min(plans, key=lambda plan: plan.queries)


def spell(oracle: Oracle, n: int, bits: int, generator: torch.Generator) -> Bool[Tensor, "spelt n"]:
    """The sets that one trial spells, where they fall into the bucket they were read from."""
    flips = lambda *shape: torch.randint(0, 2, shape, generator=generator).bool()  # noqa: E731 - a coin
    directions, start = flips(bits, n), flips(n)
    u = (torch.arange(2**bits)[:, None] >> torch.arange(bits)) & 1
    walks = torch.remainder(u.double() @ directions.double(), 2).bool() ^ start
    shifts = torch.cat([torch.zeros(1, n, dtype=torch.bool), torch.eye(n, dtype=torch.bool)])
    # One shift at a time: memory holds 2^t points, not n + 1 times as many.
    answers = torch.stack([oracle(1 - 2 * (walks ^ shift).double()).clamp(-1.0, 1.0) for shift in shifts])
    buckets = walsh_hadamard(answers) / 2**bits
    spelt = (buckets[1:] * buckets[0] < 0).mT
    consistent = (torch.remainder(spelt.double() @ directions.double().mT, 2) == u).all(-1)
    return spelt[consistent & (buckets[0] != 0)]


def find_by_hashing(
    oracle: Oracle, premise: HeavyPremise, delta: float, generator: torch.Generator
) -> tuple[Bool[Tensor, "k n"], HashPlan]:
    """All sets of heavy coefficient, in a fixed order, and the plan that found them.

    Example:
        >>> f, premise = Oracle(lambda x: x[:, 0] * x[:, 2]), HeavyPremise(4, 1, 0.9, 0.1, 0.2, 1.0)
        >>> find_by_hashing(f, premise, 1e-6, torch.Generator().manual_seed(0))[0].tolist()
        [[True, False, True, False]]

    """
    plan = plan_hashing(premise, delta)
    spelt = torch.cat([spell(oracle, premise.n, plan.bits, generator) for _ in range(plan.trials)]).unique(dim=0)
    return check_sets(oracle, spelt, plan.checks, premise.tau / 2, generator), plan


def check_sets(
    oracle: Oracle, sets: Bool[Tensor, "c n"], checks: int, threshold: float, generator: torch.Generator
) -> Bool[Tensor, "k n"]:
    """Those sets whose coefficient, estimated on fresh points, is at least the threshold in size."""
    x = 1 - 2 * torch.randint(0, 2, (checks, sets.shape[1]), generator=generator).double()
    y = oracle(x).clamp(-1.0, 1.0)
    found = torch.cat([y @ characters(x, part) for part in sets.split(4096)]) / checks if len(sets) else y[:0]
    return sets[found.abs() >= threshold]
