"""The written report: one HTML file, pictures inside, that can be mailed."""

from __future__ import annotations

import base64
import html
import io
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from ppl_risk import plots
from ppl_risk.comparison import Comparison
from ppl_risk.diagnostics.correlations import guide_names
from ppl_risk.risk_estimate import COVERS

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #2b2f36; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; font-size: 13px } td, th { padding: .3rem .7rem; text-align: right; white-space: nowrap }
td:first-child, th:first-child { text-align: left } tr + tr { border-top: 1px solid #e6e8eb }
img { max-width: 100% } pre { background: #f5f6f8; padding: .8rem; overflow-x: auto; font-size: 12.5px }
.verdict { border-left: 4px solid #1b7f5c; padding: .2rem 1rem; white-space: pre-line }
.none { border-color: #b3392f }
"""


def write_report(comparison: Comparison, request: Any, path: Path) -> None:
    """Table, verdict, pictures, and every estimate as it prints itself."""
    rows = comparison.rows()
    head = "".join(f"<th>{html.escape(c)}</th>" for c in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{html.escape(v)}</td>" for v in row.values()) + "</tr>" for row in rows)
    details = "".join(
        f"<h3>{html.escape(name)}</h3><pre>{html.escape(str(e))}</pre>" for name, e in comparison.estimates.items()
    )
    settings = ", ".join(f"{k} = {v}" for k, v in request.parameters.items()) or "defaults"
    path.write_text(
        f"<!doctype html><meta charset=utf-8><title>{html.escape(request.model)}: catastrophe probability</title>"
        f"<style>{STYLE}</style><h1>How likely is a catastrophe? {html.escape(request.model)}</h1>"
        f"<p>{html.escape(settings)}; seed {request.seed}; network and input law {request.fingerprint[:16]}; "
        f"ppl_risk {version('ppl-risk')}, torch {version('torch')}</p>"
        f'<p class="verdict{"" if comparison.best else " none"}">{html.escape(comparison.verdict())}</p>'
        f"<table><tr>{head}</tr>{body}</table><p>Intervals cover {COVERS}.</p>{_pictures(comparison)}"
        f"<h2>Every estimate</h2>{details}\n"
    )


def _pictures(comparison: Comparison) -> str:
    # The Agg backend, so that a report can be written where there is no screen.
    with mpl.rc_context({"backend": "Agg"}):
        figures = [plots.plot_overview(comparison)]
        shown = {n: e for n, e in comparison.estimates.items() if _has_activations(e)}
        # SMC last: its posterior says which units are shown, and the guides are read against it.
        shown = dict(sorted(shown.items(), key=lambda item: item[1].guide is None))
        if len(shown) > 1:
            figures.append(plots.plot_correlations(shown))
        return "".join(f'<p><img alt="" src="data:image/png;base64,{_png(f)}"></p>' for f in figures)


def _has_activations(estimate: Any) -> bool:
    """A guide in activation coordinates shows its own correlations, SMC the posterior's; the rest would repeat them."""
    if estimate.guide is not None:
        return len(guide_names(estimate.guide)) > 1 and bool(estimate.posterior)
    return estimate.method.startswith("SMC") and len(estimate.posterior) > 2


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()
