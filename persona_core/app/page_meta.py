"""What a link to the app looks like elsewhere: title, description and picture in place of Gradio's own."""

from __future__ import annotations

import html
import re
from importlib.resources import files
from typing import Any

from fastapi import Request, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CARD = "persona-card.png"
DESCRIPTION = (
    "See when a language model begins to flatter, patronise or deceive: every token of a reply, coloured by what the "
    "model's inner state says, beside a changed copy of the model."
)
_THEIRS = re.compile(rb'<meta\s[^>]*?(?:property|name)="(?:og|twitter):[^>]*>\s*')


class PageMeta:
    """Middleware: the pages' `og:` and `twitter:` tags, and the picture that they name.

    Gradio's template has two sets of its own, and no setting for either.

    Args:
        app: what answers.
        title: of every page.
    """

    def __init__(self, app: ASGIApp, title: str) -> None:
        self.app, self.title = app, title

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            return await self.app(scope, receive, send)
        if scope["path"].endswith(f"/{CARD}"):
            picture = files("persona_core.app.static").joinpath(CARD).read_bytes()
            return await Response(picture, media_type="image/png")(scope, receive, send)
        return await self.app(scope, receive, _Page(scope, send, self.title).send)


class _Page:
    """Passes an answer on; a page only once it is whole, with its tags replaced."""

    def __init__(self, scope: Scope, send: Send, title: str) -> None:
        self._scope, self._send, self._title = scope, send, title
        self._start: dict[str, Any] | None = None  # of a page
        self._body = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and _is_page(message):
            self._start = dict(message)
        elif self._start is None or message["type"] != "http.response.body":
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body"):
                own = tags(self._title, str(Request(self._scope).base_url)).encode()
                body = _THEIRS.sub(b"", self._body).replace(b"</head>", own + b"</head>", 1)
                headers = [(k, v) for k, v in self._start["headers"] if k.lower() != b"content-length"]
                headers.append((b"content-length", str(len(body)).encode()))
                await self._send({**self._start, "headers": headers})
                await self._send({"type": "http.response.body", "body": body})


def _is_page(start: Message) -> bool:
    headers = {k.lower(): v for k, v in start["headers"]}
    return headers.get(b"content-type", b"").startswith(b"text/html") and b"content-encoding" not in headers


def tags(title: str, address: str) -> str:
    """The tags of a page.

    >>> print(tags("A <b>", "https://me.example/").splitlines()[0])
    <meta property="og:title" content="A &lt;b&gt;">
    """
    named = {
        "og:title": title,
        "og:description": DESCRIPTION,
        "og:type": "website",
        "og:url": address,
        "og:image": f"{address.rstrip('/')}/{CARD}",
        "og:image:width": "1200",
        "og:image:height": "630",
    }
    lines = [f'<meta property="{key}" content="{html.escape(value)}">' for key, value in named.items()]
    lines += [
        '<meta name="twitter:card" content="summary_large_image">',
        f'<meta name="description" content="{html.escape(DESCRIPTION)}">',
    ]
    return "\n".join(lines) + "\n"
