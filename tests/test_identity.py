"""A problem is its fingerprint, not its name; a truth belongs to the problem that it was computed for."""

import importlib.util
import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

import ppl_risk as pr
from ppl_risk.identity import fingerprint, same_problem
from ppl_risk.zoo import list_models, load_model, load_truth, shelf


def net(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1), nn.Flatten(0)).to(dtype).eval()


def problem(network=None, sigma=1.0, shift=3.0, name=""):
    law = Independent(Normal(torch.zeros(8), sigma), 1)
    return pr.RiskProblem(network or net(), law, lambda y: y - shift, name=name)


def moved(by, where="2.weight"):
    network = net()
    with torch.no_grad():
        network.get_parameter(where).view(-1)[0] += by
    return network


def mixed(rare):
    kinds = Independent(Normal(torch.tensor([[0.0], [4.0]]).expand(2, 8), 1.0), 1)
    law = MixtureSameFamily(Categorical(torch.tensor([1 - rare, rare])), kinds)
    return pr.RiskProblem(net(), law, lambda y: y - 3.0)


OTHERS = {
    "weights": lambda: problem(net(1)), "one weight": lambda: problem(moved(0.01)),
    "one bias": lambda: problem(moved(0.01, "0.bias")),
    "threshold": lambda: problem(shift=3.01), "law": lambda: problem(sigma=1.01), "type": lambda: problem(net(0, torch.float64)),
    "activation": lambda: problem(nn.Sequential(net()[0], nn.LeakyReLU(0.1), *net()[2:]).eval()),
    "class": lambda: problem(nn.Sequential(net()[0], nn.ReLU6(), *net()[2:]).eval()),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_what_changes_the_problem_changes_the_fingerprint(kind):
    assert not same_problem(fingerprint(problem()), fingerprint(OTHERS[kind]()))


@pytest.mark.parametrize("rare", [1e-3, 1e-6])
def test_weights_of_a_mixture_are_part_of_the_problem(rare):
    once, again, other = (fingerprint(mixed(share)) for share in (rare, rare, 2 * rare))
    assert once == again
    assert once.split(".")[0] != other.split(".")[0]  # under this, finished units are found again
    assert not same_problem(once, other)


def test_what_does_not():
    torch.manual_seed(0)
    first = fingerprint(problem())
    torch.manual_seed(1)
    assert fingerprint(problem(name="other")) == first
    # As on another machine: every weight off by a rounding.
    rounded = net()
    with torch.no_grad():
        for weight in rounded.parameters():
            weight.mul_(1 + 1e-7 * torch.randn_like(weight))
    other = fingerprint(problem(rounded))
    assert other != first
    assert same_problem(other, first)


@pytest.mark.parametrize("text", ["", "f00d", "a.b", "a.b.c", "....", "a.b.ü"])
def test_what_is_no_fingerprint_is_no_problem_of_ours(text):
    assert not same_problem(text, fingerprint(problem()))


def test_networks_that_are_not_plain_have_fingerprints():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("flag", torch.tensor(True))
            self.register_buffer("turn", torch.ones(2, dtype=torch.complex64))
            self.register_buffer("few", torch.eye(3).to_sparse())

        def get_extra_state(self):
            return {"since": object()}

        def set_extra_state(self, state):
            pass

        def forward(self, x):
            return (x.sum(-1) > 0).float()

    odd = problem(Odd())
    assert fingerprint(odd) == fingerprint(odd)
    untransported = pr.RiskProblem(lambda x: x, torch.distributions.VonMises(torch.tensor(0.0), torch.tensor(1.0)))
    assert fingerprint(untransported) == fingerprint(untransported)


def test_estimates_carry_it_and_compare_goes_by_it():
    first, second = problem(net(0)), problem(net(1))
    assert first.name == second.name == "Sequential"
    count = {"calls": 2000, "progress": False}
    a, b = pr.monte_carlo(first, **count), pr.monte_carlo(second, **count)
    assert a.fingerprint == fingerprint(first)
    with pytest.raises(pr.RiskError, match="different problems"):
        pr.compare({"a": a, "b": b})
    renamed = pr.monte_carlo(problem(net(0), name="other"), **count, seed=1)
    assert set(pr.compare({"a": a, "again": renamed}).estimates) == {"a", "again"}


def test_every_truth_is_of_the_problem_that_its_model_is():
    file = shelf("models") / "fingerprints.py"
    made = importlib.util.spec_from_file_location("fingerprints", file)
    module = importlib.util.module_from_spec(made)
    made.loader.exec_module(module)
    assert {name: found for name in list_models() if (found := module.strangers(shelf("models") / name))} == {}


def test_no_truth_for_other_weights():
    digits = load_model("digits")
    assert load_truth("digits", fingerprint=fingerprint(digits)).log_prob == pytest.approx(math.log(8.47e-5), abs=0.01)
    with torch.no_grad():
        digits.network.logits.bias[0] += 0.1
    assert load_truth("digits", fingerprint=fingerprint(digits)) is None
    assert load_truth("digits", rarity="1e-7", fingerprint=fingerprint(load_model("digits"))) is None
    assert load_truth("digits", fingerprint="") is None
