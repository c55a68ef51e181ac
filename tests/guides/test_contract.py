"""What every guide family promises, whatever its correlations, coordinates and input law."""

import pyro
import pytest
import torch
from pyro import poutine

from builders import NETWORKS, assert_means
from ppl_risk.activations import INPUT, ActivationModel
from ppl_risk.guides import (
    Block,
    Full,
    FullNormal,
    LowRank,
    LowRankNormal,
    MeanField,
    Mixture,
    Network,
    Normal,
    Selected,
)
from ppl_risk.selection import select

LAWS = {"normal": Normal(), "low-rank": LowRankNormal(2), "full": FullNormal(), "mixture": Mixture(3)}
FAMILIES = {"mean-field": MeanField, "block": Block, "low-rank": LowRank, "full": Full, "network": Network}
CASES = {name: family() for name, family in FAMILIES.items()}
CASES |= {f"{name}, noise": family(coordinates="noise") for name, family in FAMILIES.items() if name != "network"}
CASES |= {f"{name}, input {k}": family(input=law) for name, family in FAMILIES.items() for k, law in LAWS.items()}


def selected(rank, **told):
    """A selection belongs to its problem. Random directions: those that training selected leave no noise in the head."""
    return lambda problem: Selected(select(problem, rank, "random", draws=200), **told)


CASES |= {f"selected, rank {rank}": selected(rank) for rank in (0, 1, 2)}
CASES |= {f"selected, input {k}": selected(1, input=law) for k, law in LAWS.items() if k != "normal"}


def bound(family, kind="residual"):
    """A fresh guide of the family over the sites of one network, with the model that it guides."""
    problem = NETWORKS[kind]()
    family = family(problem) if callable(family) else family
    model = ActivationModel(problem, family.coordinates, resolution=family.resolution)
    return model, family.bind(model.sites)


def disturbed(family, kind="residual", seed=0):
    """A guide away from every special point: parameters at random around the fit to prior draws."""
    model, guide = bound(family, kind)
    guide.fit(model.prior_draws(300))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in guide.parameters():
            p += 0.2 * torch.randn(p.shape, generator=generator)
    return model, guide


@pytest.fixture(params=CASES, ids=str)
def family(request):
    return CASES[request.param]


def flat(values):
    return torch.cat([v.flatten(1) for v in values.values()], -1).double()


def test_parameters_exist_and_state_travels_before_the_first_call(family):
    _, guide = disturbed(family)
    state = guide.state_dict()
    _, fresh = bound(family)
    assert [n for n, _ in fresh.named_parameters()] == [n for n, _ in guide.named_parameters()]
    fresh.load_state_dict(state)
    torch.manual_seed(0)
    values = guide.sample(4)
    torch.testing.assert_close(fresh.log_prob(values), guide.log_prob(values))
    fresh()
    assert fresh.state_dict().keys() == state.keys()


@pytest.mark.parametrize("kind", ["conv", "twice"])
def test_sample_shapes(family, kind):
    model, guide = disturbed(family, kind)
    values = guide.sample(7)
    assert {n: v.shape for n, v in values.items()} == {n: (7, *s.shape) for n, s in model.sites.items()}
    assert guide.log_prob(values).shape == (7,)
    with pyro.plate("particles", 5, dim=-1):
        assert {n: v.shape for n, v in guide().items()} == {n: (5, *s.shape) for n, s in model.sites.items()}


def test_density_is_normalised(family):
    """E_q[p / q] = 1 for a narrower Gaussian p with the guide's own moments; the weights are bounded."""
    _, guide = disturbed(family)
    torch.manual_seed(1)
    z = flat(guide.sample(20_000))
    p = torch.distributions.MultivariateNormal(z.mean(0), 0.6 * z.mT.cov())
    values = guide.sample(40_000)
    with torch.no_grad():
        ratio = (p.log_prob(flat(values)) - guide.log_prob(values)).exp()
    assert float(ratio.std()) / 200 < 0.05, "too noisy to say anything"
    assert_means(ratio, 1.0)


@pytest.mark.parametrize("kind", ["residual", "conv"])
def test_traced_density_is_log_prob(family, kind):
    _, guide = disturbed(family, kind)
    with torch.no_grad(), pyro.plate("particles", 6, dim=-1):
        trace = poutine.trace(guide).get_trace()
        trace.compute_log_prob()
        sites = {n: s for n, s in trace.nodes.items() if s["type"] == "sample" and n != "particles"}
        total = sum(s["log_prob"].expand(6) for s in sites.values())
        values = {n: s["value"] for n, s in sites.items() if not s["infer"].get("is_auxiliary")}
        torch.testing.assert_close(total, guide.log_prob(values), rtol=1e-4, atol=2e-3)


def test_two_guides_share_nothing(family):
    problem = NETWORKS["residual"]()
    family = family(problem) if callable(family) else family
    sites = ActivationModel(problem, family.coordinates, resolution=family.resolution).sites
    one, two = family.bind(sites), family.bind(sites)
    for guide in (one, two):
        guide()
    assert not {p.data_ptr() for p in one.parameters()} & {p.data_ptr() for p in two.parameters()}
    before = [p.clone() for p in two.parameters()]
    with torch.no_grad():
        for p in one.parameters():
            p.add_(1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, two.parameters(), strict=True))
    assert len(pyro.get_param_store()) == 0


def test_input_law_is_the_marginal_of_the_joint(family):
    """First and second moments of u under the joint, 4.5 sigmas; the law carries no gradients."""
    _, guide = disturbed(family)
    law = guide.input_law()
    torch.manual_seed(2)
    drawn = guide.sample(40_000)[INPUT].double()
    proposed = law.sample((40_000,)).double()
    centre = drawn.mean(0)
    features = [torch.cat([x, ((x - centre) @ _directions(x)).square()], -1) for x in (drawn, proposed)]
    error = ((features[0].var(0) + features[1].var(0)) / 40_000).sqrt()
    assert float(((features[0].mean(0) - features[1].mean(0)).abs() / error).max()) < 4.5
    score = law.log_prob(drawn[:1].float()).sum()
    if score.requires_grad:  # slices of a parameter say so even where nothing flows back
        reached = torch.autograd.grad(score, list(guide.parameters()), allow_unused=True)
        assert all(g is None for g in reached)


def _directions(x):
    return torch.randn(x.shape[1], 6, generator=torch.Generator().manual_seed(4), dtype=x.dtype)


def test_every_parameter_gets_a_gradient(family):
    model, guide = disturbed(family)
    guide.log_prob(model.prior_draws(8)).sum().backward()
    dead = {n: p for n, p in guide.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)}
    # the Cholesky factor of a single coordinate has nothing below its diagonal
    assert all(n.endswith("lower") and p.numel() == 1 for n, p in dead.items()), dead


def test_labels_and_coordinates_tell_families_apart():
    chosen = [selected(rank)(NETWORKS["residual"]()) for rank in (1, 2)]
    labels = [family.label for family in (*map(lambda f: f(), FAMILIES.values()), LowRank(rank=3), *chosen)]
    assert len(set(labels)) == 8
    assert (Network().coordinates, Network().resolution) == ("noise", 0.0)
