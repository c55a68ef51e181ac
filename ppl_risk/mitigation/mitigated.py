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
        if not callable(model):
            raise RiskError(
                f"The model to mitigate must be a callable from rows to one number a row, got {type(model).__name__}."
            )
        self.model, self.batch, self.gradients, self.queries = model, batch, gradients, 0
        self._dtype: torch.dtype | None = None
        # Not eval(): the model is the caller's, and preflight says where it is in training mode.
        self.training = False

    def ask(self, x: Float[Tensor, "rows n"]) -> Tensor:
        """The model's own answer to rows put where its tensors live and in their type, if it shows any.

        A plain callable is asked in double precision first, then in single: weights in a closure do not show. What single
        precision rounds off, trials magnify.
        """
        tensors = chain(self.model.parameters(), self.model.buffers()) if isinstance(self.model, nn.Module) else ()
        first = next((t for t in tensors if t.is_floating_point()), None)
        if first is not None:
            return torch.as_tensor(self.model(x.to(first)))
        if self._dtype is None:
            try:
                answers = torch.as_tensor(self.model(x))
            except RuntimeError:
                answers, self._dtype = torch.as_tensor(self.model(x.float())), torch.float32
            else:
                self._dtype = x.dtype
            return answers
        return torch.as_tensor(self.model(x.to(self._dtype)))

    def forward(self, x: Float[Tensor, "rows n"]) -> Float[Tensor, " rows"]:
        """The model's answers, float64.

        Raises:
            RiskError: if it does not return one finite number a row.

        """
        self.queries += len(x)
        with torch.set_grad_enabled(self.gradients and torch.is_grad_enabled()):
            parts = [self.ask(part) for part in x.split(self.batch)]
        out = torch.cat(parts).to(x.device)
        if out.numel() != len(x):
            raise RiskError(
                f"The model returned shape {tuple(out.shape)} for {len(x)} rows; one number a row is wanted."
            )
        out = out.reshape(len(x)).double()
        if not bool(torch.isfinite(out).all()):
            raise RiskError(
                "The model returned NaN or infinity; a median over its answers would hide it. Mend the model first."
            )
        return out


class Mitigated(nn.Module):
    """A mitigated model g: (batch, n) -> (batch,), deterministic once made, with its guarantee in `card`.

    Raises when called:
        PremiseError: if a premise on the card fails; `anyway()` gives the same model without this stop, and without a promise.

    """

    def __init__(self, answer: nn.Module, card: GuaranteeCard) -> None:
        super().__init__()
        self.answer, self.card, self._stops = answer, card, True
        self.training = False

    def forward(self, x: Float[Tensor, "batch n"]) -> Float[Tensor, " batch"]:
        """The answers."""
        if self._stops and self.card.status is Status.REFUSED:
            failed = "; ".join(str(p) for p in self.card.premises if p.holds is False)
            raise PremiseError(
                f"{self.card.method} makes no promise here: {failed}. {self.card.remedy} Or call g.anyway()(x)."
            )
        return self.answer(x)

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
        return examine(x)

    def extra_repr(self) -> str:
        """The card."""
        return str(self.card)
