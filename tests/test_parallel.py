"""The door for parallel work: the same bits from a loop, from workers, and after anything of it was killed."""

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed import Client, LocalCluster
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import work
from builders import linear_gaussian, standard
from ppl_risk import RiskError, RiskProblem, estimate, load_model, run_smc
from ppl_risk.errors import PreflightError, UnitFailedError
from ppl_risk.parallel import chunks, digest, plan_units, run_units
from ppl_risk.parallel import cluster as cluster_room
from ppl_risk.parallel.parcel import pack
from ppl_risk.parallel.records import decode, encode

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def local_cluster():
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(local_cluster):
    with Client(local_cluster, set_as_default=False) as client:
        yield client


@pytest.fixture
def problem():
    return linear_gaussian(3, 2.0).problem


def planned(problem, folder, count=5, rows=20, seed=7):
    return plan_units(problem, "draw", [{"rows": rows, "log": str(folder / "log")}] * count, seed=seed)


def ran(folder):
    return [int(line) for line in (folder / "log").read_text().split()]


# The plan.


def test_plan_follows_from_seed_and_budget_alone(problem, tmp_path):
    plan = planned(problem, tmp_path)
    assert plan == planned(linear_gaussian(3, 2.0).problem, tmp_path)
    assert [u.seed for u in planned(problem, tmp_path, count=3)] == [u.seed for u in plan[:3]]
    assert chunks(25, 10) == [10, 10, 5]
    assert chunks(0, 10) == []
    others = [
        planned(linear_gaussian(3, 2.1).problem, tmp_path), planned(problem, tmp_path, rows=21),
        planned(problem, tmp_path, seed=8), plan_units(problem, "other", [u.arguments for u in plan], seed=7),
    ]  # fmt: skip
    keys = [u.key for p in (plan, *others) for u in p]
    assert len(set(keys)) == len(keys)


def test_planning_is_not_booked_and_tensors_are_no_arguments(problem):
    with problem.metered() as meter:
        plan_units(problem, "draw", [{}], seed=0)
    assert meter.calls == 0
    with pytest.raises(RiskError, match=r"arguments of unit 0.*must be JSON"):
        plan_units(problem, "draw", [{"u": torch.ones(2)}], seed=0)


# Results as text.

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
ARRAYS = hnp.arrays(
    hnp.scalar_dtypes() | hnp.unicode_string_dtypes(), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
)
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    count = int(np.prod(shape)) * torch.empty((), dtype=dtype).element_size()
    top = 1 if dtype is torch.bool else 255
    raw = draw(st.lists(st.integers(0, top), min_size=count, max_size=count))
    return torch.tensor(raw, dtype=torch.uint8).view(dtype).reshape(shape) if raw else torch.empty(shape, dtype=dtype)


