"""Pictures: what is drawn is what the estimates say."""

import math
from dataclasses import replace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

import ppl_risk as pr
from builders import four_directions, linear_gaussian
from ppl_risk import plots
from ppl_risk.diagnostics import layer_correlation, layer_draws, what_tracking_moved
from ppl_risk.risk_estimate import LOG10

mpl.use("Agg")


@pytest.fixture(scope="module")
def estimates():
    problem = linear_gaussian(3, 2.5, hidden=2).problem
    return {
        "counted": pr.monte_carlo(problem, calls=20_000, progress=False),
        "none": replace(
            pr.monte_carlo(pr.RiskProblem(problem.network, problem.inputs, lambda y: y[:, 0] - 1e6, name="linear(3)"),
                           calls=50, progress=False), fingerprint=""),  # as from a file that is older than fingerprints
        "block": pr.fit_svi(problem, pr.guides.Block(), steps=90, draws=600, posterior_draws=80, progress=False),
        "smc": pr.run_smc(problem, particles=200, posterior_draws=80, progress=False),
    }  # fmt: skip


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_estimates_and_truth_stand_where_they_should(estimates):
    ax = plots.plot_estimates(pr.compare(estimates, truth=-5.0))
    points = [line.get_xydata()[0] for line in ax.lines if line.get_marker() == "o"]
    wanted = [(e.log10_prob, row) for row, e in enumerate(estimates.values()) if not math.isnan(e.log_prob)]
    assert np.allclose(sorted(map(tuple, points)), sorted(wanted))
    bound = next(line for line in ax.lines if line.get_marker() == "|")
    assert bound.get_xdata()[0] == pytest.approx(estimates["none"].interval()[1] / LOG10)
    assert any(line.get_linestyle() == "--" and line.get_xdata()[0] == -5.0 / LOG10 for line in ax.lines)
    assert [t.get_text() for t in ax.get_yticklabels()] == list(estimates)


def test_survival_falls(estimates):
    ax = plots.plot_survival({"counted": estimates["counted"], "smc": estimates["smc"]})
    for line in ax.lines[:2]:
        assert (np.diff(line.get_ydata()) <= 1e-9).all()
        assert (np.diff(line.get_xdata()) >= 0).all()
    with pytest.raises(pr.RiskError, match="survival"):
        plots.plot_survival({"block": estimates["block"]})


def test_correlations_on_the_same_units(estimates):
    figure = plots.plot_correlations({"block": estimates["block"], "smc": estimates["smc"]})
    shapes = {ax.images[0].get_array().shape for ax in figure.axes if ax.images}
    assert shapes == {(3, 3)}  # two hidden units and the output
    with pytest.raises(pr.RiskError, match="posterior_draws"):
        layer_draws(pr.RiskEstimate("by hand", -1.0))


def test_correlation_of_a_unit_that_never_moves_is_zero():
    draws = {"a": np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]]), "b": np.array([[0.0], [-1.0], [-2.0]])}
    found = layer_correlation(draws, {"a": [0, 1], "b": [0]})
    assert np.allclose(found.matrix, [[1, 0, -1], [0, 0, 0], [-1, 0, 1]])
    assert found.layers == [("a", 0), ("b", 2)]


def test_block_guide_has_no_correlation_across_layers(estimates):
    """Its own law says so, though the posterior that it was corrected to does not: within 5 sigmas of 0 against beyond 3."""
    found = layer_correlation(layer_draws(estimates["block"]), {"0": [0, 1], "1": [0]})
    assert np.abs(found.matrix[:2, 2]).max() < 5 / math.sqrt(2000)
    smc = layer_correlation(layer_draws(estimates["smc"]), {"0": [0, 1], "1": [0]})
    assert np.abs(smc.matrix[:2, 2]).max() > 3 / math.sqrt(80)


def test_overview_lights_and_fit(estimates):
    comparison = pr.compare(estimates)
    assert len(plots.plot_overview(comparison).axes) == 3
    texts = {t.get_text() for t in plots.plot_lights(comparison).texts}
    assert {"NO_HITS", "OK"} <= texts
    assert plots.plot_fit(estimates["block"]).lines[0].get_xdata().size == 90
    with pytest.raises(pr.RiskError, match="not fitted"):
        plots.plot_fit(estimates["smc"])


def test_selection_ranks_and_tracking_are_drawn_as_they_are():
    problem = four_directions()
    selection = pr.select(problem, 2)
    ax = plots.plot_selection(selection)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["0", "2"]
    assert ax.lines[0].get_ydata()[2] == pytest.approx(selection.layers[0].explained(2), abs=1e-6)
    search = pr.choose_rank(problem, selection, ranks=[1, 2, 4], draws=4000, tail="count", progress=False)
    drawn = plots.plot_ranks(search).lines[0].get_ydata()
    np.testing.assert_allclose(drawn, [e.log10_prob for e in search.estimates.values()])
    tracking = what_tracking_moved(problem, selection, 1, 3, draws=4000, progress=False)
    figure = plots.plot_tracking(tracking)
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert widths == [m.decades for m in tracking.layers]
    # sixteen inputs are shown as a 4 x 4 image
    assert any(image.get_array().shape == (4, 4) for ax in figure.axes for image in ax.images)
