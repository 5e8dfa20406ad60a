"""What other sites show of a link to the app, and the page that others embed."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.middleware import Middleware
from fastapi.responses import HTMLResponse, StreamingResponse
from fastapi.testclient import TestClient
from PIL import Image

from persona_core.app.page_meta import CARD, PageMeta

THEIRS = """<html><head>
<meta property="og:title" content="Gradio" />
<meta
    name="twitter:image"
    content="x"
/></head>ok"""


@pytest.fixture(scope="module")
def client() -> TestClient:
    server = FastAPI(middleware=[Middleware(PageMeta, title="Mine <b>")])
    server.get("/")(lambda: HTMLResponse(THEIRS))
    server.get("/stream")(lambda: StreamingResponse(iter(["a", "b"]), media_type="text/event-stream"))
    return TestClient(server, base_url="https://me.example")


def test_a_page_names_itself_and_not_gradio(client: Any) -> None:
    page = client.get("/").text
    found = dict(re.findall(r'<meta property="(og:[a-z:]+)" content="([^"]*)">', page))
    assert found["og:title"] == "Mine &lt;b&gt;" and found["og:url"] == "https://me.example/"
    assert len(re.findall("og:title", page)) == 1 and 'content="x"' not in page and page.endswith("</head>ok")


def test_the_picture_is_there_in_the_size_that_the_page_says(client: Any, tmp_path: Any) -> None:
    found = dict(re.findall(r'<meta property="(og:[a-z:]+)" content="([^"]*)">', client.get("/").text))
    answer = client.get(found["og:image"])
    assert answer.headers["content-type"] == "image/png" and found["og:image"].endswith(CARD)
    (tmp_path / CARD).write_bytes(answer.content)
    with Image.open(tmp_path / CARD) as picture:
        assert [str(n) for n in picture.size] == [found["og:image:width"], found["og:image:height"]]
    assert len(answer.content) < 300_000


def test_what_is_no_page_passes_unchanged(client: Any) -> None:
    assert client.get("/stream").text == "ab"
    assert client.post("/").status_code == 405
