"""Estimates on disk and in ArviZ."""

import dataclasses
import json
import math
import re

import arviz
import matplotlib as mpl
import numpy as np
import pytest

from ppl_risk.errors import RiskError
from ppl_risk.risk_estimate import RiskEstimate, Status
from ppl_risk.storage import ARRAYS

mpl.use("Agg")


def full(rng=None, **changes) -> RiskEstimate:
    rng = rng or np.random.default_rng(0)
    made = RiskEstimate(
        "by hand", -31.25, 0.125, Status.KHAT_HIGH, "Do this.", 100, 50, 2e9, 1.5, 1.7e10, 7, "toy", (3, 1000), 3.0, -33.5,
        evidence={"k_hat": math.inf, "ess": 12.5, "worst": math.nan, "best": -math.inf},
        posterior={"x": rng.normal(size=(4, 30, 1, 6, 6)), "layer.1": rng.normal(size=(4, 30, 3)),
                   "fc#2": rng.normal(size=(4, 30, 2)), "margin": rng.normal(size=(4, 30))},
        stats={"log_weight": np.where(rng.random((4, 25)) < 0.5, -np.inf, 1.0), "margin": rng.normal(size=(4, 25))},
        history={"smc_history": {"threshold": np.array([[-1.0, 0.0, np.nan], [-2.0, -1.0, 0.0]])},
                 "svi_history": {"loss": rng.normal(size=20), "grad_norm": rng.normal(size=20)}},
        survival=(np.linspace(-3, 0, 9), np.linspace(-0.1, -31.25, 9)),
        settings={"levels": [-1.0, 0.0], "family": "LowRank(rank=8)", "guide": True},
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def scalars(estimate: RiskEstimate) -> dict:
    return {f.name: getattr(estimate, f.name) for f in dataclasses.fields(estimate) if f.name not in ARRAYS}


CHANGES = {
    "everything": {},
    "no number": {"log_prob": math.nan, "std_error": math.nan, "status": Status.NO_HITS},
    "minus infinity": {"log_prob": -math.inf, "status": Status.PROVED},
    "no elbo, seed, hits, dof": {"elbo": None, "seed": None, "hits": None, "dof": None},
    "elbo nan": {"elbo": math.nan},
    "nothing but a number": {"posterior": {}, "stats": {}, "history": {}, "survival": None, "evidence": {}},
}


@pytest.mark.parametrize("kind", CHANGES)
def test_round_trip(kind, tmp_path):
    estimate = full(**CHANGES[kind])
    estimate.save(str(tmp_path / "run"))
    back = RiskEstimate.load(str(tmp_path / "run"))
    assert repr(scalars(back)) == repr(scalars(estimate))  # repr: nan equals nan, and the types count
    assert str(back) == str(estimate)
    assert set(back.posterior) == {n.replace(".", "_") for n in estimate.posterior}
    for name, value in estimate.posterior.items():
        np.testing.assert_array_equal(back.posterior[name.replace(".", "_")], value)
    for name, value in estimate.stats.items():
        np.testing.assert_array_equal(back.stats[name], value)
    assert {g: set(v) for g, v in back.history.items()} == {g: set(v) for g, v in estimate.history.items()}
    for group, values in estimate.history.items():
        for name, value in values.items():
            np.testing.assert_array_equal(back.history[group][name], value)
    np.testing.assert_equal(back.survival, estimate.survival)


def test_result_is_strict_json(tmp_path):
    full(log_prob=math.nan).save(str(tmp_path))
    text = (tmp_path / "result.json").read_text()
    record = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (record["log_prob"], record["evidence"]["k_hat"], record["evidence"]["best"]) == ("nan", "inf", "-inf")


def test_groups_and_dimensions():
    tree = full().to_datatree()
    assert set(tree.children) == {"posterior", "sample_stats", "smc_history", "svi_history", "survival"}
    dims = {f"{g}/{n}": v.dims for g in tree.children for n, v in tree[g].data_vars.items()}
    assert dims["posterior/x"] == ("chain", "draw", "x_dim_0", "x_dim_1", "x_dim_2")
    assert dims["posterior/layer_1"] == ("chain", "draw", "layer_1_dim_0")
    assert dims["posterior/margin"] == dims["sample_stats/log_weight"] == ("chain", "draw")
    assert dims["smc_history/threshold"] == ("chain", "level")
    assert dims["svi_history/loss"] == ("step",)
    assert dims["survival/log_prob"] == ("threshold",)
    assert tree["posterior"].coords["draw"].values.tolist() == list(range(30))


def test_root_attributes_carry_the_number():
    attributes = full().to_datatree().attrs
    assert (attributes["log_probability"], attributes["log_probability_se"]) == (-31.25, 0.125)
    assert (attributes["status"], attributes["seed"], attributes["inference_library"]) == ("KHAT_HIGH", 7, "ppl_risk")
    assert json.loads(attributes["settings"])["levels"] == [-1.0, 0.0]
    assert json.loads(attributes["evidence"])["ess"] == 12.5
    assert re.match(r"\d+\.\d+", attributes["torch_version"])


def test_arviz_reads_it_also_from_disk(tmp_path):
    full().save(str(tmp_path))
    for tree in (full().to_datatree(), RiskEstimate.load(str(tmp_path)).to_datatree()):
        data = arviz.from_datatree(tree)
        table = arviz.summary(data, var_names=["layer_1", "margin"])
        assert list(table.index) == ["layer_1[0]", "layer_1[1]", "layer_1[2]", "margin"]
        assert np.isfinite(table["r_hat"]).all()
        axes = arviz.plot_forest(data, var_names=["margin"])
        mpl.pyplot.close(axes[0].figure)


def test_a_loaded_estimate_can_be_saved_over_itself(tmp_path):
    full().save(str(tmp_path))
    loaded = RiskEstimate.load(str(tmp_path))
    dataclasses.replace(loaded, remedy="new").save(str(tmp_path))
    assert RiskEstimate.load(str(tmp_path)).remedy == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["posterior.nc", "result.json"]


@pytest.mark.parametrize(
    "text", ["", '{"method": "m", "log', "[]", "{}", '{"method": "m", "status": "NO_SUCH"}'],
    ids=["empty", "cut off", "list", "no fields", "unknown status"],
)  # fmt: skip
def test_corrupt_result(text, tmp_path):
    full().save(str(tmp_path))
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(RiskError, match=r"result\.json"):
        RiskEstimate.load(str(tmp_path))


def test_corrupt_arrays(tmp_path):
    full().save(str(tmp_path))
    file = tmp_path / "posterior.nc"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(RiskError, match=r"posterior\.nc"):
        RiskEstimate.load(str(tmp_path))


def test_missing_folder(tmp_path):
    with pytest.raises(RiskError, match="not a saved estimate"):
        RiskEstimate.load(str(tmp_path / "nowhere"))
