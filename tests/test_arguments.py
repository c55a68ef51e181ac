"""Arguments of public calls: made right where that is meant, else named in words."""

import numpy as np
import pytest
import torch

import ppl_risk
from builders import first, standard
from ppl_risk.errors import ArgumentError, RiskError
from ppl_risk.problem import RiskProblem

CALLS = (
    "check", "monte_carlo", "estimate", "run_smc", "fit_svi", "fit_layerwise", "select", "propagate", "certify",
    "choose_rank",
)  # fmt: skip


def problem():
    torch.manual_seed(0)
    return RiskProblem(torch.nn.Linear(3, 1), standard(3), first)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("wrong", [torch.nn.Linear(3, 1), None, "digits", RiskProblem])
def test_a_problem_is_wanted(call, wrong):
    with pytest.raises(ArgumentError, match=rf"{call} takes a RiskProblem, got .*RiskProblem\(network"):
        getattr(ppl_risk, call)(wrong)


@pytest.mark.parametrize("seed", [3, 3.0, np.int64(3), np.float32(3.0), torch.tensor(3)])
def test_whole_numbers_of_any_type_are_the_same_seed(seed):
    made = [ppl_risk.monte_carlo(problem(), calls=200.0, seed=s, progress=False) for s in (3, seed)]
    assert made[0].hits == made[1].hits
    assert type(made[1].seed) is int


@pytest.mark.parametrize("seed", [0.5, -1, True, "a", 2**70, float("nan"), None, [1], 1j])
def test_other_seeds_are_named(seed):
    with pytest.raises(ArgumentError, match=r"monte_carlo: seed must be a whole number"):
        ppl_risk.monte_carlo(problem(), calls=200, seed=seed, progress=False)


@pytest.mark.parametrize(
    ("call", "named", "text"),
    [
        ("estimate", {"calls": 100}, r"unexpected keyword argument 'calls'\. It takes: problem, max_calls"),
        ("estimate", {"max_calls": "4e3"}, "max_calls must be a whole number, got '4e3'"),
        ("estimate", {"target_cv": "x"}, "target_cv must be a number"),
        ("run_smc", {"levels": 5}, "levels must be a list of numbers"),
        ("run_smc", {"guide": "x"}, "guide must be a fitted guide"),
        ("fit_svi", {"temperature": 0}, "temperature must be greater than 0"),
        ("certify", {"radii": "abc"}, "radii must be a list of numbers"),
        ("certify", {"inputs": 2.5}, "inputs must be a whole number"),
        ("select", {"source": ["pca"]}, "source must be str, got list"),
        ("select", {"initial": 5}, "initial must be Mapping or str or Path"),
        ("check", {"draws": -1}, "draws must be 0 or more"),
        ("monte_carlo", {"progress": "no"}, "progress is True or False"),
    ],
)
def test_wrong_arguments_are_named(call, named, text):
    with pytest.raises(RiskError, match=f"{call}: .*{text}"):
        getattr(ppl_risk, call)(problem(), **named)


@pytest.mark.parametrize("layers", ["0", 0, [0]])
def test_layers_are_names(layers):
    with pytest.raises(ArgumentError, match=r"RiskProblem.*layers must be a list of names"):
        RiskProblem(torch.nn.Sequential(torch.nn.Linear(3, 1)), standard(3), first, layers=layers)


def test_memory_that_runs_out_is_said():
    def large(x):
        raise MemoryError("Unable to allocate 5.00 GiB")

    with pytest.raises(RiskError, match="does not fit into memory"):
        ppl_risk.monte_carlo(RiskProblem(large, standard(3)), calls=10, progress=False)


def test_estimates_come_in_any_wrapping():
    made = ppl_risk.monte_carlo(problem(), calls=200, progress=False)
    for given, names in (
        (made, ["Monte Carlo"]),
        ([made, made], ["Monte Carlo", "Monte Carlo #2"]),
        ({"a": made}, ["a"]),
        (ppl_risk.compare({"b": made}), ["b"]),
    ):
        assert list(ppl_risk.compare(given).estimates) == names
    for wrong in (5, None, {"a": 5}):
        with pytest.raises(ArgumentError, match="compare: estimates"):
            ppl_risk.compare(wrong)
