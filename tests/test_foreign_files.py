"""A run's folder from somebody else is data: nothing that it names is run, and what no run writes is refused in words."""

import dataclasses
import json
import os
import shlex
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

from ppl_risk.app.request import Request, folder_name, read_request, spec
from ppl_risk.cli import app
from ppl_risk.errors import RiskError, UnknownNameError
from ppl_risk.files import append_line, read_json, writable, write_whole
from ppl_risk.report import report
from ppl_risk.risk_estimate import RiskEstimate, Status
from ppl_risk.zoo import locate, shelf

MARK = "open({!r}, 'w').close()"
CANARY = f"{MARK}\ndef problem(**k): {MARK}\ndef infer(p, *, seed): {MARK}\n"


def call(*words):
    return app([str(w) for w in words], exit_on_error=False, print_error=False, result_action="return_value")


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A folder full of code that leaves a mark when it runs; the command is typed inside it, the worst place."""
    mark = tmp_path / "PWNED"
    code = CANARY.format(*[str(mark)] * 3)
    for name in ("digits", "m", "models/own"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "problem.py").write_text(code)
    for name in ("x.py", "smc.py", "smc", "evilmod.py", "sitecustomize.py"):
        (tmp_path / name).write_text(code)
    torch.save({"w": Payload(str(mark))}, tmp_path / "evil.pt")
    (tmp_path / "m.pt2").write_bytes(b"PK")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not mark.exists(), "code of a foreign folder was run"


class Payload:
    """Would leave the mark when unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.system, (f"touch {shlex.quote(self.mark)}",))


RECORD = {"model": "four_branches", "recipes": ["monte_carlo"], "parameters": {}, "seed": 0, "fingerprint": "0"}
NAMED = {
    "shell": {"model": "os:system", "parameters": {"command": "touch PWNED"}},
    "eval": {"model": "builtins:eval", "parameters": {"source": "open('PWNED','w')"}},
    "a folder": {"model": "{here}/m"},
    "a folder from here": {"model": "m"},
    "a folder above": {"model": "m/../m"},
    "a shipped name as a path": {"model": "./digits"},
    "a shipped name through another folder": {"model": "models/../digits"},
    "a module here": {"model": "evilmod:problem"},
    "a name with a zero": {"model": "digits\0"},
    "a recipe's file": {"recipes": ["{here}/x.py"]},
    "a recipe from here": {"recipes": ["x.py"]},
    "a recipe beside a shipped one": {"recipes": ["monte_carlo", "./smc.py"]},
    "a recipe without an ending": {"recipes": ["./smc"]},
    "a recipe above the catalogue": {"recipes": ["../x.py"]},
    "a recipe's module": {"recipes": ["evilmod:infer"]},
    "a shell as a recipe": {"recipes": ["os:system"]},
    "model and recipe": {"model": "{here}/m", "recipes": ["{here}/x.py"]},
}


@pytest.mark.parametrize("kind", NAMED)
@pytest.mark.parametrize("command", ["resume", "show", "compare"])
def test_what_a_run_names_is_not_run(kind, command, foreign):
    record = json.loads(json.dumps(RECORD | NAMED[kind]).replace("{here}", str(foreign)))
    (foreign / "run.json").write_text(json.dumps(record))
    words = {"resume": ("estimate", "--resume", foreign), "show": ("show", foreign), "compare": ("compare", foreign)}
    with pytest.raises(
        RiskError, match="code runs only if you type it" if command == "resume" else "no finished estimate"
    ):
        call(*words[command])


def test_typing_one_half_does_not_allow_the_other(foreign):
    (foreign / "run.json").write_text(json.dumps(RECORD | {"recipes": [f"{foreign}/x.py"]}))
    with pytest.raises(RiskError, match="names its recipe"):
        call("estimate", "four_branches", "--resume", foreign)
    with pytest.raises(RiskError, match="type all of them"):
        call("estimate", "four_branches", "monte_carlo", "--resume", foreign)
    (foreign / "run.json").write_text(
        json.dumps(RECORD | {"model": "os:system", "parameters": {"command": "touch PWNED"}})
    )
    with pytest.raises(RiskError, match="names its model"):
        call("estimate", "--resume", foreign, "--set", "command=touch PWNED")
    with pytest.raises(RiskError, match="you typed"):
        call("estimate", "four_branches", "--resume", foreign)


def test_a_model_of_your_own_gets_no_value_that_you_did_not_type(foreign):
    own = foreign / "own"
    own.mkdir()
    (own / "problem.py").write_text("def problem(*, command: str = ''):\n    raise SystemExit(command)\n")
    (foreign / "run.json").write_text(
        json.dumps(RECORD | {"model": str(own), "parameters": {"command": "touch PWNED"}})
    )
    with pytest.raises(RiskError, match="you typed 'no command'"):
        call("estimate", "own", "--resume", foreign)
    with pytest.raises(RiskError, match="you typed command=ls"):
        call("estimate", "own", "--set", "command=ls", "--resume", foreign)


