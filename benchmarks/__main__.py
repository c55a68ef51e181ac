"""`python -m benchmarks [study ...]`: run studies; without names, all of them."""

from __future__ import annotations

import sys
import time
import warnings
from importlib import import_module

import torch

from benchmarks.results import write_section

STUDIES = (
    "linear_gaussian", "consistency_checks", "excluded_catastrophe", "digits", "particles", "selection_curve",
    "selection_depth", "selection_cost", "joint_law", "rare_events", "moves", "propagation", "propagated_means", "closures",
    "common_cause", "feature_laws", "formal_bounds", "robust_means", "global_mitigation", "local_mitigation", "mitigated_risk",
    "control_strategies", "backdoor_directions", "operators", "degenerate_margins", "kills", "quantiles",
)  # fmt: skip


def main(names: list[str]) -> None:
    """Run the named studies in order."""
    unknown = [name for name in names if name not in STUDIES]
    if unknown:
        sys.exit(f"No study {unknown[0]!r}. There are: {', '.join(STUDIES)}.")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)
    for name in names or STUDIES:
        study = import_module(f"benchmarks.{name}")
        started = time.perf_counter()
        text = study.run()
        write_section(name, study.TITLE, text, time.perf_counter() - started)
        print(f"{study.TITLE}\n\n{text}\n")


main(sys.argv[1:])
