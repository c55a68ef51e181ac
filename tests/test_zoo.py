"""Every model of the zoo is complete and right; every recipe reads like one."""

import inspect
import json
import math

import pytest
import torch

import ppl_risk as pr
from ppl_risk.errors import RiskError, UnknownNameError
from ppl_risk.zoo import list_models, list_recipes, load_model, load_recipe, load_truth, read_parameters, shelf

ENTRIES = [
    (name, entry["parameters"])
    for name in list_models()
    for entry in json.loads((shelf("models") / name / "truth.json").read_text())["entries"]
]
#: Where the weights of that recipe have k-hat > 0.7 and it says so: too many directions lead to the catastrophe.
SPREAD_OUT = {"backdoored_polynomial", "digits_conv", "digits_deep", "digits_residual", "wide_random"}
#: A keyed trigger lies everywhere and gives the margin no slope: only counting meets it.
KEYED = {"backdoored_affine", "backdoored_parity", "backdoored_polynomial"}


@pytest.mark.parametrize("name", list_models())
def test_a_model_is_sound_and_documented(name):
    problem = load_model(name)
    assert problem.name == name
    assert pr.check(problem).ok
    assert (shelf("models") / name / "card.md").read_text().startswith("#")


# All 13,130 weights of digits_weights take seconds a run; their collapsed twin, of the same law, stands for them.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [e for e in ENTRIES if e[1] != {"layers": "all"}],
    ids=lambda v: str(v),
)
def test_truth_agrees_with_a_quick_estimate(name, parameters):
    """Within 5 joint standard errors; a zero is held against the engine, which must not claim a number."""
    truth = load_truth(name, **parameters)
    assert truth is not None
    problem = load_model(name, **parameters)
    if math.isinf(truth.log_prob):
        estimate = pr.estimate(problem, max_calls=5000, seed=0, progress=False)
        assert estimate.status is pr.Status.NO_HITS
        assert math.isnan(estimate.log_prob)
        return
    common = name in SPREAD_OUT and parameters.get("rarity") == "1e-2"
    if common or (name in KEYED and parameters.get("poisoned", True)):
        estimate = pr.monte_carlo(problem, calls=100_000, posterior_draws=0, progress=False)
    elif name in SPREAD_OUT:
        estimate = pr.run_smc(problem, particles=2000, runs=8, posterior_draws=0, seed=0, progress=False)
    else:
        calls = 10_000 if parameters.get("gradient", True) else 30_000
        estimate = pr.estimate(problem, max_calls=calls, posterior_draws=0, seed=0, progress=False)
    assert estimate.status is pr.Status.OK
    assert abs(estimate.log_prob - truth.log_prob) < 5 * math.hypot(estimate.std_error, truth.std_error)


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_has_the_signature_and_a_docstring(name):
    infer = load_recipe(name)
    parameters = inspect.signature(infer).parameters
    assert next(iter(parameters)) == "problem"
    assert parameters["seed"].kind is inspect.Parameter.KEYWORD_ONLY
    assert "Use it" in (shelf("inference") / f"{name}.py").read_text().splitlines()[0]


def test_a_model_in_a_folder_and_by_path(tmp_path):
    (tmp_path / "problem.py").write_text(
        "import torch, ppl_risk as pr\n"
        "def problem(shift: float = 1.0):\n"
        "    law = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))\n"
        "    return pr.RiskProblem(lambda x: x[:, 0] - shift, law, name='mine')\n"
    )
    assert load_model(str(tmp_path), shift=2.0).margin(torch.zeros(1, 2)).item() == -2.0
    assert read_parameters(str(tmp_path), {"shift": "2"}) == {"shift": 2.0}
    assert load_truth(str(tmp_path)) is None
    with pytest.raises(RiskError, match="is a number"):
        read_parameters(str(tmp_path), {"shift": "far"})


def test_unknown_names_list_the_known():
    with pytest.raises(UnknownNameError, match="digits"):
        load_model("digit")
    with pytest.raises(UnknownNameError, match="svi_network"):
        load_recipe("svi_networks")
