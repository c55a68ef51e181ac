"""A batch that cannot fit is refused before it is tried."""

import psutil
import pytest

from builders import conv_problem
from ppl_risk import check, monte_carlo
from ppl_risk.errors import PreflightError


def test_too_little_memory_is_said_and_stops(monkeypatch):
    problem = conv_problem()
    assert "batches of" in next(f.message for f in check(problem).findings if f.check == "memory")

    class Full:
        available = 1000

    monkeypatch.setattr(psutil, "virtual_memory", lambda: Full)
    with pytest.raises(PreflightError, match=r"needs .* GiB of activations, free are 0\.0 GiB"):
        monte_carlo(problem, calls=10, progress=False)
