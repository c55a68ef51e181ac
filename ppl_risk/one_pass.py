"""One pass of a batch through network and detector, the same for every method that makes one.

A margin is one number per row, in single precision at least, without a graph where gradients are off. A row that comes alone is
run a second time beside itself where the network loses the dimension of a batch of one (`y.squeeze()`). What the network raises
becomes a `NetworkError` that says on what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ppl_risk.errors import NetworkError, RiskError, first_line
from ppl_risk.memory import is_out_of_memory
from ppl_risk.network import Visitor, is_half, visiting

Answer = Callable[[Tensor], Any]


def one_pass(
    answer: Answer,
    modules: Mapping[str, nn.Module],
    x: Tensor,
    visit: Visitor | None = None,
    read: Visitor | None = None,
    skipped: dict[str, str] | None = None,
    pair: bool = False,
) -> tuple[Tensor, bool]:
    """Margins of one batch, and whether a row that comes alone has to be run beside itself.

    Args:
        answer: inputs (batch, *event) -> margins, as the user wrote it.
        modules: where `visit`, `read` and `skipped` act, as in `network.visiting`.
        x: inputs.
        visit: for what the modules return.
        read: for what they read.
        skipped: takes the modules that are no sites, and why.
        pair: what is known of rows that come alone.

    Raises:
        NetworkError: the network or its detector raised an error.
    """

    def once(x: Tensor, visit: Visitor | None, read: Visitor | None) -> Any:
        with _visiting(modules, visit, read, skipped), _named_errors(x):
            return _as_margin(answer(x), x.shape[0])

    # A record is of one row as it is: whether it holds for others is looked at by who records.
    if x.shape[0] != 1 or get_proxy_mode() is not None:
        return once(x, visit, read), pair
    error: NetworkError | None = None
    if not pair:
        try:
            margin = once(x, visit, read)
            if not isinstance(margin, Tensor) or margin.shape == (1,):
                return margin, pair
        except NetworkError as raised:
            error = raised
    try:
        margin = once(torch.cat([x, x]), _of_first_row(visit), _of_first_row(read))
    except NetworkError as raised:
        raise (error or raised) from None
    return margin[:1], True


def _visiting(
    modules: Mapping[str, nn.Module], visit: Visitor | None, read: Visitor | None, skipped: dict[str, str] | None
) -> AbstractContextManager[None]:
    return nullcontext() if visit is read is None else visiting(modules, visit, read, skipped)


def _as_margin(margin: Any, rows: int) -> Any:
    """A margin as every method wants it; what is no tensor stays, for the preflight to name."""
    if not isinstance(margin, Tensor):
        return margin
    if margin.dim() == 0 and rows == 1:
        margin = margin.reshape(1)
    if is_half(margin.dtype):
        margin = margin.float()
    if not torch.is_grad_enabled() and margin.requires_grad:
        margin = margin.detach()
    # A tensor made in inference mode takes part in nothing that is differentiated or changed afterwards.
    return margin.clone() if margin.is_inference() and not torch.is_inference_mode_enabled() else margin


def _of_first_row(change: Visitor | None) -> Visitor | None:
    """A visitor that sees the first of two equal rows; what it returns goes to both."""
    if change is None:
        return None

    def first(name: str, value: Tensor) -> Tensor:
        if value.dim() == 0 or value.shape[0] != 2:
            return value
        seen = value[:1]
        new = change(name, seen)
        return value if new is seen else torch.cat([new, new])

    return first


@contextmanager
def _named_errors(x: Tensor) -> Iterator[None]:
    try:
        yield
    except RiskError:
        raise
    except Exception as error:
        # Memory is somebody else's to mend; a recorder reads torch's own errors.
        if is_out_of_memory(error) or (get_proxy_mode() is not None and isinstance(error, RuntimeError)):
            raise
        raise NetworkError(
            f"The network or its detector fails on a batch of shape {tuple(x.shape)} and type {x.dtype}: "
            f'{type(error).__name__}, "{first_line(error)}". It must take any number of rows, and every input that the law draws.'
        ) from error


def differentiate(total: Tensor, of: Sequence[Tensor], **options: Any) -> tuple[Any, ...]:
    """d total / d each tensor, as `torch.autograd.grad`.

    Raises:
        NetworkError: autograd cannot go back through a step, as after a change in place.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> differentiate(x.square().sum(), [x])
        (tensor([2., 2.]),)
    """
    try:
        return torch.autograd.grad(total, list(of), **options)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise NetworkError(
            f'The margin cannot be differentiated: "{first_line(error)}". Mend the step that it names (often one that works '
            "in place), or use what needs no gradient: ppl_risk.estimate, run_smc(moves='pcn'), monte_carlo."
        ) from error


def gather(
    parts: Sequence[Mapping[str, Tensor]], rows: Sequence[int], skipped: Mapping[str, str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Values of sites over several batches, and the sites that have no value for every row, each with the reason.

    Args:
        parts: per batch, name -> value.
        rows: rows of each batch.
        skipped: what is known to be no site.

    Example:
        >>> gather([{"a": torch.zeros(2, 3), "b": torch.zeros(1, 3)}], [2], {})[1]
        {'b': 'returned shape (1, 3) for 2 rows'}
    """
    values, left_out = dict[str, Tensor](), dict(skipped)
    for name in dict.fromkeys(name for part in parts for name in part):
        found = [part.get(name) for part in parts]
        held = [value for value in found if value is not None]
        leading = [value.shape[0] if value.dim() else -1 for value in held]
        odd = next((at for at, (a, b) in enumerate(zip(leading, rows, strict=False)) if a != b), None)
        if len(held) < len(parts):
            left_out[name] = "runs on some rows only"
        elif odd is not None:
            partly = " (it runs on some rows only)" if 1 < leading[odd] < rows[odd] else ""
            left_out[name] = f"returned shape {tuple(held[odd].shape)} for {rows[odd]} rows{partly}"
        elif any(value.is_complex() for value in held):
            left_out[name] = "returns complex numbers"
        elif len({value.shape[1:] for value in held}) > 1:
            left_out[name] = "returns another shape for other inputs"
        else:
            values[name] = torch.cat(held)
    return values, left_out


def refusal(left_out: Mapping[str, str]) -> RiskError:
    """The error of a method that needs a value of every layer for every row."""
    name, why = next(iter(left_out.items()))
    layer = name.split("#")[0]
    return RiskError(
        f'Layer "{layer}" {why}. A site needs one row per input row: leave the layer out of layers=[...]. '
        "ppl_risk.estimate, run_smc and monte_carlo need no layers."
    )
