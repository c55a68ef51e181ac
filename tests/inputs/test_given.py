"""Inputs of several parts reach the network as its arguments; what is no law is refused with what to write."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
import torch.distributions as td
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ppl_risk as pr
from builders import first, standard
from ppl_risk.errors import RiskError
from ppl_risk.inputs import Product
from ppl_risk.inputs.given import law_of, require_arguments


class Policy(nn.Module):
    """Two arguments, one of them whole numbers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.state, self.goal, self.head = nn.Linear(3, 8), nn.Embedding(4, 8), nn.Linear(8, 1)

    def forward(self, state, goal):
        return self.head(torch.tanh(self.state(state) + self.goal(goal)))


class Flat(Policy):
    """The same of one vector."""

    def forward(self, x):
        return super().forward(x[:, :3], x[:, 3].long())


LAWS = {"state": standard(3), "goal": td.Categorical(torch.ones(4))}
GIVEN = {
    "dict": LAWS,
    "dict turned round": dict(reversed(LAWS.items())),
    "tuple": tuple(LAWS.values()),
    "list": list(LAWS.values()),
    "product": Product(LAWS, apart=True),
}


@pytest.mark.parametrize("given", GIVEN)
def test_parts_are_the_arguments(given):
    problem = pr.RiskProblem(Policy(), GIVEN[given], first)
    x = problem.sample(6)
    parts = problem.unpack(x)
    state, goal = sorted(parts.values(), key=lambda p: -p.dim())
    assert (state.shape, goal.shape, goal.dtype) == ((6, 3), (6,), torch.int64)
    with torch.no_grad():
        expected = problem.network(state, goal)[:, 0]
    for same in (x, parts, list(parts.values())):
        torch.testing.assert_close(problem.margin(same).detach(), expected)
    assert list(problem.cut) == ["state", "head"]


def test_every_call_on_two_arguments_is_that_on_one_vector():
    one = pr.RiskProblem(Flat(), Product(LAWS), lambda y: y[:, 0] - 0.6)
    two = pr.RiskProblem(Policy(), LAWS, lambda y: y[:, 0] - 0.6)
    smc = [pr.run_smc(p, particles=20, runs=2, progress=False) for p in (one, two)]
    assert smc[0].log_prob == smc[1].log_prob
    # A layer has the name of a part here, and keeps it.
    assert set(smc[1].posterior) == {"x.state", "goal", "state", "head", "margin"}
    svi = pr.fit_svi(two, steps=5, draws=100, pilot=64, progress=False)
    assert svi.evidence["sites"] == 3
    assert pr.fit_layerwise(two, draws=300, tail="count", progress=False).status.name


def test_a_policy_of_two_vectors_is_propagated_and_bounded():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.a, self.b = nn.Linear(2, 1), nn.Linear(3, 1)

        def forward(self, *, a, b):
            return self.a(a) + self.b(b) - 4.0

    problem = pr.RiskProblem(Two(), {"a": standard(2), "b": standard(3)}, first)
    a, b = problem.network.a, problem.network.b
    weights = torch.cat([a.weight, b.weight], 1).detach().double()[0]
    mean = float((a.bias + b.bias).detach().double()) - 4.0
    exact = float(torch.special.log_ndtr(torch.tensor(mean / float(weights.norm()))))
    assert pr.propagate(problem).log_prob == pytest.approx(exact, abs=1e-3)
    assert pr.certify(problem, progress=False).log_prob == pytest.approx(exact, abs=1e-3)


def test_an_encoder_reads_embeddings_beside_a_fixed_mask():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=30,
        max_position_embeddings=8,
    )  # fmt: skip
    encoder, mask = transformers.BertModel(config).eval(), torch.tensor([1, 1, 1, 1, 0])
    laws = {"inputs_embeds": standard(5, 16), "attention_mask": dist.Delta(mask).to_event(1)}
    problem = pr.RiskProblem(encoder, laws, lambda y: y.last_hidden_state[:, 0, 0] - 1.0)
    assert problem.transport.dimension == 80
    x = problem.unpack(problem.sample(3))["inputs_embeds"]
    with torch.no_grad():
        expected = encoder(inputs_embeds=x, attention_mask=mask.expand(3, 5)).last_hidden_state[:, 0, 0] - 1.0
        margin = problem.margin({"inputs_embeds": x, "attention_mask": mask.expand(3, 5)})
    torch.testing.assert_close(margin, expected)
    assert len(problem.cut) > 3
    assert pr.monte_carlo(problem, calls=300, progress=False).forward_calls >= 300


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (torch.randn(5, 3), "Tensor.*EmpiricalWithNoise"),
        (np.ones((5, 3)), "ndarray.*EmpiricalWithNoise"),
        ([1.0, 2.0], "list.*EmpiricalWithNoise"),
        ([], "EmpiricalWithNoise"),
        (DataLoader(TensorDataset(torch.ones(3, 2))), "DataLoader.*EmpiricalWithNoise"),
        (TensorDataset(torch.ones(3, 2)), "TensorDataset.*EmpiricalWithNoise"),
        ({"a": torch.ones(3)}, r"dict.*network\(state=.*Product"),
        ({"a": standard(2), "b": torch.ones(2)}, r"'b'.*Delta\(tensor\).to_event\(1\).*EmpiricalWithNoise"),
        ({1: standard(2)}, "names are texts"),
        ({"a": td.Normal(torch.zeros(2), 1.0)}, r'"a".*Independent'),
        (td.Normal, "class Normal.*parameters"),
        ("normal", "got str"),
        (td.Normal(torch.zeros(2), 1.0), r"batch shape \(2,\).*Independent\(inputs, 1\)"),
    ],
    ids=str,
)
def test_what_is_no_law_is_refused_with_what_to_write(inputs, text):
    with pytest.raises(RiskError, match=f"(?s){text}"):
        law_of(inputs)


@pytest.mark.parametrize("laws", [{"state": standard(3)}, {"state": standard(3), "goals": standard(1)}, (standard(3),)])
def test_other_parts_than_the_network_takes(laws):
    with pytest.raises(RiskError, match=r"several parts.*\(state, goal\)"):
        require_arguments(Policy(), Product(laws, apart=True))


def test_other_parts_than_the_law_has():
    problem = pr.RiskProblem(Policy(), LAWS, first)
    with pytest.raises(RiskError, match="state, goal; got state"):
        problem.margin({"state": torch.ones(2, 3)})
    with pytest.raises(RiskError, match=r'"state".*\(3,\).*\(2, 4\)'):
        problem.margin({"state": torch.ones(2, 4), "goal": torch.ones(2)})
    with pytest.raises(RiskError, match="numbers of rows"):
        problem.margin({"state": torch.ones(2, 3), "goal": torch.ones(3)})
