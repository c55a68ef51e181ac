"""Weights load from files that cannot execute anything, and from no others."""

import pytest
import torch
from safetensors.torch import save_file

from ppl_risk.errors import RiskError, UntrustedFileError
from ppl_risk.weights import load_weights


class Payload:
    """Would run a command when unpickled."""

    def __reduce__(self):
        return (open, ("executed.txt", "w"))


def test_safetensors_and_state_dict(tmp_path):
    source, target = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    torch.save(source.state_dict(), tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        torch.nn.init.zeros_(target.weight)
        digest = load_weights(target, tmp_path / name)
        assert len(digest) == 64
        assert torch.equal(target.weight, source.weight)


def test_a_pickle_is_refused_and_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Payload()}, "evil.pt")
    with pytest.raises(UntrustedFileError, match="Not opened"):
        load_weights(torch.nn.Linear(3, 2), "evil.pt")
    assert not (tmp_path / "executed.txt").exists()


def test_an_exported_program_is_refused_unread(tmp_path):
    (tmp_path / "m.pt2").write_bytes(b"")
    with pytest.raises(UntrustedFileError, match="exported program"):
        load_weights(torch.nn.Linear(3, 2), tmp_path / "m.pt2")


@pytest.mark.parametrize("name", ["absent.pt", "broken.safetensors", "broken.pt"])
def test_unreadable_files(tmp_path, name):
    if name.startswith("broken"):
        (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(RiskError, match=name):
        load_weights(torch.nn.Linear(3, 2), tmp_path / name)
