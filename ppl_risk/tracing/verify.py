"""A record held against the network: on rows of the law, on rows of one three times as wide, and against a second record.

Whatever the record misses (memory written unseen, a branch on values, NumPy or gradients inside, rows that mix) makes one of these
differ, unless it shows on none of 128 rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ppl_risk.errors import RiskError
from ppl_risk.problem import BATCH_BYTES, RiskProblem
from ppl_risk.randomness import seeded
from ppl_risk.tracing.tape import Step, Tape
from ppl_risk.tracing.twice import INSTEAD

#: Rows of the law, and rows of a wider one.
ROWS, WIDER = 64, 3.0
#: Rows of each where a step takes one row at a time.
FEW = 8
#: Rows that run through the network at once; every network is run on as many.
BATCH = 16
#: Rows that may differ where both answers agree with the record's of that row alone: they sit at a jump, where rounding decides.
AT_A_JUMP = 2
#: A difference this large, in standard deviations of the margin, between the network's arithmetic and an exact one counts.
ROUNDING_SEEN = 0.01


def sample_rows(problem: RiskProblem, seed: int = 0) -> tuple[Tensor, Tensor]:
    """64 inputs of the law, and 64 of one three times as wide: 3 u in the normal space, or scaled about the mean."""
    with seeded(seed, problem.device):
        x = problem.sample(ROWS)
        try:
            dimension = problem.transport.dimension
            wide = problem.from_normal(WIDER * torch.randn(ROWS, dimension, dtype=torch.float64))
        except RiskError:
            middle = x.double().mean(0, keepdim=True).to(x.dtype)
            wide = middle + WIDER * (problem.sample(ROWS) - middle) if x.is_floating_point() else problem.sample(ROWS)
    return x, wide


def hold(problem: RiskProblem, tape: Tape, x: Tensor, wide: Tensor, again: Callable[[Tensor], Tape | None]) -> None:
    """The tape gives the network's margins.

    Args:
        problem: the problem.
        tape: its record.
        x: inputs of the law (rows, *event).
        wide: inputs of a wider one.
        again: one row -> the record of that row.

    Raises:
        RiskError: it does not; the first step that differs is named where one does.
    """
    if not _takes_many(tape, x):
        x, wide = x[:FEW], wide[:FEW]
    true, far = margins(problem, x), margins(problem, wide)
    scale = _spread(true)
    rows, seen = torch.cat([x, wide]), torch.cat([true, far])
    read = run(tape, rows, native)
    off = _differ(read, seen, scale)
    if bool(off.any()):
        _explain(problem, tape, rows, seen, off, scale, again)
    exact = run(tape, x, in_double)
    slack = ROUNDING_SEEN * scale + _tolerance(true.dtype) * true.double().abs()
    off = ~_same(exact, true.double(), slack) & exact.isfinite()
    if int(off.sum()) > AT_A_JUMP:
        gap = float((exact - true.double())[off].abs().max())
        raise RiskError(
            f"{problem.name}: rounding in {true.dtype} changes the margin by up to {gap:.2g}, where it varies by {scale:.2g}, so "
            "what is read from the network in exact arithmetic is not what it computes. Run network and law in torch.float64, or "
            "use run_smc or estimate, which only run the network."
        )


@torch.no_grad()
def margins(problem: RiskProblem, x: Tensor) -> Float[Tensor, " rows"]:
    """The network's margins of x (rows, *event), which it may change in place."""
    found = []
    for part in x.split(BATCH):
        margin = problem.run(part.clone())
        if not isinstance(margin, Tensor) or margin.numel() != len(part):
            what = f"shape {tuple(margin.shape)}" if isinstance(margin, Tensor) else type(margin).__name__
            raise RiskError(
                f"{problem.name}: network and detector returned {what} for {len(part)} inputs; one margin per row is wanted, of "
                f"shape ({len(part)},)."
            )
        found.append(margin.reshape(-1))
    return torch.cat(found)


def native(step: Step) -> Callable[..., Tensor]:
    """A step in the types of the network."""
    return step.native or step.call


def in_double(step: Step) -> Callable[..., Tensor]:
    """A step as readers call it."""
    return step.call


