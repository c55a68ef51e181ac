"""Pictures of propagated laws: what is drawn is what the slices say, and nothing is drawn that is not there."""

import math
from dataclasses import replace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

import ppl_risk as pr
from builders import linear_gaussian, standard
from ppl_risk import plots
from ppl_risk.risk_estimate import LOG10

mpl.use("Agg")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def line(ax, label):
    return next(one for one in ax.lines if one.get_label() == label)


def known():
    return linear_gaussian(4, 4.0, dtype=torch.float64)


def test_a_linear_margin_is_one_gaussian():
    """Slicing changes nothing there: the line that one Gaussian presumes is the mean, and failures lie beyond 4 sd."""
    problem = known()
    estimate = pr.propagate(problem.problem, "full", trust=False)
    ax = plots.plot_slices(estimate)
    mean, presumed = line(ax, "mean given v"), line(ax, "one Gaussian: mean, ±2 sd")
    np.testing.assert_allclose(mean.get_ydata(), presumed.get_ydata(), atol=1e-6 * problem.std)
    np.testing.assert_allclose(mean.get_ydata(), problem.mean + problem.std * mean.get_xdata(), atol=1e-4 * problem.std)
    nodes = line(ax, "propagated nodes")
    np.testing.assert_array_equal(nodes.get_xdata(), estimate.guide.slices.axes[0])
    assert ax.get_ylabel() == "margin"
    below = ax.child_axes[0]
    assert {t.get_text() for t in below.get_legend().get_texts()} == {"all inputs", "those that fail"}
    failing = next(p for p in below.collections if p.get_label() == "those that fail").get_paths()[0].vertices
    assert failing[failing[:, 1] > 0.01, 0].min() == pytest.approx(4.0, abs=0.01)
    # phi(4) / Pr[v > 4]
    assert failing[:, 1].max() == pytest.approx(norm.pdf(4) / norm.sf(4), rel=0.01)


def test_a_falling_function_is_drawn_the_right_way_up():
    problem = pr.RiskProblem(lambda x: -torch.sigmoid(x[:, 0]) + 0.01, standard(2), name="falling")
    ax = plots.plot_slices(pr.propagate(problem, "full", trust=False))
    v, rise = line(ax, "mean given v").get_data()
    assert "bound" in ax.get_ylabel()
    assert np.interp(0.0, rise, v) == pytest.approx(math.log(99), abs=1e-3)


def test_several_margins_are_shown_by_the_probability_given_v():
    network = nn.Linear(3, 2, bias=False).requires_grad_(False)
    network.weight.copy_(torch.tensor([[1.0, 0.5, 0.0], [1.0, 0.0, 0.5]]))
    problem = pr.RiskProblem(network, standard(3), lambda y: y.amin(-1) - 4.0, name="both")
    given = plt.subplots()[1]
    estimate = pr.propagate(problem, "full", trust=False)
    ax = plots.plot_slices(estimate, given)
    assert ax is given
    v, log_p = line(ax, "Pr[event | v]").get_data()
    assert (np.diff(log_p) >= -1e-9).all()
    total = np.trapezoid(10**log_p * norm.pdf(v), v)
    assert math.log10(total) == pytest.approx(estimate.log10_prob, abs=1e-3)
    # A Gaussian layer is what one Gaussian presumes.
    presumed = line(ax, "one Gaussian layer").get_ydata()
    np.testing.assert_allclose(presumed[log_p > -12], log_p[log_p > -12], atol=0.01)


def test_a_second_direction_is_averaged_over():
    problem = pr.RiskProblem(lambda x: x[:, 0] + torch.relu(x[:, 1:]).sum(-1) - 6.0, standard(3), name="bent")
    estimate = pr.propagate(problem, "full", trust=False)
    assert len(estimate.guide.slices.axes) == 2
    ax = plots.plot_slices(estimate)
    assert line(ax, "propagated nodes").get_xdata().size == 7
    v, mean = line(ax, "mean given v").get_data()
    # Their mean over all inputs, over both directions at once.
    _, log_weight, inside, _ = estimate.guide.slices.conditional()
    assert np.trapezoid(mean * norm.pdf(v), v) == pytest.approx(float(log_weight.exp() @ inside[:, 0]), abs=0.01)
    failing = next(p for p in ax.child_axes[0].collections if p.get_label() == "those that fail")
    corners = failing.get_paths()[0].vertices
    # The outline once around: the area is 1.
    area = 0.5 * abs((corners[:-1, 0] * corners[1:, 1] - corners[1:, 0] * corners[:-1, 1]).sum())
    assert area == pytest.approx(1.0, abs=0.01)


def test_tails_side_by_side():
    problem = known()
    made = {
        "slices": pr.propagate(problem.problem, "full", trust=False),
        "one Gaussian": pr.propagate(problem.problem, "full", readout="gaussian"),
        "draws": pr.monte_carlo(problem.problem, calls=20_000, progress=False),
    }
    made["other"] = replace(made["slices"], status=pr.Status.REFUSED)
    ax = plots.plot_tails(made, truth=problem.log_prob)
    for name in ("slices", "one Gaussian"):
        at, log_p = line(ax, name).get_data()
        np.testing.assert_allclose(log_p, norm.logsf(at, problem.mean, problem.std) / LOG10, atol=2e-3)
    assert line(ax, "draws").get_marker() == "o"
    assert line(ax, "truth").get_xydata().tolist() == [[0.0, problem.log_prob / LOG10]]
    assert [line(ax, n).get_linestyle() for n in ("slices", "one Gaussian", "other, refused")] == ["-", "--", "--"]
    low, high = ax.get_xlim()
    assert low < made["slices"].survival[0][0]
    assert high > 0


def test_what_cannot_be_drawn_is_said():
    one = pr.propagate(known().problem, "full", readout="gaussian")
    with pytest.raises(pr.RiskError, match=r"has no slices.*readout='slices'"):
        plots.plot_slices(one)
    with pytest.raises(pr.RiskError, match=r"by hand.*survival"):
        plots.plot_tails({"by hand": pr.RiskEstimate("by hand", -7.0)})
    with pytest.raises(pr.RiskError, match="none of them with no survival curve"):
        plots.plot_tails({"one": one})
