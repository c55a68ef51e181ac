"""The engine as a whole: right on closed forms, never past its budget, and refused where a route was broken on purpose."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import nn

import ppl_risk as pr
from builders import assert_within, linear_gaussian, orthant, standard, two_sided
from ppl_risk import RiskProblem, Status
from ppl_risk.engine import climbs as climbs_room
from ppl_risk.engine import run as run_room
from ppl_risk.errors import PreflightError
from ppl_risk.importance.gated import Tilted
from ppl_risk.importance.mixture import Mixture
from ppl_risk.parallel import digest
from ppl_risk.preflight import PREFLIGHT_CALLS, require_sound
from ppl_risk.preflight.margins import LOOK


def estimate(problem, max_calls=5000, **more):
    return pr.estimate(problem, max_calls=max_calls, progress=False, **more)


class Counting(nn.Module):
    """A network that counts the rows that go through it and the rows whose gradient comes back."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.rows, self.gradients = inner, 0, 0

    def forward(self, x):
        self.rows += len(x)
        y = self.inner(x)
        if y.requires_grad:
            y.register_hook(self.back)
        return y

    def back(self, gradient):
        self.gradients += len(gradient)

    @property
    def calls(self):
        return self.rows + self.gradients


class Margin(nn.Module):
    """A module of a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def counting(margin, d):
    network = Counting(Margin(margin))
    return network, RiskProblem(network, standard(d), name="counted")


# Closed forms.

KNOWN = {
    "linear": lambda: linear_gaussian(6, 4.0),
    "linear, wide": lambda: linear_gaussian(40, 3.5),
    "two-sided": lambda: two_sided(4.0),
    "orthant": lambda: orthant(5),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", list(KNOWN))
def test_closed_forms(name, seed):
    known = KNOWN[name]()
    found = estimate(known.problem, 8000, seed=seed)
    assert found.status is Status.OK, found
    assert_within(found.log_prob, known.log_prob, found.std_error, slack=0.005)
    assert found.std_error < 0.1
    assert found.evidence["smc_runs"] >= 2


def test_far_below_the_smallest_single():
    known = linear_gaussian(3, 20.0, dtype=torch.float64)
    found = estimate(known.problem, 20_000)
    assert_within(found.log_prob, known.log_prob, found.std_error, slack=0.005)
    assert found.std_error < 0.1


@pytest.mark.parametrize("z", [1.0364, -5.0])
def test_common_events_are_counted(z):
    """p = 0.15, and p = 1 but for 3e-7, which no one should take for more than a wrong sign."""
    known = linear_gaussian(3, z)
    found = estimate(known.problem, 4000)
    assert found.status is (Status.OK if z > 0 else Status.ALL_HITS)
    assert found.method.startswith("plain Monte Carlo")
    hits, draws = found.hits
    assert found.log_prob == math.log(hits / draws)
    low, high = found.interval(0.9999)
    assert low <= known.log_prob <= high
    assert 3900 - PREFLIGHT_CALLS - LOOK - 80 < draws <= 4000 - PREFLIGHT_CALLS - LOOK
    x = torch.as_tensor(found.posterior["x"].reshape(-1, 3))
    assert 4 <= len(x) <= 80
    assert bool((known.problem.margin(x) >= 0).all())


def test_a_certain_event():
    found = estimate(RiskProblem(lambda x: x[:, 0].exp(), standard(2)), 2000)
    assert (found.log_prob, found.std_error, found.status) == (0.0, 0.0, Status.ALL_HITS)
    assert "sign of the margin" in found.remedy


def test_an_event_out_of_reach_has_a_bound_and_no_number():
    found = estimate(RiskProblem(lambda x: x[:, 0].tanh() - 2, standard(3)))
    assert found.status is Status.NO_HITS
    assert math.isnan(found.log_prob)
    assert found.hits == (0, 150)
    assert found.interval()[1] == pytest.approx(math.log(-math.expm1(math.log(0.05) / 150)))
    assert "an upper bound, not an estimate" in str(found)
    assert found.posterior == {}


def test_a_black_box():
    known = linear_gaussian(4, 3.5)
    network = known.problem.network
    hidden = RiskProblem(lambda x: network(x)[:, 0].detach(), known.problem.inputs)
    found = estimate(hidden, 10_000)
    assert found.status is Status.OK
    assert found.gradient_calls == 0
    assert_within(found.log_prob, known.log_prob, found.std_error, slack=0.005)


@pytest.mark.parametrize("seed", [0, 1])
def test_discrete_inputs_are_right_or_refused(seed):
    """At least 15 of 20 that are 1 with probability 0.2: 1.8e-7 by the binomial law."""
    law = torch.distributions.Independent(torch.distributions.Bernoulli(torch.full((20,), 0.2)), 1)
    found = estimate(RiskProblem(lambda x: x.sum(-1) - 14.5, law), 20_000, seed=seed)
    exact = float(binom.logsf(14, 20, 0.2))
    assert found.gradient_calls == 0
    if found.status.believable:
        assert_within(found.log_prob, exact, found.std_error)
    else:
        assert found.remedy


# The budget.

MARGINS = {
    "two sides": lambda x: x[:, 0].abs() - 3.5,
    "black box": lambda x: (x[:, 0].abs() - 3.5).detach(),
    "common": lambda x: x[:, 0] - 0.8,
    "out of reach": lambda x: x[:, 0].tanh() - 2,
    "flat but for a corner": lambda x: torch.relu(x.min(-1).values - 1.2) - 1e-9,
    "very rare": lambda x: x.sum(-1) - 40,
}


def test_preflight_runs_as_many_rows_as_are_booked():
    network, problem = counting(MARGINS["two sides"], 3)
    require_sound(problem)
    assert network.calls == PREFLIGHT_CALLS


@pytest.mark.parametrize("max_calls", [2000, 5000])
@pytest.mark.parametrize("name", list(MARGINS))
def test_the_budget_is_never_passed_and_every_row_is_booked(name, max_calls):
    """Preflight and posterior included."""
    network, problem = counting(MARGINS[name], 3)
    found = estimate(problem, max_calls, posterior_draws=1000)
    assert network.calls <= max_calls
    assert network.rows == found.forward_calls
    # Where the last step is undone gradients start in front of it, and the hook that counts them sits behind.
    assert network.gradients == found.gradient_calls or name == "flat but for a corner"
    if found.status is not Status.NO_HITS:
        assert network.calls > 0.9 * max_calls


def test_the_budget_of_many_calls_goes_into_the_number():
    network, problem = counting(MARGINS["two sides"], 3)
    found = estimate(problem, 110_000, posterior_draws=0)
    assert network.calls == found.calls <= 110_000
    assert found.evidence["draws"] > 45_000
    assert found.posterior == {}


def test_a_target_stops_early_and_is_met():
    known = linear_gaussian(4, 4.0)
    full = estimate(known.problem, 20_000)
    target = 1.25 * full.std_error  # a quarter of the draws is not enough, all are too many
    found = estimate(known.problem, 20_000, target_cv=target)
    assert found.status is Status.OK
    assert full.std_error < found.std_error <= target
    assert found.calls < 0.95 * full.calls
    assert_within(found.log_prob, known.log_prob, found.std_error)
    common = estimate(linear_gaussian(3, 0.5).problem, 100_000, target_cv=0.05)
    assert common.std_error <= 0.05
    assert common.calls < 10_000


@pytest.mark.parametrize(("told", "text"), [({"max_calls": 1999}, "at least 2000"), ({"target_cv": 0.0}, "positive")])
def test_impossible_wishes(told, text):
    with pytest.raises(pr.RiskError, match=text):
        pr.estimate(two_sided(3.0).problem, progress=False, **told)


# The same again.


def everything(found):
    arrays = [*found.posterior.values(), *found.stats.values()]
    return digest([{"p": found.log_prob, "e": found.std_error, "calls": found.calls, "arrays": arrays}])


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    known = two_sided(2.8)
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = estimate(known.problem, 3000, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(12)
    assert everything(estimate(known.problem, 3000, seed=5)) == everything(first)
    other = estimate(known.problem, 3000, seed=6)
    assert everything(other) != everything(first)
    assert other.evidence["smc_log10_p"] != first.evidence["smc_log10_p"]


def test_a_folder_keeps_every_draw(tmp_path):
    known = linear_gaussian(3, 3.5)
    network = Counting(known.problem.network)
    problem = RiskProblem(network, known.problem.inputs, known.problem.detector)
    first = estimate(problem, folder=tmp_path)
    ran, kept = network.calls, (tmp_path / "units.jsonl").read_text().splitlines()
    assert ran == first.calls <= 5000
    assert len(kept) > climbs_room.RUNS
    again = estimate(problem, folder=tmp_path)
    assert everything(again) == everything(first)
    assert (tmp_path / "units.jsonl").read_text().splitlines() == kept
    in_units = sum(sum(map(sum, json.loads(line)["record"]["calls"])) for line in kept)
    assert in_units > 0.5 * ran
    # The weighing of one row is remembered by the problem, so it is not seen a second time.
    assert network.calls - ran == ran - in_units - 1


def test_a_folder_changes_no_bit(tmp_path):
    known = linear_gaussian(3, 3.5)
    assert everything(estimate(known.problem, folder=tmp_path)) == everything(estimate(known.problem))


# Broken on purpose.


def one_sided(evidence):
    """The evidence without what lies where u_0 < 0."""
    hits, anchors, seen = evidence.hits[:, 0] > 0, evidence.anchors[:, 0] > 0, evidence.seen[:, 0] > 0
    return evidence._replace(
        hits=evidence.hits[hits], weight=evidence.weight[hits] / evidence.weight[hits].sum(), anchors=evidence.anchors[anchors],
        normals=None if evidence.normals is None else evidence.normals[anchors], trust=evidence.trust[anchors],
        seen=evidence.seen[seen], hit=evidence.hit[seen],
    )  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1])
def test_a_place_dropped_from_the_proposal_is_noticed(monkeypatch, seed):
    """|x_0| >= 3.9, 1e-4: exploration forgets one side, and no refitting may find it again."""
    known = two_sided(3.9)
    real, adapt = run_room.first_evidence, run_room.adapt
    monkeypatch.setattr(run_room, "first_evidence", lambda *a: one_sided(real(*a)))
    monkeypatch.setattr(run_room, "adapt", lambda *a, until, **more: adapt(*a, until=0, **more))
    found = estimate(known.problem, 20_000, seed=seed)
    assert found.status is Status.ROUTES_DISAGREE, found
    assert "may be missing" in found.remedy
    assert "DO NOT BELIEVE" in str(found)


def test_a_place_dropped_at_first_is_found_again_or_noticed(monkeypatch):
    known = two_sided(3.9)
    real = run_room.first_evidence
    monkeypatch.setattr(run_room, "first_evidence", lambda *a: one_sided(real(*a)))
    found = estimate(known.problem, 20_000)
    if found.status.believable:
        assert_within(found.log_prob, known.log_prob, found.std_error)
    else:
        assert found.status is Status.ROUTES_DISAGREE


@pytest.mark.parametrize("seed", [0, 1])
def test_a_proposal_that_is_too_narrow_is_noticed(monkeypatch, seed):
    """Weights of a normal of scale 0.35 across the event have a tail of shape 0.88: no variance."""
    known = two_sided(3.0, d=3)
    eye = torch.eye(3, dtype=torch.float64)
    sides = [
        Tilted(eye, torch.tensor([m, 0.0, 0.0]).double(), torch.tensor([0.3, 0.35, 0.35]).double()) for m in (3.3, -3.3)
    ]
    narrow = Mixture(sides, torch.ones(2, dtype=torch.float64) / 2)
    monkeypatch.setattr(run_room, "adapt", lambda *a, **more: (narrow, [], None))
    found = estimate(known.problem, 5000, seed=seed)
    assert found.status in (Status.KHAT_HIGH, Status.ROUTES_DISAGREE), found
    assert found.evidence["k_hat"] > 0.5


def test_one_route_alone_is_not_believed(monkeypatch):
    known = two_sided(3.5)
    real = climbs_room.plan
    monkeypatch.setattr(climbs_room, "plan", lambda *a: real(*a) | {"calls": 60})
    found = estimate(known.problem, 8000)
    assert found.status is Status.ONE_ROUTE
    assert found.evidence["smc_runs"] == 0
    assert math.isnan(found.evidence["smc_log10_p"])
    assert_within(found.log_prob, known.log_prob, found.std_error, slack=0.005)


def test_undefined_margins_are_never_counted(monkeypatch):
    bad = RiskProblem(lambda x: torch.where(x[:, 0] > 3.2, torch.nan, x[:, 0] - 3), standard(2))
    with pytest.raises(PreflightError, match="NaN"):
        estimate(bad)

    # Where the event is common no second route looks.
    common = RiskProblem(lambda x: torch.where(x[:, 1] < -3.2, torch.nan, x[:, 0]), standard(2))
    require_sound(common)
    with pytest.raises(PreflightError, match="NaN"):
        estimate(common, 20_000)

    # The same where only the last draws meet them.
    broken = []
    late = RiskProblem(
        lambda x: torch.where((x[:, 0] > 3.2) & bool(broken), torch.nan, x[:, 0] - 3), standard(2)
    )  # fmt: skip
    adapt = run_room.adapt

    def then_break(*a, **more):
        found = adapt(*a, **more)
        broken.append(True)
        return found

    monkeypatch.setattr(run_room, "adapt", then_break)
    found = estimate(late)
    assert found.status is Status.REFUSED
    assert math.isnan(found.log_prob)
    assert "NaN" in found.remedy


# What it looks like.


@pytest.mark.parametrize("max_calls", [2000, 5000])
def test_saved_and_read_back(tmp_path, max_calls):
    """With rounds of adaptation, and where the calls allow none."""
    found = estimate(linear_gaussian(3, 3.0).problem, max_calls)
    found.save(str(tmp_path / "e"))
    loaded = pr.RiskEstimate.load(str(tmp_path / "e"))
    assert (loaded.log_prob, loaded.std_error, loaded.status) == (found.log_prob, found.std_error, found.status)
    assert loaded.evidence == pytest.approx(dict(found.evidence), nan_ok=True)
    assert list(loaded.history) == list(found.history) != []
    for group, values in found.history.items():
        for name in values:
            np.testing.assert_array_equal(loaded.history[group][name], values[name])
    np.testing.assert_array_equal(loaded.stats["log_weight"], found.stats["log_weight"])


def test_printed_and_compared():
    known = linear_gaussian(3, 3.0)
    found = estimate(known.problem)
    text = str(found)
    assert "verdict   BELIEVE: OK" in text
    assert "k hat" in text
    assert "smc log10 p" in text
    beside = pr.compare({"engine": found, "counting": pr.monte_carlo(known.problem, calls=50_000, progress=False)})
    assert beside.conflicts == []
    assert beside.best == "engine"
    assert "engine" in str(beside)


def test_the_weights_of_the_draws_give_the_number():
    """Without controls the same draws say nearly the same; hits are where the margin is."""
    found = estimate(two_sided(3.5).problem, 8000)
    log_weight, margin = found.stats["log_weight"], found.stats["margin"]
    assert log_weight.shape == margin.shape
    assert log_weight.size > found.evidence["draws"] - 4
    assert np.array_equal(np.isfinite(log_weight), margin >= 0)
    plain = np.logaddexp.reduce(log_weight.reshape(-1)) - math.log(log_weight.size)
    assert plain == pytest.approx(found.log_prob, abs=0.1)
    (rounds,) = found.history.values()
    assert rounds["log_prob"][-1] == pytest.approx(found.log_prob, abs=0.3)


def test_the_posterior_is_the_law_given_the_event():
    """Both sides of |x_0| >= 3 in equal parts, x_0 beyond 3 as a normal tail, x_1 untouched."""
    found = estimate(two_sided(3.0).problem, 20_000, posterior_draws=400)
    x = found.posterior["x"].reshape(-1, 2)
    assert len(x) >= 380
    assert (np.abs(x[:, 0]) >= 3).all()
    assert (x[:, 0] > 0).mean() == pytest.approx(0.5, abs=0.1)
    assert np.abs(x[:, 0]).mean() == pytest.approx(3.283, abs=0.06)
    assert x[:, 1].std() == pytest.approx(1.0, abs=0.15)
    assert abs(x[:, 1].mean()) < 0.2
