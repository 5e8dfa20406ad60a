"""One trace as one HTML file that works offline, requests nothing, and never runs text of the trace."""

from __future__ import annotations

import html
import json
from typing import Any

from persona_core.traces.trace import Kind, Trace
from persona_core.traces.view.assets import script, styles, template
from persona_core.traces.view.payload import trace_payload

# The browser itself refuses every request.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)

_PAGE_STYLE = """
body { margin: 0; padding: 24px 16px; background: #eef1f5; }
body.dark { background: #0c1016; }
main { max-width: 1180px; margin: 0 auto; }
"""

_MOUNT = """
(() => {
  const prefers = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => document.body.classList.toggle("dark", prefers.matches);
  apply();
  prefers.addEventListener("change", apply);
  const payload = JSON.parse(document.getElementById("payload").textContent);
  if (payload.title) document.title = payload.title;
  const view = mountTokenView(document.querySelector("main"));
  view.restore(payload.view);
  view.update(payload);
})();
"""


def standalone_page(payload: dict[str, Any]) -> str:
    """Render a payload as a complete HTML page that works offline.

    Args:
        payload: see `persona_core.traces.view.payload`.

    Returns:
        The page's text; write it as UTF-8.

    Example:
        >>> page = standalone_page(trace_payload(trace))  # doctest: +SKIP
    """
    return _page(str(payload.get("title") or "Trace"), inline_json(payload))


def shell_page() -> str:
    """The standalone page with `"payload goes here"` instead of the payload, which the browser inserts."""
    return _page("Trace", inline_json("payload goes here"))


def _page(title: str, payload: str) -> str:
    body = f"""<body>
<main>{template()}</main>
<script type="application/json" id="payload">{payload}</script>
<script>{script()}{_MOUNT}</script>
</body>"""
    return offline_page(title, f"{_PAGE_STYLE}{styles()}", body)


def offline_page(title: str, style: str, body: str) -> str:
    """A complete HTML page that requests nothing: title as text, CSS, and the body element."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{html.escape(title)}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
{body}
</html>
"""


def standalone_html(trace: Trace, *, kind: Kind | None = None, title: str | None = None) -> str:
    """`standalone_page` for a trace. Arguments as in `trace_payload`."""
    return standalone_page(trace_payload(trace, kind=kind, title=title))


def inline_json(payload: Any) -> str:
    """JSON that is safe between script tags: no `<`, no `&`, and only ASCII (so no U+2028 either)."""
    text = json.dumps(payload, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
