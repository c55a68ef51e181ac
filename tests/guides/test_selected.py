"""`Selected`: the network at full rank, independence at rank 0, and between them exactly what is carried."""

import math

import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

from builders import NETWORKS, Known, Residual, assert_within, linear_gaussian, standard
from ppl_risk import fit_layerwise, fit_svi
from ppl_risk.activations import INPUT, ActivationModel
from ppl_risk.errors import RiskError
from ppl_risk.guides import Block, Selected
from ppl_risk.layerwise import fitted_guide
from ppl_risk.problem import RiskProblem
from ppl_risk.risk_estimate import Status
from ppl_risk.selection import select

DRAWS = 10_000


def guide_of(problem, selection, draws=2000, pushed=False, **told):
    return fitted_guide(problem, Selected(selection, **told), pushed=pushed, draws=draws, seed=0)


def normals(guide, rows, seed=0):
    return torch.randn(rows, guide.normals(), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def margins(problem, guide, z):
    """Of the guide's own law, and of the network on the same inputs."""
    u = z[:, : problem.transport.dimension]
    return guide.margin_of_normals(problem, z), problem.run(problem.from_normal(u))


@torch.no_grad()
def read_by(problem, guide, layer, z):
    """What a layer is given under the guide's law."""
    seen = []
    handle = problem.cut[layer].register_forward_hook(lambda _m, args, _out: seen.append(args[0].detach()))
    try:
        guide.margin_of_normals(problem, z)
    finally:
        handle.remove()
    return seen[-1]


@pytest.mark.parametrize("kind", [*NETWORKS, "more units than inputs"])
@pytest.mark.parametrize("pushed", [False, True])
def test_full_rank_is_the_network(kind, pushed):
    problem = NETWORKS[kind]() if kind in NETWORKS else linear_gaussian(4, 3.0, hidden=6).problem
    guide = guide_of(problem, select(problem, 99, draws=300), pushed=pushed, draws=500)
    own, network = margins(problem, guide, normals(guide, 64))
    torch.testing.assert_close(own, network, rtol=0, atol=1e-3 * float(network.std()))


@pytest.mark.parametrize("kind", ["residual", "conv", "twice", "headed"])
def test_rank_zero_gives_every_layer_independent_inputs(kind):
    """Covariances within 4.5 sigmas of none, variances within those of both samples of the network's."""
    problem = NETWORKS[kind]()
    guide = guide_of(problem, select(problem, 0, "pca", draws=100), draws=4000)
    n, last = 4000, list(problem.cut)[-1]
    given = read_by(problem, guide, last, normals(guide, n)).flatten(1).double()
    law = list(guide.carried().values())[-1]
    alive = law.unit > 1e-3
    correlation = torch.corrcoef(given[:, alive].mT) - torch.eye(int(alive.sum()), dtype=torch.float64)
    assert float(correlation.abs().max()) < 5 / math.sqrt(n)
    torch.testing.assert_close(given.std(0), law.unit.double(), rtol=5 / math.sqrt(2 * n), atol=1e-3)


@pytest.mark.parametrize("pushed", [False, True])
@pytest.mark.parametrize("source", ["trained", "gradient"])
def test_one_functional_carries_the_margin_of_a_linear_network(source, pushed):
    """Row by row, whatever noise enters."""
    problem = linear_gaussian(8, 3.0).problem
    guide = guide_of(problem, select(problem, 1, source, draws=500), pushed=pushed)
    z = normals(guide, 64)
    own, network = margins(problem, guide, z)
    torch.testing.assert_close(own, network, rtol=0, atol=1e-4)
    noise = read_by(problem, guide, "1", z) - read_by(problem, guide, "1", z * (torch.arange(z.shape[1]) < 8))
    assert noise.std() > 0.1, "no noise entered: an empty test"


def independent_z(known):
    """Of a margin whose hidden units are taken for independent: variances add."""
    one, two = (layer.weight.detach().double() for layer in known.problem.network)
    return -known.mean / math.sqrt(float((two[0].square() * (one * 0.5).square().sum(1)).sum()))


def fitting_error(z):
    """Error of log sf(z) where mean and deviation were fitted to DRAWS draws."""
    return math.exp(norm.logpdf(z) - norm.logsf(z)) * math.sqrt((1 + z**2 / 2) / DRAWS)


def test_one_functional_gives_the_exact_tail_and_none_the_product_law():
    known = linear_gaussian(9, 4.0)
    selection = select(known.problem, 1, draws=500)
    one = fit_layerwise(known.problem, Selected(selection), draws=DRAWS, tail="smc", particles=400, progress=False)
    assert one.status is Status.MODEL_ONLY
    assert_within(one.log_prob, known.log_prob, one.std_error)  # nothing is fitted that the margin reads
    z = independent_z(known)
    assert abs(norm.logsf(z) - known.log_prob) > 0.5, "independence makes no difference here: choose another network"
    none = fit_layerwise(
        known.problem, Selected(selection.at(0)), draws=DRAWS, tail="smc", particles=400, progress=False
    )
    assert_within(none.log_prob, norm.logsf(z), math.hypot(fitting_error(z), none.std_error))


def test_only_the_reading_layer_sees_the_change():
    """At rank 0 in `outer` the head of the residual network reads x itself plus what `outer` makes of independent noise."""
    problem = NETWORKS["residual"]()
    guide = guide_of(problem, select(problem, 4, draws=200).at(4, outer=0))
    z = normals(guide, 256)
    net: Residual = problem.network
    x, e = z[:, :4], z[:, 8:12]
    with torch.no_grad():
        law = guide.carried()["outer"]
        drawn = net.outer(law.centre + law.scale * e)
        torch.testing.assert_close(read_by(problem, guide, "head", z), x + drawn, rtol=0, atol=1e-4)
        torch.testing.assert_close(margins(problem, guide, z)[0], net.head(x + drawn)[:, 0] - 1.5, rtol=0, atol=1e-4)
        hidden = torch.tanh(net.inner(x))
        assert (drawn - net.outer(hidden)).std() > 0.05, "the noise is what was there before: an empty test"
    error = 4.5 * hidden.std(0) / math.sqrt(256) + 4.5 * hidden.std(0) / math.sqrt(2000)
    assert ((law.centre - hidden.mean(0)).abs() < error).all()


class TwoReads(nn.Module):
    """Linear layers whose detector reads both of them."""

    def __init__(self, d: int = 5) -> None:
        super().__init__()
        self.early = nn.Linear(d, d, bias=False)
        self.late = nn.Linear(d, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        early = self.early(x)
        return torch.cat([early, self.late(early)], 1)


def two_reads(z=4.0, d=5):
    """The margin v . early + w . late - z std, with its exact tail, and that tail with the two reads independent."""
    g = torch.Generator().manual_seed(5)
    net = TwoReads(d).eval()
    for p in net.parameters():
        p.data = torch.randn(d, d, generator=g) / math.sqrt(d)
    with torch.no_grad():
        one, two = net.early.weight.double(), net.late.weight.double()
        v = torch.randn(d, generator=g).double()
        w = torch.linalg.lstsq((two @ one).mT, (v @ one)).solution  # late says what early says
        both, apart = (v @ one + w @ two @ one).norm(), torch.hypot((v @ one).norm(), (w @ two @ one).norm())
    threshold = z * float(both)
    read = torch.cat([v, w]).float()
    problem = RiskProblem(net, standard(d), lambda y: y @ read - threshold, name="two reads")
    return Known(problem, float(norm.logsf(z)), -threshold, float(both)), threshold / float(apart)


def test_detector_of_two_layers_keeps_their_joint_law():
    known, _ = two_reads()
    selection = select(known.problem, 1, draws=500)
    guide = guide_of(known.problem, selection)
    own, network = margins(known.problem, guide, normals(guide, 64))
    torch.testing.assert_close(own, network, rtol=0, atol=1e-3)
    estimate = fit_layerwise(known.problem, Selected(selection), draws=2000, tail="smc", particles=400, progress=False)
    assert_within(estimate.log_prob, known.log_prob, estimate.std_error)


def test_independent_layers_miss_what_both_say():
    """Reads of equal size add in the margin; taken for independent their deviation is smaller by sqrt 2."""
    known, z = two_reads()
    assert z == pytest.approx(4.0 * math.sqrt(2), rel=1e-4)
    block = fit_layerwise(known.problem, Block(), draws=DRAWS, tail="smc", particles=400, progress=False)
    # shrinkage moves the variance by at most dimension / draws
    slack = z**2 * 5 / DRAWS * 2
    assert_within(block.log_prob, norm.logsf(z), math.hypot(fitting_error(z), block.std_error), slack=slack)
    assert block.log_prob < known.log_prob - 7, "8.2 nats lie between the two"


def disturbed(problem, selection, **told):
    """Parameters at random around the fit."""
    family = Selected(selection, **told)
    model = ActivationModel(problem, resolution=family.resolution)
    guide = family.bind(model.sites)
    torch.manual_seed(0)
    guide.fit(model.prior_draws(400))
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in guide.parameters():
            p += 0.3 * torch.randn(p.shape, generator=g)
    return model, guide


def conditional(guide, name, module, h, sigma):
    """Normal(W (mu + A (z - B^T mu) + K shift) + b, W K D K^T W^T + sigma^2 I), all of it written out in double."""
    law = guide.carried()[name]
    B, A, mu, D = (t.detach().double() for t in (law.functionals, law.pattern, law.centre, law.scale.square()))
    shift = (law.shift * law.unit).detach().double()
    weighted = law.leak.detach().double()
    K = torch.eye(len(mu), dtype=torch.float64) - weighted @ B.mT
    W, b = module.weight.detach().double(), module.bias.detach().double()
    mean = (mu + ((h.double() - mu) @ B) @ A.mT + K @ shift) @ W.mT + b
    covariance = W @ K @ torch.diag(D) @ K.mT @ W.mT + sigma**2 * torch.eye(len(W), dtype=torch.float64)
    return torch.distributions.MultivariateNormal(mean, covariance)


@pytest.mark.parametrize("rank", [0, 2, 4])
def test_density_is_that_of_the_formula(rank):
    problem = NETWORKS["residual"]()
    _, guide = disturbed(problem, select(problem, rank, "random", draws=200))
    torch.manual_seed(2)
    values = guide.sample(6)
    net: Residual = problem.network
    x = values[INPUT]
    reads = {"inner": x, "outer": torch.tanh(values["inner"]), "head": x + values["outer"]}
    total = guide.group.law.log_prob(x).detach().double()
    for name, h in reads.items():
        sigma = 0.1 * float(guide.sites[name].spread.square().mean().sqrt())
        law = conditional(guide, name, getattr(net, name), h, sigma)
        total = total + law.log_prob(values[name].double())
    torch.testing.assert_close(guide.log_prob(values).detach().double(), total, rtol=1e-4, atol=1e-3)


def test_layers_outside_the_selection_follow_the_network():
    """A site that is no affine layer is the network's output plus its resolution."""
    problem = NETWORKS["conv"]()
    cut = RiskProblem(problem.network, problem.inputs, problem.detector, layers=["1", "3"])
    _, guide = disturbed(cut, select(cut, 3, "random", draws=100))
    assert guide.layers == ["3"]
    torch.manual_seed(2)
    values = guide.sample(2000)
    with torch.no_grad():
        rest = values["1"] - cut.network[:2](cut.from_normal(values[INPUT]))
    sigma = 0.1 * float(guide.sites["1"].spread.square().mean().sqrt())
    assert float(rest.std()) == pytest.approx(sigma, rel=4.5 / math.sqrt(2 * rest.numel()))


@pytest.mark.parametrize("rank", [0, 1])
def test_importance_corrected_answer_is_unbiased(rank):
    known = linear_gaussian(3, 2.5)
    family = Selected(select(known.problem, rank, draws=200))
    estimate = fit_svi(known.problem, family, steps=150, particles=8, draws=4000, posterior_draws=0, progress=False)
    assert estimate.status is Status.OK
    assert estimate.method == f"SVI selected(trained, {rank}) + importance sampling"
    assert_within(estimate.log_prob, known.log_prob, estimate.std_error)


def test_empirical_marginals_have_a_tail_and_no_density():
    known = linear_gaussian(3, 2.0)
    family = Selected(select(known.problem, 0, draws=200), marginals="empirical")
    estimate = fit_layerwise(known.problem, family, draws=DRAWS, tail="count", progress=False)
    z = independent_z(known)
    # quantiles of Gaussian draws are Gaussian up to the error of the fit
    assert_within(estimate.log_prob, norm.logsf(z), math.hypot(2 * fitting_error(z), estimate.std_error))
    _, guide = disturbed(known.problem, family.selection, marginals="normal")
    values = guide.sample(2)
    refusing = family.bind(guide.sites)
    for call in (lambda: refusing.log_prob(values), lambda: refusing.sample(2)):
        with pytest.raises(RiskError, match=r"no density; use Selected\(selection, marginals='normal'\)"):
            call()
    with pytest.raises(RiskError, match="marginals must be one of"):
        Selected(family.selection, marginals="skewed")


def test_empirical_marginals_are_refused_by_svi():
    known = linear_gaussian(3, 2.0)
    family = Selected(select(known.problem, 0, draws=200), marginals="empirical")
    with pytest.raises(RiskError, match="no density"):
        fit_svi(known.problem, family, steps=3, progress=False)


def test_skewed_units_are_drawn_skewed():
    """relu of a normal: third moment of what the last layer reads, at rank 0, is that of the network or 0."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1)).eval()
    net[0].bias.data -= 0.5
    problem = RiskProblem(net, standard(4), lambda y: y[:, 0] - 1.0)
    selection = select(problem, 0, "pca", draws=100)
    skewness = {}
    for marginals in ("normal", "empirical"):
        guide = guide_of(problem, selection, draws=DRAWS, marginals=marginals)
        given = read_by(problem, guide, "2", normals(guide, DRAWS)).double()
        skewness[marginals] = ((given - given.mean(0)) / given.std(0)).pow(3).mean(0)
    with torch.no_grad():
        hidden = net[:2](problem.sample(DRAWS)).double()
    true = ((hidden - hidden.mean(0)) / hidden.std(0)).pow(3).mean(0)
    assert (true > 0.5).all()
    assert (skewness["normal"].abs() < 4.5 * math.sqrt(6 / DRAWS)).all()
    torch.testing.assert_close(skewness["empirical"], true, rtol=0.15, atol=0.05)


def test_marginals_and_names_that_do_not_exist():
    problem = NETWORKS["residual"]()
    _, guide = disturbed(problem, select(problem, 1, draws=100))
    with pytest.raises(KeyError, match="outer"):
        guide.marginal("outer")
    with pytest.raises(RiskError, match=r"names \['inner', 'outer', 'head'\], which are no sites here"):
        Selected(select(problem, 1, draws=100)).bind(ActivationModel(NETWORKS["conv"]()).sites)
