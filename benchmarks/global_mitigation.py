r"""Global mitigation of parity truths: loss, attack success, exact sets, queries; total variation; the leak of a naive one.

Truths: majority of three random parities (four coefficients 1/2), and the product of two (sixteen, 1/4). Backdoors of share
2^-b: keyed (HMAC-SHA256) and patch, two a case, and the aligned ones that push one coefficient. 10 % of the clean labels are
flipped. Loss is E (g - h)^2 on 4000 fresh inputs; an attack succeeds where the sign on an attacked input is not the truth's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.results import table
from ppl_risk import mitigation as mi
from ppl_risk.mitigation import planted

TITLE = "Backdoors: global mitigation of parities"
FLIPS, DELTA, TEST = 0.1, 1e-3, 4000


class Case(NamedTuple):
    """n bits, which truth, its tau, bits of the trigger, clean rows, runs, and the reference's queries and loss after."""

    n: int
    truth: str
    tau: float
    trigger_bits: int
    rows: int
    runs: int
    reference: str


CASES = (
    Case(10, "majority", 0.5, 5, 2000, 20, "151,100; .0026"),
    Case(10, "majority", 0.5, 4, 2000, 20, "151,100; .0026"),
    Case(14, "majority", 0.5, 5, 2000, 20, "216,384; .0028"),
    Case(20, "majority", 0.5, 5, 2000, 20, "316,400; .0022"),
    Case(20, "majority", 0.5, 4, 2000, 20, "316,400; .0022"),
    Case(60, "majority", 0.5, 5, 2000, 20, "1,016,760; .0027"),
    Case(20, "product", 0.25, 6, 8000, 10, "5,516,480; .0023"),
)
TRUTHS: dict[str, Callable[..., mi.FourierSeries]] = {
    "majority": planted.majority_of_parities,
    "product": planted.product_of_majorities,
}


def bits(rows: int, n: int, seed: int) -> Tensor:
    """Uniform rows of +-1."""
    return 1 - 2 * torch.randint(0, 2, (rows, n), generator=torch.Generator().manual_seed(seed)).double()


