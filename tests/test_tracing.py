"""The record of a network is the network: what is written in place is kept, and what cannot be recorded is refused in words."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ppl_risk as pr
from builders import first, standard
from ppl_risk.tracing import ConstantMarginError, trace
from ppl_risk.tracing.verify import in_double, native, run

WEIGHTS = torch.tensor([1.0, 2.0, 3.0, 4.0])
LINEAR = nn.Linear(4, 4).requires_grad_(False)


def slice_times(x):
    y = x.clone()
    y[:, :1] *= 3.0
    return y


def assembled(x):
    y = torch.empty(x.shape[0], 4)
    for k in range(4):
        y[:, k] = (y[:, k - 1] if k else 0) + (k + 1) * x[:, k].tanh()
    return y


def relu_of_view(x):
    y = 1.0 * x
    F.relu(y[:, 2:], inplace=True)
    return y


def filled(x):
    y = x.clone()
    y[:, 0].fill_(2.0)
    y[:, 1].zero_()
    return y


def chunks(x):
    y = 1.0 * x
    a, b = y.chunk(2, -1)
    a.mul_(2)
    b.unbind(-1)[0].add_(a[:, 0])
    return y


def transposed(x):
    y = x.clone().reshape(-1, 2, 2)
    y.transpose_(1, 2)
    y[:, 0] *= 2
    return y.flatten(1)


def put(x):
    y = x.clone()
    y[:, torch.tensor([0, 2])] = 2 * x[:, torch.tensor([1, 3])]
    y[:, 1:].masked_fill_(torch.tensor([True, False, False]), 0.5)
    return y


def shifted(x):
    y = torch.zeros_like(x)
    y[:, 1:].copy_(x[:, :-1])
    y[:, 1:][:, :2].add_(x[:, :1])
    return y


def scattered(x):
    y = x.clone()
    y[:, :3].scatter_(1, torch.tensor([[1]]).expand(len(x), 1), x[:, 3:])
    return y


def read_late(x):
    y = x.clone()
    view = y[:, 1:3]
    y[:, 2] *= 5
    y.relu_()
    return torch.cat([view, view], 1)


def into(x):
    y = x.clone()
    torch.add(x[:, :2], 1.0, out=y[:, 2:])
    torch._foreach_mul_([y[:, :1], y[:, 3:]], 3.0)
    return y


def diagonal(x):
    y = x.reshape(-1, 2, 2).clone()
    y.diagonal(dim1=1, dim2=2).mul_(3)
    y.reshape(-1)[:1].mul_(1.0)
    return y.flatten(1)


def conditions(x):
    inside = (x[:, :2] > -1) & (x[:, 2:] < 1) | ~(x[:, :2] > 0)
    inside ^= x[:, 2:] > 2
    y = x.clone()
    y[y < -1] = -1.0
    return torch.cat([inside.float(), y[:, :2]], 1)


def embedded(x):
    return F.embedding(x.round().long().clamp(-3, 3) + 3, torch.linspace(-1, 1, 14).reshape(7, 2)).sum(-1)


def in_layers(x):
    h = LINEAR(x)
    h[:, 1:].mul_(2.0)
    h[:, 0] += x[:, 0]
    return F.layer_norm(h, (4,))


def of_the_input(x):
    x[:, 0] *= 2
    x -= x.mean(-1, keepdim=True)
    return x


def mask(x):
    kept = torch.ones(4)
    kept[2:] = 0
    return x * kept + torch.randn(4, generator=torch.Generator().manual_seed(1))


WRITES = [
    slice_times, assembled, relu_of_view, filled, chunks, transposed, put, shifted, scattered, read_late, into, diagonal,
    conditions, embedded, in_layers, of_the_input, mask,
]  # fmt: skip


@pytest.mark.parametrize("network", WRITES)
def test_what_is_written_in_place_is_recorded(network):
    problem = pr.RiskProblem(network, standard(4), lambda y: (y * WEIGHTS).sum(-1))
    tape = trace(problem)
    x = 2 * torch.randn(6, 4, generator=torch.Generator().manual_seed(9))
    expected = problem.margin(x.clone())
    for how in (native, in_double):
        assert torch.allclose(run(tape, x, how).float(), expected, rtol=1e-4, atol=1e-4)


def test_a_network_without_writes_is_recorded_operator_by_operator():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    net = nn.Sequential(nn.Unflatten(1, (2, 4)), layer, nn.Flatten(), nn.Linear(8, 1), nn.SiLU()).eval()
    ops = [step.op for step in trace(pr.RiskProblem(net, standard(8), first)).steps]
    assert {"linear", "layer_norm", "scaled_dot_product_attention", "silu", "relu"} <= set(ops)
    assert "index_put" not in ops


def test_weights_stay_those_of_the_network_where_it_writes_in_place():
    layer = nn.Linear(4, 4)

    def network(x):
        h = layer(x)
        h[:, :2].mul_(layer.weight[0, 0])
        return h.sum(-1)

    tape = trace(pr.RiskProblem(network, standard(4)))
    x = torch.ones(1, 4)
    *_, (_, value) = tape.values(x, native)
    gradient = torch.autograd.grad(value.sum(), layer.weight)[0]
    assert torch.allclose(gradient, torch.autograd.grad(network(x.clone()).sum(), layer.weight)[0])


def by_numpy(x):
    return x.sum(-1) + torch.from_numpy(np.sin(x.detach().numpy())).sum(-1)


def rarely_by_numpy(x):
    return x[:, 1] + torch.from_numpy((x.detach().numpy()[:, 0] > 7).astype("float32"))


def by_list(x):
    return torch.tensor([sum(row) for row in x.tolist()])


def gradients(x):
    with torch.enable_grad():
        q = x.detach().requires_grad_()
        return torch.autograd.grad(LINEAR(q).tanh().sum(), q, create_graph=True)[0].sum(-1)


def under_autocast(x):
    with torch.autocast("cpu", torch.bfloat16):
        return LINEAR(x)[:, 0].float()


HIDDEN = [
    (by_numpy, "NumPy"), (rarely_by_numpy, "NumPy"), (by_list, "list"), (lambda x: x[:, 0] * x[0, 0].item(), "where"),
    (lambda x: torch.func.vmap(lambda row: LINEAR(row)[0])(x), "hidden from the record"), (gradients, "gradients"),
    (lambda x: torch.func.grad(lambda q: LINEAR(q).tanh().sum())(x)[:, 0], "torch.func|gradients"), (under_autocast, "autocast"),
    (lambda x: x[:, 0] - x[:, 0].mean(), "influence each other"), (lambda x: x[:, 0] / x.abs().max(), "influence each other"),
    (lambda x: x.sum(-1) if x[0, 0] > 0 else x[:, 1], "torch.where"), (lambda x: x[:, 0] + 1e8 - 1e8, "float64"),
    (lambda x: torch.stack([row[row > 0].sum() for row in x]), "every row"),
]  # fmt: skip


@pytest.mark.parametrize(("network", "words"), HIDDEN)
def test_what_no_record_shows_is_refused_in_words(network, words):
    with pytest.raises(pr.RiskError, match=words):
        trace(pr.RiskProblem(network, standard(4)))


def test_a_wrong_record_names_the_first_step_that_differs(monkeypatch):
    """A test of the check itself: a write that is left out of the record is noticed."""
    from ppl_risk.tracing import memory

    monkeypatch.setattr(memory.Memory, "write", lambda *_: None)
    with pytest.raises(pr.RiskError, match="what is recorded of the network is not what it computes"):
        trace(pr.RiskProblem(slice_times, standard(4), lambda y: y.sum(-1)))


@pytest.mark.parametrize("network", [lambda x: -torch.ones(len(x)), lambda x: torch.zeros_like(x).sum(-1) - 1])
def test_a_margin_without_the_input_is_said_to_be_one(network):
    with pytest.raises(ConstantMarginError, match="does not depend on the input: -1"):
        trace(pr.RiskProblem(network, standard(4)))
