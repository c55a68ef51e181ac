"""Which directions matter and which places are separate, for clouds whose answer is known."""

import math

import numpy as np
import pytest
import torch

from ppl_risk.engine.places import MAX_PLACES, MAX_RANK, gram_distances, separate, subspace

D = 40


def orthonormal(d, r, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, r, generator=generator, dtype=torch.float64)).Q


def unit(rows):
    return torch.nn.functional.normalize(rows, dim=-1)


def cloud(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def ones(n):
    return torch.ones(n, dtype=torch.float64)


def missed(basis, wanted):
    """Length of the longest unit vector of span(wanted) outside span(basis)."""
    return float(torch.linalg.matrix_norm(wanted - basis @ (basis.mT @ wanted), 2))


def assert_orthonormal(basis):
    torch.testing.assert_close(basis.mT @ basis, torch.eye(basis.shape[1], dtype=torch.float64), rtol=0, atol=1e-10)


@pytest.mark.parametrize("rank", [1, 2, 5])
@pytest.mark.parametrize("count", [12, 90])
def test_the_span_of_few_normals_is_found_exactly(rank, count):
    torch.manual_seed(rank)
    wanted = orthonormal(D, rank)
    basis = subspace(unit(cloud(count, rank) @ wanted.mT), ones(count), cloud(9, D), ones(9) / 9)
    assert_orthonormal(basis)
    assert basis.shape[1] <= rank
    assert missed(basis, wanted) < (1e-6 if basis.shape[1] == rank else 0.3)
    if rank <= 2:
        assert basis.shape[1] == rank


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_isotropic_normals_hold_no_direction(seed):
    torch.manual_seed(seed)
    assert subspace(unit(cloud(120, D)), ones(120), cloud(9, D), ones(9) / 9).shape[1] == 1


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_few_directions_above_isotropic_ones(seed):
    torch.manual_seed(seed)
    wanted = orthonormal(D, 3, seed)
    normals = unit(
        torch.cat([cloud(90, 3) @ wanted.mT, 0.7 * unit(cloud(90, 3) @ wanted.mT) + 0.7 * unit(cloud(90, D))])
    )
    basis = subspace(normals, ones(180), cloud(9, D), ones(9) / 9)
    assert_orthonormal(basis)
    assert 3 <= basis.shape[1] <= 4  # one too many costs little, one too few a place
    assert missed(basis, wanted) < 0.3


def test_normals_without_trust_do_not_count():
    torch.manual_seed(0)
    wanted = orthonormal(D, 2)
    normals = torch.cat([unit(cloud(60, 2) @ wanted.mT), unit(cloud(60, D))])
    basis = subspace(normals, torch.cat([ones(60), 0 * ones(60)]), cloud(9, D), ones(9) / 9)
    assert basis.shape[1] == 2
    assert missed(basis, wanted) < 1e-6


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_hits_alone_show_where_they_lie(seed):
    torch.manual_seed(seed)
    wanted = orthonormal(D, 2, seed)
    hits = cloud(1200, D)
    assert subspace(None, ones(1), hits, ones(1200) / 1200).shape[1] == 1
    heights = torch.where(torch.rand(1200, 1) < 0.5, torch.tensor([4.0, 0.0]), torch.tensor([0.0, 3.5])).double()
    basis = subspace(None, ones(1), hits - hits @ wanted @ wanted.mT + heights @ wanted.mT, ones(1200) / 1200)
    assert_orthonormal(basis)
    assert basis.shape[1] == 2
    assert missed(basis, wanted) < 0.25


def test_hits_without_weight_show_nothing():
    torch.manual_seed(0)
    wanted = orthonormal(D, 2)
    hits = torch.cat([cloud(1000, D) + 4 * wanted[:, 0], cloud(1000, D) + 8 * wanted[:, 1]])
    basis = subspace(None, ones(1), hits, torch.cat([ones(1000) / 1000, 0 * ones(1000)]))
    assert missed(basis, wanted[:, :1]) < 0.3
    assert missed(basis, wanted[:, 1:]) > 0.9


def test_few_dimensions_are_all_kept():
    for d in (1, MAX_RANK):
        assert torch.equal(subspace(cloud(4, d), ones(4), cloud(4, d), ones(4) / 4), torch.eye(d, dtype=torch.float64))
    assert subspace(unit(cloud(90, 9)), ones(90), cloud(9, 9), ones(9) / 9).shape[1] <= MAX_RANK


# Places.


def places(directions, along=None):
    labels = separate(gram_distances(directions), directions if along is None else along)
    assert labels.shape == (len(directions),)
    assert sorted(labels.unique().tolist()) == list(range(int(labels.max()) + 1))
    return labels


def test_distances_are_chords():
    torch.manual_seed(0)
    rows = unit(cloud(6, 4))
    expected = torch.nn.functional.pdist(rows)
    np.testing.assert_allclose(gram_distances(rows), expected.numpy(), atol=1e-7)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_four_far_modes_are_four_places(seed):
    torch.manual_seed(seed)
    centres = torch.cat([torch.eye(3, dtype=torch.float64)[:2], -torch.eye(3, dtype=torch.float64)[:2]])
    truth = torch.arange(4).repeat_interleave(torch.tensor([30, 20, 10, 5]))
    labels = places(unit(centres[truth] + 0.15 * cloud(65, 3)))
    assert torch.equal(labels, truth)  # and the largest comes first


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("degrees", [5, 20, 40])
def test_one_smooth_mode_is_one_place(seed, degrees):
    torch.manual_seed(seed)
    angle, turn = math.radians(degrees) * torch.rand(80).double().sqrt(), 2 * math.pi * torch.rand(80).double()
    cone = torch.stack([angle.cos(), angle.sin() * turn.cos(), angle.sin() * turn.sin()], -1)
    assert places(cone, 4 * cone + 0.5 * cloud(80, 3)).unique().tolist() == [0]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_heaps_with_one_normal_are_two_places(seed):
    torch.manual_seed(seed)
    truth = (torch.arange(60) >= 40).long()
    along = cloud(60, 3)
    along[:, 2] += torch.tensor([-4.0, 4.0], dtype=torch.float64)[truth]
    normals = torch.eye(3, dtype=torch.float64)[:1].expand(60, 3)
    assert torch.equal(places(normals, along), truth)


def test_one_point_is_one_place_and_there_are_never_too_many():
    assert places(torch.eye(1, dtype=torch.float64)).tolist() == [0]
    assert int(places(torch.eye(50, dtype=torch.float64)).max()) == MAX_PLACES - 1
