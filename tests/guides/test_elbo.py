"""The ELBO of guide and model: vectorised equals looped, and both equal the average of log p - log q."""

import math

import numpy as np
import pytest
import torch
from pyro.infer import Trace_ELBO

from builders import NETWORKS, assert_within
from ppl_risk.activations import ActivationModel
from ppl_risk.guides import Block, Full, LowRank, MeanField, Mixture, Network

FAMILIES = [
    MeanField(),
    Block(),
    LowRank(2),
    Full(),
    Network(),
    Network(input=Mixture(2)),
    LowRank(2, coordinates="noise"),
]


def fitted(family, kind="residual"):
    model = ActivationModel(NETWORKS[kind](), family.coordinates, resolution=family.resolution)
    guide = family.bind(model.sites)
    guide.fit(model.prior_draws(500))
    return model, guide


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_vectorised_equals_looped_equals_by_hand(family):
    """Three independent estimates of one number, pairwise within 4.5 sigmas."""
    model, guide = fitted(family)
    torch.manual_seed(0)
    with torch.no_grad():
        one = Trace_ELBO(num_particles=1, max_plate_nesting=0)
        looped = np.array([one.loss(model, guide, 0.7) for _ in range(150)])
        many = Trace_ELBO(num_particles=4000, vectorize_particles=True, max_plate_nesting=0)
        vectorised = many.loss(model, guide, 0.7)
        values = guide.sample(4000)
        by_hand = (guide.log_prob(values) - model.log_joint(values, 0.7)).double()
    error = float(by_hand.std()) / math.sqrt(4000)
    assert_within(vectorised, float(by_hand.mean()), error * math.sqrt(2), 4.5)
    assert_within(float(looped.mean()), float(by_hand.mean()), math.hypot(looped.std() / math.sqrt(150), error), 4.5)


@pytest.mark.parametrize("kind", ["conv", "twice", "headed"])
def test_other_networks_vectorise_too(kind):
    model, guide = fitted(LowRank(2), kind)
    torch.manual_seed(0)
    with torch.no_grad():
        loss = Trace_ELBO(num_particles=3000, vectorize_particles=True, max_plate_nesting=0).loss(model, guide, 0.7)
        values = guide.sample(3000)
        by_hand = (guide.log_prob(values) - model.log_joint(values, 0.7)).double()
    assert_within(loss, float(by_hand.mean()), float(by_hand.std()) * math.sqrt(2 / 3000), 4.5)


def test_gradient_of_the_elbo_is_that_of_the_expectation():
    """With the prior as guide and no catastrophe the loss is KL(q || N(0, I)), whose gradient is known."""
    model, guide = fitted(Network())
    law = guide.groups[0].law
    with torch.no_grad():
        law.loc.copy_(torch.tensor([0.5, -1.0, 0.0, 2.0]))
        law.set_scale(torch.tensor([0.5, 1.0, 2.0, 0.8]))
    torch.manual_seed(0)
    loss = Trace_ELBO(num_particles=20_000, vectorize_particles=True, max_plate_nesting=0)
    (gradient,) = torch.autograd.grad(loss.differentiable_loss(model, guide, 0.0), [law.loc])
    # each draw contributes z - (z - loc) / scale^2 to the gradient in loc
    spread = (law.scale - 1 / law.scale).abs().detach()
    gap = (gradient - law.loc.detach()).abs()
    assert bool((gap <= 4.5 * spread / math.sqrt(20_000) + 1e-4).all())
