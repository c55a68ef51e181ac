"""Robust means: closed forms, equivariance, what breaks them and what does not, and error bars that hold."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, trim_mean

from ppl_risk import mitigation as mi
from ppl_risk.errors import RiskError
from ppl_risk.mitigation.robust_bounds import deviation, stability

#: All that take one number a value, at the sizes at which they are tested.
ONE_NUMBER = {
    "mean of medians": lambda v: mi.mean_of_medians(v, 0.1, group=5),
    "mean of medians, dealt": lambda v: mi.mean_of_medians(v, 0.1, failure=0.5, seed=3),
    "median of means": lambda v: mi.median_of_means(v, 4),
    "median": mi.median,
    "trimmed": lambda v: mi.trimmed_mean(v, 0.1, failure=0.01),
}
ESTIMATORS = pytest.mark.parametrize("estimate", ONE_NUMBER.values(), ids=ONE_NUMBER)
SHARE = st.just(0.0) | st.floats(1e-12, 0.49)
ODD = st.integers(0, 40).map(lambda j: 2 * j + 1)


def draws(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def corrupted(clean, p, worst, seed=1):
    """Each value replaced with probability p."""
    bad = torch.rand(clean.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) < p
    return torch.where(bad, worst, clean)


def test_by_hand():
    values = torch.tensor([1.0, 9.0, 2.0, 4.0, 4.0, -7.0, 0.0, 5.0, 3.0, 1e9, 1e9])
    assert mi.mean_of_medians(values, 0.1, group=3).item() == (2 + 4 + 3) / 3
    assert mi.median_of_means(values, 3).item() == 8 / 3
    assert mi.median_of_means(values[:6], 3).item() == (4 + 1 / 3) / 2
    assert mi.mean_of_medians(values, 0.1, group=1).item() == pytest.approx(float(values.double().mean()))
    assert mi.mean_of_medians(values, 0.1, group=11).item() == mi.median(values).item() == 4
    assert mi.mean_of_medians(values, 0.1, group=3).dtype == torch.float64


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
@settings(deadline=None)
def test_median_is_numpys(values):
    assert mi.median(torch.tensor(values, dtype=torch.float64)).item() == np.median(values)


@given(st.integers(20, 400), st.floats(0.0, 0.2), st.sampled_from([1e-2, 1e-6, 1e-12]))
@settings(max_examples=40, deadline=None)
def test_trim_leaves_room_for_the_bad_ones_and_no_more(count, p, failure):
    values = draws(count)
    least = next(g for g in range(count) if binom.sf(g, count, p) <= failure)
    if 2 * least >= count:
        with pytest.raises(RiskError, match="nothing is left"):
            mi.trimmed_mean(values, p, failure=failure)
    else:
        wanted = trim_mean(values.numpy(), (least + 1e-6) / count)
        assert mi.trimmed_mean(values, p, failure=failure).item() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(("count", "p", "wanted"), [(3000, 1 / 3, 291), (30_000, 1 / 3, 331), (30_000, 0.01, 43)])
def test_group_sizes_of_the_reference(count, p, wanted):
    assert mi.group_size(count, p) == wanted


@given(st.integers(1, 100_000), st.floats(0.0, 0.45), st.floats(1e-9, 0.5))
@settings(deadline=None)
def test_group_is_the_smallest_odd_one_that_does(count, p, failure):
    def hoeffding(k):
        return count / k * math.exp(-2 * k * (0.5 - p) ** 2)

    try:
        k = mi.group_size(count, p, failure)
    except RiskError:
        assert hoeffding(count if count % 2 else max(count - 1, 1)) > failure
        return
    assert k % 2 == 1
    assert hoeffding(k) <= failure * (1 + 1e-9)
    assert k == 1 or hoeffding(k - 2) > failure * (1 - 1e-9)
    assert mi.group_failure(count, p, k) == pytest.approx(hoeffding(k))
    assert mi.group_size(count, p, failure, tail="binomial") <= k


@given(st.floats(0.001, 0.49), ODD, st.integers(1, 10_000))
@settings(deadline=None)
def test_binomial_tail_is_exact_and_below_hoeffdings(p, k, count):
    exact = sum(math.comb(k, b) * p**b * (1 - p) ** (k - b) for b in range(k // 2 + 1, k + 1))
    found = mi.group_failure(count, p, k, tail="binomial")
    assert found == pytest.approx(min(count / k * exact, 1.0), rel=1e-9)
    assert found <= mi.group_failure(count, p, k) * (1 + 1e-12)


@pytest.mark.parametrize("tail", ["hoeffding", "binomial"])
def test_too_few_values_are_refused_and_the_number_named_is_enough(tail):
    with pytest.raises(RiskError, match=r"25 values are too few.*at least 41 values.*group=25"):
        mi.mean_of_medians(draws(25), 0.084)
    with pytest.raises(RiskError, match="too few"):
        mi.group_size(11, 0.3, tail=tail)
    assert mi.group_size(41, 0.084, tail=tail) <= 41
    assert mi.mean_of_medians(draws(25), 0.084, group=25) == mi.median(draws(25))


@ESTIMATORS
@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_shift_and_scale(estimate, shift, scale, seed):
    values = draws(43, seed=seed)
    moved = estimate(shift + scale * values).item()
    assert moved == pytest.approx(shift + scale * estimate(values).item(), abs=1e-10 * (1 + abs(shift) + abs(scale)))


@given(st.permutations(range(24)))
@settings(deadline=None)
def test_order_matters_through_the_groups_alone(order):
    values, order = draws(24), torch.tensor(order)
    for name in ("median", "trimmed"):
        assert ONE_NUMBER[name](values[order]).item() == pytest.approx(ONE_NUMBER[name](values).item(), abs=1e-14)
    groups, within = values.reshape(8, 3), order.reshape(8, 3).argsort(-1)
    among = order[order < 8]
    kept = groups.gather(1, within)[among].flatten()
    assert mi.mean_of_medians(kept, 0.1, group=3).item() == pytest.approx(groups.median(-1).values.mean().item())
    assert mi.median_of_means(kept, 3).item() == pytest.approx(np.median(groups.mean(-1).numpy()))


@ESTIMATORS
def test_batched_is_looped(estimate):
    values = draws(3, 4, 41)
    looped = torch.stack([estimate(row) for row in values.flatten(0, 1)]).reshape(3, 4)
    torch.testing.assert_close(estimate(values), looped, rtol=0, atol=1e-14)
    assert estimate(values[0, 0]).shape == ()


def test_dealing_is_by_seed_and_leaves_the_global_state_alone():
    values, before = draws(1000), torch.random.get_rng_state()
    one, again, other = (mi.mean_of_medians(values, 0.1, group=9, seed=s) for s in (0, 0, 1))
    assert one == again != other
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_set_of_bad_values_in_a_row_is_dealt_apart():
    values = draws(3000)
    values[:300] = 1e6
    assert mi.mean_of_medians(values, 0.1).item() > 1e4
    for seed in range(20):
        assert (
            abs(mi.mean_of_medians(values, 0.1, seed=seed).item()) <= mi.mean_of_medians_bars(3000, 0.1).uniform_error
        )


@given(st.integers(0, 2**31), st.integers(0, 10), st.sampled_from([-1e12, 0.0, 1e12]))
@settings(max_examples=40, deadline=None)
def test_a_group_with_a_good_majority_stays_among_its_good_values(seed, half, worst):
    k = 2 * half + 1
    clean = draws(6, k, seed=seed)
    spoilt = clean.clone()
    spoilt[:, :half] = worst
    low, high = (getattr(clean[:, half:], end)(-1).mean().item() for end in ("amin", "amax"))
    assert low - 1e-12 <= mi.mean_of_medians(spoilt.flatten(), 0.1, group=k).item() <= high + 1e-12


def test_a_third_of_bad_values_breaks_medians_of_means_and_not_means_of_medians():
    bars = mi.mean_of_medians_bars(3000, 1 / 3, failure=1e-6)
    for worst in (1e3, -1e3, 1.0):
        values = corrupted(draws(20, 3000), 1 / 3, worst)
        assert bool((mi.mean_of_medians(values, 1 / 3).abs() <= bars.uniform_error).all())
        if abs(worst) > 1:
            # 1 - (2/3)^2 = 5/9 of the pairs have a bad one, so the median of the pairs has one too.
            assert bool((mi.median_of_means(values, 2).abs() > 100).all())


def test_clean_deviation():
    """The median of k uniforms is Beta((k+1)/2, (k+1)/2), of variance 1 / (k + 2) on [-1, 1]."""
    count, k, runs = 1000, 9, 2000
    found = mi.mean_of_medians(draws(runs, count), 0.0, group=k)
    wanted = math.sqrt(1 / ((k + 2) * (count // k)))
    assert found.std().item() == pytest.approx(wanted, rel=5 / math.sqrt(2 * runs))
    assert abs(found.mean().item()) < 5 * wanted / math.sqrt(runs)
    assert (found.abs() > deviation(count, k, failure=0.05)).double().mean() <= 0.05
    assert deviation(900, 9, width=2.0, failure=0.01) == pytest.approx(2 * math.sqrt(2 * 9 * math.log(200) / 900))


@given(SHARE, ODD)
@settings(deadline=None)
def test_uniform_bias_holds_at_every_group_size(p, k):
    """E over the bad ones B, all on one side, of B / (k + 1 - B), the mean of the middle order statistic of the others."""
    b = np.arange(k // 2 + 1)
    shares = binom.pmf(b, k, p)
    worst = float((shares * b / (k + 1 - b)).sum() / shares.sum())
    closed = p / (1 - p) * float(binom.cdf(k // 2 - 1, k, p) / binom.cdf(k // 2, k, p))
    assert worst == pytest.approx(closed, abs=1e-12)
    assert worst <= mi.mean_of_medians_bars(1000, p, group=k).uniform_bias + 1e-12


@pytest.mark.parametrize("p", [0.01, 0.1, 0.2, 1 / 3])
def test_bias_is_reached(p):
    values = corrupted(draws(10, 100_000), p, 1e3)
    found = mi.mean_of_medians(values, p)
    assert found.mean().item() == pytest.approx(p / (1 - p), abs=5 * found.std().item() / math.sqrt(10))


@given(
    SHARE,
    ODD,
    st.lists(st.floats(0.0, 1.0), min_size=20, max_size=20),
    st.lists(st.booleans(), min_size=20, max_size=20),
)
@settings(deadline=None)
def test_stability_bounds_what_any_adversary_moves(p, k, shares, high):
    """E of the clipped median is the integral of Pr[Bin(k, s) > k / 2] over t, for a good law of steps on [-1, 1]."""
    survival = np.sort(shares)[::-1]
    one, other = ((1 - p) * survival + p * np.array(choice, dtype=float) for choice in (high, [not h for h in high]))
    gap = abs(np.mean(binom.sf(k // 2, k, one) - binom.sf(k // 2, k, other))) * 2
    assert gap <= stability(p, k) + 1e-12


@pytest.mark.parametrize(("p", "k"), [(0.001, 41), (0.003, 41), (0.01, 43)])
def test_stability_is_sharp_for_two_points_and_near_its_limit(p, k):
    gap = 2 * float(binom.sf(k // 2, k, (1 + p) / 2) - binom.sf(k // 2, k, (1 - p) / 2))
    assert 0.99 * stability(p, k) <= gap <= stability(p, k)
    assert stability(p, k) == pytest.approx(2 * p * math.sqrt(2 * k / math.pi), rel=0.01)
    signs = draws(40, 30_000).sign()
    found = [mi.mean_of_medians(corrupted(signs, p, worst), p, group=k).mean().item() for worst in (1.0, -1.0)]
    assert found[0] - found[1] == pytest.approx(gap, abs=0.1 * gap)


def test_bars_add_up_and_scale_with_the_width():
    one, wide = (mi.mean_of_medians_bars(30_000, 0.05, width=w) for w in (1.0, 3.0))
    assert (wide.deviation, wide.uniform_bias, wide.stability) == pytest.approx(
        (3 * one.deviation, 3 * one.uniform_bias, 3 * one.stability)
    )
    assert one.groups == 30_000 // one.group
    assert one.between_adversaries == pytest.approx(2 * one.deviation + one.stability)
    assert one.failure <= 2e-6
    assert deviation(1000, 331, failure=0.1) == pytest.approx(math.sqrt(2 * math.log(20) / 3))
    exact = mi.mean_of_medians_bars(30_000, 0.05, tail="binomial")
    assert exact.deviation < one.deviation
    assert exact.stability < one.stability


@pytest.mark.parametrize(("call", "text"), [
    (lambda: mi.median(torch.tensor([1.0, math.nan])), "NaN or infinite"),
    (lambda: mi.mean_of_medians(torch.tensor([1.0, math.inf]), 0.1, group=1), "NaN or infinite"),
    (lambda: mi.median(torch.empty(3, 0)), "at least one value"),
    (lambda: mi.mean_of_medians(torch.ones(9), 0.1, group=4), "must be odd"),
    (lambda: mi.mean_of_medians(torch.ones(9), 0.1, group=11), "of 1 to 9"),
    (lambda: mi.median_of_means(torch.ones(9), 10), "of 1 to 9"),
    (lambda: mi.mean_of_medians(torch.ones(9), 0.5), "bad majority"),
    (lambda: mi.mean_of_medians(torch.ones(9), 0.7, group=3), "bad majority"),
    (lambda: mi.trimmed_mean(torch.ones(9), -0.1), "bad majority"),
    (lambda: mi.group_size(100, 0.1, 0.0), "between 0 and 1"),
    (lambda: mi.group_size(0, 0.1), "at least one"),
    (lambda: mi.mean_of_medians_bars(1000, 0.1, width=0.0), "half-width"),
    (lambda: mi.mean_of_medians_bars(1000, 0.1, group=2), "must be odd"),
])  # fmt: skip
def test_mistakes_are_named(call, text):
    with pytest.raises(RiskError, match=text):
        call()
