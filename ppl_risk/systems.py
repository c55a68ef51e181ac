r"""Systems of events: detectors composed into one, whose margin is >= 0 where any, all, or at least k of their events happen.

With margins m_1, ..., m_n (event i is m_i >= 0) and the k-th largest m_(k),

    any:  m_(1) = max m_i      all:  m_(n) = min m_i      at least k:  m_(k)

has the sign of the composed event (series, parallel and k-out-of-n systems; Barlow and Proschan, Statistical Theory of
Reliability and Life Testing, 1975). The sign does not depend on units, but the ladder of levels below 0 does: of margins in
volts and in kelvins, the one with the larger numbers alone rules the minimum. Divide each by its own scale (`scales`), say its
standard deviation under the input law: `problem.margin(problem.sample(1000)).std()` with that detector alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ppl_risk.errors import RiskError

Detector = Callable[..., object]


class System(nn.Module):
    """The detector of "at least k of these events": network output -> k-th largest margin (batch,).

    Detectors that are modules are submodules "0", "1", ...: their layers are sites `detector.0.<name>`. Systems may hold systems.
    """

    def __init__(self, needed: int, detectors: Sequence[Detector], scales: Sequence[float] | None) -> None:
        super().__init__()
        if not detectors or not all(callable(d) for d in detectors):
            raise RiskError("A system needs one detector or more, each a function: network output -> margin (batch,).")
        if not 1 <= needed <= len(detectors):
            raise RiskError(
                f"At least {needed} of {len(detectors)} events: the number must lie in 1..{len(detectors)}."
            )
        scales = [1.0] * len(detectors) if scales is None else [float(scale) for scale in scales]
        if len(scales) != len(detectors) or not all(0 < scale < math.inf for scale in scales):
            raise RiskError(f"scales must be {len(detectors)} finite numbers > 0, one a detector, got {scales}.")
        self.needed, self.detectors, self.scales = needed, list(detectors), scales
        for index, detector in enumerate(detectors):
            if isinstance(detector, nn.Module):
                self.add_module(str(index), detector)

    def extra_repr(self) -> str:
        """What the system is."""
        return f"at least {self.needed} of {len(self.detectors)}"

    def margins(self, output: object) -> Float[Tensor, "batch detectors"]:
        """The margin of every detector, divided by its scale.

        Raises:
            RiskError: a detector does not return one floating number per row; the message names it.
        """
        found: list[Tensor] = []
        for index, detector in enumerate(self.detectors):
            margin = detector(output)
            rows = output.shape[0] if isinstance(output, Tensor) and output.dim() else None
            if not isinstance(margin, Tensor):
                raise RiskError(f"{self._name(index)} returned {type(margin).__name__}; wanted a tensor (batch,).")
            rows = found[0].shape[0] if found else rows
            if margin.dim() != 1 or (rows is not None and margin.shape[0] != rows):
                wanted = f"({rows},)" if rows is not None else "(batch,)"
                raise RiskError(
                    f"{self._name(index)} returned shape {tuple(margin.shape)}; wanted one margin per row, {wanted}."
                )
            if not margin.is_floating_point():
                raise RiskError(
                    f"{self._name(index)} returned {margin.dtype}; wanted a floating margin, >= 0 at its event."
                )
            found.append(margin / self.scales[index])
        return torch.stack(found, -1)

    def forward(self, output: object) -> Float[Tensor, " batch"]:
        """The k-th largest margin."""
        margins = self.margins(output)
        # The largest and the smallest have names of their own, which methods that read the network understand anywhere.
        if self.needed == 1:
            return margins.amax(-1)
        if self.needed == len(self.detectors):
            return margins.amin(-1)
        return margins.topk(self.needed, dim=-1).values[..., -1]

    def _name(self, index: int) -> str:
        part = self.detectors[index]
        return f'Detector {index} of {len(self.detectors)}, "{getattr(part, "__name__", type(part).__name__)}",'


def any_of(*detectors: Detector, scales: Sequence[float] | None = None) -> System:
    """At least one of the events happens (a series system fails): the largest margin.

    Args:
        detectors: network output -> margin (batch,), real-valued and >= 0 where its event happens; functions or modules.
        scales: what each margin is divided by, > 0, in its own units; default 1.

    Raises:
        RiskError: no detector, or scales that do not fit. When called: a detector that does not return one number per row.

    Example:
        >>> any_of(lambda y: y[:, 0] - 1.0, lambda y: y[:, 1] - 1.0)(torch.tensor([[0.0, 2.0], [0.0, 0.5]])).tolist()
        [1.0, -0.5]
    """
    return System(1, detectors, scales)


def all_of(*detectors: Detector, scales: Sequence[float] | None = None) -> System:
    """All of the events happen (a parallel system fails): the smallest margin; give `scales` where units differ.

    Arguments and errors as in `any_of`.

    Example:
        >>> all_of(lambda y: y[:, 0] - 1.0, lambda y: y[:, 1] - 1.0)(torch.tensor([[0.0, 2.0], [1.5, 3.0]])).tolist()
        [-1.0, 0.5]
    """
    return System(len(detectors), detectors, scales)


def at_least(needed: int, *detectors: Detector, scales: Sequence[float] | None = None) -> System:
    """At least `needed` of the events happen (a k-out-of-n system fails): the `needed`-th largest margin.

    Arguments and errors as in `any_of`; RiskError also where `needed` is not in 1..number of detectors.

    Example:
        >>> at_least(2, *(lambda y, i=i: y[:, i] for i in range(3)))(torch.tensor([[3.0, -1.0, 2.0]])).tolist()
        [2.0]
    """
    return System(needed, detectors, scales)
