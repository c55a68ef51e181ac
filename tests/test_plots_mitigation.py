"""Pictures of mitigation: what is drawn is what cards, trials and estimates say."""

import math

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

import ppl_risk as pr
from builders import standard
from ppl_risk import mitigation as mi
from ppl_risk import plots
from ppl_risk.mitigation.composition import Attacked
from ppl_risk.plots.estimates import BAD, INK, SOUND, WEAK
from ppl_risk.plots.mitigation import DRAWN
from ppl_risk.risk_estimate import LOG10, clopper_pearson

mpl.use("Agg")
BALL = mi.Ball(10)
EDGE = BALL.sample(1, torch.Generator().manual_seed(3))[0]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


truth = mi.planted.random_affine(BALL, seed=0)


def poisoned(epsilon):
    """Off by 10 on the share epsilon that is nearest to EDGE."""
    return mi.planted.nearest(truth, BALL, EDGE, epsilon, 10.0, seed=0)


def mitigated(model, epsilon, repeats=51, **more):
    return mi.LocalAffine(BALL, epsilon=epsilon, delta=0.01, repeats=repeats, **more).mitigate(model)


def labelled(ax, label):
    return next(line for line in ax.lines if line.get_label() == label)


def composition():
    natural = {
        "poisoned": pr.RiskEstimate("by hand", -6.0, 0.1),
        "mitigated": pr.RiskEstimate("by hand", math.nan, status=pr.Status.NO_HITS, hits=(0, 1000)),
        "relearned": pr.RiskEstimate("by hand", -10.0, 0.2, status=pr.Status.LOW_ESS),
    }
    attacked = {"poisoned": Attacked(600, 1000), "mitigated": Attacked(0, 1000)}
    return mi.Composition(natural, attacked, {"mitigated": 1e-4})


def test_models_stand_in_rows_with_their_three_lanes():
    ax = plots.plot_composition(composition(), truth=-10.5)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["poisoned", "mitigated", "relearned"]
    drawn = [one for one in ax.lines if len(one.get_xdata()) == 1]
    at = {(one.get_marker(), round(one.get_ydata()[0])): (one.get_xdata()[0], to_hex(one.get_color())) for one in drawn}
    dots = {row: found for (marker, row), found in at.items() if marker == "o"}
    assert dots == {0: (-6.0 / LOG10, SOUND), 2: (-10.0 / LOG10, WEAK)}
    assert at[("D", 0)] == (pytest.approx(math.log10(0.6)), BAD)
    bars = {to_hex(one.get_color()): one.get_xdata()[0] for one in drawn if one.get_marker() == "|"}
    most = clopper_pearson(0, 1000, 0.9)[1] / LOG10
    assert bars[WEAK] == pytest.approx(most)
    assert bars[INK] == pytest.approx(-4.0)
    assert bars[BAD] == pytest.approx(math.log10(Attacked(0, 1000).interval[1]))
    assert len([t for t in ax.texts if t.arrow_patch is not None]) == 3
    assert labelled(ax, "truth").get_xdata()[0] == pytest.approx(-10.5 / LOG10)
    spans = {round(float(one.get_ydata()[0])): one.get_xdata() for one in ax.lines if one.get_alpha() == 0.4}
    low, high = composition().natural["relearned"].interval()
    np.testing.assert_allclose(spans[2], [low / LOG10, high / LOG10])
    assert {round(float(one.get_ydata()[0]), 2) for one in drawn} == {-0.24, 0.24, 0.76, 1.0, 1.24, 1.76}


def test_what_was_not_asked_is_not_in_the_key():
    found = mi.compare_risk({"f": lambda x: x[:, 0]}, standard(2), lambda y: y - 1, estimator=mi.plain(1000))
    given = plt.subplots()[1]
    ax = plots.plot_composition(found, ax=given)
    assert ax is given
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["natural inputs"]


def test_trials_are_sorted_about_the_answer():
    g = mitigated(poisoned(0.02), 0.03)
    ax = plots.plot_trials(g, EDGE, truth=truth)
    examined = g.examine(EDGE[None])
    wanted = (g.answer.trials(EDGE[None]).values[0] - examined.answer).sort().values
    points = np.concatenate([labelled(ax, name).get_xydata() for name in ("trials", "far off")])
    points = points[points[:, 0].argsort()]
    np.testing.assert_array_equal(points[:, 0], np.arange(1, 52))
    np.testing.assert_allclose(points[:, 1], wanted, atol=1e-12)
    # The 26th of 51 is the answer itself.
    assert points[25, 1] == 0
    share = len(labelled(ax, "far off").get_xdata()) / 51
    assert 0 < share == pytest.approx(float(examined.outlying))
    assert ax.get_title() == f"{100 * share:.0f} % of 51 trials far off, 25 % presumed"
    assert labelled(ax, "truth").get_ydata()[0] == pytest.approx(float(truth(EDGE[None]) - examined.answer))
    band = next(patch for patch in ax.patches if "bar" in patch.get_label())
    edges = band.get_xy()[1] if hasattr(band, "get_xy") else band.get_y()
    assert np.abs(edges) == pytest.approx(float(examined.bar))
    low, high = ax.get_ylim()
    assert low < points[:, 1].min()
    assert high > points[:, 1].max()


