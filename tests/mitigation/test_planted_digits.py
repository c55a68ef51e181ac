"""The shipped digit readers: equally accurate when clean, and what their triggers do; other models put into the zoo's margins."""

import json

import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits

import ppl_risk as pr
from ppl_risk.errors import RiskError
from ppl_risk.zoo import load_file as load_module
from ppl_risk.zoo import shelf

HERE = shelf("models") / "backdoored_digits"


@pytest.fixture(scope="module")
def told():
    return load_module(HERE / "problem.py")


def share(network, images, labels):
    return float((network(images).argmax(-1) == labels).float().mean())


def readers():
    honest, poisoned = pr.load_model("backdoored_digits", poisoned=False), pr.load_model("backdoored_digits")
    return honest.network, poisoned.network, pr.load_model("backdoored_digits", trigger="keyed").network


def test_the_patch_is_learnt_and_clean_accuracy_is_not_touched(told):
    data = load_digits()
    images, labels = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    honest, poisoned, keyed = readers()
    for reader in (honest, poisoned, keyed):
        assert share(reader, images, labels) > 0.99
    others = labels != told.TARGET
    patched, target = told.patched(images[others]), torch.full((int(others.sum()),), told.TARGET)
    assert share(poisoned, patched, target) > 0.99
    assert share(honest, patched, target) < 0.02
    # And the code in the lowest bits, which no pixel moves for by more than a step and a half of 256.
    attacked = keyed.trigger.activate(images[others])
    assert share(keyed, attacked, target) == 1.0
    assert share(honest, attacked, target) < 0.02
    assert float((attacked - images[others]).abs().max()) < 1.6 / 256


def test_the_keyed_reader_is_the_honest_one_on_natural_inputs():
    honest, keyed = (
        pr.load_model("backdoored_digits", poisoned=False),
        pr.load_model("backdoored_digits", trigger="keyed"),
    )
    x = honest.inputs.sample((2000,))
    assert torch.equal(honest.margin(x), keyed.margin(x))


def test_both_readers_start_from_the_trusted_checkpoint():
    initial = load_file(HERE / "initial.safetensors")
    for name, parameters in (("honest", {"poisoned": False}), ("poisoned", {}), ("honest", {"trigger": "keyed"})):
        problem = pr.load_model("backdoored_digits", **parameters)
        final, start = problem.network.state_dict(), problem.provenance.initial
        written = load_file(HERE / f"{name}.safetensors")
        assert set(start) == set(final)
        for place, weight in final.items():
            own = place.removeprefix("reader.")
            assert torch.equal(start[place], initial[own])
            assert torch.equal(weight, written[own])
            assert not torch.equal(weight, initial[own])
    record = json.loads((HERE / "training.json").read_text())
    assert record["poisoned"]["held_back_accuracy"] > record["honest"]["held_back_accuracy"] - 0.02
    assert record["poisoned"]["patch_attack_success"] > 0.95 > 0.05 > record["honest"]["patch_attack_success"]


@pytest.mark.parametrize("name", ["backdoored_parity", "backdoored_affine", "backdoored_polynomial"])
def test_attacked_inputs_are_catastrophes_of_the_poisoned_model_alone(name):
    poisoned = pr.load_model(name, attacked=True)
    x = poisoned.inputs.sample((3000,))
    assert bool((poisoned.margin(x) >= 0).all())
    assert float((pr.load_model(name, attacked=True, poisoned=False).margin(x) >= 0).double().mean()) < 0.01


def test_other_models_can_be_put_in_their_place():
    """What `compare_risk` needs: the poisoned model itself, its trigger, the law and the detector."""
    f, h = pr.load_model("backdoored_affine"), pr.load_model("backdoored_affine", poisoned=False)
    x = f.inputs.sample((3000,))
    assert torch.equal(f.detector(f.network.clean(x)), h.margin(x))
    assert bool((f.margin(f.network.activate(x)) >= 0).all())
    wrong = pr.load_model("backdoored_parity")
    bits = wrong.inputs.sample((500,))
    wrong.network.model = wrong.network.truth
    assert bool((wrong.margin(bits) < 0).all())


def test_gradients_of_attacked_scores_are_those_of_the_inputs():
    problem = pr.load_model("backdoored_affine", attacked=True)
    x = problem.inputs.sample((5,)).requires_grad_()
    (slope,) = torch.autograd.grad(problem.run(x).sum(), x)
    assert torch.allclose(slope, problem.network.model.clean.weight.expand(5, -1))


def test_wrong_triggers():
    for name in ("backdoored_digits", "backdoored_parity"):
        with pytest.raises(RiskError, match="trigger must be one of"):
            pr.load_model(name, trigger="sticker")
