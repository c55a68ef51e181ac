"""Systematic resampling: counts within one of their expectation, and unbiased."""

import pytest
import torch

from builders import assert_means
from ppl_risk.smc.resampling import systematic

WEIGHTS = {
    "spread": torch.rand(40, generator=torch.Generator().manual_seed(0)).double(),
    "one dominates": torch.tensor([1e-12, 1.0, 1e-3, 1e-3]).double(),
    "zeros": torch.tensor([0.0, 0.3, 0.0, 0.7, 0.0]).double(),
    "equal": torch.ones(7).double(),
    "far down": torch.tensor([0.5, 0.5]).double() * 1e-200,
}


def counts_of(weight, count, repeats=1000):
    torch.manual_seed(0)
    drawn = [torch.bincount(systematic(weight.log(), count), minlength=len(weight)) for _ in range(repeats)]
    return torch.stack(drawn).double()


@pytest.mark.parametrize("count", [1, 7, 250])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_counts(kind, count):
    weight = WEIGHTS[kind]
    expected = count * weight / weight.sum()
    counts = counts_of(weight, count)
    assert bool((counts.sum(1) == count).all())
    assert float((counts - expected).abs().max()) < 1 + 1e-6
    share = expected - expected.floor()
    often = len(counts) * share * (1 - share) > 20  # enough of either kind for a normal limit
    if bool(often.any()):
        assert_means(counts[:, often], expected[often])
    assert bool((counts[:, weight == 0] == 0).all())


def test_every_place_sees_every_particle():
    """Random order: the first offspring follows the weights, too."""
    weight = WEIGHTS["spread"]
    torch.manual_seed(1)
    firsts = torch.stack([systematic(weight.log(), 20)[0] for _ in range(4000)])
    share = torch.nn.functional.one_hot(firsts, 40).double()
    assert_means(share, weight / weight.sum())


def test_single_precision_weights_lose_no_tail():
    log_weight = torch.cat([torch.zeros(5), torch.full((5,), -torch.inf)])
    for seed in range(50):
        torch.manual_seed(seed)
        assert int(systematic(log_weight, 1001).max()) <= 4
