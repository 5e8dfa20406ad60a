"""The report as one HTML page that works offline."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from persona_core.report.content import Row, report_content
from persona_core.report.findings import Findings
from persona_core.traces.view.standalone import inline_json, offline_page
from persona_core.utils.files import read_asset


def report_page(findings: Findings, rows: Mapping[str, Sequence[Row]], title: str = "What the replies say") -> str:
    """The page; write it as UTF-8.

    Args:
        findings: of `analyse`.
        rows: by config, those that were analysed.
        title: heading.
    """
    content = report_content(findings, rows)
    body = f"""<body class="report">
<main>
<h1>{html.escape(title)}</h1>
<noscript><p>This report needs JavaScript. All of its figures are in findings.json, next to this page.</p></noscript>
<div id="report"></div>
</main>
<script type="application/json" id="data">{inline_json(content)}</script>
<script type="text/plain" id="plotly">{plotlyjs()}</script>
<script>{script()}
{_asset("page.js")}</script>
</body>"""
    return offline_page(title, f"{styles()}\n{_asset('page.css')}", body)


def plotlyjs() -> str:
    """The text of plotly.js, which draws a report's figures; from the plotly package."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def styles() -> str:
    """The report's CSS; every rule nests under `.report`."""
    return _asset("report.css")


def script() -> str:
    """The report's JavaScript: declares `mountReport(root, content, options)` and `personaPlotly(url)`, and mounts
    nothing."""
    return _asset("report.js")


def _asset(name: str) -> str:
    return read_asset("persona_core.report", f"static/{name}")
