"""Networks as people bring them: the margin of a row is what the network says of that row, or the refusal names the layer."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from builders import first, standard
from ppl_risk import check, fit_layerwise, fit_svi, monte_carlo, run_smc, select
from ppl_risk.errors import PreflightError, RiskError
from ppl_risk.posterior import posterior_of
from ppl_risk.problem import RiskProblem

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")


class Net(nn.Module):
    """A network from a function of itself and its input."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.run(self, x)


def mlp(out=1, act=nn.Tanh):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), act(), nn.Linear(8, out)).eval()


def shifted(net, x):
    x -= 0.5
    x /= 2.0
    return net.n(x)


def clipped(x):
    values = x.detach().numpy()
    np.clip(values, -1.0, 1.0, out=values)
    return x.sum(-1, keepdim=True)


def flagged(net, x):
    x.requires_grad_(True)
    return net.n(x)


def root(net, x):
    y = net.n(x)
    return torch.where(y > 0, y.sqrt(), torch.zeros_like(y))


def experts(net, x):
    best, out = net.gate(x).argmax(-1), torch.zeros(len(x), 1)
    for k, expert in enumerate(net.experts):
        if (best == k).any():
            out[best == k] = expert(x[best == k])
    return out


def force(net, x):
    with torch.enable_grad():
        q = x if x.requires_grad else x.detach().requires_grad_()
        return torch.autograd.grad(net.n(q).sum(), q, create_graph=True)[0].norm(dim=-1, keepdim=True)


def mixture():
    torch.manual_seed(0)
    return Net(experts, gate=nn.Linear(4, 3), experts=nn.ModuleList(nn.Linear(4, 1) for _ in range(3))).eval()


def centred(y):
    y -= y.mean(-1, keepdim=True)
    return y[:, 0]


KINDS = {
    "a detector that squeezes": lambda: (mlp(), lambda y: y.squeeze()),
    "a network that squeezes": lambda: (Net(lambda s, x: s.n(x).squeeze(), n=mlp(3)).eval(), lambda y: y[:, 1]),
    "input normalised in place": lambda: (Net(shifted, n=mlp()).eval(), first),
    "input changed through NumPy": lambda: (clipped, first),
    "input made to require gradients": lambda: (Net(flagged, n=mlp()).eval(), first),
    "output changed in place": lambda: (mlp(3), centred),
    "TorchScript": lambda: (torch.jit.script(mlp()), first),
    "TorchScript inside": lambda: (Net(lambda s, x: s.h(s.n(x)), n=torch.jit.script(mlp(4)), h=mlp()).eval(), first),
    "compiled": lambda: (torch.compile(mlp()), first),
    "compiled inside": lambda: (Net(lambda s, x: s.h(s.n(x)), n=torch.compile(mlp(4)), h=mlp()).eval(), first),
    "bfloat16": lambda: (mlp().bfloat16(), first),
    "half": lambda: (mlp().half(), first),
    "experts": lambda: (mixture(), first),
    "gradients inside": lambda: (Net(force, n=mlp()).eval(), first),
    "vmap inside": lambda: (Net(lambda s, x: torch.func.vmap(s.n)(x), n=mlp()).eval(), first),
    "one row raises": lambda: (Net(lambda s, x: s.n(x) if len(x) > 1 else x[9], n=mlp()).eval(), first),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*the posterior holds no draws")
def test_every_row_has_the_margin_that_the_network_gives_it(kind):
    network, detector = KINDS[kind]()
    plain = getattr(network, "_orig_mod", network)
    problem = RiskProblem(network, standard(4), lambda y: detector(y) - 0.1)
    found = check(problem, draws=50)
    assert found.ok, found
    x = problem.sample(40)
    before = x.clone()
    margin = problem.margin(x).detach()
    torch.testing.assert_close(x, before)
    assert margin.dtype == torch.float32
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        expected = detector(plain(x.clone())).detach().float() - 0.1
    loose = {"rtol": 0.02, "atol": 0.01} if problem.is_half else {}
    torch.testing.assert_close(margin, expected, **loose)
    torch.testing.assert_close(torch.cat([problem.margin(row[None]) for row in x]).detach(), expected, **loose)
    # What is shown as catastrophic is what was drawn, and is catastrophic.
    made = monte_carlo(problem, calls=400, posterior_draws=40, progress=False)
    shown = torch.as_tensor(made.posterior["x"]).flatten(0, 1)
    assert float(problem.margin(shown.to(x.dtype)).detach().min()) >= (-0.02 if problem.is_half else 0.0)


@pytest.mark.parametrize("family", ["network", "low_rank"])
def test_half_precision_is_fitted(family):
    from ppl_risk.guides import LowRank, Network

    problem = RiskProblem(mlp().half(), standard(4), lambda y: y[:, 0] - 0.3)
    made = fit_svi(
        problem, {"network": Network(), "low_rank": LowRank(2)}[family], steps=10, draws=500, progress=False, seed=1
    )
    assert math.isfinite(made.log_prob)


def test_layers_of_some_rows_are_left_out_or_named():
    problem = RiskProblem(mixture(), standard(4), lambda y: y[:, 0] - 0.5)
    with pytest.warns(UserWarning, match=r'no draws of these layers: "experts\.\d"'):
        kept = posterior_of(problem, problem.sample(64))
    assert set(kept) == {"x", "gate", "margin"}
    note = next(f for f in check(problem, draws=50).findings if f.check == "layers")
    assert note.level == "note"
    assert "some rows only" in note.message
    for call in (select, fit_layerwise):
        with pytest.raises(RiskError, match=r'Layer "experts\.\d".*leave the layer out'):
            call(problem, draws=200)


def test_layers_that_run_often_are_noted():
    network = Net(lambda s, x: s.a(torch.tanh(s.a(torch.tanh(s.a(x))))), a=nn.Linear(4, 4)).eval()
    note = next(f for f in check(RiskProblem(network, standard(4), first), draws=50).findings if f.check == "layers")
    assert '"a" runs 3 times per row' in note.message


def test_what_a_layer_returned_is_kept_from_the_next_one():
    """A ReLU in place changes neither the recorded activations nor what the margin is said to read of them."""
    nets = [nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=place), nn.Linear(6, 1)).eval() for place in (False, True)]
    nets[1].load_state_dict(nets[0].state_dict())
    problems = [RiskProblem(net, standard(4), first) for net in nets]
    x = problems[0].sample(20)
    for one, other in zip(*(p.activations(x)[0].values() for p in problems), strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(*(select(p, 2, "gradient", draws=200).layers for p in problems), strict=True):
        torch.testing.assert_close(one.shares, other.shares)


REFUSED = {
    "no statistics": (
        lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 1)).eval(),
        r'BatchNorm1d at "1" keeps no running statistics',
    ),
    "functional statistics": (
        lambda: Net(
            lambda s, x: s.b(s.t(nn.functional.batch_norm(s.a(x), None, None, training=True))),
            a=nn.Linear(4, 8), t=nn.Tanh(), b=nn.Linear(8, 1),
        ).eval(),
        r'rows influence each other.*Tanh at "t"',
    ),
    "meta": (lambda: mlp().to("meta"), r'on the device "meta".*load_state_dict'),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(3)).eval(), r'weights of "0" have no shape yet'),
    "complex": (lambda: Net(lambda s, x: torch.fft.fft(s.n(x)), n=mlp(3)).eval(), "complex numbers"),
    "no graph": (
        lambda: Net(lambda s, x: torch.autograd.grad(s.n(x).sum(), x)[0], n=mlp()).eval(),
        r"differentiates inside forward.*enable_grad",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_work_is_refused_by_name(kind):
    made, text = REFUSED[kind]
    with pytest.raises(PreflightError, match=text):
        run_smc(RiskProblem(made(), standard(4), first), progress=False)


def test_instance_norm_never_mixes_rows():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv1d(1, 3, 2), nn.InstanceNorm1d(3), nn.Flatten(), nn.Linear(9, 1))
    assert check(RiskProblem(network, standard(1, 4), first), draws=50).ok


