"""Bounds hold at every step for every operator, are exact where they should be, and say so where they say nothing."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import gamma, norm
from torch import nn
from torch.nn import functional as F

import ppl_risk as pr
from builders import first, linear_gaussian, residual_problem, standard, twice_problem
from ppl_risk.bounds import Ball, Box, certify, crown_bounds, interval_bounds, program_of, relaxation, upper_planes
from ppl_risk.bounds.proven import log_box_tail, log_chi_tail, log_proven
from ppl_risk.risk_estimate import Status
from ppl_risk.tracing import trace

CPU, ROUNDING = torch.device("cpu"), 1e-9


def bounded(network, law, detector=None):
    return program_of(trace(pr.RiskProblem(network, law, detector)), CPU)


def region_of(kind, centre, radius):
    if kind == "box":
        return Box(centre, torch.full_like(centre, radius))
    return Ball(centre, torch.full((len(centre),), 2.0 * radius, dtype=torch.float64))


def points_in(region, rows, generator):
    """Points of the first region, most of them on its surface."""
    centre = region.centre[0]
    z = torch.randn(rows, centre.numel(), dtype=torch.float64, generator=generator)
    far = torch.rand(rows, 1, dtype=torch.float64, generator=generator).mul(2).clamp(max=1)
    edge = z.sign() if isinstance(region, Box) else z / z.norm(dim=1, keepdim=True)
    away = edge * far * region.radius[0].reshape(1, -1)
    return centre + away.reshape(rows, *centre.shape)


def violations(program, region, rows=300, seed=0):
    """Nodes whose bounds are left by a point of the region, by interval or CROWN bounds, or by the plane above the margin."""
    x = points_in(region, rows, torch.Generator().manual_seed(seed))
    values, broken = program.values(x), set()
    bounds = crown_bounds(program, region, everywhere=True)
    for found in (interval_bounds(program, region), bounds):
        for name, value in values.items():
            low, high = found[name][0][0], found[name][1][0]
            slack = ROUNDING * (1 + value.abs())
            if not bool(((value >= low - slack) & (value <= high + slack)).all()):
                broken.add(name)
    planes, most = upper_planes(program, region, bounds)
    each = x.flatten(1) @ planes.weights[0].mT + planes.offset[0]
    assert bool((each <= most[0] + ROUNDING * (1 + each.abs())).all())
    above = each.amax(1)
    margin = values[program.output.name].reshape(-1)
    return broken | ({"plane"} if bool((margin > above + ROUNDING * (1 + above.abs())).any()) else set())


def weights(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def heads(x):
    return x.reshape(len(x), 1, 3, 2)


#: One row is six numbers; every operator that has bounds, in the forms in which people write it.
OPERATORS = {
    "relu": torch.relu, "leaky_relu": lambda x: F.leaky_relu(x, 0.2), "elu": F.elu, "tanh": torch.tanh, "gelu": F.gelu,
    "sigmoid": torch.sigmoid, "silu": F.silu, "softplus": F.softplus, "hardtanh": F.hardtanh, "relu6": F.relu6,
    "softsign": F.softsign, "abs": torch.abs,
    "clamp": lambda x: x.clamp(-0.3, 0.4), "clamp_min": lambda x: x.clamp_min(0.1), "square": torch.square, "erf": torch.erf,
    "exp": torch.exp, "log_sigmoid": F.logsigmoid, "log": lambda x: (x.exp() + 0.1).log(), "sqrt": lambda x: (x**2 + 0.1).sqrt(),
    "rsqrt": lambda x: (x.square() + 0.2).rsqrt(), "pow": lambda x: (x.abs() + 0.5) ** -1,
    "linear": lambda x: F.linear(x, weights(3, 6)), "matmul": lambda x: weights(4, 3) @ heads(x),
    "einsum": lambda x: torch.einsum("bi,ij->bj", x, weights(6, 2)),
    "conv1d": lambda x: F.conv1d(x[:, None], weights(2, 1, 3), padding=1),
    "same": lambda x: F.conv1d(x[:, None], weights(2, 1, 3), padding="same"),
    "conv2d": lambda x: F.conv2d(heads(x), weights(2, 1, 2, 2)), "avg_pool": lambda x: F.avg_pool1d(x[:, None], 2),
    "max_pool": lambda x: F.max_pool1d(x[:, None], 2),
    "batch_norm": lambda x: F.batch_norm(x, weights(6), weights(6).abs(), weights(6)),
    "shapes": lambda x: torch.cat([x[:, 1:3].flip(-1), F.pad(heads(x).transpose(2, 3), (1, 1)).flatten(1)], -1),
    "sums": lambda x: x.mean(-1, keepdim=True) - 2 * x.cumsum(-1) + torch.stack([x, -x], -1).sum(-1) / 3 + (1 - x),
    "product": lambda x: x[:, :3] * x[:, 3:], "by itself": lambda x: x * x, "broadcast": lambda x: heads(x) * x[:, None, :3, None],
    "quotient": lambda x: x[:, :3] / (1 + x[:, 3:].exp()), "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: x.log_softmax(-1), "logsumexp": lambda x: x.logsumexp(-1, keepdim=True),
    "layer_norm": lambda x: F.layer_norm(x, (6,), weights(6), weights(6)),
    "rms_norm": lambda x: F.rms_norm(x, (6,), weights(6), 1e-3), "amax": lambda x: x.amax(-1),
    "amin": lambda x: heads(x).amin((-1, -2)), "max": lambda x: x.max(-1).values, "min": lambda x: x.min(-1).values,
    "largest of all": lambda x: heads(x).flatten(1).max(1).values,
    "sort": lambda x: x.sort(-1).values, "topk": lambda x: x.topk(3).values,
    "top1": lambda x: x.topk(1).values, "maximum": lambda x: torch.maximum(x[:, :3], x[:, 3:]),
    "minimum": lambda x: torch.minimum(x, torch.tensor(0.1)), "masked_fill": lambda x: x.masked_fill(weights(6) > 0, 0.3),
    "attention": lambda x: F.scaled_dot_product_attention(heads(x), heads(x) * 2, heads(x.flip(-1))),
    "scores": lambda x: heads(x) @ heads(x).transpose(-1, -2),
}  # fmt: skip


#: Operators in pairs, so that each costs half a test: a row becomes the numbers of both.
PAIRS = [
    (F.mish, F.selu), (lambda x: F.celu(x, 0.7), F.hardswish), (F.hardsigmoid, F.softshrink),
    (lambda x: x.square().log1p(), lambda x: torch.sin(4 * x)), (torch.cos, torch.atan), (lambda x: x**3, torch.cosh),
    (lambda x: F.prelu(x.reshape(len(x), 3, 2), torch.tensor([0.3, -0.5, 1.7])), lambda x: F.glu(x, -1)),
    (lambda x: F.conv_transpose1d(x[:, None], weights(1, 2, 3), weights(2), stride=2), lambda x: F.interpolate(x[:, None], size=9)),
    (lambda x: F.group_norm(x.reshape(len(x), 6, 1), 2, weights(6), weights(6)), lambda x: F.rms_norm(x, (6,)).square()),
    (
        lambda x: x.clamp(torch.arange(6) / 9 - 0.3, torch.tensor(0.2)),
        lambda x: torch.clamp(x[:, :3], x[:, 3:] - 0.1, x[:, 3:] + 0.1),
    ),
    (lambda x: torch.max(x[:, :3], x[:, 3:]), lambda x: torch.min(torch.tensor(0.1), x.relu())),
    (lambda x: F.max_pool2d(heads(x), 2, ceil_mode=True), lambda x: F.max_pool2d(heads(x), 2, padding=1)),
    (lambda x: F.scaled_dot_product_attention(heads(x), heads(x), heads(x.flip(-1)), is_causal=True), lambda x: x.mT.mT),
    (lambda x: torch.where(weights(6) > 0, x, x.flip(-1) * 2), lambda x: x.select_scatter(x[:, 0] * 3, 1, 4)),
    (lambda x: torch.addmm(torch.ones(1), x, weights(6, 2), alpha=-2.0), lambda x: torch.zeros_like(x) + x),
]  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS)
def test_no_point_leaves_the_bounds_of_two_operators(pair):
    def network(x):
        y = x @ (weights(6, 6).to(x) / 2) + 0.1
        out = torch.cat([f(y).reshape(len(x), -1) for f in pair], -1)
        out[:, :1] *= 2  # written in place, and read again below
        return out.sum(-1)

    program = bounded(network, standard(6))
    centre = torch.randn(1, 1, 6, generator=torch.Generator().manual_seed(3)).double()
    region = region_of("box", centre, 1.0)
    assert violations(program, region, rows=60) == set()
    assert all(bool(end.isfinite().all()) for end in crown_bounds(program, region)[program.output.name])


@pytest.mark.parametrize("name", OPERATORS)
def test_no_point_leaves_the_bounds_of_an_operator(name):
    mixed = weights(6, 6).double() / 2

    def network(x):
        return OPERATORS[name](x @ mixed.to(x) + 0.1).reshape(len(x), -1).sum(-1)

    program = bounded(network, standard(6))
    for seed, kind, radius in ((0, "box", 0.05), (1, "ball", 0.5)):
        centre = torch.randn(1, 1, 6, generator=torch.Generator().manual_seed(seed)).double()
        region = region_of(kind, centre, radius)
        assert violations(program, region, seed=seed) == set()
        ends = crown_bounds(program, region)[program.output.name]
        assert all(bool(end.isfinite().all()) for end in ends), "nothing is known: a check of these bounds is empty"


def random_network(seed, activation, kind):
    torch.manual_seed(seed)
    act = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh, "silu": nn.SiLU}[activation]
    if kind == "transformer":
        layer = nn.TransformerEncoderLayer(4, 2, 8, 0.1, "gelu" if activation == "gelu" else "relu", batch_first=True)
        return nn.Sequential(nn.Unflatten(1, (2, 4)), layer, nn.Flatten(), nn.Linear(8, 3)).eval()
    if kind == "conv":
        return nn.Sequential(
            nn.Unflatten(1, (1, 2, 4)), nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), act(), nn.MaxPool2d((1, 3)), nn.Flatten(),
            nn.Linear(2, 3),
        ).eval()  # fmt: skip
    return nn.Sequential(nn.Linear(8, 6), act(), nn.LayerNorm(6), nn.Linear(6, 6), act(), nn.Linear(6, 3)).eval()


@settings(max_examples=7, deadline=None, derandomize=True)
@given(
    st.integers(0, 1000), st.sampled_from(["relu", "gelu", "tanh", "silu"]), st.sampled_from(["mlp", "conv", "transformer"]),
    st.sampled_from(["box", "ball"]), st.floats(0.01, 0.5),
)  # fmt: skip
def test_no_point_leaves_the_bounds_of_a_random_network(seed, activation, kind, region, radius):
    program = bounded(random_network(seed, activation, kind), standard(8), lambda y: y[:, 0] - y[:, 1:].amax(-1))
    centre = torch.randn(1, *program.root.shape, generator=torch.Generator().manual_seed(seed)).double()
    assert violations(program, region_of(region, centre, radius), rows=100, seed=seed) == set()


@pytest.mark.parametrize("broken", [
    lambda a: a._replace(low=a.low + 0.02), lambda a: a._replace(high=a.high - 0.02),
    lambda a: a._replace(high_slope=a.high_slope - 0.02), lambda a: a._replace(low_slope=a.low_slope - 0.02),
])  # fmt: skip
def test_broken_lines_are_noticed(monkeypatch, broken):
    """A test of the tests above: each of the lines below is wrong by 0.02."""
    programs = [bounded(f, standard(1)) for f in (lambda x: x.abs().sum(-1), lambda x: -x.relu().sum(-1))]
    regions = [region_of("box", torch.full((1, 1, 1), at).double(), 0.5) for at in (-0.2, 0.2)]
    assert not any(violations(p, region) for p in programs for region in regions)
    honest = relaxation.lines
    monkeypatch.setattr(relaxation, "lines", lambda *a: broken(honest(*a)))
    assert any(violations(p, region) for p in programs for region in regions)


def test_exhaustion_in_the_plane():
    """On a grid of the square: bounds hold, and are the extremes themselves where no ReLU changes its mind."""
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    program = bounded(net, standard(2), first)
    square = torch.cartesian_prod(*[torch.linspace(-1, 1, 101, dtype=torch.float64)] * 2)[:, None]
    for radius in (0.001, 0.3, 1.0):
        values = program.values(radius * square)[program.output.name]
        region = Box(torch.zeros(1, 1, 2).double(), torch.full((1, 1, 2), radius).double())
        (low,), (high,) = crown_bounds(program, region)[program.output.name]
        width = float(values.max() - values.min())
        assert low <= values.min() + ROUNDING
        assert high >= values.max() - ROUNDING
        assert float(high - low) < (1 + 1e-6 if radius < 0.1 else 2.5) * width


def test_crown_is_tighter_than_intervals():
    ratios = []
    for seed in range(6):
        program = bounded(random_network(seed, "relu", "mlp"), standard(8), first)
        region = region_of("box", torch.randn(1, *program.root.shape).double(), 0.1)
        (a, b), (c, d) = (f(program, region)[program.output.name] for f in (interval_bounds, crown_bounds))
        ratios.append(float((d - c) / (b - a)))
    assert max(ratios) <= 1 + ROUNDING
    assert np.mean(ratios) < 0.6


def test_an_affine_margin_is_exact():
    known = linear_gaussian(5, 4.0)
    made = certify(known.problem, progress=False)
    assert made.status is Status.BOUNDED
    assert 3.98 < made.evidence["certified_radius"] <= 4.0 + 1e-6
    assert known.log_prob <= made.log_prob < known.log_prob + 0.02
    at = made.evidence["certified_radius"]
    assert made.evidence["log10_bound_region"] * math.log(10) == pytest.approx(log_chi_tail(at, 5))
    assert made.interval() == (-math.inf, made.log_prob)
    above = pr.RiskEstimate("by hand", made.log_prob + 1.0, 0.1)
    assert pr.compare({"bound": made, "above": above}).conflicts == [("above", "bound")]
    assert "P(catastrophe) <=" in str(made)


def test_a_correlated_law_is_measured_in_its_own_normals():
    tril = torch.tensor([[2.0, 0.0], [1.5, 0.5]])
    law = torch.distributions.MultivariateNormal(torch.tensor([1.0, -1.0]), scale_tril=tril)
    problem = pr.RiskProblem(lambda x: x[:, 0] + x[:, 1] - 15.0, law)
    spread = float((tril[0] + tril[1]).norm())
    made = certify(problem, progress=False)
    assert norm.logsf(15 / spread) <= made.log_prob < norm.logsf(15 / spread) + 0.02


def test_a_maximum_costs_no_more_than_the_sum_of_its_parts():
    made = certify(pr.RiskProblem(lambda x: x[:, :3].amax(-1) - 4.0, standard(5)), progress=False)
    truth = math.log(-math.expm1(3 * norm.logcdf(4.0)))
    assert truth <= made.log_prob < truth + 0.02
    assert made.evidence["certified_radius"] == pytest.approx(4.0, rel=0.005)


@pytest.mark.parametrize("seed", range(3))
def test_the_bound_is_above_the_probability(seed):
    """In the plane the probability is a sum over a fine grid."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    grid = torch.cartesian_prod(*[torch.linspace(-7, 7, 801)] * 2)
    weight = torch.softmax(-grid.double().square().sum(-1) / 2, 0)
    output = net(grid)[:, 0].detach()
    threshold = float(output[grid.norm(dim=1) < 1.5].max()) + 0.05
    log_prob = float(weight[output >= threshold].sum().log())
    made = certify(pr.RiskProblem(net, standard(2), lambda y: y[:, 0] - threshold), progress=False)
    assert made.status is Status.BOUNDED
    assert made.log_prob >= log_prob