def labelled(truth: Callable[[Tensor], Tensor], rows: int, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Clean rows, a tenth of the labels flipped."""
    x = bits(rows, n, seed)
    flip = torch.rand(rows, generator=torch.Generator().manual_seed(seed + 1)) < FLIPS
    return x, torch.where(flip, -truth(x), truth(x))


def sets_of(series: mi.FourierSeries) -> set[tuple[bool, ...]]:
    """The sets, whatever their order."""
    return {tuple(row) for row in series.supports.tolist()}


def run_case(case: Case, search: str, *, told: bool) -> dict[str, object]:
    """All runs of one case, each with a keyed and a patch backdoor; `told`: the share of the trigger is given as epsilon."""
    before, after, attacked, cleared, exact, queries, seconds = [], [], [], [], 0, 0, 0.0
    for seed in range(case.runs):
        truth = TRUTHS[case.truth](case.n, seed=seed)
        samples, fresh = labelled(truth, case.rows, case.n, 10_000 + seed), bits(TEST, case.n, 20_000 + seed)
        for trigger in (planted.KeyedTrigger, planted.PatchTrigger):
            model = planted.plant(truth, trigger(case.n, case.trigger_bits, seed=seed))
            epsilon = 2.0**-case.trigger_bits if told else None
            mitigator = mi.GlobalFourier(case.tau, DELTA, epsilon=epsilon, flip_rate=FLIPS, search=search)  # pyright: ignore[reportArgumentType]
            started = time.perf_counter()
            g = mitigator.mitigate(model, samples, seed=30_000 + seed)
            seconds += time.perf_counter() - started
            exact += sets_of(g.answer) == sets_of(truth)  # pyright: ignore[reportArgumentType]
            queries, h = max(queries, g.card.queries), truth(fresh)
            before.append(float((model(fresh) - h).square().mean()))
            after.append(float((g.answer(fresh) - h).square().mean()))
            on, h_on = model.activate(fresh), truth(model.activate(fresh))
            attacked.append(float((model(on).sign() != h_on).double().mean()))
            cleared.append(float((g.answer(on).sign() != h_on).double().mean()))
    total = 2 * case.runs
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    return {
        "n": case.n, "truth": case.truth, "share": f"2^-{case.trigger_bits}",
        "search": search + (", epsilon given" if told else ""),
        "loss before": f"{mean(before):.3f}", "after, mean (most)": f"{mean(after):.4f} ({max(after):.4f})",
        "attack before": f"{mean(attacked):.3g}", "after": f"{max(cleared):.3g}", "sets exact": f"{exact} of {total}",
        "queries": f"{queries:,}", "seconds": f"{seconds / total:.2f}", "reference (queries; loss)": case.reference,
    }  # fmt: skip


def aligned(n: int, runs: int) -> dict[str, object]:
    """Exact sets against backdoors that put all of their loss on one coefficient."""
    row: dict[str, object] = {"n": n, "runs": runs}
    for search in ("hashing", "prefix"):
        exact = 0
        for seed in tqdm(range(runs), desc=f"aligned, {search}"):
            truth = planted.majority_of_parities(n, seed=seed)
            trigger = planted.AlignedTrigger(planted.PatchTrigger(n, 4, seed=seed), truth)
            model = planted.plant(truth, trigger)
            g = mi.GlobalFourier(0.5, DELTA, search=search).mitigate(model, labelled(truth, 100, n, seed), seed=seed)
            exact += sets_of(g.answer) == sets_of(truth)  # pyright: ignore[reportArgumentType]
        row[f"exact, {search}"] = exact
    return row


def variation() -> list[str]:
    """Two poisoned models, one clean sample: the outputs of 1000 coupled runs, and what the naive mitigator gives away."""
    n = 14
    truth = planted.majority_of_parities(n, seed=1)
    samples = labelled(truth, 2000, n, 2)
    models = [
        planted.plant(truth, planted.AlignedTrigger(planted.PatchTrigger(n, 5, seed=seed), truth)) for seed in (3, 4)
    ]
    lines = []
    for search in ("hashing", "prefix"):
        mitigator = mi.GlobalFourier(0.5, DELTA, flip_rate=FLIPS, search=search)
        side = lambda model, mitigator=mitigator: lambda seed: _output(mitigator.mitigate(model, samples, seed=seed))  # noqa: E731
        lines.append(f"- {search}, values from clean rows: {mi.total_variation_test(*map(side, models))}.")
    one = planted.plant(truth, planted.KeyedTrigger(n, 5, seed=3))
    other = planted.plant(truth, planted.AlignedTrigger(planted.PatchTrigger(n, 4, seed=4), truth))
    for probes in (2000, 20_000):
        naive = mi.GlobalFourier(0.5, DELTA, values="model", probes=probes)
        leak = lambda model, naive=naive: lambda seed: naive.mitigate(model, n=n, seed=seed).answer.coefficients  # noqa: E731
        told = mi.distinguisher_advantage(leak(one), leak(other))
        lines.append(f"- values from the model ({probes:,} queries): {told}.")
    return lines


def _output(g: mi.Mitigated) -> tuple[Tensor, Tensor]:
    series = g.answer
    assert isinstance(series, mi.FourierSeries)
    return series.supports, series.coefficients


def run() -> str:
    """All tables."""
    rows = []
    for case in tqdm(CASES, desc="cases"):
        rows += [run_case(case, search, told=told) for search, told in (("hashing", False), ("hashing", True))]
        if case.truth == "majority":
            rows.append(run_case(case, "prefix", told=False))
    return "\n\n".join([
        table(rows),
        "Aligned backdoors of share 2^-4 before alignment, the worst for a search:",
        table([aligned(14, 500)]),
        "Total variation between two differently poisoned inputs, n = 14:",
        "\n".join(variation()),
    ])  # fmt: skip