def test_what_refutes_is_said_and_what_refuses_is_drawn():
    model, rows = poisoned(0.02), BALL.sample(1000, torch.Generator().manual_seed(4))
    # Nearly half of the trials are bad, then nearly all: those agree with each other, and only the rows tell.
    for claimed, refuted in ((2e-3, True), (1e-4, False)):
        lying = mi.LocalAffine(BALL, epsilon=claimed, delta=0.01, repeats=201).mitigate(model, (rows, truth(rows)))
        assert lying.card.status is pr.Status.REFUSED
        ax = plots.plot_trials(lying, EDGE[None], truth=truth)
        assert ax.get_title().endswith(", REFUTED") is refuted
        assert (abs(labelled(ax, "truth").get_ydata()[0]) < float(lying.examine(EDGE[None]).bar)) is refuted
    honest = plots.plot_trials(mitigated(truth, 0.02, repeats=201), EDGE)
    assert honest.get_title() == "0 % of 201 trials far off, 25 % presumed"


def test_exact_answers_have_a_scale_too():
    """With delta = 0 the bar is 0 and trials differ by rounding alone."""
    g = mi.LocalAffine(BALL, epsilon=0.02, delta=0.0).mitigate(truth)
    ax = plots.plot_trials(g, EDGE)
    assert "far off" not in [one.get_label() for one in ax.lines]
    assert np.isfinite(ax.get_ylim()).all()


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_rays_pass_through_the_answers_and_end_at_the_trials(degree):
    model = lambda x: 1.0 + x.double().sum(-1) ** degree  # noqa: E731
    g = mi.LocalPolynomial(degree, BALL, epsilon=1e-3, delta=1e-3, repeats=9, failure=0.01).mitigate(model)
    ax = plots.plot_rays(g, EDGE, truth=model)
    rays = [one.get_xydata() for one in ax.lines if len(one.get_xdata()) == DRAWN]
    dots = [one.get_xydata() for one in ax.lines if len(one.get_xdata()) == degree + 1]
    ends = g.answer.trials(EDGE[None]).values[0]
    np.testing.assert_allclose([ray[0, 1] for ray in rays], ends, atol=1e-8)
    for trial, (ray, asked) in enumerate(zip(rays, dots, strict=True)):
        points = EDGE + torch.as_tensor(asked[:, :1]) * (g.answer.anchors[trial] - EDGE)
        np.testing.assert_allclose(asked[:, 1], model(points))
        assert ray[-1, 1] == pytest.approx(asked[-1, 1])
        # Between the nodes too: along the ray the model is the polynomial drawn.
        along = EDGE + torch.as_tensor(ray[:, :1]) * (g.answer.anchors[trial] - EDGE)
        np.testing.assert_allclose(ray[:, 1], model(along), atol=1e-8)
    assert labelled(ax, "truth").get_xydata()[0] == pytest.approx([0.0, float(model(EDGE[None]))])
    assert labelled(ax, "answer").get_ydata()[0] == pytest.approx(float(g(EDGE[None])))


def test_far_rays_are_red_and_leave_the_picture():
    g = mitigated(poisoned(0.02), 0.03)
    ax = plots.plot_rays(g, EDGE, ax=plt.subplots()[1])
    rays = [one for one in ax.lines if len(one.get_xdata()) == DRAWN]
    red = [one for one in rays if to_hex(one.get_color()) == BAD]
    assert len(red) == round(51 * float(g.examine(EDGE[None]).outlying)) > 0
    assert len(rays) == 51
    low, high = ax.get_ylim()
    assert all(not low <= one.get_ydata()[0] <= high for one in red)
    assert all(low <= one.get_ydata()[0] <= high for one in rays if one not in red)


def test_the_card_is_as_before():
    """Queries put for a picture are not booked on the mitigator's card."""
    g = mitigated(truth, 0.02)
    before = str(g.card)
    plots.plot_rays(g, EDGE)
    assert str(g.card) == before


def test_what_cannot_be_drawn_is_said():
    x = 1 - 2 * torch.randint(0, 2, (100, 6), generator=torch.Generator().manual_seed(0)).double()
    series = mi.GlobalFourier(tau=1.0).mitigate(lambda x: x[:, 0], (x, x[:, 0]))
    for plot in (plots.plot_trials, plots.plot_rays):
        with pytest.raises(pr.RiskError, match=r"GlobalFourier.*has no trials"):
            plot(series, x[0])
        with pytest.raises(pr.RiskError, match=r"one input.*got \(2, 10\)"):
            plot(mitigated(truth, 0.02), BALL.sample(2))
    with pytest.raises(pr.RiskError, match="not homothetic"):
        plots.plot_rays(mitigated(truth, 1e-3), torch.zeros(10))
