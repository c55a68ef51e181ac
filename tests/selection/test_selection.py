"""A selection: cut at ranks, printed, written and read back; and what `select` refuses."""

import dataclasses
import itertools

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from builders import NETWORKS, standard
from ppl_risk.errors import RiskError, UnknownNameError
from ppl_risk.problem import RiskProblem
from ppl_risk.provenance import Provenance
from ppl_risk.selection import Selection, select


def problem(provenance=None):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 1)).eval()
    return RiskProblem(net, standard(6), lambda y: y[:, 0] - 1.0, name="small", provenance=provenance)


@pytest.fixture(scope="module")
def selection():
    return select(problem(), 3, "pca", draws=200)


def ranks(selection):
    return {layer.name: selection.rank_of(layer) for layer in selection.layers}


@pytest.mark.parametrize(("kind", "widths"), [("conv", {"0": 36, "3": 32}), ("twice", {"fc": 3, "fc#2": 3}),
    ("headed", {"0": 2, "detector.score": 3}), ("residual", {"inner": 4, "outer": 4, "head": 4})])  # fmt: skip
def test_every_affine_layer_is_selected_in_by_its_site(kind, widths):
    found = select(NETWORKS[kind](), 1, draws=100)
    assert {layer.name: layer.width for layer in found.layers} == widths
    assert all(layer.functionals.shape == (layer.width, layer.width) for layer in found.layers)


def test_patterns_show_how_units_move_with_a_functional():
    """Cov(h, b h) / Var(b h): with the covariance C of independent inputs, and b . pattern = 1."""
    layer = select(problem(), 2, "random", draws=500).layer("0")
    torch.testing.assert_close((layer.functionals * layer.patterns).sum(0), torch.ones(6))


def test_default_rank_is_an_eighth_of_the_widest_layer():
    assert select(NETWORKS["conv"](), draws=50).rank == 36 // 8
    assert select(NETWORKS["twice"](), draws=50).rank == 1


def test_ranks_are_cut_without_selecting_again(selection):
    assert ranks(selection) == {"0": 3, "2": 3}
    assert ranks(selection.at(8)) == {"0": 6, "2": 8}  # never more than there are
    assert ranks(selection.at(0)) == {"0": 0, "2": 0}
    assert ranks(selection.at(2, **{"2": 5})) == {"0": 2, "2": 5}
    assert ranks(selection.at(2, **{"2": 5}).at(1)) == {"0": 1, "2": 1}
    assert selection.at(5).layers is selection.layers


def test_share_is_of_each_layers_own_width(selection):
    assert ranks(selection.at_share(0.25)) == {"0": 2, "2": 3}
    assert ranks(selection.at_share(1.0)) == {"0": 6, "2": 12}
    assert ranks(selection.at_share(0.01)) == {"0": 1, "2": 1}
    for share in (0.0, -1.0, 1.5):
        with pytest.raises(RiskError, match=r"lies in \(0, 1\]"):
            selection.at_share(share)


def test_explained_grows_to_the_whole(selection):
    layer = selection.layer("2")
    grown = [layer.explained(k) for k in range(13)]
    assert grown[0] == 0
    assert all(b >= a for a, b in itertools.pairwise(grown))
    assert grown[12] == pytest.approx(1.0, abs=1e-5)
    assert layer.explained(99) == grown[12]


def test_table_says_what_is_carried(selection):
    share = selection.layer("2").explained(5)
    table = selection.at(2, **{"2": 5})
    assert table.rows()[1] == {"layer": "2", "reads": "12", "carried": "5", "explained": f"{share:.0%}"}
    text = repr(table)
    assert "Selection from pca, rank 2 (200 draws" in text
    assert len(text.splitlines()) == 4
    assert text.splitlines()[3].split() == ["2", "5", "of", "12", f"{share:.0%}"]


@pytest.mark.parametrize(("source", "passes"), [("trained", 3), ("gradient", 3), ("pca", 1), ("random", 1)])
def test_cost_is_one_pass_forward_and_where_reading_matters_one_back(source, passes):
    p = problem()
    assert select(p, 1, source, draws=200).flops == pytest.approx(passes * 200 * p.flops_per_row)


def test_file_gives_back_the_selection(selection, tmp_path):
    selection.save(tmp_path / "s.safetensors")
    p = problem()
    back = Selection.load(tmp_path / "s.safetensors", p)
    assert back.problem is p
    for name in ("rank", "source", "draws"):
        assert getattr(back, name) == getattr(selection, name)
    assert back.flops == pytest.approx(selection.flops)
    assert repr(back) == repr(selection)
    for a, b in zip(selection.layers, back.layers, strict=True):
        assert (a.name, a.shape) == (b.name, b.shape)
        for part in ("functionals", "patterns", "shares"):
            assert torch.equal(getattr(a, part), getattr(b, part))


