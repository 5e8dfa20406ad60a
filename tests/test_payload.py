"""The payload of the token view, the standalone page's text, and the Plotly figure of a trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from persona_core.errors import CorruptFile, NotCalibrated, SettingError
from persona_core.figures import trace_figure
from persona_core.token_view import check_payload, standalone_page, template, trace_payload
from persona_core.trace import Provenance, Trace
from tests.standins import HOSTILE, Payload, make_payload


def make_trace(raw: Any, **changes: Any) -> Trace:
    values = np.asarray(raw, np.float32)[None, None]  # [n_traits=1, n_blocks=1, n_tokens]
    n = values.shape[-1]
    known: dict[str, Any] = {
        "token_ids": tuple(range(n)),
        "tokens": tuple(f" t{i}" for i in range(n)),
        "roles": ("template", "user", "template", *("assistant",) * (n - 3)),
        "n_prompt": 3,
        "traits": ("malice",),
        "blocks": (2,),
        "raw": values,
        "norms": np.full((1, n), 2.0, np.float32),
        "best_block": {"malice": 2},
        "null_mean": np.array([[1.0]], np.float32),
        "null_std": np.array([[0.5]], np.float32),
        "special": (True, *(False,) * (n - 1)),
        "finish": "eos",
        "provenance": Provenance(reader="/srv/models/tiny/", writer="org/tiny + adapters/bad", seed=0),
    }
    return Trace(**(known | changes))


def test_a_trace_becomes_a_payload() -> None:
    payload = trace_payload(make_trace([1.0, 2.0, 1.23456, 0.0]))
    assert check_payload(json.loads(json.dumps(payload, allow_nan=False))) == payload
    assert payload["scores"] == {"malice": [0.0, 2.0, 0.4691, -2.0]}
    assert (payload["kind"], payload["scale"], payload["unit"]) == ("z", 8.0, "standard deviations above neutral")
    assert payload["blocks"] == {"malice": 2} and payload["special"] == [True, False, False, False]
    assert payload["title"] == "t1" and payload["finish_reason"] == "eos"
    assert payload["meta"] == {"reader": "tiny", "writer": "tiny + bad", "seed": "0"}
    assert trace_payload(make_trace([1.0] * 4), done=False)["finish_reason"] is None


def test_kinds_alignment_and_scale() -> None:
    trace = make_trace([1.0, 0.5, -0.31, 0.25])
    cosine = trace_payload(trace, kind="cosine", alignment="before")
    assert cosine["scores"]["malice"] == [None, 0.5, 0.25, -0.155]
    assert cosine["scale"] == 0.5
    assert trace_payload(trace, kind="raw", scale=3)["scale"] == 3.0
    bare = make_trace([1.0] * 4, null_std=np.array([[np.nan]], np.float32))
    assert trace_payload(bare)["kind"] == "cosine"
    with pytest.raises(NotCalibrated):
        trace_payload(bare, kind="z")
    with pytest.raises(SettingError, match="scale=0"):
        trace_payload(trace, scale=0)


def test_a_lone_surrogate_survives_every_encoder() -> None:
    payload = trace_payload(make_trace([1.0] * 4, tokens=("a", "\ud83d", "b", "\ude00")), title="\udc00")
    json.dumps(payload, ensure_ascii=False).encode("utf-8")
    assert payload["tokens"] == ["a", "�", "b", "�"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2"),
        ({"roles": []}, "roles"),
        ({"scores": {}}, "deception"),
        ({"ids": [1]}, "ids"),
    ],
)
def test_a_broken_payload_is_refused(change: Payload, message: str) -> None:
    with pytest.raises(CorruptFile, match=message):
        make_payload(["x"], **change)
    with pytest.raises(CorruptFile, match="list"):
        check_payload([])
    with pytest.raises(CorruptFile, match="lacks tokens"):
        check_payload({"version": 1})


def test_the_figure_draws_the_scores() -> None:
    trace = make_trace([1.0, 2.0, 1.5, 0.0, 3.0], tokens=("<|x|>", "<a href='//x'>", "\n", "", " b"))
    figure = trace_figure(trace, title="<b>")
    assert [line.name for line in figure.data] == ["malice"]
    np.testing.assert_allclose(figure.data[0].y, trace.scores("malice"))
    assert figure.data[0].text == ("&lt;|x|&gt;", "&lt;a␣href=&#x27;//x&#x27;&gt;", "↵", "∅", "␣b")
    assert figure.layout.title.text == "&lt;b&gt;"
    smooth = trace_figure(trace, kind="raw", alignment="before", smooth=2).data[0].y
    np.testing.assert_allclose(smooth, [np.nan, 1.0, 1.5, 1.75, 0.75])
    with pytest.raises(SettingError, match="smooth=0"):
        trace_figure(trace, smooth=0)
    json.dumps(trace.figure().to_plotly_json(), default=str)


def test_a_trace_writes_its_page(tmp_path: Path) -> None:
    page = make_trace([1.0] * 4).to_html(tmp_path / "trace.html")
    assert (tmp_path / "trace.html").read_text(encoding="utf-8") == page
    assert "plotly.js v" in page and '"malice"' in page


def test_the_payload_cannot_end_its_script_element() -> None:
    page = standalone_page(make_payload(HOSTILE, title="x"), include_plotlyjs=False)
    inside = page.split('id="payload">')[1].split("</script>")[0]
    assert not set("<>&\u2028\u2029") & set(inside)
    assert json.loads(inside)["tokens"][-len(HOSTILE) :] == HOSTILE


def test_gradio_finds_nothing_to_expand() -> None:
    for sign in ("`", "${", "{{", "\\"):
        assert sign not in template()
