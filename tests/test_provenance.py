"""What is known of training, and files that do not say it."""

import json

import pytest
import torch
from safetensors.torch import save_file

from ppl_risk.errors import RiskError, UntrustedFileError
from ppl_risk.provenance import Provenance


def test_nothing_is_known_by_default():
    assert Provenance.read() == Provenance(initial=None, training_flops=None, updates=None)


def test_files_are_read(tmp_path):
    save_file({"0.weight": torch.ones(2, 3)}, tmp_path / "initial.safetensors")
    save_file({"0.weight|whole": torch.zeros(2, 3)}, tmp_path / "updates.safetensors")
    (tmp_path / "record.json").write_text(json.dumps({"training_flops": 3e9, "steps": 7}))
    read = Provenance.read(
        initial=tmp_path / "initial.safetensors",
        record=str(tmp_path / "record.json"),
        updates=tmp_path / "updates.safetensors",
    )
    assert torch.equal(read.initial["0.weight"], torch.ones(2, 3))
    assert list(read.updates) == ["0.weight|whole"]
    assert read.training_flops == 3e9


@pytest.mark.parametrize(
    "told", ["{}", '{"training_flops": 0}', '{"training_flops": -1.0}', '{"training_flops": "many"}',
             '{"training_flops": NaN}', '{"training_flops": null}', "[1e9]"],
)  # fmt: skip
def test_records_without_a_number_are_refused(tmp_path, told):
    (tmp_path / "record.json").write_text(told)
    with pytest.raises(RiskError, match=r'record.json has no positive "training_flops"; write what training cost'):
        Provenance.read(record=tmp_path / "record.json")


def test_records_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "record.json").write_text("training took a while")
    for name in ("record.json", "absent.json"):
        with pytest.raises(RiskError, match=rf"{name} is not a readable record of training"):
            Provenance.read(record=tmp_path / name)


@pytest.mark.parametrize("part", ["initial", "updates"])
def test_weights_that_cannot_be_read_are_refused(tmp_path, part):
    with pytest.raises(RiskError, match="no weights file"):
        Provenance.read(**{part: tmp_path / "absent.safetensors"})
    (tmp_path / "cut.safetensors").write_bytes(b"1234")
    with pytest.raises(RiskError, match="not a readable weights file"):
        Provenance.read(**{part: tmp_path / "cut.safetensors"})
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pt")
    with pytest.raises(UntrustedFileError, match="Not opened"):
        Provenance.read(**{part: tmp_path / "whole.pt"})