def test_independent_laws_that_are_not_gaussian():
    law = torch.distributions.Independent(torch.distributions.Exponential(torch.ones(3)), 1)
    made = certify(pr.RiskProblem(lambda x: x.sum(-1) - 30.0, law), progress=False)
    assert made.status is Status.BOUNDED
    # The cube whose corner is (10, 10, 10) touches the event; of each number both tails are given away.
    assert gamma(3).logsf(30) < made.log_prob == pytest.approx(math.log(6) - 10, abs=0.05)
    mixture = pr.inputs.EmpiricalWithNoise(torch.zeros(4, 2), 0.1)
    with pytest.raises(pr.RiskError, match=r"EmpiricalWithNoise.*run_smc"):
        certify(pr.RiskProblem(lambda x: x.sum(-1) - 9.0, mixture), progress=False)


def test_no_catastrophe_on_a_bounded_support_is_zero():
    law = torch.distributions.Independent(torch.distributions.Uniform(-torch.ones(3), 1.0), 1)
    made = certify(pr.RiskProblem(lambda x: x.tanh().sum(-1) - 2.29, law), progress=False)
    assert (made.status, made.log_prob) == (Status.PROVED, -math.inf)
    assert "P(catastrophe) = 0, proved" in str(made)
    possible = certify(pr.RiskProblem(lambda x: x.tanh().sum(-1) - 2.27, law), progress=False)
    assert possible.log_prob > -8


