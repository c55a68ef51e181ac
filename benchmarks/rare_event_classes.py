"""The classes of rare events that methods are compared on, and their answers: label -> zoo model and parameters."""

from __future__ import annotations

from typing import Any

import ppl_risk as pr
from ppl_risk.zoo import Truth

CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"linear d={dimension} 1e-{decades}": (
            "linear_gaussian",
            {"dimension": dimension, "log10_prob": -float(decades)},
        )
        for dimension in (2, 20, 200)
        for decades in (3, 6, 9)
    },
    "digits 1e-4": ("digits", {"rarity": "1e-4"}),
    "digits 1e-7": ("digits", {"rarity": "1e-7"}),
    "digits_weights last": ("digits_weights", {"layers": "last"}),
    "digits_weights all": ("digits_weights", {"layers": "all"}),
    "digits_weights last, collapsed": ("digits_weights", {"layers": "last", "collapsed": True}),
    "digits_weights all, collapsed": ("digits_weights", {"layers": "all", "collapsed": True}),
    "four_branches": ("four_branches", {}),
    **{f"far_modes d={dimension}": ("far_modes", {"dimension": dimension}) for dimension in (2, 20, 100)},
    "far_modes blackbox d=2": ("far_modes", {"dimension": 2, "gradient": False}),
    **{
        f"curved {shape}": ("curved_sets", {"shape": shape})
        for shape in ("shell", "offset_shell", "corner2", "corner5", "parabola_in", "parabola_out")
    },
    "curved bowl": ("curved_sets", {"shape": "bowl", "log10_prob": -3.0}),
    "conv_images": ("conv_images", {}),
}


def problem_of(label: str) -> pr.RiskProblem:
    """The problem of a class."""
    name, parameters = CLASSES[label]
    return pr.load_model(name, **parameters)


def truth_of(label: str) -> Truth:
    """The reference answer of a class."""
    name, parameters = CLASSES[label]
    truth = pr.load_truth(name, **parameters)
    if truth is None:
        raise LookupError(f"No truth is recorded for {label}.")
    return truth
