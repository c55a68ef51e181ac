"""k-hat: against tails whose shape is known, and against ArviZ."""

import math

import arviz
import numpy as np
import pytest
import torch
from scipy.stats import genpareto

from ppl_risk.importance import effective_sample_size, pareto_khat


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.7, 1.0])
def test_known_generalised_pareto_tails(shape):
    """Mean over 12 samples of 4000; the sd of one k-hat at 190 tail draws is at most (1 + k) / sqrt(190)."""
    rng = np.random.default_rng(0)
    found = [pareto_khat(torch.as_tensor(np.log(1 + genpareto(shape).rvs(4000, random_state=rng)))) for _ in range(12)]
    error = (1 + shape) / math.sqrt(190) / math.sqrt(12)
    # Zhang and Stephens' prior pulls k towards 1/2 with the weight of 10 draws
    assert abs(np.mean(found) - shape) < 4 * error + 10 / 200 * abs(0.5 - shape)


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_arviz(seed):
    rng = np.random.default_rng(seed)
    log_weights = [rng.normal(scale=s, size=4000) for s in (0.3, 1.0, 2.0)]
    log_weights += [np.log(1 + genpareto(k).rvs(4000, random_state=rng)) for k in (0.1, 0.6, 1.2)]
    for values in log_weights:
        # one draw more or less in a tail of 190 moves k by about a hundredth; its own sd is 0.1
        assert abs(pareto_khat(torch.as_tensor(values)) - float(arviz.psislw(values)[1])) < 0.03


def test_shift_of_all_log_weights_changes_nothing():
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert pareto_khat(values) == pytest.approx(pareto_khat(values - 800.0), abs=1e-9)


def test_draws_outside_the_event_are_left_out():
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([values, torch.full((500,), -torch.inf)])
    assert pareto_khat(padded) == pareto_khat(values)


@pytest.mark.parametrize(("values", "expected"), [(torch.zeros(100), -math.inf), (torch.arange(20.0), math.nan)])
def test_equal_weights_and_too_few(values, expected):
    assert str(pareto_khat(values)) == str(expected)


def test_single_precision_is_enough():
    values = 2 * torch.randn(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert pareto_khat(values.float()) == pytest.approx(pareto_khat(values), abs=1e-3)


def test_effective_sample_size():
    assert effective_sample_size(torch.full((50,), -700.0)) == pytest.approx(
        50, rel=1e-3
    )  # single precision at -700 nats
    assert effective_sample_size(torch.tensor([0.0, -torch.inf, 0.0])) == pytest.approx(2)
    w = torch.tensor([1.0, 2.0, 3.0])
    assert effective_sample_size(w.log()) == pytest.approx(36 / 14)
    assert effective_sample_size(torch.full((5,), -torch.inf)) == 0.0
    assert effective_sample_size(torch.zeros(0)) == 0.0


def test_a_tail_that_underflows_is_as_heavy_as_can_be():
    """One weight carries everything: the quartile of the tail is 0 in double precision."""
    assert pareto_khat(torch.cat([torch.zeros(1), torch.linspace(-2000.0, -1000.0, 400)])) == math.inf