@pytest.mark.parametrize(("network", "log_prob"), [
    (lambda x: -torch.ones(len(x)), -math.inf), (lambda x: torch.ones(len(x)), 0.0), (lambda x: 0 * x.sum(-1) - 1, -math.inf),
    (lambda x: 0 * x.sum(-1), 0.0), (lambda x: x.tanh().sum(-1) - 3, -math.inf), (lambda x: -F.gelu(x).sum(-1) - 1, -math.inf),
    (lambda x: x.square().sum(-1), 0.0), (lambda x: 0.9 - x.cosh()[:, 0], -math.inf),
])  # fmt: skip
def test_a_margin_of_one_sign_is_proved(network, log_prob):
    made = certify(pr.RiskProblem(network, standard(2)), inputs=0, progress=False)
    assert (made.status, made.log_prob) == (Status.PROVED, log_prob)


def test_a_margin_that_changes_its_sign_far_out_is_not_proved():
    for network in (lambda x: x.sum(-1) - 30, lambda x: x.relu().sum(-1) - 30, lambda x: 30 - x.square().sum(-1)):
        made = certify(pr.RiskProblem(network, standard(2)), inputs=0, progress=False)
        assert made.status is not Status.PROVED


def written(x):
    y = x.clone()
    y[:, :1] *= 3.0
    return y.sum(-1)


