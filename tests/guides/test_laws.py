"""The laws that guides are made of: marginals, scales and one-dimensional use."""

import pytest
import torch
from scipy.integrate import dblquad

from builders import linear_gaussian
from ppl_risk.guides import FullNormal, LowRankNormal, Mixture, Network, Normal
from ppl_risk.guides.laws import FLOOR
from ppl_risk.svi import fit_guide

LAWS = [Normal(), LowRankNormal(2), FullNormal(), Mixture(3)]
GAUSSIAN = LAWS[:3]


def random_law(family, dimension):
    law = family.bind(dimension)
    generator = torch.Generator().manual_seed(dimension)
    with torch.no_grad():
        for p in law.parameters():
            p += 0.7 * torch.randn(p.shape, generator=generator)
    return law


def covariance(law):
    return law.covariance_matrix if hasattr(law, "covariance_matrix") else torch.diag(law.variance)


@pytest.mark.parametrize("part", [slice(0, 2), slice(1, 4), slice(3, 5), slice(0, 5), slice(4, 5)], ids=str)
@pytest.mark.parametrize("family", GAUSSIAN, ids=repr)
def test_marginal_is_the_block_of_the_covariance(family, part):
    law = random_law(family, 5)
    joint, marginal = law.distribution(), law.marginal(part)
    torch.testing.assert_close(marginal.mean, joint.mean[part])
    torch.testing.assert_close(covariance(marginal), covariance(joint)[part, part], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", LAWS, ids=repr)
def test_density_in_the_plane_integrates_to_one(family):
    law = random_law(family, 2).distribution()
    grid = torch.linspace(-40, 40, 1601)
    points = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    with torch.no_grad():
        density = law.log_prob(points).double().exp()
    assert float(density.sum()) * 0.05**2 == pytest.approx(1.0, abs=2e-3)


def test_the_grid_rule_itself_agrees_with_quadrature():
    law = random_law(Mixture(3), 2).distribution()

    def density(y, x):
        with torch.no_grad():
            return float(law.log_prob(torch.tensor([[x, y]])).exp())

    inside = dblquad(density, -1, 1, -1, 1, epsabs=1e-4)[0]
    torch.manual_seed(0)
    x = law.sample((20_000,))
    share = float((x.abs() < 1).all(-1).float().mean())
    assert abs(share - inside) < 4.5 * (inside * (1 - inside) / 20_000) ** 0.5


@pytest.mark.parametrize("family", LAWS, ids=repr)
def test_one_coordinate(family):
    """A problem with a single input is a problem, too."""
    law = family.bind(1)
    law.fit(torch.randn(50, 1))
    z = law.pathwise().rsample(torch.Size((5,)))
    assert z.shape == (5, 1)
    assert law.distribution().log_prob(z).shape == (5,)


@pytest.mark.parametrize("family", LAWS, ids=repr)
def test_scales_never_fall_below_the_floor(family):
    law = family.bind(3)
    with torch.no_grad():
        law.free_scale.fill_(-1e4)
    assert bool((law.scale >= FLOOR).all())
    assert bool(torch.isfinite(law.distribution().log_prob(torch.zeros(3))).all())


@pytest.mark.parametrize("scale", [1e-3, 0.5, 1.0, 40.0])
def test_set_scale_is_read_back(scale):
    law = Normal().bind(2)
    with torch.no_grad():
        law.set_scale(torch.full((2,), scale))
    torch.testing.assert_close(law.scale.detach(), torch.full((2,), scale), rtol=2e-3, atol=0)


def test_rank_is_at_most_the_dimension():
    assert LowRankNormal(8).bind(3).factor.shape == (3, 3)


def test_a_full_input_law_does_not_diverge():
    """In 40 dimensions at the default step size the triangular factor stays solvable: the bound stays a bound, and near."""
    known = linear_gaussian(40, 4.0)
    fit = fit_guide(known.problem, Network(input=FullNormal()), steps=300, seed=0)
    assert known.log_prob - 1.0 < fit.elbo < known.log_prob + 4 * fit.elbo_error + 0.2
