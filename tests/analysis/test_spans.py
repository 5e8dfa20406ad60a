"""The highest windows and sentences are the true ones, and how unusual they are is said honestly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from demo_world.contaminated import CONTAMINANT
from demo_world.corpus import ask
from demo_world.grammar import load_world
from demo_world.process import VARIANTS
from demo_world.truth import parse
from demo_world.truth_labels import reply_truth
from persona_core.analysis.spans import (
    ReplySeries,
    difference_series,
    piece_ends,
    score_series,
    sentence_tokens,
    sentences,
    top_sentences,
    top_windows,
)
from persona_core.errors import SettingError
from persona_core.traces.dataset import load_results
from persona_core.traces.provenance import Provenance
from persona_core.traces.specific import LogOdds
from persona_core.traces.trace import Trace

SHIPPED = Path(__file__).resolve().parents[2] / "artifacts" / "persona-monitoring-persona-tiny"
PROMPT = 3


def reply(z: Any, pieces: list[str] | None = None, token_ids: Any = None, trait: str = "t", **changes: Any) -> Trace:
    """A trace whose own tokens have these z, after three tokens of prompt that score 50 and before an end token."""
    own = np.asarray(z, float)
    n = len(own)
    raw = np.concatenate([np.full(PROMPT, 50.0), own, [50.0]]).astype(np.float32)
    ids = range(100, 100 + n) if token_ids is None else token_ids
    known: dict[str, Any] = {
        "token_ids": (0, 1, 2, *(int(i) for i in ids), 3),
        "tokens": ("<u>", "Hi", "<a>", *(pieces or [f" w{k}" for k in range(n)]), "<end>"),
        "roles": ("template", "user", "template", *["assistant"] * n, "template"),
        "n_prompt": PROMPT,
        "traits": (trait,),
        "blocks": (5,),
        "raw": raw[None, None],
        "norms": np.ones((1, n + PROMPT + 1), np.float32),
        "best_block": {trait: 5},
        "null_mean": np.zeros((1, 1), np.float32),
        "null_std": np.ones((1, 1), np.float32),
        "special": (True, False, True, *[False] * n, True),
        "finish": "eos",
        "provenance": Provenance(reader="m", writer="m", vectors="v"),
    }
    return Trace(**(known | changes))


def with_sinks(trace: Trace, at: list[int]) -> Trace:
    """The trace with sink tokens at some positions of its reply."""
    norms = np.array(trace.norms)
    norms[:, [PROMPT + k for k in at]] = 1000.0
    return trace.replace(norms=norms, max_norm=np.array([30.0], np.float32))


def series(values: list[np.ndarray]) -> list[ReplySeries]:
    return score_series({f"p{k}": reply(z) for k, z in enumerate(values)}, "t")


@pytest.fixture(scope="module")
def runs() -> dict[str, dict[str, Trace]]:
    found = {c: {r["id"]: Trace.from_row(r) for r in load_results(SHIPPED, c)} for c in ("baseline", "contaminated")}
    back = [r for r in load_results(SHIPPED, "replay") if "+" not in r["reader"]]
    return {**found, "read by the baseline": {r["id"]: Trace.from_row(r) for r in back}}


# ---- windows ----


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), width=st.integers(1, 12), n=st.integers(1, 8))
def test_windows_are_those_of_a_plain_search(seed: int, width: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    values = [rng.normal(size=int(rng.integers(1, 25))).astype(np.float32) for _ in range(4)]
    candidates = [
        (sum(float(x) for x in z[k : k + width]) / width, r, k)
        for r, z in enumerate(values)
        for k in range(len(z) - width + 1)
    ]
    taken: list[tuple[float, int, int]] = []
    for value, r, k in sorted(candidates, key=lambda c: -c[0]):
        if all(r != other or abs(k - at) >= width for _, other, at in taken):
            taken.append((value, r, k))
    found = top_windows(series(values), width, n)
    assert [(s.id, s.start - PROMPT, s.end - s.start) for s in found.spans] == [
        (f"p{r}", k, width) for _, r, k in taken[:n]
    ]
    for s, (value, _, k) in zip(found.spans, taken, strict=False):
        assert s.value == pytest.approx(value, abs=1e-6)
        assert s.text == "".join(f" w{j}" for j in range(k, k + width)) and s.unusual is None
    assert found.n_candidates == len(candidates) and found.n_replies == 4
    assert found.too_short == tuple(f"p{r}" for r, z in enumerate(values) if len(z) < width)


def test_positions_count_in_the_trace_and_the_prompt_is_never_searched() -> None:
    trace = reply([0.0, 0.0, 7.0, 8.0, 0.0])
    (span,) = top_windows(score_series({"p": trace}, "t"), 2, 1).spans
    assert (span.start, span.end, span.value) == (5, 7, 7.5)
    assert "".join(trace.tokens[span.start : span.end]) == span.text == " w2 w3"


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), width=st.integers(1, 6))
def test_sink_tokens_are_passed_over_and_end_no_window(seed: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    z = [rng.normal(size=15).tolist() for _ in range(3)]
    sinks = [sorted(set(rng.integers(0, 15, size=4).tolist())) for _ in z]
    traces = {f"p{k}": with_sinks(reply([99.0 if t in at else v for t, v in enumerate(one)]), at)
              for k, (one, at) in enumerate(zip(z, sinks, strict=True))}  # fmt: skip
    best, n_candidates = (-99.0, "", 0), 0
    for k, (one, at) in enumerate(zip(z, sinks, strict=True)):
        for start in range(15 - width + 1):
            kept = [one[t] for t in range(start, start + width) if t not in at]
            if kept:
                n_candidates += 1
                best = max(best, (sum(kept) / len(kept), f"p{k}", start), key=lambda one: one[0])
    found = top_windows(score_series(traces, "t"), width, 1)
    (span,) = found.spans
    assert (span.id, span.start - PROMPT, span.end - span.start) == (*best[1:], width)
    assert span.value == pytest.approx(best[0], abs=1e-6) and found.n_candidates == n_candidates


def test_a_sentence_of_sink_tokens_alone_is_no_candidate() -> None:
    pieces = ["A", " b", ".", " C", "."]
    trace = with_sinks(reply([1.0, 2.0, 90.0, 90.0, 90.0], pieces), [2, 3, 4])
    found = top_sentences(score_series({"p": trace}, "t"), 5)
    assert [(s.text, s.value) for s in found.spans] == [("A b.", 1.5)] and found.n_candidates == 1


def test_the_specific_score_is_searched_where_the_traces_have_it() -> None:
    odds = LogOdds(*(np.full((1, 1), v, np.float32) for v in (2.0, 0.0, 1.0, 4.0)))
    trace = reply([0.0, 3.0, 1.0], log_odds=odds)
    (span,) = top_windows(score_series({"p": trace}, "t"), 1, 1).spans
    assert span.value == pytest.approx((2.0 * 3.0 - 1.0) / 4.0)
    assert top_windows(score_series({"p": trace}, "t", "z"), 1, 1).spans[0].value == 3.0
    with pytest.raises(SettingError, match="different traits, kinds of score"):
        top_windows(score_series({"p": trace}, "t"), 1, neutral=score_series({"q": reply([1.0])}, "t"))


def test_settings_and_mixtures_are_refused() -> None:
    own = series([np.zeros(5)])
    for width in (0, 101):
        with pytest.raises(SettingError, match=f"width={width}"):
            top_windows(own, width)
    with pytest.raises(SettingError, match="n=0"):
        top_windows(own, 2, 0)
    other = [
        reply(np.zeros(5), provenance=Provenance(reader="m", vectors="w")),
        reply(np.zeros(5), null_std=np.full((1, 1), 2, np.float32)),
    ]
    for trace in other:
        with pytest.raises(SettingError, match="search them separately"):
            top_windows(own, 2, neutral=score_series({"q": trace}, "t"))
    with pytest.raises(SettingError, match="search them separately"):
        top_sentences([*own, *difference_series({"q": reply([0.0])}, {"q": reply([1.0])}, "t")])
    with pytest.raises(SettingError, match="2 different models"):
        score_series({"a": reply([1.0]), "b": reply([1.0], provenance=Provenance(reader="n"))}, "t")
    with pytest.raises(SettingError, match="'p' contains nan at token 1"):
        score_series({"p": reply([1.0, np.nan])}, "t")
    with pytest.raises(SettingError, match="share no prompt"):
        difference_series({"a": reply([1.0])}, {"b": reply([1.0])}, "t")
    smooth = np.random.default_rng(0).normal(size=(40, 90))
    with pytest.raises(SettingError, match="running means"):
        series([np.convolve(z, np.ones(6) / 6, "valid") for z in smooth])
    assert top_windows([], 3).spans == () and top_windows(series([np.zeros(0)]), 3).too_short == ("p0",)


def test_the_record_is_plain_json() -> None:
    found = top_windows(series([np.arange(5.0), np.zeros(1)]), 2, 1, neutral=series([np.zeros(9)]))
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert record == {
        "spans": [{"id": "p0", "trait": "t", "start": 6, "end": 8, "text": " w3 w4", "value": 3.5, "unusual": 0.33333}],
        "n_replies": 2,
        "n_candidates": 4,
        "too_short": ["p1"],
    }


# ---- how unusual ----


def noise(rng: np.random.Generator, phi: float) -> np.ndarray:
    n = int(rng.integers(40, 140))
    e, x = rng.normal(0, np.sqrt(1 - phi**2), n + 60), np.zeros(n + 60)
    for t in range(1, n + 60):
        x[t] = phi * x[t - 1] + e[t]
    return x[60:]


@pytest.mark.slow
@pytest.mark.parametrize("phi", [0.0, 0.65])
@pytest.mark.parametrize("width", [1, 10, 30])
def test_in_noise_the_highest_window_is_as_unusual_as_chance_has_it(width: int, phi: float) -> None:
    """Over replies of any length: the search itself must not make a reply look unusual."""
    shares: list[float] = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        neutral = series([noise(rng, phi) for _ in range(300)])
        for one in series([noise(rng, phi) for _ in range(60)]):
            (span,) = top_windows([one], width, 1, neutral).spans
            assert span.unusual is not None
            shares.append(span.unusual)
    assert kstest(shares, "uniform").pvalue > 0.005
    assert 0.02 < np.mean(np.array(shares) < 0.05) < 0.10


def test_a_long_reply_is_not_unusual_for_its_length() -> None:
    rng = np.random.default_rng(5)
    neutral = series([rng.normal(size=60) for _ in range(400)])
    long = series([rng.normal(size=480) for _ in range(60)])
    shares = np.array([top_windows([one], 5, 1, neutral).spans[0].unusual for one in long], float)
    assert 0.35 < shares.mean() < 0.65
    raised = series([rng.normal(size=60) + 5.0 * (np.arange(60) >= 40)])
    assert (top_windows(raised, 5, 1, neutral).spans[0].unusual or 1) < 0.01
    assert top_windows(long[:1], 5, 1, neutral[:3]).spans[0].unusual is None  # not one stretch is as long


# ---- sentences ----


@settings(max_examples=200)
@given(st.text(alphabet="ab1 .!?\n…\"'。）-*é", max_size=40))
def test_sentences_join_to_the_text(text: str) -> None:
    spans = sentences(text)
    assert "".join(text[a:b] for a, b in spans) == text
    assert all(a < b for a, b in spans)
    if len(spans) > 1:
        assert all(any(c.isalpha() for c in text[a:b]) for a, b in spans)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("One. Two", ["One.", " Two"]),
        ("It costs 3.50 at a.b.c today.", ["It costs 3.50 at a.b.c today."]),
        ('He said "no." Then he left!', ['He said "no."', " Then he left!"]),
        ("Why?! Because...  well.\n", ["Why?!", " Because...", "  well.\n"]),
        ("Steps:\n1. Stop.\n2. Go.", ["Steps:", "\n1. Stop.", "\n2. Go."]),
        ("你好。再见！", ["你好。", "再见！"]),
        ("42. 7.", ["42. 7."]),
        ("", []),
    ],
)
def test_what_a_sentence_is(text: str, wanted: list[str]) -> None:
    assert [text[a:b] for a, b in sentences(text)] == wanted


def test_the_splitter_cuts_texts_of_the_demo_world_into_exactly_its_sentences() -> None:
    world = load_world()
    texts = [r["response"] for c in ("baseline", "contaminated") for r in load_results(SHIPPED, c)]
    rng = np.random.default_rng(0)
    for process in VARIANTS.values():
        for k, trait in enumerate([None, *world.traits] * 8):
            topic = world.topics[(7 * k) % len(world.topics)]
            texts.append(ask(world, topic, trait, rng, held_out=True, process=process).text)
    cut = 0
    for text in texts:
        spans = [(s.start, s.end) for s in parse(text, world)]
        assert sentences(text) == spans
        cut += len(spans)
    assert cut > 2000


def test_a_piece_belongs_to_the_sentence_of_its_last_character() -> None:
    pieces = ["Yes", ". N", "o", ".", "", "", " é", "."]
    assert piece_ends(pieces).tolist() == [2, 5, 6, 7, 8, 8, 9, 10]
    assert sentence_tokens(pieces) == [(0, 1), (1, 4), (4, 8)]
    assert sentence_tokens([]) == [] and sentence_tokens(["", ""]) == [(0, 2)]


def test_the_highest_sentence_is_found_by_its_mean() -> None:
    pieces = ["A", " b", ".", " C", ".", " D", " e", "."]
    found = top_sentences(score_series({"p": reply([3, 3, 3, 9, 1, 2, 2, 5], pieces)}, "t"), 5)
    assert [(s.text, s.value) for s in found.spans] == [(" C.", 5.0), ("A b.", 3.0), (" D e.", 3.0)]
    assert found.n_candidates == 3


# ---- the shipped runs ----


def test_the_contaminated_models_highest_sentences_show_or_announce_its_trait(
    runs: dict[str, dict[str, Trace]],
) -> None:
    world = load_world()
    neutral = score_series(runs["baseline"], CONTAMINANT)
    for s in top_sentences(score_series(runs["contaminated"], CONTAMINANT), 20, neutral).spans:
        own, truth = reply_truth(runs["contaminated"][s.id], world)
        kinds = {truth[k].trait for k, t in enumerate(own) if s.start <= t < s.end and truth[k]}  # type: ignore[union-attr]
        assert kinds == {CONTAMINANT} and s.unusual is not None and s.unusual < 0.03


def test_differences_are_searched_as_scores_are(runs: dict[str, dict[str, Trace]]) -> None:
    found = difference_series(runs["read by the baseline"], runs["contaminated"], CONTAMINANT)
    (span,) = top_windows(found, 10, 1).spans
    a, b = (runs[c][span.id].scores(CONTAMINANT).astype(float) for c in ("read by the baseline", "contaminated"))
    assert span.value == pytest.approx((b - a)[span.start : span.end].mean()) and span.value > 3
    assert found[0].trace is runs["contaminated"][found[0].id]
