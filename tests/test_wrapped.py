"""Modules behind functions are found: layers, weights and devices are the network's own, however it is wrapped."""

import functools

import pytest
import torch
from torch import nn

from builders import first, standard
from ppl_risk.preflight import check
from ppl_risk.problem import RiskProblem
from ppl_risk.wrapped import modules_behind

torch.manual_seed(0)
NET = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
OTHER = nn.Linear(3, 3)
NETS = {"a": NET}


class Agent:
    """Holds the network as an attribute; a global of that attribute's name is another one."""

    def __init__(self):
        self.policy = NET
        self.unused = OTHER

    def act(self, x):
        return self.policy(x)

    def __call__(self, x):
        return self.act(x)


policy = OTHER
AGENT = Agent()


def enclosed(net):
    def call(x):
        return net(x)

    return call


def by_global(x):
    return NET(x)


def with_default(x, net=NET):
    return net(x)


def with_keyword(x, *, net=NET):
    return net(x)


WRAPPED = {
    "module": NET,
    "lambda": lambda x: NET(x),
    "closure": enclosed(NET),
    "default": with_default,
    "keyword": with_keyword,
    "global": by_global,
    "function of a function": lambda x: by_global(x),
    "lambda in a lambda": lambda x: (lambda y: NET(y))(x),
    "partial": functools.partial(with_default),
    "partial of a network": functools.partial(lambda net, x: net(x), NET),
    "partial by name": functools.partial(lambda x, net: net(x), net=NET),
    "partial itself": functools.partial(NET),
    "forward": NET.forward,
    "method": Agent().act,
    "callable object": Agent(),
    "attribute": lambda x, agent=AGENT: agent.policy(x),
    "container": lambda x: NETS["a"](x),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_layers_and_weights_are_those_of_the_network(kind):
    problem = RiskProblem(WRAPPED[kind], standard(3), first)
    assert list(problem.cut) == ["0", "2"]
    assert sum(p.numel() for p in problem.parameters()) == 21
    x = problem.sample(4)
    values, margin = problem.activations(x)
    torch.testing.assert_close(values["0"], NET[0](x).detach())
    torch.testing.assert_close(margin, first(NET(x)).detach())


def test_several_networks_have_the_names_of_those_who_hold_them():
    one, two = nn.Linear(3, 2), nn.Linear(2, 1)
    problem = RiskProblem(lambda x: two(one(x)), standard(3), first)
    assert set(problem.cut) == {"one", "two"}


def test_a_detector_that_wraps_a_network():
    problem = RiskProblem(OTHER, standard(3), lambda y: NET(y)[:, 0])
    assert list(problem.cut) == ["network", "detector.0", "detector.2"]


def test_a_part_of_a_network_is_that_network_s():
    head = NET[2]
    assert list(modules_behind(lambda x: NET(x) + head.bias)) == [""]


@pytest.mark.parametrize(
    "plain", [len, torch.sin, lambda x: x.sum(-1), enclosed, functools.partial(torch.sum, dim=-1), Agent]
)
def test_what_holds_no_network(plain):
    assert modules_behind(plain) == {}


def test_a_double_network_behind_a_lambda_gives_its_type():
    net = nn.Linear(3, 1).double()
    problem = RiskProblem(lambda x: net(x), standard(3), first)
    assert problem.sample(2).dtype == torch.float64
    assert problem.margin(problem.sample(2)).shape == (2,)


def test_weights_behind_a_lambda_are_checked():
    net = nn.Linear(3, 1)
    net.weight.data[0, 0] = float("nan")
    problem = RiskProblem(lambda x: net(x).nan_to_num(), standard(3), first)
    assert "NaN" in str(check(problem))
