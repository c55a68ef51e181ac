"""A mitigated model: a network like any other, with the card of its guarantee; and the meter on the poisoned one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ppl_risk.errors import PremiseError, RiskError
from ppl_risk.mitigation.card import GuaranteeCard
from ppl_risk.mitigation.wanted import rows_in, whole
from ppl_risk.risk_estimate import Status

#: A model as a black box: rows in, one number a row out.
BlackBox = Callable[[Tensor], Tensor]


class Oracle(nn.Module):
    """The poisoned model behind a counter: rows are put to it in batches, in double precision out, without gradients.

    Example:
        >>> f = Oracle(lambda x: x.sum(-1)); f(torch.ones(3, 2)).tolist(), f.queries
        ([2.0, 2.0, 2.0], 3)

    """

    def __init__(self, model: BlackBox, *, batch: int = 65_536, gradients: bool = False) -> None:
        super().__init__()
        whole("batch", batch, least=1)
        if not callable(model):
            raise RiskError(
                f"The model to mitigate must be a callable from rows to one number a row, got {type(model).__name__}."
            )
        self.model, self.batch, self.gradients, self.queries = model, batch, gradients, 0
        self._dtype: torch.dtype | None = None
        #: Relative rounding of the answers' type, the coarsest seen.
        self.rounding = 0.0
        # Not eval(): the model is the caller's, and preflight says where it is in training mode.
        self.training = False

    def ask(self, x: Float[Tensor, "rows n"]) -> Tensor:
        """The model's own answer to a copy of the rows, put where its tensors live and in their type, if it shows any.

        A plain callable is asked in double precision first, then in single: weights in a closure do not show. What single
        precision rounds off, trials magnify. A model may write into what it is given, and answer from memory that it reuses.

        Raises:
            RiskError: if the model cannot answer the rows, or not by one real number a row.

        """
        tensors = chain(self.model.parameters(), self.model.buffers()) if isinstance(self.model, nn.Module) else ()
        first = next((t for t in tensors if t.is_floating_point()), None)
        if first is not None:
            return self._answers(x.to(first))
        if self._dtype is None and x.is_floating_point():
            try:
                answers = self._answers(x)
            except RiskError as error:
                if not isinstance(error.__cause__, RuntimeError):
                    raise
                answers, self._dtype = self._answers(x.float()), torch.float32
            else:
                self._dtype = x.dtype
            return answers
        return self._answers(x if self._dtype is None else x.to(self._dtype))

    def forward(self, x: Float[Tensor, "rows n"]) -> Float[Tensor, " rows"]:
        """The model's answers, float64.

        Raises:
            RiskError: if it does not return one finite number a row.

        """
        self.queries += len(x)
        with torch.set_grad_enabled(self.gradients and torch.is_grad_enabled()):
            parts = [self.ask(part) for part in x.split(self.batch)]
        out = torch.cat(parts).to(x.device)
        if out.is_floating_point():
            self.rounding = max(self.rounding, torch.finfo(out.dtype).eps)
        out = out.double()
        if not bool(torch.isfinite(out).all()):
            raise RiskError(
                "The model returned NaN or infinity; a median over its answers would hide it. Mend the model first."
            )
        return out

    def _answers(self, x: Tensor) -> Tensor:
        """(rows,), memory of its own."""
        rows = len(x)
        try:
            found = self.model(x.clone())
        except RiskError:
            raise
        except Exception as error:
            raise RiskError(
                f"The model cannot answer rows of shape {tuple(x.shape)} and type {x.dtype}: {type(error).__name__}: {error} "
                "A model takes rows (batch, n) and returns one number a row."
            ) from error
        try:
            out = torch.as_tensor(found)
        except (TypeError, ValueError, RuntimeError) as error:
            raise RiskError(f"The model returned {type(found).__name__}; one number a row is wanted.") from error
        single = rows == 1 and out.numel() == 1
        if not (single or (out.numel() == rows and out.dim() and rows in (out.shape[0], out.shape[-1]))) or (
            out.is_complex()
        ):
            raise RiskError(
                f"The model returned {tuple(out.shape)} of {out.dtype} for {rows} rows; one number a row is wanted."
            )
        return out.reshape(rows).clone()


class Mitigated(nn.Module):
    """A mitigated model g: (batch, n) -> (batch,), deterministic once made, with its guarantee in `card`.

    Raises when called:
        PremiseError: if a premise on the card fails; `anyway()` gives the same model without this stop, and without a promise.

    """

    def __init__(self, answer: nn.Module, card: GuaranteeCard) -> None:
        super().__init__()
        if not callable(answer) or not isinstance(card, GuaranteeCard):
            raise RiskError(
                f"A mitigated model is an answer and its GuaranteeCard, got {type(answer).__name__} and {type(card).__name__}."
            )
        self.answer, self.card, self._stops = answer, card, True
        self.training = False

    def forward(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, " batch"]:
        """The answers."""
        if self._stops and self.card.status is Status.REFUSED:
            failed = "; ".join(str(p) for p in self.card.premises if p.holds is False)
            raise PremiseError(
                f"{self.card.method} makes no promise here: {failed}. {self.card.remedy} Or call g.anyway()(x)."
            )
        return self.answer(rows_in(x))

    def anyway(self) -> Mitigated:
        """The same model, callable whatever its card says."""
        other = copy.copy(self)
        other._stops = False
        return other

    def examine(self, x: Float[Tensor, "batch n"]) -> Any:
        """Of each input: answer, error bar, how its trials spread. Local mitigators only (`local_answer.Examined`).

        Raises:
            RiskError: for a mitigator without bars of single inputs.

        """
        examine = getattr(self.answer, "examine", None)
        if examine is None:
            raise RiskError(f"{self.card.method} has no bars of single inputs; its card says what holds for all.")
        return examine(rows_in(x))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Mitigated:
        """Where it lives may change, its types may not: bars are of double precision, and the model keeps its own."""
        return super()._apply(lambda t: t.to(fn(t).device), recurse)

    def extra_repr(self) -> str:
        """The card."""
        return str(self.card)
