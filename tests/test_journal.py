"""What a folder keeps: read where it is sound, left alone where another may be writing, refused in words where it takes nothing."""

import errno
import hashlib
import json
import os
import socket
import tempfile
import threading
from contextlib import suppress
from functools import cache
from types import SimpleNamespace

import pytest
import torch

import work
from builders import linear_gaussian, standard
from ppl_risk import RiskError, RiskProblem, estimate, fit_svi, monte_carlo, run_smc
from ppl_risk.errors import FolderError, UnitFailedError
from ppl_risk.guides import Full
from ppl_risk.parallel import cluster as cluster_room
from ppl_risk.parallel import digest, fits, journal, run_units, unit_limit, units_folder, workers
from ppl_risk.parallel.cluster import on_cluster
from test_parallel import planned


class Odd(torch.nn.Module):
    """A network that raises once, at a call that the test sets."""

    def __init__(self, error=None, at=0):
        super().__init__()
        self.inner, self.error, self.at, self.seen = torch.nn.Linear(3, 1), error, at, 0
        with torch.no_grad():
            self.inner.weight.copy_(torch.tensor([[1.0, 0.5, -0.5]]))
            self.inner.bias.fill_(-2.5)

    def forward(self, x):
        self.seen += 1
        if self.error is not None and self.seen == self.at:
            raise self.error
        return self.inner(x)[:, 0]


def odd(error=None, at=0):
    problem = RiskProblem(Odd(error, at), standard(3))
    problem.batch_size = 100
    return problem


CALLS = {
    "estimate": lambda p, **k: estimate(p, max_calls=2000, posterior_draws=8, progress=False, **k),
    "run_smc": lambda p, **k: run_smc(p, particles=40, runs=2, progress=False, **k),
    "monte_carlo": lambda p, **k: monte_carlo(p, calls=1050, progress=False, **k),
    "fit_svi": lambda p, **k: fit_svi(p, Full(), steps=9, draws=400, progress=False, **k),
}


def answer(found):
    """All that must be the same."""
    numbers = [found.log_prob, found.std_error, found.calls, *found.evidence.values()]
    return digest([{"numbers": numbers}, dict(found.posterior), dict(found.stats), *found.history.values()])


@cache
def undisturbed(name):
    """The answer, and the passes it took."""
    whole = odd()
    return answer(CALLS[name](whole)), whole.network.seen