VALUES = st.recursive(
    SCALARS | ARRAYS | ARRAYS.map(lambda a: a.reshape(-1)[0] if a.size else None) | tensors(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=6,
)


def same_bits(a, b):
    if isinstance(a, torch.Tensor):
        flat = [t.reshape(-1).view(torch.uint8) if t.numel() else t for t in (a, b)]
        return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(*flat)
    if isinstance(a, np.generic | np.ndarray):
        return type(a) is type(b) and (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same_bits, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same_bits(a[k], b[k]) for k in a)
    if isinstance(a, float):
        return np.float64(a).tobytes() == np.float64(b).tobytes()
    return type(a) is type(b) and a == b


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_results_survive_as_strict_json(value):
    text = json.dumps(encode(value), allow_nan=False)
    assert same_bits(value, decode(json.loads(text)))


def test_what_has_no_exact_form_is_refused():
    for value in ({"a": object()}, {"a": np.array([object()])}, {"$a": 1}, {1: 2}):
        with pytest.raises(RiskError, match="unit"):
            encode(value)


def test_digest_sees_one_bit_and_order():
    one = torch.tensor([1.0, 2.0])
    assert digest([{"u": one}]) == digest([{"u": one.clone()}])
    assert digest([{"u": one}]) != digest([{"u": torch.nextafter(one, one + 1)}])
    assert digest([{"a": 1}, {"a": 2}]) != digest([{"a": 2}, {"a": 1}])


# Here.


def test_loop_leaves_everything_as_it_was_and_books_once(problem, tmp_path):
    plan = planned(problem, tmp_path)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        with problem.metered() as meter:
            fresh = run_units(plan, work.witnessed, problem, folder=tmp_path, progress=False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state)
    assert {r["threads"] for r in fresh} == {1}
    assert len({r["best"] for r in fresh}) == 5
    with problem.metered() as again:
        kept = run_units(plan[::-1], work.witnessed, problem, folder=tmp_path, progress=False)
    assert ran(tmp_path) == [0, 1, 2, 3, 4]
    assert (meter.forward_calls, meter.gradient_calls) == (again.forward_calls, again.gradient_calls) == (100, 100)
    assert digest(fresh) == digest(kept)
    assert all(map(same_bits, fresh, kept))


def test_another_problems_results_are_never_reused(problem, tmp_path):
    run_units(planned(problem, tmp_path), work.witnessed, problem, folder=tmp_path, progress=False)
    other = linear_gaussian(3, 2.0001).problem
    found = run_units(planned(other, tmp_path), work.witnessed, other, folder=tmp_path, progress=False)
    assert ran(tmp_path) == [0, 1, 2, 3, 4] * 2
    assert digest(found) == digest(run_units(planned(other, tmp_path), work.draw, other, progress=False))
    assert len((tmp_path / "units.jsonl").read_text().splitlines()) == 10


def test_torn_and_damaged_lines_are_run_again(problem, tmp_path):
    plan, file = planned(problem, tmp_path), tmp_path / "units.jsonl"
    fresh = run_units(plan, work.witnessed, problem, folder=tmp_path, progress=False)
    lines = file.read_bytes().splitlines(keepends=True)
    damaged = lines[1].replace(b'"shape": [20]', b'"shape": [21]', 1)
    assert damaged != lines[1]
    file.write_bytes(lines[0] + damaged + b'{"key": "other"}\n[]\n' + lines[2] + lines[3] + lines[4][:200])
    again = run_units(plan, work.witnessed, problem, folder=tmp_path, progress=False)
    assert ran(tmp_path) == [0, 1, 2, 3, 4, 1, 4]
    assert digest(again) == digest(fresh)
    assert [json.loads(line)["key"] for line in file.read_text().splitlines()[7:]] == [plan[1].key, plan[4].key]


def test_a_unit_that_raises_is_named_after_the_others_are_done(problem, tmp_path):
    plan = planned(problem, tmp_path)
    with pytest.raises(
        UnitFailedError, match=r"Unit 1 \(draw, seed \d+.*2 times.*odd input.*1 more: 3.*3 of 5.*kept in"
    ) as seen:
        run_units(plan, work.raising, problem, folder=tmp_path, progress=False)
    assert isinstance(seen.value.__cause__, ZeroDivisionError)
    assert ran(tmp_path) == [0, 1, 2, 3, 4, 1, 3]
    mended = run_units(plan, work.witnessed, problem, folder=tmp_path, progress=False)
    assert ran(tmp_path)[7:] == [1, 3]
    assert digest(mended) == digest(run_units(plan, work.draw, problem, progress=False))
    with pytest.raises(UnitFailedError, match="folder= keeps"):
        run_units(plan, work.raising, problem, progress=False)


def test_a_second_try_has_the_same_seed(problem, tmp_path):
    plan = planned(problem, tmp_path)
    found = run_units(plan, work.raising_once, problem, progress=False)
    assert digest(found) == digest(run_units(plan, work.draw, problem, progress=False))


def test_mistakes_stop_at_once_and_interrupts_keep_what_is_done(problem, tmp_path):
    plan = planned(problem, tmp_path)
    with pytest.raises(PreflightError, match="margins are NaN"):
        run_units(plan, work.mistaken, problem, folder=tmp_path, progress=False)
    assert ran(tmp_path) == [0, 1]
    with pytest.raises(KeyboardInterrupt):
        run_units(plan, work.interrupted, problem, folder=tmp_path, progress=False)
    assert ran(tmp_path) == [0, 1, 1]
    run_units(plan, work.witnessed, problem, folder=tmp_path, progress=False)
    assert ran(tmp_path) == [0, 1, 1, 2, 3, 4]


DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import work
from builders import linear_gaussian
from ppl_risk.parallel import plan_units, run_units
folder = Path(sys.argv[2])
problem = linear_gaussian(3, 2.0).problem
plan = plan_units(problem, "draw", [{"rows": 20, "log": str(folder / "log")}] * 5, seed=7)
run_units(plan, work.hanging, problem, folder=folder, progress=False)
"""


def test_a_killed_driver_goes_on_and_repeats_nothing(problem, tmp_path):
    (tmp_path / "hang").touch()
    (tmp_path / "log").touch()
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(HERE), str(tmp_path)])
    try:
        deadline = time.monotonic() + 60
        while ran(tmp_path) != [0, 1, 2, 3]:
            assert driver.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    (tmp_path / "hang").unlink()
    plan = planned(problem, tmp_path)
    found = run_units(plan, work.hanging, problem, folder=tmp_path, progress=False)
    assert ran(tmp_path) == [0, 1, 2, 3, 3, 4]
    assert digest(found) == digest(run_units(plan, work.draw, problem, progress=False))


# On workers.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_workers_give_the_same_bits_and_book_here(problem, client, tmp_path, dtype):
    plan = planned(problem, tmp_path)
    torch.set_default_dtype(dtype)
    try:
        with problem.metered() as meter:
            found = run_units(plan, work.witnessed, problem, engine=client, progress=False)
        here = run_units(plan, work.draw, problem, progress=False)
    finally:
        torch.set_default_dtype(torch.float32)
    assert digest(found) == digest(here)
    assert found[0]["default"].dtype == dtype
    assert (meter.forward_calls, meter.gradient_calls) == (100, 100)
    assert client.status == "running"


def test_an_address_and_a_problem_of_lambdas(local_cluster, client, tmp_path):
    problem = RiskProblem(lambda x: x.sum(-1) - 3.0, standard(3))
    plan = planned(problem, tmp_path)
    found = run_units(
        plan, lambda p, u: work.draw(p, u), problem, engine=local_cluster.scheduler_address, progress=False
    )
    assert digest(found) == digest(run_units(plan, work.draw, problem, progress=False))
    assert client.status == "running"


def test_a_model_loaded_by_its_path_travels(client, tmp_path):
    """No worker can import the module of a zoo's problem."""
    problem = load_model("digits_residual")
    assert problem.detector.__module__ == "ppl_risk_zoo_digits_residual_problem"
    plan = planned(problem, tmp_path, count=2)
    found = run_units(plan, work.draw, problem, engine=client, progress=False)
    assert digest(found) == digest(run_units(plan, work.draw, problem, progress=False))


def test_a_module_that_workers_lack_is_named(client, tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("def detector(y):\n    return y[:, 0]\n")
    monkeypatch.syspath_prepend(tmp_path)
    problem = RiskProblem(torch.nn.Linear(3, 1), standard(3), importlib.import_module("only_here").detector)
    with pytest.raises(RiskError, match=r"worker cannot build the problem: No module named 'only_here'.*upload_file"):
        run_units(planned(problem, tmp_path), work.draw, problem, engine=client, progress=False)


def test_meters_stay_here(problem):
    with problem.metered():
        _, (travelled,) = pack(work.draw, (problem,)).open()
        assert len(problem._meters) == 1
        assert travelled._meters == []


def test_smc_is_the_same_estimate_everywhere(client, tmp_path):
    known = linear_gaussian(3, 3.0)
    made = [
        run_smc(known.problem, particles=100, runs=3, posterior_draws=60, progress=False, **where)
        for where in ({}, {"engine": client, "folder": tmp_path}, {"folder": tmp_path})
    ]
    for other in made[1:]:
        assert (other.log_prob, other.std_error, other.calls) == (made[0].log_prob, made[0].std_error, made[0].calls)
        assert digest([dict(other.posterior), *other.history.values()]) == digest(
            [dict(made[0].posterior), *made[0].history.values()]
        )
        assert other.flops == made[0].flops > 0
        assert digest([{"s": other.survival}]) == digest([{"s": made[0].survival}])


def test_the_engine_is_the_same_estimate_everywhere(client, tmp_path):
    known = linear_gaussian(3, 3.5)
    made = [
        estimate(known.problem, max_calls=4000, progress=False, **where)
        for where in (
            {"folder": tmp_path / "here"},
            {"engine": client},
            {"engine": client, "folder": tmp_path / "here"},
        )
    ]
    for other in made[1:]:
        assert (other.log_prob, other.std_error, other.calls) == (made[0].log_prob, made[0].std_error, made[0].calls)
        assert digest([dict(other.posterior), dict(other.stats)]) == digest(
            [dict(made[0].posterior), dict(made[0].stats)]
        )
        assert other.evidence == made[0].evidence
    assert abs(made[0].log_prob - known.log_prob) < 4 * made[0].std_error


def test_a_killed_worker_changes_no_bit(problem, local_cluster, client, tmp_path):
    plan = planned(problem, tmp_path)
    before = set(client.run(os.getpid).values())
    found = run_units(plan, work.killed_once, problem, engine=client, folder=tmp_path, progress=False)
    assert (tmp_path / "killed").exists()
    client.wait_for_workers(2, timeout=60)
    assert set(client.run(os.getpid).values()) != before
    assert digest(found) == digest(run_units(plan, work.draw, problem, progress=False))


def test_workers_failures_and_mistakes_are_reported_as_here(problem, client, tmp_path):
    plan = planned(problem, tmp_path)
    with pytest.raises(UnitFailedError, match=r"Unit 1.* failed 4 times.*ZeroDivisionError: an odd input") as seen:
        run_units(plan, work.raising, problem, engine=client, folder=tmp_path, progress=False)
    assert isinstance(seen.value.__cause__, ZeroDivisionError)
    with pytest.raises(PreflightError, match="margins are NaN"):
        run_units(plan, work.mistaken, problem, engine=client, progress=False)


def test_a_poison_unit_is_named_and_the_innocent_finish(problem, local_cluster, client, tmp_path, monkeypatch):
    # As strict as an owner can be: one death condemns everything queued on that worker.
    monkeypatch.setattr(local_cluster.scheduler, "allowed_failures", 0)
    monkeypatch.setattr(cluster_room, "ALONE", 2)
    plan = planned(problem, tmp_path)
    with pytest.raises(UnitFailedError, match=r"Unit 1 \(draw.* failed 3 times.*its worker is gone.*4 of 5") as seen:
        run_units(plan, work.poison, problem, engine=client, folder=tmp_path, progress=False)
    assert str(tmp_path) in str(seen.value)
    recorded = [json.loads(line)["key"] for line in (tmp_path / "units.jsonl").read_text().splitlines()]
    assert sorted(recorded) == sorted(plan[k].key for k in (0, 2, 3, 4))
    # A result that died with its worker before it was fetched is computed again, and recorded once all the same.
    assert set(ran(tmp_path)) == {0, 2, 3, 4}


def test_what_cannot_be_an_engine_or_be_sent(problem, client, tmp_path, monkeypatch):
    plan = planned(problem, tmp_path)
    monkeypatch.setattr(cluster_room, "CONNECT", 1)
    for engine, text in (("tcp://127.0.0.1:9", "No scheduler answers at tcp://127.0.0.1:9"), (4, "got int")):
        with pytest.raises(RiskError, match=text):
            run_units(plan, work.draw, problem, engine=engine, progress=False)
    lock = threading.Lock()
    for function, shared in ((lambda _, u: {"a": lock.locked()}, problem), (work.draw, (problem, lock))):
        with pytest.raises(RiskError, match="This cannot be sent to workers: cannot pickle"):
            run_units(plan, function, shared, engine=client, progress=False)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(RiskError, match=r"pip install 'ppl-risk\[cluster\]'"):
        run_units(plan, work.draw, problem, engine="tcp://127.0.0.1:9", progress=False)
