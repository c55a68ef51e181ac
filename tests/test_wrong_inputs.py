"""The twelve likeliest mistakes: each gives its own message or status, never a traceback, never a silent number."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ppl_risk as pr

PROBLEMS = """
import torch
from torch import nn
import torch.distributions as td
import ppl_risk as pr


def law(n=4):
    return td.Independent(td.Normal(torch.zeros(n), 1.0), 1)


def net(n=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(n, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


def gap(y):
    return y[:, 0] - 3.0


def sound():
    return pr.RiskProblem(net(), law(), gap)


def wrong_shape():
    return pr.RiskProblem(net(5), law(4), gap)


def nan_weights():
    bad = net()
    bad[0].weight.data[0, 0] = float("nan")
    return pr.RiskProblem(bad, law(), gap)


def many_margins():
    return pr.RiskProblem(net(), law(), lambda y: y - 1.0)


def one_margin_for_all():
    return pr.RiskProblem(net(), law(), lambda y: y.max())


def no_hits():
    return pr.RiskProblem(net(), law(), lambda y: y[:, 0] - 1e6)


def integers():
    return pr.RiskProblem(lambda x: x, td.Binomial(10, torch.tensor(0.5)), lambda y: y - 9.5)


def tokens():
    torch.manual_seed(0)
    law = td.Independent(td.Categorical(torch.ones(3, 5)), 1)
    return pr.RiskProblem(nn.Embedding(5, 2), law, lambda y: y.sum((1, 2)) - 1.0)


def angles():
    return pr.RiskProblem(lambda x: x.cos().mean(-1), td.Independent(td.VonMises(torch.zeros(4), 1.0), 1), lambda y: -y)


def train_mode():
    return pr.RiskProblem(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2)), law(), gap)


def noisy():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    return pr.RiskProblem(Noisy().eval(), law(), gap)


def two_types():
    mixed = net()
    mixed[2].double()
    return pr.RiskProblem(mixed, law(), gap)


def likely():
    return pr.RiskProblem(net(), law(), lambda y: y[:, 0] + 1.0)


def boolean():
    return pr.RiskProblem(net(), law(), lambda y: y[:, 0] > 3.0)
"""

CASES = {
    "wrong_shape": (3, ["rejects inputs of shape (3, 4)", "5 features"]),
    "nan_weights": (3, ["1 of 58 weights", "0.weight"]),
    "many_margins": (3, ["shape (3, 2) for 3 inputs", "y[:, 3]"]),
    "one_margin_for_all": (3, ["shape () for 3 inputs", "dim=-1"]),
    "train_mode": (3, ["train mode", 'Dropout at "1"', "eval()"]),
    "noisy": (3, ["two answers"]),
    "two_types": (3, ["several floating types", "torch.float64"]),
    "boolean": (3, ["booleans", "threshold"]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("wrong")
    (where / "mistakes.py").write_text(PROBLEMS)
    return where


def command(folder, *words):
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    ran = subprocess.run(
        [str(Path(sys.executable).parent / "ppl-risk"), *words],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert "Traceback" not in ran.stderr, ran.stderr
    return ran.returncode, ran.stdout + ran.stderr


@pytest.mark.parametrize("name", CASES)
def test_preflight_stops_before_a_number(folder, name):
    code, text = command(folder, "estimate", f"mistakes:{name}", "monte_carlo", "--quiet")
    wanted_code, fragments = CASES[name]
    assert code == wanted_code
    assert [f for f in fragments if f not in text] == [], text
    assert "P(catastrophe)" not in text


def test_no_hits_is_a_bound_and_not_zero(folder):
    code, text = command(folder, "estimate", "mistakes:no_hits", "monte_carlo", "--quiet")
    assert code == 2
    assert "not P = 0" in text
    assert "P < 3.0e-05" in text
    assert "stuck" in text  # the preflight's note on reachability


def test_tokens_are_noted_and_two_routes_agree(folder):
    """The exit code is 0 only where no believable estimates contradict each other."""
    code, text = command(folder, "estimate", "mistakes:tokens", "monte_carlo", "smc", "--quiet")
    assert code == 0, text
    assert "3 of 3 normals act through steps" in text
    assert "SMC pcn" in text
    assert "REFUSED" not in text
    found = [float(p) for p in re.findall(r"P\(catastrophe\) = (\S+)", text)]
    assert len(found) == 2
    assert 0 < found[0] < 1
    assert found[1] == pytest.approx(found[0], rel=0.3)


def test_a_law_without_a_map_gets_monte_carlo_and_a_refusal(folder):
    code, text = command(folder, "estimate", "mistakes:angles", "monte_carlo", "smc", "--quiet")
    assert code == 0
    assert "No transport from standard normals" in text
    assert "REFUSED" in text


def test_likely_event_is_noted(folder):
    code, text = command(folder, "check", "mistakes:likely")
    assert code == 0
    assert "P would be about 1" in text
    assert "sign of the margin" in text


def test_untrusted_weights_are_not_opened(folder):
    import torch

    torch.save(torch.nn.Linear(2, 2), folder / "whole.pt")
    code, text = command(folder, "check", "mistakes:sound", "--weights", "whole.pt")
    assert code == 3
    assert "Not opened" in text
    assert "safetensors" in text


def test_weights_that_do_not_fit(folder):
    import torch

    torch.save(torch.nn.Linear(2, 2).state_dict(), folder / "other.pt")
    code, text = command(folder, "check", "mistakes:sound", "--weights", "other.pt")
    assert code == 3
    assert "do not fit" in text


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (("estimate", "digitz"), "There are:"),
        (("estimate", "linear_gaussian", "--set", "dimensions=3"), "takes no parameter 'dimensions'"),
        (("estimate", "linear_gaussian", "nosuch"), "No recipe 'nosuch'"),
        (("estimate", "mistakes:absent"), "defines no function 'absent'"),
        (("estimate", "nomodule:x"), "finds no module"),
        (("estimate", "linear_gaussian", "--sed", "1"), "--sed"),
        (("estimate", "linear_gaussian", "--set", "dimension"), "name=value"),
        (("estimate", "--resume", "nowhere"), "no folder nowhere"),
        (("compare", "nowhere"), "no folder nowhere"),
        (("estimate", "linear_gaussian", "--set", "dimension=few"), "is a number like 20"),
        (("estimate",), "Which model?"),
    ],
)
def test_slips_of_the_keyboard(folder, words, fragment):
    code, text = command(folder, *words)
    assert code == 3
    assert fragment in text


LAW = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(4), 1.0), 1)
#: Wrong types the tests' own type checker stops first; these pass it.
IN_PYTHON = {
    "a class for a network": (lambda: pr.RiskProblem(torch.nn.Linear, LAW), "class Linear"),
    "no rank": (lambda: pr.guides.LowRankNormal(0).bind(4, "cpu"), "whole number"),
}


@pytest.mark.parametrize("name", IN_PYTHON)
def test_in_python_too(name):
    call, words = IN_PYTHON[name]
    with pytest.raises(pr.RiskError, match=words):
        call()
