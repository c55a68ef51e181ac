"""Path-derivative gradients: the right mean, and no noise at the optimum."""

import numpy as np
import pytest
import torch

from ppl_risk.guides import FullNormal, LowRankNormal, Mixture, Normal
from ppl_risk.guides.pathwise import PathGradient

LAWS = {"normal": Normal(), "low-rank": LowRankNormal(1), "full": FullNormal(), "mixture": Mixture(2)}


def random_law(family, seed):
    law = family.bind(2)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in law.parameters():
            p += 0.4 * torch.randn(p.shape, generator=generator)
    return law


def target():
    return torch.distributions.MultivariateNormal(torch.tensor([0.5, -0.3]), torch.tensor([[1.2, 0.5], [0.5, 0.8]]))


def exact_gradient(law) -> torch.Tensor:
    """Gradient of KL(q || p): in closed form for Gaussians, on a grid for the mixture."""
    q, p = law.distribution(), target()
    if isinstance(q, torch.distributions.Independent):
        q = torch.distributions.MultivariateNormal(q.mean, torch.diag(q.variance))
    if hasattr(q, "covariance_matrix"):
        full = torch.distributions.MultivariateNormal(q.mean, q.covariance_matrix)
        loss = torch.distributions.kl_divergence(full, p)
    else:
        axis = torch.linspace(-9, 9, 361)
        z = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
        log_q = q.log_prob(z)
        loss = (log_q.exp() * (log_q - p.log_prob(z))).sum() * 0.05**2
    return flat_gradient(loss, law)


def flat_gradient(loss, law) -> torch.Tensor:
    gradients = torch.autograd.grad(loss, list(law.parameters()), materialize_grads=True, allow_unused=True)
    return torch.cat([g.flatten() for g in gradients])


@pytest.mark.parametrize("kind", LAWS)
def test_unbiased(kind):
    """Mean over 64 batches of 1500 draws, 4.5 sigmas for each parameter."""
    law = random_law(LAWS[kind], 1)
    exact = exact_gradient(law).double().numpy()
    torch.manual_seed(0)
    batches = []
    for _ in range(64):
        q = law.pathwise()
        z = q.rsample(torch.Size((1500,)))
        batches.append(flat_gradient((q.log_prob(z) - target().log_prob(z)).mean(), law).double().numpy())
    mean, error = np.mean(batches, 0), np.std(batches, 0, ddof=1) / 8
    moving = error > 0  # the upper triangle of a Cholesky factor is no parameter
    assert moving.sum() >= 4
    assert (exact[~moving] == 0).all()
    assert (np.abs(mean - exact)[moving] / error[moving]).max() < 4.5
    assert np.abs(exact[moving]).max() > 10 * error[moving].max(), "nothing was measured"


@pytest.mark.parametrize("kind", LAWS)
def test_no_noise_at_the_optimum(kind):
    """Where q is the target every single draw has gradient zero; the usual estimator has not."""
    law = random_law(LAWS[kind], 2)
    with torch.no_grad():
        goal = law.distribution()
    torch.manual_seed(0)
    q = law.pathwise()
    z = q.rsample(torch.Size((50,)))
    path = flat_gradient((q.log_prob(z) - goal.log_prob(z)).mean(), law)
    plain = law.distribution()
    z = plain.rsample((50,))
    usual = flat_gradient((plain.log_prob(z) - goal.log_prob(z)).mean(), law)
    assert float(path.abs().max()) < 1e-4
    assert float(usual.abs().max()) > 1e-2


def test_log_prob_has_no_parameters_but_passes_gradients_to_the_value():
    law = Normal().bind(2)
    q = law.pathwise()
    value = torch.ones(2, requires_grad=True)
    q.log_prob(value).backward()
    torch.testing.assert_close(value.grad, -torch.ones(2), rtol=1e-3, atol=0)
    assert all(p.grad is None for p in law.parameters())


def test_expands_like_a_law():
    q = LowRankNormal(1).bind(2).pathwise().expand(torch.Size([7]))
    assert isinstance(q, PathGradient)
    z = q.rsample()
    assert (z.shape, q.log_prob(z).shape) == ((7, 2), (7,))
    assert bool(torch.isfinite(q.log_prob(z)).all())