@pytest.mark.parametrize(("weights", "message"), [("evil.pt", "Python code"), ("m.pt2", "can run code")])
def test_weights_that_a_run_names_are_read_as_data(weights, message, foreign):
    (foreign / "run.json").write_text(json.dumps(RECORD | {"model": "digits", "weights": str(foreign / weights)}))
    with pytest.raises(RiskError, match=message):
        call("estimate", "--resume", foreign)


def test_a_shipped_name_is_the_shipped_thing_wherever_it_is_typed(foreign):
    assert locate("models", "digits") == shelf("models") / "digits" / "problem.py"
    assert locate("inference", "smc") == shelf("inference") / "smc.py"
    assert spec("inference", "smc.py") == str(foreign / "smc.py")
    with pytest.raises(UnknownNameError):
        locate("models", "../models/digits/nothing")


def test_what_was_typed_must_be_what_the_run_has(foreign, tmp_path):
    (foreign / "run.json").write_text(json.dumps(RECORD))
    for words in (["digits"], ["--seed", "5"], ["--weights", "w.pt"], ["four_branches", "smc"]):
        with pytest.raises(RiskError, match=r"and you typed|type all of them"):
            call("estimate", *words, "--resume", foreign)
    with pytest.raises(RiskError, match="you typed k=3"):
        call("estimate", "--set", "k=3.0", "--resume", foreign)


RECORDS = {
    "not UTF-8": b'{"model": "\xff"}', "a long seed": b'{"seed": ' + b"9" * 5000 + b"}", "nested": b"[" * 100_000,
    "a list": b"[]", "null": b"null", "empty": b"", "cut": b'{"model": "dig', "a number as a model": {"model": 5},
    "parameters in a list": {"parameters": [1]}, "parameters in tables": {"parameters": {"k": {"a": 1}}},
    "no recipes": {"recipes": []}, "a recipe twice": {"recipes": ["smc", "smc"]}, "a seed below 0": {"seed": -1},
    "a seed that is a half": {"seed": 0.5}, "an entry of its own": {"trust": True}, "weights in a list": {"weights": []},
}  # fmt: skip


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_that_is_none(kind, tmp_path):
    wrong = RECORDS[kind]
    (tmp_path / "run.json").write_bytes(wrong if isinstance(wrong, bytes) else json.dumps(RECORD | wrong).encode())
    for words in (("estimate", "--resume", tmp_path), ("show", tmp_path)):
        with pytest.raises(RiskError, match=r"run\.json"):
            call(*words)


def test_a_pipe_is_no_record(tmp_path):
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(RiskError, match="a pipe or a device"):
        read_request(tmp_path)
    (tmp_path / "big.json").write_bytes(b"")
    os.truncate(tmp_path / "big.json", 2**40)
    with pytest.raises(RiskError, match="1,099,511,627,776 bytes"):
        read_json(tmp_path / "big.json", "a record")


@pytest.mark.parametrize(
    "place", ["units", "units/monte_carlo", "units/monte_carlo/units.jsonl", "units.jsonl", "monte_carlo"]
)
def test_a_link_or_a_pipe_in_a_run_is_refused_and_nothing_behind_it_changes(place, tmp_path):
    run, away = tmp_path / "run", tmp_path / "away"
    (run / place).parent.mkdir(parents=True)
    (away / "monte_carlo").mkdir(parents=True)
    (away / "monte_carlo" / "letters").write_text("dear")
    (run / "run.json").write_text(json.dumps(RECORD))
    aim = away / "monte_carlo" / "letters" if place.endswith("jsonl") else away
    (run / place).symlink_to(aim)
    for words in (("estimate", "--resume", run), ("show", run), ("compare", run)):
        with pytest.raises(RiskError, match="is a link to another place"):
            call(*words)
    assert (away / "monte_carlo" / "letters").read_text() == "dear"
    assert [p.name for p in away.rglob("*")] == ["monte_carlo", "letters"]
    (run / place).unlink()
    os.mkfifo(run / place)
    with pytest.raises(RiskError, match="a pipe or a device"):
        call("estimate", "--resume", run)


def saved(folder, **changes):
    rng = np.random.default_rng(0)
    made = RiskEstimate("by hand", -7.0, 0.1, posterior={"x": rng.normal(size=(2, 5, 3))}, problem="p", **changes)
    made.save(str(folder))
    return made


def external(file):
    del file["posterior/x"]
    file["posterior/x"] = h5py.ExternalLink("/etc/passwd", "/")


def outside(file):
    del file["posterior/x"]
    file["posterior"].create_dataset("x", (2, 8), "u1", external=[("/etc/passwd", 0, 16)])


def virtual(file):
    del file["posterior/x"]
    layout = h5py.VirtualLayout((4,), "u1")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (4,))
    file["posterior"].create_virtual_dataset("x", layout)


