"""The payload of the token view, the standalone page's text, and the Plotly figure of a trace."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from persona_core.errors import CorruptFile, NotCalibrated, SettingError, UnknownBlock
from persona_core.traces.figure import trace_figure
from persona_core.traces.provenance import Provenance
from persona_core.traces.trace import Trace
from persona_core.traces.view.assets import script, template
from persona_core.traces.view.payload import pair_payload, trace_payload
from persona_core.traces.view.standalone import shell_page, standalone_page
from tests.support.payloads import check_payload, unpacked
from tests.support.standins import HOSTILE, Payload, make_payload, make_trace, odds, words


def small_trace(raw: Any, **changes: Any) -> Trace:
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


def test_a_trace_becomes_a_payload_bit_for_bit() -> None:
    trace = small_trace([1.0, 2.0, np.pi, np.nan])
    payload = check_payload(json.loads(json.dumps(trace_payload(trace), allow_nan=False)))
    (side,) = payload["sides"]
    np.testing.assert_array_equal(unpacked(side["raw"]), trace.raw.ravel())
    np.testing.assert_array_equal(unpacked(side["null_std"]), [0.5])
    assert payload["title"] == "t1" and payload["best"] == {"malice": 2} and side["blocks"] == [2]
    assert payload["view"] == {"kind": "z", "alignment": "at", "block": "best"}
    assert side["meta"] == {"reader": "tiny", "writer": "tiny + bad", "seed": "0"}
    assert side["finish"] == "eos" and trace_payload(trace, done=False)["sides"][0]["finish"] is None


def test_what_the_view_opens_on_must_exist() -> None:
    trace = small_trace([1.0] * 4)
    assert trace_payload(trace, kind="raw", alignment="before", block=2)["view"] == {
        "kind": "raw",
        "alignment": "before",
        "block": 2,
    }
    bare = small_trace([1.0] * 4, null_std=np.array([[np.nan]], np.float32))
    assert trace_payload(bare)["view"]["kind"] == "cosine"
    with pytest.raises(NotCalibrated):
        trace_payload(bare, kind="z")
    with pytest.raises(SettingError, match="'bits'"):
        trace_payload(trace, kind="bits")  # type: ignore[arg-type]
    with pytest.raises(UnknownBlock):
        trace_payload(trace, block=5)


def test_log_odds_and_norm_limits_go_along_and_make_the_specific_score_the_first() -> None:
    trace = make_trace(words(4), log_odds=odds(3), max_norm=np.array([9.5], np.float32))
    payload = check_payload(json.loads(json.dumps(trace_payload(trace), allow_nan=False)))
    (side,) = payload["sides"]
    known = trace.log_odds
    assert payload["view"]["kind"] == "specific" and known is not None
    parts = unpacked(side["log_odds"]).reshape(4, 3, 1)
    np.testing.assert_array_equal(parts, [known.slope, known.offset, known.mean, known.std])
    np.testing.assert_array_equal(unpacked(side["max_norm"]), [9.5])
    (bare,) = trace_payload(make_trace(words(4)))["sides"]
    assert bare["log_odds"] is None and unpacked(bare["max_norm"]).tolist() == [np.inf]
    with pytest.raises(NotCalibrated, match="specific"):
        trace_payload(make_trace(words(4)), kind="specific")


def test_a_lone_surrogate_survives_every_encoder() -> None:
    payload = trace_payload(small_trace([1.0] * 4, tokens=("a", "\ud83d", "b", "\ude00")), title="\udc00")
    json.dumps(payload, ensure_ascii=False).encode("utf-8")
    assert payload["sides"][0]["tokens"] == ["a", "�", "b", "�"]


def test_two_sides_need_the_same_traits() -> None:
    first, second = make_payload(words(3), name="a"), make_payload(words(5), name="b")
    pair = check_payload(pair_payload(first, second, title="Both"))
    assert [side["name"] for side in pair["sides"]] == ["a", "b"] and pair["title"] == "Both"
    with pytest.raises(SettingError, match="same traits"):
        pair_payload(first, make_payload(words(3), traits=("charm",)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 1}, "version 1"),
        ({"sides": []}, "0 sides"),
        ({"roles": []}, "roles"),
        ({"raw": ""}, "raw"),
        ({"norms": "%"}, "base64"),
        ({"max_norm": ""}, "max_norm"),
        ({"log_odds": base64.b64encode(b"abcd").decode()}, "log_odds"),
        ({"null_mean": base64.b64encode(b"abc").decode()}, "base64"),
    ],
)
def test_a_broken_payload_is_refused(change: Payload, message: str) -> None:
    payload = make_payload(["x"])
    of_side = {k: v for k, v in change.items() if k in payload["sides"][0]}
    payload["sides"][0] |= of_side
    with pytest.raises(CorruptFile, match=message):
        check_payload(payload | {k: v for k, v in change.items() if k not in of_side})


def test_what_is_not_a_payload_is_refused() -> None:
    with pytest.raises(CorruptFile, match="list"):
        check_payload([])
    with pytest.raises(CorruptFile, match="lacks title"):
        check_payload({"version": 2})


def test_the_figure_draws_the_scores() -> None:
    trace = small_trace([1.0, 2.0, 1.5, 0.0, 3.0], tokens=("<|x|>", "<a href='//x'>", "\n", "", " b"))
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


def test_the_figure_draws_what_is_specific_with_gaps_at_sink_tokens() -> None:
    norms = np.full((1, 12), 2.0, np.float32)
    norms[0, [0, 9]] = 50.0
    trace = make_trace(words(4), log_odds=odds(3), norms=norms, max_norm=np.array([6.0], np.float32))
    figure = trace_figure(trace)
    expected = trace.scores("malice", "specific")
    expected[[0, 9]] = np.nan
    np.testing.assert_array_equal(figure.data[2].y, expected)
    assert "more like this trait than" in figure.layout.yaxis.title.text
    assert [(s.y0, s.y1) for s in figure.layout.shapes if s.type == "rect"] == [(-2, 2)]
    shifted = trace_figure(trace, kind="z", alignment="before", smooth=2).data[0].y
    assert np.flatnonzero(np.isnan(shifted)).tolist() == [0, 1, 10], "nothing chose the first token"


def test_a_trace_writes_its_page(tmp_path: Path) -> None:
    page = small_trace([1.0] * 4).to_html(tmp_path / "trace.html")
    assert (tmp_path / "trace.html").read_text(encoding="utf-8") == page
    assert '"malice"' in page and len(page) < 150_000


def test_the_payload_cannot_end_its_script_element() -> None:
    page = standalone_page(trace_payload(make_trace(HOSTILE), title="x"))
    inside = page.split('id="payload">')[1].split("</script>")[0]
    assert not set("<>&\u2028\u2029") & set(inside)
    assert json.loads(inside)["sides"][0]["tokens"][-len(HOSTILE) :] == HOSTILE


def test_the_shell_has_one_place_for_a_payload() -> None:
    assert shell_page().count('"payload goes here"') == 1


def test_gradio_finds_nothing_to_expand() -> None:
    for sign in ("`", "${", "{{", "\\"):
        assert sign not in template()


def test_the_script_declares_two_names_only() -> None:
    assert script().startswith("(() => {") and script().rstrip().endswith("})();")
    assert script().count("Object.assign(window") == 1 and "window.mountTokenView" not in script()