def test_gradients_that_are_nan_are_named():
    network = Net(root, n=mlp()).eval()
    problem = RiskProblem(network, standard(4), lambda y: y[:, 0] - 0.4)
    assert bool(torch.isfinite(problem.margin_and_gradient(torch.randn(200, 4))[1]).all())
    with pytest.raises(RiskError, match=r'gradients at layer "n\.0" that are NaN'):
        select(problem, draws=200)


def test_a_network_that_fails_on_some_input_says_so():
    def run(s, x):
        if float(x.abs().max()) > 4.0:
            raise ValueError("input out of range")
        return s.n(x)

    with pytest.raises(RiskError, match=r'fails on a batch of shape .*ValueError, "input out of range"'):
        monte_carlo(RiskProblem(Net(run, n=mlp()).eval(), standard(4), first), calls=60_000, progress=False)


RECURRENT = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}


@settings(max_examples=12, deadline=None)
@given(
    kind=st.sampled_from(list(RECURRENT)), steps=st.integers(1, 5), width=st.integers(1, 6), hidden=st.integers(1, 6),
    both=st.booleans(),
)  # fmt: skip
def test_flops_of_recurrent_layers(kind, steps, width, hidden, both):
    """2 G h (n + h) a step and direction, of G gates."""
    layer = kind(width, hidden, batch_first=True, bidirectional=both)
    problem = RiskProblem(Net(lambda s, x: s.n(x)[0][:, -1], n=layer).eval(), standard(steps, width), first)
    assert problem.flops_per_row == 2 * RECURRENT[kind] * hidden * (width + hidden) * steps * (1 + both)


@pytest.mark.parametrize("weights", [True, False])
def test_flops_of_attention(weights):
    steps, width = 5, 8
    layer = nn.MultiheadAttention(width, 2, batch_first=True)
    problem = RiskProblem(
        Net(lambda s, x: s.n(x, x, x, need_weights=weights)[0].flatten(1), n=layer).eval(),
        standard(steps, width),
        first,
    )
    assert problem.flops_per_row == 2 * steps * width * width * 4 + 2 * 2 * steps * steps * width


def test_a_network_in_inference_mode_is_estimated():
    net = torch.nn.Sequential(torch.nn.Linear(4, 1)).eval()

    class Inference(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        @torch.inference_mode()
        def forward(self, x):
            return torch.sigmoid(self.net(x))

    problem = RiskProblem(Inference().eval(), standard(4), lambda y: y[:, 0] - 0.9)
    assert check(problem).ok
