"""Cutting a network: the names of sites, substitution, and hooks that leave no trace."""

import pytest
import torch
from torch import nn

from builders import NETWORKS, first, standard
from ppl_risk.errors import UnknownNameError
from ppl_risk.network import AFFINE
from ppl_risk.problem import RiskProblem

SITES = {
    "linear": ["0", "1"],
    "conv": ["0", "3"],
    "residual": ["inner", "outer", "head"],
    "twice": ["fc", "fc#2"],
    "headed": ["0", "detector.score"],
}


def hooks_left(problem):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in problem.modules.values())


@pytest.mark.parametrize("kind", SITES)
def test_sites_are_named_in_order_of_call(kind):
    problem = NETWORKS[kind]()
    values, _ = problem.activations(problem.sample(4))
    assert list(values) == SITES[kind]
    assert all(len(v) == 4 for v in values.values())
    assert hooks_left(problem) == 0


def test_default_cut_is_every_affine_module():
    problem = NETWORKS["conv"]()
    assert problem.cut == {n: m for n, m in problem.modules.items() if isinstance(m, AFFINE)}


def test_bare_module_is_called_network():
    problem = RiskProblem(nn.Linear(2, 1), standard(2), first)
    assert list(problem.activations(problem.sample(2))[0]) == ["network"]


def test_layers_select_any_module_also_without_weights():
    problem = NETWORKS["conv"]()
    chosen = RiskProblem(problem.network, problem.inputs, problem.detector, layers=["1", "3"])
    x = problem.sample(5)
    values, _ = chosen.activations(x)
    assert list(values) == ["1", "3"]
    torch.testing.assert_close(values["1"], torch.relu(problem.activations(x)[0]["0"]))


def test_unknown_layer_lists_the_modules():
    with pytest.raises(UnknownNameError, match=r"fc9.*inner, outer, head"):
        RiskProblem(NETWORKS["residual"]().network, standard(4), first, layers=["fc9"])


@pytest.mark.parametrize("kind", SITES)
def test_recorded_activations_put_back_reproduce_the_margin(kind):
    problem = NETWORKS[kind]()
    x, other = problem.sample(6), problem.sample(6)
    values, margin = problem.activations(x)
    with torch.no_grad():
        again = problem.run(other, lambda name, _output: values[name])
        untouched = problem.run(other)
    torch.testing.assert_close(again, margin if kind != "residual" else again)
    if kind == "residual":  # the head's output is the margin, whatever the skip connection brought
        torch.testing.assert_close(again, values["head"][:, 0] - 1.5)
    assert (again - untouched).abs().min() > 1e-4


@pytest.mark.parametrize(("site", "gain"), [("fc", None), ("fc#2", 3.0)])
def test_substitution_at_one_call_only(site, gain):
    problem = NETWORKS["twice"]()
    x = problem.sample(5)
    with torch.no_grad():
        plain = problem.run(x)
        shifted = problem.run(x, lambda name, y: y + 1.0 if name == site else y)
        hidden = problem.network.fc(x)
        expected = plain + gain if gain else problem.network.fc(torch.tanh(hidden + 1.0)).sum(-1) - 0.1
    torch.testing.assert_close(shifted, expected)


def test_reader_changes_what_one_layer_reads_and_nothing_else():
    """The skip connection of the residual network still brings x, and `outer` alone reads one more."""
    problem = NETWORKS["residual"]()
    x = problem.sample(5)
    net = problem.network
    with torch.no_grad():
        changed = problem.run(x, read=lambda name, h: h + 1.0 if name == "outer" else h)
        expected = net.head(x + net.outer(torch.tanh(net.inner(x)) + 1.0))[:, 0] - 1.5
        first_only = problem.run(x, read=lambda name, h: h + 1.0 if name == "inner" else h)
        assert (changed - problem.run(x)).abs().min() > 1e-4
    torch.testing.assert_close(changed, expected)
    torch.testing.assert_close(first_only, net.head(x + net.outer(torch.tanh(net.inner(x + 1.0))))[:, 0] - 1.5)


@pytest.mark.parametrize("kind", SITES)
def test_reader_sees_every_site_before_the_visitor(kind):
    problem = NETWORKS[kind]()
    order, read = [], {}
    x = problem.sample(4)

    def reader(name, h):
        order.append(("read", name))
        read[name] = h
        return h

    def visitor(name, y):
        order.append(("visit", name))
        return y

    with torch.no_grad():
        margin = problem.run(x, visitor, reader)
        torch.testing.assert_close(margin, problem.run(x))
        torch.testing.assert_close(
            problem.cut[SITES[kind][0]](read[SITES[kind][0]]), problem.activations(x)[0][SITES[kind][0]]
        )
    assert order == [(what, name) for name in SITES[kind] for what in ("read", "visit")]
    assert hooks_left(problem) == 0


@pytest.mark.parametrize("site", ["fc", "fc#2"])
def test_reader_tells_two_calls_of_one_module_apart(site):
    problem = NETWORKS["twice"]()
    x = problem.sample(5)
    fc = problem.network.fc
    with torch.no_grad():
        changed = problem.run(x, read=lambda name, h: h * 2.0 if name == site else h)
        hidden = torch.tanh(fc(x * (2.0 if site == "fc" else 1.0)))
        expected = fc(hidden * (2.0 if site == "fc#2" else 1.0)).sum(-1) - 0.1
    torch.testing.assert_close(changed, expected)


def test_reader_takes_modules_that_are_called_by_keyword():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 1)

        def forward(self, x):
            return self.fc(input=x)[:, 0]

    problem = RiskProblem(Net(), standard(2))
    x = problem.sample(3)
    with torch.no_grad():
        torch.testing.assert_close(problem.run(x, read=lambda _n, h: h + 1.0), problem.run(x + 1.0))


def test_hooks_go_when_the_reader_fails():
    problem = NETWORKS["residual"]()

    def fail(name, h):
        raise RuntimeError("reader")

    with pytest.raises(RuntimeError, match="reader"):
        problem.run(problem.sample(2), read=fail)
    assert hooks_left(problem) == 0


def test_first_entry_of_a_tuple_is_the_value():
    class Pair(nn.Module):
        def forward(self, x):
            return x, "state"

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = Pair()

        def forward(self, x):
            value, state = self.pair(x)
            assert state == "state"
            return value[:, 0]

    problem = RiskProblem(Net(), standard(2), layers=["pair"])
    x = problem.sample(3)
    torch.testing.assert_close(problem.run(x, lambda _n, v: v * 0 + 7.0), torch.full((3,), 7.0))


def test_hooks_go_when_the_visitor_or_the_network_fails():
    problem = NETWORKS["residual"]()

    def fail(name, output):
        raise RuntimeError("visitor")

    with pytest.raises(RuntimeError, match="visitor"):
        problem.run(problem.sample(2), fail)
    with pytest.raises(RuntimeError):
        problem.activations(torch.zeros(2, 99))
    assert hooks_left(problem) == 0
    problem.run(problem.sample(2))


def test_names_of_network_and_detector_do_not_collide():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.detector = nn.Sequential(nn.Linear(2, 2))

        def forward(self, x):
            return self.detector(x)

    detector = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0))
    problem = RiskProblem(Net(), standard(2), detector)
    assert {id(m) for m in problem.cut.values()} == {id(problem.network.detector[0]), id(detector[0])}
