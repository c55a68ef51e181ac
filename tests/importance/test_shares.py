"""Shares of least variance against a grid over the simplex."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_risk.importance.shares import best_shares


def objective(log_tilt, weight, shares):
    """Second moment of the weights, sum_i w_i / sum_k a_k (q_k / phi)."""
    return float((weight / (log_tilt.exp() @ shares)).sum())


def brute_force(log_tilt, weight, floor, steps=60):
    k = len(floor)
    grid = [g for g in itertools.product(np.linspace(0, 1, steps + 1), repeat=k - 1) if sum(g) <= 1 + 1e-12]
    free = 1 - floor.sum()
    corners = (torch.tensor([*g, max(0.0, 1 - sum(g))], dtype=torch.float64) for g in grid)
    return min(objective(log_tilt, weight, floor + free * c) for c in corners)


def problem(seed, components, hits=40):
    generator = torch.Generator().manual_seed(seed)
    log_tilt = 2 * torch.randn(hits, components, generator=generator, dtype=torch.float64)
    weight = torch.rand(hits, generator=generator, dtype=torch.float64)
    return log_tilt, weight / weight.sum()


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000), st.sampled_from([2, 3]), st.lists(st.sampled_from([0.0, 0.01, 0.1, 0.3]), min_size=3, max_size=3)
)  # fmt: skip
def test_no_point_of_a_grid_is_better(seed, components, floor):
    log_tilt, weight = problem(seed, components)
    floor = torch.tensor(floor[:components], dtype=torch.float64)
    shares = best_shares(log_tilt, weight, floor)
    assert float(shares.sum()) == pytest.approx(1.0)
    assert bool((shares >= floor - 1e-12).all())
    assert objective(log_tilt, weight, shares) <= brute_force(log_tilt, weight, floor) * (1 + 2e-3)


def test_hits_without_weight_do_not_count():
    log_tilt, weight = problem(1, 3)
    junk = torch.cat([log_tilt, 50 * torch.eye(3, dtype=torch.float64)])
    floor = torch.full((3,), 0.02, dtype=torch.float64)
    padded = torch.cat([weight, torch.zeros(3, dtype=torch.float64)])
    torch.testing.assert_close(best_shares(junk, padded, floor), best_shares(log_tilt, weight, floor))


def test_the_component_that_is_the_target_gets_all_but_the_floors():
    """Where q_1 is the law given the event its tilt is the same at all hits; none other's is higher on average."""
    log_tilt = torch.stack([torch.full((50,), 7.0).double(), 7 + torch.linspace(-6, 1, 50).double()], -1)
    shares = best_shares(log_tilt, torch.full((50,), 0.02).double(), torch.tensor([0.0, 0.05]).double())
    assert shares.tolist() == pytest.approx([0.95, 0.05], abs=0.01)


def test_tilts_of_hundreds_of_nats_are_no_trouble():
    log_tilt, weight = problem(2, 3)
    floor = torch.full((3,), 0.02, dtype=torch.float64)
    torch.testing.assert_close(best_shares(log_tilt + 600, weight, floor), best_shares(log_tilt, weight, floor))
