"""The command line: a run's folder, resuming, exit codes, and a quick answer to --help."""

import json
import subprocess
import sys

import pytest

from ppl_risk import RiskEstimate
from ppl_risk.cli import BELIEVE, MISTAKE, WEAK, app
from ppl_risk.zoo import list_recipes


def call(*words):
    return app(list(words), exit_on_error=False, print_error=False, result_action="return_value")


@pytest.fixture
def run(tmp_path, capsys):
    code = call(
        "estimate", "linear_gaussian", "monte_carlo", "svi_network", "--set", "log10_prob=-3", "--set", "dimension=2",
        "--out", str(tmp_path), "--quiet",
    )  # fmt: skip
    return code, tmp_path / "0001", capsys.readouterr().out


def test_a_run_leaves_its_folder(run):
    code, folder, text = run
    assert code == BELIEVE
    result = json.loads((folder / "result.json").read_text())
    assert result["best"] in ("monte_carlo", "svi_network")
    assert float(result["truth"]) == pytest.approx(-6.908, abs=1e-3)
    report = (folder / "report.html").read_text()
    assert report.count("data:image/png;base64") >= 1
    assert "BELIEVE" in text
    loaded = RiskEstimate.load(str(folder / "svi_network"))
    assert loaded.log_prob == pytest.approx(-6.908, abs=4 * loaded.std_error)
    assert loaded.posterior["x"].shape[:2] == (4, 250)


def test_the_engine_is_kept_and_read_back(tmp_path, capsys):
    words = ("linear_gaussian", "engine", "--set", "log10_prob=-3", "--set", "dimension=2")
    assert call("estimate", *words, "--out", str(tmp_path), "--quiet") == BELIEVE
    loaded = RiskEstimate.load(str(tmp_path / "0001" / "engine"))
    assert loaded.log_prob == pytest.approx(-6.908, abs=4 * loaded.std_error)
    assert set(loaded.history["rounds"]) == {"spread", "ess", "log_prob", "places"}
    assert len(loaded.history["rounds"]["ess"]) > 0


def test_show_and_compare_read_it_back(run, capsys):
    _, folder, _ = run
    assert call("show", str(folder)) == BELIEVE
    assert "svi_network" in capsys.readouterr().out
    assert call("compare", str(folder), str(folder / "monte_carlo")) == BELIEVE
    assert "0001/svi_network" in capsys.readouterr().out


def test_a_stopped_run_resumes_and_redoes_nothing(run, capsys):
    _, folder, _ = run
    lines = (folder / "units.jsonl").read_text().splitlines()
    # As if stopped while the second line was being written.
    (folder / "units.jsonl").write_text(lines[0] + "\n" + lines[1][:20])
    (folder / "result.json").unlink()
    before = (folder / "monte_carlo" / "result.json").stat().st_mtime_ns
    first = RiskEstimate.load(str(folder / "svi_network")).log_prob
    assert call("estimate", "--resume", str(folder), "--quiet") == BELIEVE
    assert (folder / "monte_carlo" / "result.json").stat().st_mtime_ns == before
    assert RiskEstimate.load(str(folder / "svi_network")).log_prob == first
    assert (folder / "result.json").exists()


def test_resuming_on_another_network_is_refused(run):
    _, folder, _ = run
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"parameters": {"dimension": 3}}))
    with pytest.raises(ValueError, match="another network or input law"):
        call("estimate", "--resume", str(folder), "--quiet")


def test_nothing_to_believe_is_code_2(tmp_path, capsys):
    assert call("estimate", "excluded_catastrophe", "monte_carlo", "--out", str(tmp_path), "--quiet") == WEAK
    assert "Believe none" in capsys.readouterr().out


def test_codes_are_distinct():
    assert len({BELIEVE, WEAK, MISTAKE}) == 3


def test_list_and_show_name_the_zoo(capsys):
    assert call("list") == BELIEVE
    text = capsys.readouterr().out
    assert all(name in text for name in ("digits", "consistency_checks", "svi_low_rank", "smc"))
    assert call("show", "digits") == BELIEVE


def test_help_does_not_load_torch():
    script = "import sys; import ppl_risk.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_every_shipped_recipe_ends_in_one_report(tmp_path):
    """What `make estimate` does: recipes that do not apply are refused, and none stops the comparison or the report."""
    words = ("estimate", "digits", "--out", str(tmp_path), "--quiet")
    # A process of its own: there nobody checks the types of each call, which takes most of the time here.
    ran = subprocess.run([sys.executable, "-m", "ppl_risk", *words], capture_output=True, text=True)
    assert ran.returncode == BELIEVE, ran.stderr
    result = json.loads((tmp_path / "0001" / "result.json").read_text())
    assert set(result["estimates"]) == set(list_recipes())
    assert (tmp_path / "0001" / "report.html").stat().st_size > 10_000
    assert "Traceback" not in ran.stdout


def test_a_recipe_that_mitigates_is_no_rival_of_the_others(tmp_path, capsys):
    words = ("--out", str(tmp_path), "--quiet")
    assert call("estimate", "backdoored_affine", "mitigate_local", "monte_carlo", *words) == BELIEVE
    text = capsys.readouterr().out
    assert "Of another model in its place" in text
    result = json.loads((tmp_path / "0001" / "result.json").read_text())
    assert list(result["estimates"]) == ["monte_carlo"]
    assert RiskEstimate.load(str(tmp_path / "0001" / "mitigate_local")).prob < 1e-3
    assert call("estimate", "backdoored_affine", "mitigate_local", *words) == BELIEVE
    assert json.loads((tmp_path / "0002" / "result.json").read_text())["best"] == "mitigate_local"