@torch.no_grad()
def run(
    tape: Tape, x: Tensor, how: Callable[[Step], Callable[..., Tensor]]
) -> Float[Tensor, " rows"]:
    """The last step on every row."""
    if how is in_double and x.is_floating_point():
        x = x.double()
    per_row = 8 * sum(step.size for step in tape.steps)
    found = []
    with _without_a_word(), sdpa_kernel(SDPBackend.MATH):
        for part in x.split(max(1, BATCH_BYTES // per_row)):
            value = part.reshape(len(part), *tape.steps[0].shape)
            try:
                *_, (_, value) = tape.values(value, lambda step: torch.vmap(how(step)))
                found.append(value.reshape(len(part), -1)[:, 0])
            except RuntimeError:
                # An operator that takes one row at a time.
                found.append(torch.stack([_alone(tape, row[None], how) for row in part]))
    return torch.cat(found)


@contextmanager
def _without_a_word() -> Iterator[None]:
    """Operators that go row by row under vmap warn that they are slow; here that does not matter."""
    torch._C._functorch._set_vmap_fallback_warning_enabled(False)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch._C._functorch._set_vmap_fallback_warning_enabled(True)  # pyright: ignore[reportAttributeAccessIssue]


def _takes_many(tape: Tape, x: Tensor) -> bool:
    """Whether all steps can be run on many rows at once."""
    try:
        with _without_a_word(), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            for _ in tape.values(x[:2].reshape(-1, *tape.steps[0].shape), lambda step: torch.vmap(native(step))):
                pass
    except RuntimeError:
        return False
    return True


def _alone(tape: Tape, row: Tensor, how: Callable[[Step], Callable[..., Tensor]]) -> Tensor:
    *_, (_, value) = tape.values(row.reshape(tape.steps[0].shape), how)
    return value.reshape(-1)[0]


def _explain(
    problem: RiskProblem,
    tape: Tape,
    rows: Tensor,
    seen: Tensor,
    off: Tensor,
    scale: float,
    again: Callable[[Tensor], Tape | None],
) -> None:
    """Say why rows differ; return where only rounding does."""
    places = off.nonzero().flatten()
    for place in places[:4].tolist():
        row = rows[place : place + 1]
        alone = margins(problem, row)
        with torch.no_grad():
            read = _alone(tape, row.clone(), native)[None]
        if not bool(_differ(read, alone, scale)):
            continue
        other = again(row)
        where = _first_difference(tape, other, row)
        raise RiskError(
            f"{problem.name}: what is recorded of the network is not what it computes: on a row of the input law's space the "
            f"margin is {float(alone):.6g} and the record gives {float(read):.6g}. {where} {INSTEAD}"
        )
    if len(places) > AT_A_JUMP:
        worst = int(places[0])
        raise RiskError(
            f"{problem.name}: the rows of a batch influence each other: the margin of a row alone is not its margin among "
            f"others (row {worst}: {float(margins(problem, rows[worst : worst + 1])):.6g} against {float(seen[worst]):.6g}). Use "
            "operations along dim >= 1 only; network.eval() if it has batch normalisation."
        )


def _first_difference(tape: Tape, other: Tape | None, row: Tensor) -> str:
    """The first step at which the tape and the record of one row part."""
    if other is None:
        return "On that row nothing depends on the input."
    values = dict[str, Tensor]()
    with torch.no_grad():
        for step, value in other.values(row.reshape(other.steps[0].shape), native):
            values[step.name] = value
        mine = tape.values(row.reshape(tape.steps[0].shape), native)
        for (step, value), twin in zip(mine, other.steps, strict=False):
            if (step.op, step.parents, step.shape) != (twin.op, twin.parents, twin.shape):
                return f'The first step that differs is {step.name!r}: "{step.op}" recorded, "{twin.op}" on that row.'
            if not bool(
                _same(value, values[twin.name], 1e-6 * value.abs() if value.is_floating_point() else 0.0).all()
            ):
                return f'The first step that differs is {step.name!r} ("{step.op}"): a constant in it depends on the input.'
    return "No recorded step differs, so something else does: memory that the record does not see, or a state of the network."


def _differ(read: Tensor, seen: Tensor, scale: float) -> Tensor:
    tolerance = _tolerance(seen.dtype)
    return ~_same(read.double(), seen.double(), tolerance * (scale + seen.double().abs()))


def _same(a: Tensor, b: Tensor, slack: Any) -> Tensor:
    if not a.is_floating_point():
        return a == b
    return (a == b) | (a.isnan() & b.isnan()) | ((a - b).abs() <= slack)


def _tolerance(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps ** 0.5 if dtype.is_floating_point else 0.0


def _spread(margin: Tensor) -> float:
    """Half the width of the middle two thirds; 0 where most rows agree."""
    finite = margin.double()[margin.isfinite()]
    if not len(finite):
        return 0.0
    low, high = finite.quantile(torch.tensor([1 / 6, 5 / 6], dtype=torch.float64, device=finite.device)).tolist()
    return (high - low) / 2
