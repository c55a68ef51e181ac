"""Which functionals a source gives, on networks whose answer is known."""

import math

import pytest
import torch
from scipy.stats import chi2
from torch import nn

from builders import first, linear_gaussian, standard
from ppl_risk.problem import RiskProblem
from ppl_risk.provenance import Provenance
from ppl_risk.selection import SOURCES, UpdateSketch, select
from ppl_risk.selection.affine import linear_part
from ppl_risk.selection.flow import flow_of
from ppl_risk.selection.sources import basis_of

WHITENED = sorted(set(SOURCES) - {"weights"})


def deep(provenance=None):
    """A relu network of two layers, not square."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3)).eval()
    return RiskProblem(net, standard(6), lambda y: y[:, 0] + 0.5 * y[:, 1] - 1.0, provenance=provenance)


def changed(net):
    """A state dict that training could have started from."""
    g = torch.Generator().manual_seed(7)
    return {name: p.detach() + torch.randn(p.shape, generator=g) for name, p in net.named_parameters()}


def known():
    """Everything that any source asks for."""
    net = deep().network
    initial = changed(net)
    return Provenance(
        initial=initial, updates={f"{n}|whole": p.detach() - initial[n] for n, p in net.named_parameters()}
    )


def flows(problem, draws=500, seed=0):
    g = torch.Generator().manual_seed(seed)
    return flow_of(problem, torch.randn(draws, problem.transport.dimension, generator=g))


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0).abs())


@pytest.mark.parametrize("source", ["trained", "gradient"])
def test_one_functional_of_a_linear_network_is_what_the_margin_reads(source):
    problem = linear_gaussian(4, 3.0, hidden=3).problem
    one, two = (layer.weight.detach() for layer in problem.network)
    selection = select(problem, 1, source, draws=500)
    assert cosine(selection.layer("0").functionals[:, 0], one.mT @ two[0]) > 1 - 1e-6
    assert cosine(selection.layer("1").functionals[:, 0], two[0]) > 1 - 1e-6
    assert [layer.explained(1) for layer in selection.layers] == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("source", ["trained", "gradient"])
def test_where_more_units_than_dimensions_the_functional_is_the_margin_itself(source):
    """Six units of four inputs: many functionals are the same there, and the one found is one of them."""
    problem = linear_gaussian(4, 3.0, hidden=6).problem
    x = problem.sample(100)
    with torch.no_grad():
        hidden, margin = problem.network[0](x), problem.run(x)
    layer = select(problem, 6, source, draws=500).layer("1")
    assert layer.functionals.shape == (6, 4)
    assert (
        cosine(hidden @ layer.functionals[:, 0] - (hidden @ layer.functionals[:, 0]).mean(), margin - margin.mean())
        > 1 - 1e-6
    )


def test_first_functional_of_checkpoints_is_what_training_wrote():
    """A change a b^T reads b, wherever the weights point; a layer that training left alone explains nothing."""
    problem = linear_gaussian(4, 3.0, hidden=3).problem
    g = torch.Generator().manual_seed(3)
    a, b = torch.randn(3, generator=g), torch.randn(4, generator=g)
    initial = {name: p.detach().clone() for name, p in problem.network.named_parameters()}
    initial["0.weight"] -= torch.outer(a, b)
    selection = select(problem, 1, "checkpoints", initial=initial, draws=500)
    assert cosine(selection.layer("0").functionals[:, 0], b) > 1 - 1e-6
    assert selection.layer("0").explained(1) == pytest.approx(1.0, abs=1e-4)
    assert selection.layer("1").shares.tolist() == [0.0] * 3
    trained = select(problem, 1, "trained", draws=500)
    assert cosine(trained.layer("0").functionals[:, 0], b) < 0.95, "both sources agree here: an empty test"


def test_sketch_finds_what_checkpoints_finds():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 1)).eval()
    initial = {name: p.detach().clone() for name, p in net.named_parameters()}
    sketch = UpdateSketch(net, rank=4)
    net[0].weight.data += torch.randn(96, 2) @ torch.randn(2, 96) / 10
    problem = RiskProblem(net, standard(96), first)
    written = select(problem, 2, "checkpoints", initial=initial, draws=300)
    found = select(problem, 2, "sketch", updates=sketch.state(), draws=300)
    assert "0.weight|range" in sketch.state(), "kept whole: an empty test"
    for k in range(2):
        assert cosine(written.layer("0").functionals[:, k], found.layer("0").functionals[:, k]) > 1 - 1e-4


@pytest.mark.parametrize("n", [2000, 8000])
def test_first_functional_of_pca_is_the_direction_of_largest_variance(n):
    """Each of the d - 1 other components of the eigenvector has variance 9 / (n (9 - 1)^2)."""
    direction = torch.nn.functional.normalize(torch.tensor([1.0, -2.0, 0.5, 1.5]), dim=0)
    law = torch.distributions.MultivariateNormal(torch.ones(4), torch.eye(4) + 8 * torch.outer(direction, direction))
    torch.manual_seed(0)
    problem = RiskProblem(nn.Sequential(nn.Linear(4, 1)), law, first)
    layer = select(problem, 1, "pca", draws=n).layers[0]
    assert 1 - cosine(layer.functionals[:, 0], direction) ** 2 < chi2.isf(1e-5, 3) * 9 / (n * 64)
    assert cosine(layer.patterns[:, 0], layer.functionals[:, 0]) > 1 - 1e-5  # an eigenvector reads what it moves
    assert layer.explained(1) == pytest.approx(9 / 12, abs=4.5 * math.sqrt(2 / n) * 9 / 12)


def test_gradient_of_typical_inputs_is_blind_where_trained_is_not():
    """Unit 1 counts only above 1.5, where one in 15 inputs is and most of those with a large margin are."""
    net = nn.Linear(2, 2, bias=False)
    net.weight.data = torch.eye(2)
    problem = RiskProblem(net, standard(2), lambda y: y[:, 0] + 3 * torch.relu(y[:, 1] - 1.5) - 9.0)
    found = {source: select(problem, 1, source, draws=4000).layers[0].functionals[:, 0] for source in SOURCES
             if source in ("gradient", "trained")}  # fmt: skip
    assert found["gradient"].abs().argmax() == 0
    assert found["trained"].abs().argmax() == 1


def test_spectrum_starts_with_the_outlier():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(60, 60, bias=False), nn.ReLU(), nn.Linear(60, 1)).eval()
    spike = torch.randn(60)
    net[0].weight.data = torch.randn(60, 60) / math.sqrt(60) + torch.outer(torch.randn(60), spike) / 12
    problem = RiskProblem(net, standard(60), first)
    # what is left of noise in the right vector, at 5 times the noise: about 1 / 25
    assert cosine(select(problem, 1, "spectrum", draws=20_000).layers[0].functionals[:, 0], spike) > math.sqrt(1 - 0.08)


def test_random_directions_follow_the_seed():
    one, again, other = (select(deep(), 2, "random", draws=100, seed=s) for s in (0, 0, 1))
    for a, b, c in zip(one.layers, again.layers, other.layers, strict=True):
        assert torch.equal(a.functionals, b.functionals)
        assert not torch.allclose(a.functionals, c.functionals, atol=0.01)


@pytest.mark.parametrize("source", WHITENED)
def test_functionals_are_uncorrelated_with_variance_one(source):
    for flow in flows(deep()):
        basis = basis_of(source, flow, known(), flow.shape.numel(), 0).functionals
        eye = torch.eye(basis.shape[1], dtype=torch.float64)
        torch.testing.assert_close(basis.mT @ flow.covariance @ basis, eye, rtol=0, atol=1e-8)


def test_functionals_of_weights_alone_are_orthonormal():
    for flow in flows(deep()):
        basis = basis_of("weights", flow, known(), flow.shape.numel(), 0).functionals
        torch.testing.assert_close(basis.mT @ basis, torch.eye(basis.shape[1], dtype=torch.float64))


@pytest.mark.parametrize("source", SOURCES)
def test_all_functionals_together_span_everything(source):
    for flow in flows(deep()):
        basis = basis_of(source, flow, known(), flow.shape.numel(), 0).functionals
        assert basis.shape == (flow.shape.numel(), flow.shape.numel())
        assert torch.linalg.matrix_rank(basis) == flow.shape.numel()


@pytest.mark.parametrize("source", sorted(set(SOURCES) - {"spectrum"}))
def test_shares_fall_and_sum_to_at_most_one(source):
    for flow in flows(deep()):
        shares = basis_of(source, flow, known(), flow.shape.numel(), 0).shares
        assert (shares.diff() <= 1e-12).all()
        assert float(shares.sum()) == pytest.approx(1.0)


def test_shares_sum_to_at_most_one_where_there_are_outliers():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 4)).eval()
    net[0].weight.data = torch.randn(30, 30) / 6 + torch.outer(torch.randn(30), torch.randn(30)) / 4
    problem = RiskProblem(net, standard(30), first)
    assert float(select(problem, 4, "spectrum", draws=300).layers[0].shares.sum()) <= 1 + 1e-5


@pytest.mark.parametrize("source", ["trained", "pca", "gradient"])
def test_first_functionals_predict_what_is_read_best(source):
    """Reduced-rank regression: no functionals of the same number leave less of the source's matrix (200 random ones)."""
    flow = flows(deep())[1]
    root = torch.linalg.cholesky(flow.covariance)
    read = torch.eye(10, dtype=torch.float64)
    if source != "pca":
        matrix = linear_part(flow.module, flow.shape).double()
        moments = [flow.reading] if source == "gradient" else [flow.reading, flow.tail_reading]
        read = sum(matrix.mT @ m @ matrix / (matrix.mT @ m @ matrix @ flow.covariance).trace() for m in moments)

    def left(functionals):
        moved = flow.covariance @ functionals
        explained = moved @ torch.linalg.solve(functionals.mT @ moved, moved.mT)
        return float((read @ (flow.covariance - explained)).trace())

    best = left(basis_of(source, flow, known(), 2, 0).functionals)
    g = torch.Generator().manual_seed(0)
    near = basis_of(source, flow, known(), 2, 0).functionals
    size = torch.linalg.solve(root.mT, torch.eye(10, dtype=torch.float64))
    for k in range(200):
        other = (near if k % 2 else 0) + 0.3 * size @ torch.randn(10, 2, generator=g, dtype=torch.float64)
        assert left(other) > best
