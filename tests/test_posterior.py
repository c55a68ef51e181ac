"""Posterior draws: what is kept of catastrophic inputs, and how it is laid out."""

import numpy as np
import pytest
import torch

from builders import NETWORKS
from ppl_risk.posterior import posterior_of, to_chains


@pytest.mark.parametrize("kind", NETWORKS)
def test_rows_carry_their_own_activations(kind):
    problem = NETWORKS[kind]()
    x = problem.sample(11)
    with problem.metered() as meter:
        kept = posterior_of(problem, x)
    assert meter.forward_calls == 8, "rows that do not fill the chains are dropped before they cost anything"
    values, margin = problem.activations(x[:8])
    assert list(kept) == ["x", *values, "margin"]
    for name, value in ({"x": x[:8]} | values | {"margin": margin}).items():
        assert kept[name].shape == (4, 2, *value.shape[1:])
        np.testing.assert_allclose(kept[name].reshape(value.shape), value.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [0, 3])
def test_too_few_rows_are_no_posterior(rows):
    problem = NETWORKS["linear"]()
    assert posterior_of(problem, problem.sample(rows)) == {}


def test_chains_are_consecutive_rows():
    np.testing.assert_array_equal(to_chains(torch.arange(6.0), 2), [[0, 1, 2], [3, 4, 5]])
