"""The written report: one HTML file, pictures inside, that can be mailed. Every text in it is escaped: a run may be foreign."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from ppl_risk import plots
from ppl_risk.comparison import Comparison
from ppl_risk.diagnostics.correlations import guide_names
from ppl_risk.risk_estimate import COVERS, RiskEstimate

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #2b2f36; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; font-size: 13px } td, th { padding: .3rem .7rem; text-align: right; white-space: nowrap }
td:first-child, th:first-child { text-align: left } tr + tr { border-top: 1px solid #e6e8eb }
img { max-width: 100% } pre { background: #f5f6f8; padding: .8rem; overflow-x: auto; font-size: 12.5px }
.verdict { border-left: 4px solid #1b7f5c; padding: .2rem 1rem; white-space: pre-line }
.none { border-color: #b3392f }
"""


def report(comparison: Comparison, request: Any) -> str:
    """Table, verdict, pictures, and every estimate as it prints itself, as HTML."""
    rows = comparison.rows()
    head = "".join(f"<th>{_text(c)}</th>" for c in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{_text(v)}</td>" for v in row.values()) + "</tr>" for row in rows)
    details = "".join(f"<h3>{_text(name)}</h3><pre>{_text(e)}</pre>" for name, e in comparison.estimates.items())
    settings = ", ".join(f"{k} = {v}" for k, v in request.parameters.items()) or "defaults"
    return (
        f"<!doctype html><meta charset=utf-8><title>{_text(request.model)}: catastrophe probability</title>"
        f"<style>{STYLE}</style><h1>How likely is a catastrophe? {_text(request.model)}</h1>"
        f"<p>{_text(settings)}; seed {_text(request.seed)}; network and input law {_text(request.fingerprint[:16])}; "
        f"ppl_risk {version('ppl-risk')}, torch {version('torch')}</p>"
        f'<p class="verdict{"" if comparison.best else " none"}">{_text(comparison.verdict())}</p>'
        f"<table><tr>{head}</tr>{body}</table><p>Intervals cover {COVERS}.</p>{_pictures(comparison)}"
        f"<h2>Every estimate</h2>{details}\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value).encode(errors="replace").decode())


def _pictures(comparison: Comparison) -> str:
    # The Agg backend, so that a report can be written where there is no screen; names are names, and $ in one is no formula.
    with mpl.rc_context({"backend": "Agg", "text.parse_math": False}):
        try:
            figures = [plots.plot_overview(comparison)]
            shown = _activations(comparison.estimates)
            if len(shown) > 1:
                figures.append(plots.plot_correlations(shown))
            return "".join(f'<p><img alt="" src="data:image/png;base64,{_png(f)}"></p>' for f in figures)
        except Exception as error:  # no picture is worth the numbers of a finished run
            return f"<p>No pictures: {_text(type(error).__name__)}: {_text(error)}</p>"
        finally:
            plt.close("all")


def _activations(estimates: Mapping[str, RiskEstimate]) -> dict[str, RiskEstimate]:
    """Those whose activations are shown: guides by their own law; of the rest, which would repeat each other, one posterior.

    The posterior comes last: it says which units are shown, and the guides are read against it.
    """
    guides, posteriors = {}, {}
    for name, estimate in estimates.items():
        if estimate.guide is not None:
            if len(guide_names(estimate.guide)) > 1 and estimate.posterior:
                guides[name] = estimate
        elif len(set(estimate.posterior) - {"x", "margin"}) > 0:
            posteriors[name] = estimate
    best = min(posteriors, key=lambda n: (not posteriors[n].status.believable, posteriors[n].std_error), default=None)
    return guides | ({} if best is None else {best: posteriors[best]})


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()
