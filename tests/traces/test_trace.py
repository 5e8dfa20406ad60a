"""Traces: what their scores mean, and that a file gives back the identical numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from persona_core.errors import CorruptFile, NotCalibrated, PersonaError, SettingError, UnknownBlock, UnknownTrait
from persona_core.traces.provenance import Provenance
from persona_core.traces.records import LATER
from persona_core.traces.trace import Trace

N = 6
ROLES = ("template", "user", "template", "assistant", "assistant", "template")


def make(**changes: Any) -> Trace:
    """A trace of two traits at blocks 1 and 4, six tokens, a reply of three; malice has no null."""
    rng = np.random.default_rng(0)
    nan = np.nan
    known: dict[str, Any] = dict(
        token_ids=(1, 7, 8, 9, 300, 2),
        tokens=("<s>", "Hi", "\n", "sn", "ail 🐌", "</s>"),
        roles=ROLES,
        n_prompt=3,
        traits=("candour", "malice"),
        blocks=(1, 4),
        raw=rng.normal(size=(2, 2, N)).astype("f4"),
        norms=rng.uniform(3, 9, size=(2, N)).astype("f4"),
        best_block={"candour": 4, "malice": 1},
        null_mean=np.array([[0.5, -1.0], [nan, nan]], "f4"),
        null_std=np.array([[2.0, 0.25], [nan, nan]], "f4"),
        special=(True, False, False, False, False, True),
        finish="eos",
        provenance=Provenance(
            reader="org/model",
            writer="org/model + adapter",
            sampling={"temperature": 0.7, "top_k": 0},
            seed=3,
            steering=({"trait": "malice", "block": 1, "mode": "ablate", "unit": "residual", "start": None},),
            versions={"torch": "2"},
        ),
    )
    return Trace(**(known | changes))


def assert_same(a: Trace, b: Trace) -> None:
    for name in ("raw", "norms", "null_mean", "null_std"):
        one, other = getattr(a, name), getattr(b, name)
        assert one.dtype == other.dtype == np.float32 and one.shape == other.shape, name
        assert np.array_equal(one, other, equal_nan=True), name
    plain = ["token_ids", "tokens", "roles", "n_prompt", "traits", "blocks", "special", "finish", "provenance"]
    assert {n: getattr(a, n) for n in plain} == {n: getattr(b, n) for n in plain}
    assert dict(a.best_block) == dict(b.best_block)


# Files.


def test_a_record_gives_back_the_identical_numbers() -> None:
    assert_same(Trace.from_dict(make().to_dict()), make())


def test_a_record_is_plain_json_with_null_for_what_is_not_a_number() -> None:
    text = json.dumps(make().to_dict(), allow_nan=False)
    assert json.loads(text)["null_mean"][1] == [None, None]
    assert_same(Trace.from_dict(json.loads(text)), make())


def test_a_file_gives_back_the_identical_numbers(tmp_path: Path) -> None:
    path = make().save(tmp_path / "trace.json")
    assert_same(Trace.load(path), make())
    assert "🐌" in path.read_text(encoding="utf-8")
    assert Trace.load(Trace.load(path).save(tmp_path / "again.json")).to_dict() == make().to_dict()


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=arrays(np.float32, (2, 2, N), elements=st.floats(width=32, allow_infinity=False)))
def test_every_float32_survives_the_file(raw: np.ndarray, tmp_path: Path) -> None:
    again = Trace.load(make(raw=raw).save(tmp_path / "trace.json"))
    assert np.array_equal(again.raw, raw, equal_nan=True)
    assert np.array_equal(np.signbit(again.raw[raw == 0]), np.signbit(raw[raw == 0]))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tokens=st.lists(st.text(max_size=8), min_size=N, max_size=N))
def test_tokens_of_any_text_survive_the_file(tokens: list[str], tmp_path: Path) -> None:
    trace = make(tokens=tuple(tokens))
    again = Trace.load(trace.save(tmp_path / "trace.json"))
    assert again.tokens == trace.tokens and again.text == "".join(tokens)


def test_a_trace_of_nothing_but_a_prompt_survives_the_file(tmp_path: Path) -> None:
    trace = make(n_prompt=N, finish="read")
    again = Trace.load(trace.save(tmp_path / "trace.json"))
    assert_same(again, trace)
    assert (again.n_reply, again.reply_text) == (0, "")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "3", '"trace"', "{}", '{"format_version": 1}', "[" * 100_000],
    ids=lambda c: c[:20],
)
def test_a_file_that_is_not_a_trace_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "trace.json"
    path.write_text(content)
    with pytest.raises(CorruptFile):
        Trace.load(path)


def test_a_truncated_file_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    path = make().save(tmp_path / "trace.json")
    content = path.read_bytes()
    for share in (0.1, 0.5, 0.99):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(CorruptFile, match=r"trace\.json"):
            Trace.load(path)
    path.write_bytes(content.replace("🐌".encode(), b"\xf0\x9f"))
    with pytest.raises(CorruptFile, match=r"trace\.json"):
        Trace.load(path)
    with pytest.raises(PersonaError, match=r"nowhere\.json"):
        Trace.load(tmp_path / "nowhere.json")


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_a_record_of_another_version_is_refused(version: Any) -> None:
    with pytest.raises(CorruptFile, match="format_version"):
        Trace.from_dict(make().to_dict() | {"format_version": version})


@pytest.mark.parametrize("name", sorted(set(make().to_dict()) - {"format_version", *LATER}))
def test_a_record_without_one_of_its_fields_is_refused(name: str) -> None:
    record = make().to_dict()
    del record[name]
    with pytest.raises(CorruptFile, match=name):
        Trace.from_dict(record)


@pytest.mark.parametrize(
    "change",
    [
        {"token_ids": [1, 2]},
        {"tokens": ["a"]},
        {"roles": list(ROLES[:-1])},
        {"special": []},
        {"traits": ["candour"]},
        {"blocks": [1, 4, 5]},
        {"raw": [[[0.0] * N]]},
        {"raw": [[[0.0] * N, [0.0]], [[0.0] * N, [0.0] * N]]},
        {"raw": [[[0.0, 0.0] for _ in range(N)] for _ in range(2)]},
        {"raw": [["a"]]},
        {"norms": [[1.0] * N]},
        {"null_mean": [[0.0, 0.0]]},
        {"null_std": 1.0},
        {"n_prompt": "three"},
        {"n_prompt": N + 1},
        {"n_prompt": -1},
        {"best_block": None},
        {"provenance": None},
        {"provenance": {"nobody": 1}},
        {"token_ids": None},
    ],
    ids=lambda c: str(c)[:40],
)
def test_a_record_whose_parts_do_not_fit_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(CorruptFile):
        Trace.from_dict(make().to_dict() | change)


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": ("a",)},
        {"roles": ROLES[:-1]},
        {"special": (True,)},
        {"raw": np.zeros((2, 2, N + 1), "f4")},
        {"raw": np.zeros((2, N, 2), "f4")},
        {"norms": np.zeros((1, N), "f4")},
        {"null_mean": np.zeros((1, 2), "f4")},
        {"null_std": np.zeros((2, 3), "f4")},
        {"n_prompt": N + 1},
        {"n_prompt": -1},
    ],
    ids=lambda c: next(iter(c)),
)
def test_a_trace_whose_lengths_do_not_fit_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(CorruptFile):
        make(**change)


# Scores.


def test_raw_scores_are_the_projections() -> None:
    trace = make()
    for row, trait in enumerate(trace.traits):
        for column, block in enumerate(trace.blocks):
            assert np.array_equal(trace.scores(trait, kind="raw", block=block), trace.raw[row, column])


def test_z_scores_are_in_standard_deviations_above_the_null_of_trait_and_block() -> None:
    trace = make()
    wanted = {1: (trace.raw[0, 0] - 0.5) / 2.0, 4: (trace.raw[0, 1] + 1.0) / 0.25}
    for block, values in wanted.items():
        assert np.allclose(trace.scores("candour", block=block), values, rtol=1e-6)


def test_cosines_lie_between_minus_one_and_one_and_do_not_depend_on_scale() -> None:
    trace = make()
    cosine = trace.scores("malice", kind="cosine")
    assert np.allclose(cosine, trace.raw[1, 0] / trace.norms[0], rtol=1e-6) and np.abs(cosine).max() <= 1
    assert np.allclose(make(raw=trace.raw * 8, norms=trace.norms * 8).scores("malice", kind="cosine"), cosine)


def test_the_cosine_of_a_zero_state_is_zero() -> None:
    trace = make(raw=np.zeros((2, 2, N), "f4"), norms=np.zeros((2, N), "f4"))
    assert trace.scores("malice", kind="cosine").tolist() == [0.0] * N


def test_no_block_means_the_traits_own_best_block() -> None:
    trace = make()
    assert np.array_equal(trace.scores("candour", kind="raw"), trace.raw[0, 1])
    assert np.array_equal(trace.scores("malice", kind="raw"), trace.raw[1, 0])
    with pytest.raises(UnknownBlock, match=r"no best block.*\[1, 4\]"):
        make(best_block={}).scores("candour", kind="raw")


@pytest.mark.parametrize("kind", ["raw", "z", "cosine"])
def test_before_is_at_shifted_by_one_token_with_nothing_in_front(kind: Any) -> None:
    trace = make()
    at, before = (trace.scores("candour", kind=kind, alignment=a) for a in ("at", "before"))
    assert at.shape == before.shape == (N,) and at.dtype == before.dtype == np.float32
    assert np.isnan(before[0]) and np.array_equal(before[1:], at[:-1])


def test_asking_for_scores_does_not_change_the_trace() -> None:
    trace = make()
    kept = trace.raw.copy()
    for kind in ("raw", "z", "cosine"):
        trace.scores("candour", kind=kind)[:] = 99.0
    assert np.array_equal(trace.raw, kept)


def test_z_scores_without_a_null_are_refused_and_the_others_are_not() -> None:
    trace = make()
    with pytest.raises(NotCalibrated, match=r"malice.*block 1.*raw.*cosine"):
        trace.scores("malice")
    assert not trace.calibrated and np.isfinite(trace.scores("malice", kind="cosine")).all()
    null = np.ones((2, 2), "f4")
    assert make(null_mean=null, null_std=null).calibrated
    flat = make(null_mean=null, null_std=np.zeros((2, 2), "f4"))
    assert not flat.calibrated
    with pytest.raises(NotCalibrated):
        flat.scores("candour")


def test_unknown_traits_blocks_kinds_and_alignments_are_refused() -> None:
    trace: Any = make()
    with pytest.raises(UnknownTrait, match=r"'charm'.*candour, malice"):
        trace.scores("charm")
    for block in (0, 2, -1, True, "1", 1.5):
        with pytest.raises(UnknownBlock, match=r"\[1, 4\]"):
            trace.scores("candour", block=block)
    with pytest.raises(SettingError, match="sigma"):
        trace.scores("candour", kind="sigma")
    with pytest.raises(SettingError, match="after"):
        trace.scores("candour", alignment="after")


# Text.


def test_the_reply_is_what_the_assistant_said() -> None:
    trace = make()
    assert trace.reply_text == "snail 🐌" and trace.text == "<s>Hi\nsnail 🐌</s>"
    assert (trace.n_tokens, trace.n_prompt, trace.n_reply) == (6, 3, 3)


def test_a_changed_copy_leaves_the_original_alone_and_is_checked() -> None:
    trace = make()
    assert trace.replace(finish="stopped").finish == "stopped" and trace.finish == "eos"
    with pytest.raises(CorruptFile):
        trace.replace(token_ids=(1,))


def test_a_trace_prints_on_one_line() -> None:
    assert repr(make()) == "Trace(3 + 3 tokens, 2 traits at blocks 1, 4, read by org/model)"
