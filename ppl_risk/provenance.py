"""Where a network's weights come from: what training started from and what it cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ppl_risk.errors import RiskError
from ppl_risk.weights import read_weights


@dataclass(frozen=True)
class Provenance:
    """What is known of a network's training; every part may be missing.

    Attributes:
        initial: the state dict that training started from (names as in `network.state_dict()`).
        training_flops: FLOPs that training took, forward and backward.
        updates: optimiser updates as `UpdateSketch.state()` recorded them, layer -> (rows, columns).

    Example:
        >>> Provenance(training_flops=1.7e10).initial is None
        True
    """

    initial: Mapping[str, Tensor] | None = None
    training_flops: float | None = None
    updates: Mapping[str, Tensor] | None = None

    @staticmethod
    def read(
        *, initial: str | Path | None = None, record: str | Path | None = None, updates: str | Path | None = None
    ) -> Provenance:
        """Read it from files: weights and sketch from safetensors, `training_flops` from a JSON record.

        Raises:
            RiskError: a file is missing or unreadable, or the record names no training_flops.
            UntrustedFileError: a file that would execute something.
        """
        return Provenance(
            initial=None if initial is None else read_weights(initial),
            training_flops=None if record is None else _training_flops(Path(record)),
            updates=None if updates is None else read_weights(updates),
        )


def _training_flops(file: Path) -> float:
    try:
        told: Any = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise RiskError(f"{file} is not a readable record of training: {error}.") from error
    flops = told.get("training_flops") if isinstance(told, dict) else None
    if not isinstance(flops, int | float) or not flops > 0:
        raise RiskError(f'{file.name} has no positive "training_flops"; write what training cost there, in FLOPs.')
    return float(flops)
