"""Seeds: blocks that reproduce, children that do not depend on how many there are, a caller who notices nothing."""

import pytest
import torch

from builders import linear_gaussian
from ppl_risk import fit_layerwise, fit_svi, monte_carlo, run_smc
from ppl_risk.preflight import check
from ppl_risk.randomness import child_seeds, seeded

SMALL = {
    "monte_carlo": lambda p, seed: monte_carlo(p, calls=2000, seed=seed, progress=False),
    "svi": lambda p, seed: fit_svi(p, steps=30, draws=400, posterior_draws=40, seed=seed, progress=False),
    "smc": lambda p, seed: run_smc(p, particles=100, posterior_draws=40, seed=seed, progress=False),
    "layerwise": lambda p, seed: fit_layerwise(p, draws=500, particles=100, seed=seed, progress=False),
}


def test_seeded_blocks_reproduce_and_restore_also_on_error():
    state = torch.get_rng_state()
    with pytest.raises(KeyError), seeded(5):
        one = torch.randn(3)
        raise KeyError
    with seeded(5):
        torch.testing.assert_close(torch.randn(3), one)
    assert torch.equal(state, torch.get_rng_state())


def test_children_are_a_prefix_of_more_children_and_all_differ():
    assert child_seeds(3, 4) == child_seeds(3, 10)[:4]
    assert len({s for seed in range(20) for s in child_seeds(seed, 20)}) == 400
    assert all(0 <= s < 2**63 for s in child_seeds(0, 100))


@pytest.mark.parametrize("method", SMALL)
def test_same_seed_same_result_whatever_the_caller_drew(method):
    """Bit for bit, posterior draws included; another seed gives another answer; the caller's state stays put."""
    known = linear_gaussian(3, 1.5)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one = SMALL[method](known.problem, 11)
    assert torch.equal(state, torch.get_rng_state()), "the caller's random state moved"
    torch.manual_seed(99)
    two = SMALL[method](known.problem, 11)
    assert (one.log_prob, one.std_error, one.elbo) == (two.log_prob, two.std_error, two.elbo)
    assert SMALL[method](known.problem, 12).log_prob != one.log_prob
    assert one.posterior.keys() == two.posterior.keys()
    for name in one.posterior:
        assert (one.posterior[name] == two.posterior[name]).all(), name


@pytest.mark.parametrize("method", SMALL)
def test_the_network_is_left_as_it_was(method):
    known = linear_gaussian(3, 1.5)
    before = {n: p.clone() for n, p in known.problem.network.named_parameters()}
    SMALL[method](known.problem, 0)
    for name, p in known.problem.network.named_parameters():
        assert p.grad is None
        assert p.requires_grad
        assert torch.equal(p, before[name])


def test_preflight_is_reproducible():
    known = linear_gaussian(3, 1.5)
    assert repr(check(known.problem, seed=1)) == repr(check(known.problem, seed=1))