def half_relu(x):
    y = 1.0 * x
    F.relu(y[:, 1:], inplace=True)
    return y.sum(-1)


@pytest.mark.parametrize(("network", "threshold", "log_prob"), [
    (written, 9.0, norm.logsf(9 / math.sqrt(10))),
    # relu(b) >= b, and the events differ where b < 0 alone.
    (half_relu, 5.0, math.log(norm.sf(5) * 0.5)),
])  # fmt: skip
def test_a_bound_holds_where_the_network_writes_through_a_view(network, threshold, log_prob):
    made = certify(pr.RiskProblem(network, standard(2), lambda m: m - threshold), inputs=0, progress=False)
    assert made.status is Status.BOUNDED
    assert made.log_prob >= log_prob


def test_the_smaller_variance_of_a_low_rank_law_counts():
    law = torch.distributions.LowRankMultivariateNormal(torch.zeros(2), 10 * torch.ones(2, 1), 1e-5 * torch.ones(2))
    problem = pr.RiskProblem(lambda x: (x[:, 0] - x[:, 1]) / math.sqrt(2e-5) - 3.5, law)
    assert certify(problem, inputs=0, progress=False).log_prob == pytest.approx(norm.logsf(3.5), abs=0.01)


def test_narrow_types_are_refused_and_a_time_limit_keeps_what_is_proved():
    net = nn.Linear(2, 1).to(torch.bfloat16)
    with pytest.raises(pr.RiskError, match=r"bfloat16.*rounding"):
        certify(pr.RiskProblem(net, standard(2), lambda y: y[:, 0] - 9), progress=False)
    cut = certify(linear_gaussian(5, 4.0).problem, progress=False, max_seconds=1e-9)
    assert cut.status is Status.VACUOUS
    assert "cut short" in cut.remedy


