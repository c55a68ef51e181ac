"""A slice of the operator matrix (benchmarks/operators): kinds that once gave a false number, a false proof or a traceback."""

import sys
from pathlib import Path

import pytest
import torch

import ppl_risk as pr

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.operators import CASES
from benchmarks.operators.calls import CALLS, scores, tried

#: Network -> calls, and what each must come to.
SLICE = {
    "view_scale": {"propagate": {"right", "refused"}, "certify": {"holds"}},
    "view_relu": {"propagate": {"right", "doubt"}, "certify": {"holds"}},
    "assembled": {"propagate": {"right"}, "certify": {"holds"}},
    "and_mask": {"propagate": {"refused"}, "certify": {"holds", "vacuous", "refused"}},
    "max_pairs": {"propagate": {"right", "doubt"}, "certify": {"holds", "vacuous"}},
    "clamp_tensor": {"certify": {"holds", "vacuous"}},
    "two_sided": {"propagate": {"right"}, "fit_svi": {"right", "doubt"}},
    "amax": {"fit_svi": {"doubt"}},
    "squeeze": {"check": {"ok"}, "monte_carlo": {"right"}, "estimate": {"right"}},
    "experts": {"estimate": {"right"}, "select": {"refused"}, "fit_svi": {"right", "doubt"}},
    "force": {"estimate": {"right"}, "propagate": {"refused"}},
    "vmap": {"estimate": {"right"}},
    "scripted": {"run_smc": {"right"}},
    "bfloat16_margin": {"monte_carlo": {"right", "refused"}, "certify": {"refused"}},
    "counter": {"estimate": {"refused"}, "run_smc": {"refused"}},
    "batch_norm_no_statistics": {"check": {"refused"}, "monte_carlo": {"refused"}},
    "sqrt_nan_gradient": {"estimate": {"right"}, "select": {"ok", "refused"}},
}


@pytest.mark.parametrize("name", SLICE)
def test_a_number_is_right_doubted_or_refused(name):
    case = CASES[name]
    drawn = scores(case, 100_000, 1)
    cut = float(torch.as_tensor(drawn).topk(round(case.tail * len(drawn))).values[-1])
    hits = (scores(case, 200_000, 2) >= cut).sum()
    truth, error = float(torch.as_tensor(hits / 200_000).log10()), float(hits) ** -0.5 / 2.3026
    for call, wanted in SLICE[name].items():
        assert call in CALLS
        problem = pr.RiskProblem(case.network(), case.law, lambda y: case.score(y) - cut, name=name)
        found = tried(case, problem, call, truth, error)
        assert found["outcome"] in wanted, found