def test_file_gives_back_layers_in_order_and_inputs_in_shape(tmp_path):
    found = select(NETWORKS["conv"](), 2, draws=50)
    found.save(tmp_path / "s.safetensors")
    back = Selection.load(tmp_path / "s.safetensors", NETWORKS["conv"]())
    assert [layer.shape for layer in back.layers] == [torch.Size([1, 6, 6]), torch.Size([32])]


def test_file_gives_back_the_ranks_of_single_layers(selection, tmp_path):
    chosen = selection.at(2, **{"2": 5})
    chosen.save(tmp_path / "s.safetensors")
    assert ranks(Selection.load(tmp_path / "s.safetensors", problem())) == ranks(chosen)


def test_files_that_are_no_selection_of_this_problem(selection, tmp_path):
    save_file({"0.weight": torch.ones(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(RiskError, match="not a saved selection"):
        Selection.load(tmp_path / "weights.safetensors", problem())
    with pytest.raises(RiskError, match="no weights file"):
        Selection.load(tmp_path / "absent.safetensors", problem())
    selection.save(tmp_path / "s.safetensors")
    with pytest.raises(RiskError, match=r"selects in \['0', '2'\], which residual is not cut at"):
        Selection.load(tmp_path / "s.safetensors", NETWORKS["residual"]())


def test_unknown_layers_are_answered_with_the_known(selection):
    with pytest.raises(RiskError, match=r"no layer 'fc'; it has 0, 2"):
        selection.layer("fc")


@pytest.mark.parametrize("call", [lambda s: s.at(-1), lambda s: s.at(2, **{"0": -3})])
def test_negative_ranks_are_refused(selection, call):
    with pytest.raises(RiskError, match="at least 0"):
        call(selection)


def test_what_select_refuses():
    with pytest.raises(UnknownNameError, match=r"no source 'train'. There are: trained, checkpoints"):
        select(problem(), 2, "train")
    for wrong in ({"rank": -1}, {"draws": 7}):
        with pytest.raises(RiskError, match="At least 8 draws and a rank of 0 or more"):
            select(problem(), **wrong)
    with pytest.raises(RiskError, match="no affine layer"):
        select(RiskProblem(nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)), standard(2), layers=["1"]), 1, draws=50)


@pytest.mark.parametrize("source", ["checkpoints", "weights"])
def test_missing_initial_weights_are_asked_for(source):
    with pytest.raises(RiskError, match=r"Pass initial='initial\.safetensors'.*source='trained'"):
        select(problem(), 2, source, draws=50)
    with pytest.raises(RiskError, match=r'no "0\.weight"; they hold fc\.weight'):
        select(problem(), 2, source, initial={"fc.weight": torch.ones(2, 2)}, draws=50)


def test_missing_sketch_is_asked_for():
    with pytest.raises(RiskError, match=r"UpdateSketch\(network\) before training"):
        select(problem(), 2, "sketch", draws=50)


def test_initial_weights_come_from_the_call_a_file_or_the_provenance(tmp_path):
    initial = {name: p.detach() * 0.5 for name, p in problem().network.named_parameters()}
    save_file(initial, tmp_path / "initial.safetensors")
    told = select(problem(), 2, "checkpoints", initial=initial, draws=100)
    others = [
        select(problem(), 2, "checkpoints", initial=tmp_path / "initial.safetensors", draws=100),
        select(problem(Provenance(initial=initial)), 2, "checkpoints", draws=100),
    ]
    for other in others:
        assert torch.equal(other.layer("2").functionals, told.layer("2").functionals)


def without_gradient():
    p = problem()
    return RiskProblem(p.network, p.inputs, lambda y: (y[:, 0] > 1.0).float() - 0.5)


def test_margin_without_gradient_is_said():
    with pytest.raises(RiskError, match=r"no gradient.*source='pca', 'weights' or 'random'"):
        select(without_gradient(), 2, draws=50)


@pytest.mark.parametrize("source", ["pca", "weights", "random"])
def test_controls_work_without_a_gradient(source):
    """They give what they give where there is one: they do not ask what the catastrophe reads."""
    initial = {name: p.detach() * 0.5 for name, p in problem().network.named_parameters()}
    found, other = (select(p, 2, source, initial=initial, draws=50) for p in (without_gradient(), problem()))
    for a, b in zip(found.layers, other.layers, strict=True):
        assert torch.equal(a.functionals, b.functionals)


def test_selection_without_a_problem_cannot_be_bound(selection):
    from ppl_risk.guides import Selected

    with pytest.raises(RiskError, match=r"belongs to no problem; read it with Selection\.load"):
        Selected(dataclasses.replace(selection, problem=None)).bind({})