def bomb(file):
    file["posterior"].create_dataset("y", (2**13, 2**13, 2**10), "f8", chunks=(2**6, 2**6, 2**6), fillvalue=0)


def soft(file):
    file["posterior/y"] = h5py.SoftLink("/posterior/x")


def itself(file):
    file["posterior/again"] = file["posterior"]


def another(file):
    file.attrs["log_probability"] = -6.0


def flat(file):
    del file["posterior/x"]
    file["posterior/x"] = np.zeros(3)


@pytest.mark.parametrize(
    "change", [external, outside, virtual, bomb, soft, itself, another, flat], ids=lambda f: f.__name__
)
def test_a_posterior_that_names_other_files_or_unpacks_to_gigabytes(change, tmp_path):
    saved(tmp_path)
    with h5py.File(tmp_path / "posterior.nc", "a") as file:
        change(file)
    with pytest.raises(RiskError, match=r"posterior\.nc"):
        RiskEstimate.load(str(tmp_path))


@pytest.mark.parametrize(
    "wrong",
    [
        {"log_prob": 5.0}, {"log_prob": "nan"}, {"log_prob": True}, {"log_prob": None}, {"std_error": -0.1}, {"hits": ["a", "b"]},
        {"hits": [5, 3]}, {"hits": [1, 2, 3]}, {"forward_calls": -1}, {"forward_calls": 1.5}, {"method": 3}, {"seed": "1"},
        {"settings": 1}, {"evidence": []}, {"evidence": {"ess": []}}, {"fingerprint": 7}, {"dof": -1.0}, {"status": ["OK"]},
    ],
    ids=str,
)  # fmt: skip
def test_an_estimate_that_cannot_be(wrong, tmp_path):
    saved(tmp_path)
    (tmp_path / "posterior.nc").unlink()
    record = json.loads((tmp_path / "result.json").read_text())
    (tmp_path / "result.json").write_text(json.dumps(record | wrong))
    with pytest.raises(RiskError, match="not the record of an estimate"):
        RiskEstimate.load(str(tmp_path))


def test_an_estimate_saved_before_fingerprints_loads(tmp_path):
    saved(tmp_path, fingerprint="0f.0f.0f")
    record = json.loads((tmp_path / "result.json").read_text())
    assert record.pop("fingerprint") == RiskEstimate.load(str(tmp_path)).fingerprint == "0f.0f.0f"
    (tmp_path / "result.json").write_text(json.dumps(record))
    assert RiskEstimate.load(str(tmp_path)).fingerprint == ""


def test_a_report_escapes_every_foreign_text():
    from ppl_risk import compare

    script = "<script>alert(1)</script>"
    made = dataclasses.replace(
        RiskEstimate(script, -7.0, 0.1), remedy=script, problem=script, evidence={script: 1.0}, status=Status.LOW_ESS
    )
    request = SimpleNamespace(model=script, parameters={script: script}, seed=script, fingerprint=script)
    page = report(compare({script: made, "pri$ce_{$": made}), request)
    assert "<script" not in page
    assert page.count("data:image/png") >= 1, "a $ in a name is no formula"
    assert "<script" not in compare({script: made})._repr_html_()


def test_two_recipes_never_share_a_folder():
    names = [
        "smc",
        "./smc.py",
        "/a/smc.py",
        "/b/smc.py",
        "pkg.a:f",
        "pkg.b:f",
        "pkg:a.f",
        "x" * 300 + ":f",
        "../../etc:f",
        "ü:f",
    ]
    folders = [folder_name(name) for name in names]
    assert len(set(folders)) == len(names)
    assert all(folder.isascii() and "/" not in folder and ".." not in folder and len(folder) < 80 for folder in folders)
    labels = Request("m", ["/a/b/r.py", "/a/c/r.py", "smc"]).labels()
    assert list(labels.values()) == ["b/r", "c/r", "smc"]


def test_files_are_written_whole_or_not_at_all(tmp_path):
    write_whole(tmp_path / "a", "old")
    with pytest.raises(RiskError, match="cannot be written"):
        write_whole(tmp_path / "a" / "b", "a file is no folder")
    (tmp_path / "full").mkdir()
    with pytest.raises(UnicodeEncodeError):
        write_whole(tmp_path / "full" / "x", "\ud800")
    assert (tmp_path / "a").read_text() == "old"
    assert list((tmp_path / "full").iterdir()) == []
    with pytest.raises(RiskError, match="cannot be written"):
        writable(tmp_path / "a" / "b")
    writable(tmp_path / "not" / "yet")
    assert not (tmp_path / "not").exists()


def test_a_line_is_not_glued_to_one_that_was_cut(tmp_path):
    file = tmp_path / "units.jsonl"
    append_line(file, "one")
    file.write_bytes(file.read_bytes() + b"tw")
    append_line(file, "three")
    append_line(file, "four")
    assert file.read_text().splitlines() == ["one", "tw", "three", "four"]
