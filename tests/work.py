"""Units of work for the tests of `parallel`: a light module of its own, since workers import it."""

import math
import os
import signal
import time
from pathlib import Path

import numpy as np
import torch

from ppl_risk.errors import PreflightError


def draw(problem, unit):
    """Random numbers, a network, and every kind of result."""
    u = torch.randn(unit.arguments["rows"], problem.transport.dimension)
    margin, gradient = problem.margin_and_gradient(u)
    return {
        "best": float(margin.max()), "nothing": -math.inf, "margin": margin, "gradient": gradient.numpy(),
        "mean": np.float64(margin.double().mean()), "nested": [(unit.index, u[:2])], "threads": torch.get_num_threads(),
        "default": torch.rand(2),
    }  # fmt: skip


def witnessed(problem, unit):
    """`draw` that leaves a line in a file each time it begins."""
    with Path(unit.arguments["log"]).open("a") as log:
        log.write(f"{unit.index}\n")
    return draw(problem, unit)


def hanging(problem, unit):
    """Unit 3 hangs while the file `hang` is there."""
    found = witnessed(problem, unit)
    while unit.index == 3 and Path(unit.arguments["log"]).with_name("hang").exists():
        time.sleep(0.05)
    return found


def killed_once(problem, unit):
    """Unit 2 is killed with its worker the first time."""
    mark = Path(unit.arguments["log"]).with_name("killed")
    if unit.index == 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return witnessed(problem, unit)


def poison(problem, unit):
    """Unit 1 kills every worker."""
    if unit.index == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return witnessed(problem, unit)


def raising(problem, unit):
    """Units 1 and 3 raise, always."""
    found = witnessed(problem, unit)
    if unit.index in (1, 3):
        raise ZeroDivisionError("an odd input")
    return found


def raising_once(problem, unit):
    """Unit 1 raises the first time."""
    mark = Path(unit.arguments["log"]).with_name("raised")
    if unit.index == 1 and not mark.exists():
        mark.touch()
        raise OSError("a full disk")
    return draw(problem, unit)


def mistaken(problem, unit):
    """Unit 1 finds the user's mistake."""
    found = witnessed(problem, unit)
    if unit.index == 1:
        raise PreflightError("margins are NaN")
    return found


def interrupted(problem, unit):
    """Unit 2 is stopped by Ctrl-C."""
    if unit.index == 2:
        raise KeyboardInterrupt
    return witnessed(problem, unit)