def test_a_deep_random_network_is_told_to_be_out_of_reach():
    torch.manual_seed(0)
    layers = [nn.Linear(32, 32, bias=False) for _ in range(6)]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    net = nn.Sequential(*(m for layer in layers for m in (layer, nn.ReLU())), nn.Linear(32, 1))
    problem = pr.RiskProblem(net, standard(32), lambda y: y[:, 0] - 3.0, name="deep")
    made = certify(problem, inputs=5, progress=False)
    assert (made.status, made.log_prob) == (Status.VACUOUS, 0.0)
    assert "P(catastrophe) <= 1.0e+00" in str(made)
    assert "smaller" in made.remedy
    together = pr.compare({"bound": made, "sampled": pr.RiskEstimate("by hand", -7.0, 0.1, problem="deep")})
    assert together.best == "sampled"
    assert not together.conflicts
    assert [together.rows()[0][name] for name in ("log10 p", "90 % interval")] == ["-", "<= 0.00"]


def test_cost_and_evidence():
    problem = residual_problem()
    with problem.metered() as meter:
        made = certify(problem, inputs=50, epsilon=0.3, seed=3, progress=False)
    assert made.forward_calls == meter.forward_calls == 51
    assert made.flops > 1e4
    shares = made.evidence["share_of_inputs_certified"], made.evidence["share_of_inputs_failing"]
    assert 0.3 < shares[0] < 1
    assert 0 < shares[1] < 0.5
    assert certify(problem, inputs=50, epsilon=0.3, seed=3, progress=False).evidence == made.evidence
    assert certify(problem, inputs=0, radii=[0.5, 1.0], progress=False).evidence["certified_radius"] in (0.0, 0.5, 1.0)
    assert "epsilon" not in certify(twice_problem(), inputs=0, progress=False).evidence


