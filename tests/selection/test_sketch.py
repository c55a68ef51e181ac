"""A sketch of all updates: exact where the change is of low rank, bounded where it is not, the same for any optimiser."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ppl_risk.errors import RiskError
from ppl_risk.provenance import Provenance
from ppl_risk.selection import UpdateSketch
from ppl_risk.selection.sketch import reconstruct


def wide(n=256, seed=0, **kinds):
    torch.manual_seed(seed)
    return nn.Linear(n, n, **kinds)


def low_rank(m, n, rank, seed=1, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(m, rank, generator=g) @ torch.randn(rank, n, generator=g)).to(dtype) / math.sqrt(n)


def trained(net, optimiser, steps=8, rows=2):
    g = torch.Generator().manual_seed(3)
    x, y = torch.randn(rows, net.in_features, generator=g), torch.randn(rows, net.out_features, generator=g)
    for _ in range(steps):
        optimiser.zero_grad()
        (net(x) - y).square().mean().backward()
        optimiser.step()


@pytest.mark.parametrize("rank", [1, 5, 20])
def test_change_of_low_rank_comes_back_exactly(rank):
    """k = 2 * 8 + 4 = 20 columns hold every change up to rank 20."""
    net = wide()
    sketch, before = UpdateSketch(net, rank=8), net.weight.detach().clone()
    net.weight.data += low_rank(256, 256, rank)
    change = net.weight.detach() - before
    found = reconstruct(sketch.state(), "weight")
    assert (found - change).norm() < 1e-4 * change.norm()


def test_full_rank_change_comes_back_within_the_bound():
    """E |A - A~|^2 <= (1 + f(k, l)) min_r (1 + f(r, k)) tail_r^2, f(s, t) = s / (t - s - 1) (Tropp et al. 2017, thm 4.3)."""
    n, rank = 128, 4
    k, tall = 2 * rank + 4, 4 * rank + 8
    spectrum = 1 / torch.arange(1, n + 1, dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64)).Q for _ in range(2))
    change = (left * spectrum) @ right
    tail = [float(spectrum[r:].square().sum()) for r in range(k + 1)]
    bound = (1 + k / (tall - k - 1)) * min((1 + r / (k - r - 1)) * tail[r] for r in range(k - 1))
    errors = []
    for seed in range(30):
        net = wide(n, dtype=torch.float64)
        sketch = UpdateSketch(net, rank=rank, seed=seed)
        net.weight.data += change
        errors.append(float((reconstruct(sketch.state(), "weight") - change).square().sum()))
    errors = torch.tensor(errors)
    assert errors.mean() + 4 * errors.std() / math.sqrt(30) < bound
    assert errors.min() > tail[k], "below the best approximation of this rank: not what was measured"


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, 3.0, momentum=0.9), lambda p: torch.optim.Adam(p, 1e-2)])
def test_sketch_adds_up_whatever_the_optimiser_does(make):
    """The state after training is that of the whole change made at once."""
    net, other = wide(), wide()
    sketch, once = UpdateSketch(net, rank=8), UpdateSketch(other, rank=8)
    trained(net, make(net.parameters()))
    change = net.weight.detach() - other.weight.detach()
    assert change.norm() > 0.1
    other.weight.data += change
    stepped, at_once = sketch.state(), once.state()
    assert stepped.keys() == at_once.keys()
    for key, value in stepped.items():
        torch.testing.assert_close(value, at_once[key], rtol=0, atol=1e-4 * float(value.abs().max()))


def test_training_on_few_examples_comes_back_exactly():
    """Two examples give gradients of rank two, and SGD adds them up."""
    net = wide()
    sketch, before = UpdateSketch(net, rank=4), net.weight.detach().clone()
    trained(net, torch.optim.SGD(net.parameters(), 3.0))
    change = net.weight.detach() - before
    values = torch.linalg.svdvals(change)
    assert values[1] > 1e-2 * values[0]
    assert values[2] < 1e-4 * values[0]
    assert (reconstruct(sketch.state(), "weight") - change).norm() < 1e-4 * change.norm()


def test_memory_is_a_share_of_the_weights():
    net = wide(bias=False)
    assert UpdateSketch(net, rank=8).memory == pytest.approx((6 * 8 + 12) / 256)
    assert UpdateSketch(wide(), rank=16).memory < 1


def test_small_matrices_are_kept_whole():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 20), nn.Conv2d(3, 4, 3))
    sketch = UpdateSketch(net, rank=4)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for p in net.parameters():
        p.data += torch.randn_like(p)
    state = sketch.state()
    assert set(state) == {"0.weight|whole", "1.weight|whole"}
    for name in ("0.weight", "1.weight"):
        torch.testing.assert_close(reconstruct(state, name), net.get_parameter(name).detach() - before[name])


def test_wide_convolutions_come_back_in_their_shape():
    torch.manual_seed(0)
    net = nn.Conv2d(48, 48, 3)
    sketch = UpdateSketch(net, rank=1)
    change = low_rank(48, 48 * 9, 2).reshape(net.weight.shape)
    net.weight.data += change
    found = reconstruct(sketch.state(), "weight")
    assert (found - change).norm() < 1e-3 * change.norm()


def test_state_survives_a_file(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 3))
    sketch = UpdateSketch(net, rank=4)
    for p in net.parameters():
        p.data += torch.randn_like(p)
    state = sketch.state()
    save_file(state, tmp_path / "updates.safetensors")
    for back in (
        load_file(tmp_path / "updates.safetensors"),
        Provenance.read(updates=tmp_path / "updates.safetensors").updates,
    ):
        for name in ("0.weight", "1.weight"):
            assert torch.equal(reconstruct(back, name), reconstruct(state, name))


def test_projections_follow_the_seed():
    states = [UpdateSketch(wide(), rank=4, seed=s).state() for s in (0, 0, 1)]
    assert torch.equal(states[0]["weight|left"], states[1]["weight|left"])
    assert not torch.equal(states[0]["weight|left"], states[2]["weight|left"])


def test_unknown_weights_are_named():
    with pytest.raises(RiskError, match=r'holds no "1.weight"; it holds weight'):
        reconstruct(UpdateSketch(wide(), rank=4).state(), "1.weight")
    with pytest.raises(RiskError, match="rank must be at least 1"):
        UpdateSketch(wide(), rank=0)