@pytest.mark.parametrize("name", CALLS)
def test_what_raises_once_changes_no_bit(name):
    truth, spent = undisturbed(name)
    # Beyond the preflight; the last calls are the draws and the posterior.
    for at in (spent - 1, max(20, spent // 2))[: 1 if name == "estimate" else 2]:
        problem = odd(ValueError("an odd input"), at)
        assert answer(CALLS[name](problem)) == truth
        assert problem.network.seen > at


@pytest.mark.parametrize("name", CALLS)
def test_a_stopped_call_goes_on_with_the_same_bits(name, tmp_path):
    truth, spent = undisturbed(name)
    stopped = odd(KeyboardInterrupt(), spent - 1)
    with pytest.raises(KeyboardInterrupt), units_folder(tmp_path):
        CALLS[name](stopped)
    file = tmp_path / "units.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines) + b'{"key": "cut short')
    rest = odd()
    assert answer(CALLS[name](rest, folder=tmp_path)) == truth
    assert rest.network.seen < spent
    assert file.read_bytes().startswith(b"".join(lines) + b'{"key": "cut short')


@pytest.mark.parametrize("name", CALLS)
def test_whole_lines_with_something_else_in_them_are_run_again(name, tmp_path):
    first = answer(CALLS[name](odd(), folder=tmp_path))
    file = tmp_path / "units.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    others = [with_record(line, WRONG[k % len(WRONG)]) for k, line in enumerate(lines)]
    file.write_bytes(b"".join(others) + b"\xff\xfe\x00\n" + b'"\xc3\x28"\n')
    assert answer(CALLS[name](odd(), folder=tmp_path)) == first == undisturbed(name)[0]
    assert len(file.read_bytes().splitlines()) == 2 * len(lines) + 2


NOPE = {"$tensor": "AAAA", "dtype": "nope", "shape": [1]}
WRONG = (
    '{"calls": [[1, 0]], "result": {}}', '{"calls": [], "result": {"margin": [1.0]}}', '{"calls": [[1, 0]], "result": 4}',
    json.dumps({"calls": [[1, 0]], "result": {"margin": NOPE, "log_prob": NOPE}}),
    '{"calls": [[1, 0]], "result": ' + "[" * 100_000 + "]" * 100_000 + "}",
    '{"calls": [[-1, 0.5]], "result": {"chain state": {}, "chain random": [], "hits": "many"}}',
    '{"calls": [[1, 0]], "result": {"chain state": {"guide": []}, "chain random": [], "steps": 2}}',
)  # fmt: skip


def with_record(line, text):
    """A line of the journal with another record and the checksum of it."""
    head = json.loads(line)
    with suppress(RecursionError):
        text = json.dumps(json.loads(text))
    checksum = hashlib.sha256(text.encode()).hexdigest()[:16]
    start = json.dumps({"key": head["key"], "index": 0, "seed": 0, "checksum": checksum})
    return f'{start[:-1]}, "record": {text}}}\n'.encode()


def test_what_fails_twice_is_said_and_what_was_done_is_kept(tmp_path):
    class Broken(Odd):
        def forward(self, x):
            if self.seen > 22:
                raise ZeroDivisionError("an odd input\nand a page of shapes")
            return super().forward(x)

    problem = RiskProblem(Broken(), standard(3))
    problem.batch_size = 100
    for name, call in CALLS.items():
        problem.network.seen = 0
        with pytest.raises(UnitFailedError, match=r"(twice|2 times), at last with NetworkError: .*an odd input"):
            call(problem, folder=tmp_path / name)
    assert len((tmp_path / "monte_carlo" / "units.jsonl").read_text().splitlines()) > 1


def test_a_folder_that_takes_nothing_is_refused_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for name, call in CALLS.items():
        problem = odd()
        with pytest.raises(RiskError, match=r"units.jsonl cannot be (read|written to): Not a directory"):
            call(problem, folder=tmp_path / "file" / name)
    problem = linear_gaussian(3, 2.0).problem
    plan = planned(problem, tmp_path)
    (tmp_path / "dir" / "units.jsonl").mkdir(parents=True)
    with pytest.raises(RiskError, match="cannot be read: Is a directory"):
        run_units(plan, work.witnessed, problem, folder=tmp_path / "dir", progress=False)

    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(RiskError, match=r"cannot be written to: the disk is full\. Make room"):
        run_units(plan, work.witnessed, problem, folder=tmp_path / "new", progress=False)
    assert not (tmp_path / "log").exists()


def test_a_disk_that_fills_up_keeps_what_was_written(tmp_path, monkeypatch):
    problem = linear_gaussian(3, 2.0).problem
    plan, room = planned(problem, tmp_path), [4000]

    def write(file, text):
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        part = text[: room[0]]
        room[0] -= len(part)
        return os.write(file, part)

    with monkeypatch.context() as patch:
        patch.setattr(journal, "os", SimpleNamespace(**(vars(os) | {"write": write})))
        with pytest.raises(FolderError, match="the disk is full"):
            run_units(plan, work.draw, problem, folder=tmp_path, progress=False)
    found = run_units(plan, work.draw, problem, folder=tmp_path, progress=False)
    assert digest(found) == digest(run_units(plan, work.draw, problem, progress=False))


def test_results_have_a_form():
    form = {"u": "float n d", "hit": "bool n", "mass": "float"}
    sound = {"u": torch.zeros(3, 2), "hit": torch.ones(3, dtype=torch.bool), "mass": 0.5}
    assert fits(sound, form, d=2)
    for wrong in (
        {"mass": 1}, {"hit": torch.ones(3)}, {"hit": torch.ones(2, dtype=torch.bool)}, {"u": torch.zeros(3)}, {"more": 1},
        {"u": []},
    ):  # fmt: skip
        assert not fits(sound | wrong, form, d=2)
    assert not fits(sound, form, d=3)


# Around a cluster, without one.


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00" * 100])
def test_whoever_listens_and_is_no_scheduler_is_named_in_time(said, monkeypatch):
    monkeypatch.setattr(cluster_room, "CONNECT", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:

        def talk():
            other, _ = silent.accept()
            with other:
                other.sendall(said)
                over.wait()

        over = threading.Event()
        thread = threading.Thread(target=talk)
        thread.start()
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RiskError, match=f"No scheduler answers at {address}"):
            on_cluster(address, [], work.draw, None, lambda *_: None)
        over.set()
        thread.join()


def test_workers_with_other_sources_are_refused(monkeypatch):
    for found, text in (
        ((*workers.versions()[:2], "other"), "other sources"),
        (("1.0", *workers.versions()[1:]), "1.0"),
        (("1.0", "0.1"), "1.0"),
        (ModuleNotFoundError("No module"), "cannot import"),
        (TimeoutError(), "said nothing"),
    ):
        monkeypatch.setattr(workers, "_ask", lambda *_, found=found: {"tcp://a": found})
        with pytest.raises(RiskError, match=text):
            workers.same_library(SimpleNamespace(nthreads=lambda: {"tcp://a": 1}), 1)
    for fine in (workers.versions(), OSError("it is gone")):
        monkeypatch.setattr(workers, "_ask", lambda *_, fine=fine: {"tcp://a": fine})
        workers.same_library(SimpleNamespace(nthreads=lambda: {"tcp://a": 1}), 1)
    with pytest.raises(RiskError, match="above 0"), unit_limit(0):
        pass