def test_tails_in_logarithms():
    assert log_chi_tail(100.0, 2) == pytest.approx(-5000.0, rel=1e-12)
    for d in (1, 7, 200):
        # The series of the far tail continues the function it replaces.
        assert log_chi_tail(36.5, d) - log_chi_tail(35.5, d) == pytest.approx((d - 1) / 36 - 36, abs=0.05)
    assert log_box_tail(3.0, 4) == pytest.approx(math.log(1 - (1 - 2 * norm.sf(3.0)) ** 4))
    assert log_box_tail(12.0, 4) == pytest.approx(math.log(8) + norm.logsf(12.0), abs=1e-6)
    offset = torch.tensor([[1.0], [math.nan]]).double()
    assert log_proven(torch.zeros(2, 1, 3).double(), offset, torch.ones(2).double()).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("network", "text"), [
    (torch.tan, '"tan".*after the input.*run_smc'), (lambda x: (x > 0).float(), '"gt"'),
    (nn.Sequential(nn.Linear(2, 2), nn.GELU(approximate="tanh")), '"gelu".*layer "0".*approximate'),
    (lambda x: x.sort(-1).indices.float(), '"sort"'),
])  # fmt: skip
def test_what_has_no_bound_is_named(network, text):
    with pytest.raises(pr.RiskError, match=text):
        certify(pr.RiskProblem(network, standard(2), lambda y: y.sum(-1) - 9), progress=False)
    with pytest.raises(pr.RiskError, match="at least 0"):
        certify(residual_problem(), epsilon=0.0, progress=False)
