"""What a stated rate rests on, and which replies it is not known for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from persona_core.analysis.detectors import Detectors, calibrate_detectors, prompt_keys
from persona_core.analysis.held_out_alarms import held_out_alarms
from persona_core.analysis.null_card import NullCard, fit_novelty, null_card, prompt_features
from persona_core.errors import CorruptFile, NotCalibrated, SettingError
from persona_core.traces.provenance import Provenance
from persona_core.traces.specific import LogOdds
from persona_core.traces.trace import Trace
from tests.analysis.test_onset import noise

TRAITS = ("evil", "flattery")
BLOCKS = (3, 5)
KINDS = ("cooking", "travel", "letters")
SAMPLING = {"temperature": 0.7, "max_new_tokens": 90}


def read(rng: np.random.Generator, prompt: int, n: int = 60, strange: float = 0.0, **changes: Any) -> Trace:
    """A reply of `n` tokens to a prompt of eight; `strange` moves the prompt's states."""
    of_prompt = np.random.default_rng([prompt, 7])
    raw = np.concatenate([of_prompt.normal(size=(2, 2, 8)) + strange, np.zeros((2, 2, n))], axis=2)
    for k in range(2):
        for b in range(2):
            raw[k, b, 8:] = noise(rng, n, phi=0.4)
    given: dict[str, Any] = {
        "token_ids": (*of_prompt.integers(100, 999, 8).tolist(), *range(n)),
        "tokens": ("a",) * (8 + n),
        "roles": (*["user"] * 8, *["assistant"] * n),
        "n_prompt": 8,
        "traits": TRAITS,
        "blocks": BLOCKS,
        "raw": raw.astype(np.float32),
        "norms": (10 + of_prompt.normal(size=(2, 1)) * np.ones(8 + n)).astype(np.float32),
        "best_block": {"evil": 3, "flattery": 5},
        "null_mean": np.zeros((2, 2), np.float32),
        "null_std": np.ones((2, 2), np.float32),
        "special": (False,) * (8 + n),
        "finish": "eos",
        "provenance": Provenance(reader="tiny", vectors="v1", template="t1", sampling=SAMPLING),
    }
    return Trace(**{**given, **changes})


@pytest.fixture(scope="module")
def neutral() -> list[Trace]:
    rng = np.random.default_rng(0)
    return [read(rng, i // 2, int(rng.integers(50, 80))) for i in range(240)]


@pytest.fixture(scope="module")
def detectors(neutral: list[Trace]) -> Detectors:
    return calibrate_detectors(neutral, kinds=[KINDS[i // 2 % 3] for i in range(240)])


def card(detectors: Detectors) -> NullCard:
    assert detectors.card is not None
    return detectors.card


def raised(trace: Trace, at: int = 20) -> Trace:
    raw = trace.raw.copy()
    raw[:, :, trace.n_prompt + at :] += 6.0
    return trace.replace(raw=raw)


def test_the_card_counts_prompts_and_kinds(detectors: Detectors) -> None:
    known = card(detectors)
    assert (known.n_prompts, known.n_replies, sum(known.kinds.values())) == (120, 240, 120)
    assert known.kinds == {"cooking": 40, "travel": 40, "letters": 40}
    assert 50 <= known.supported < 80 and known.sampling == {"temperature": 0.7} and not known.system_prompt
    rate = detectors.rate()
    assert rate is not None and rate.n_prompts == 120 and detectors.rate_any == 0.05 and rate.value <= 0.05


def test_an_alarm_in_an_everyday_reply_has_a_rate(detectors: Detectors) -> None:
    trace = raised(read(np.random.default_rng(1), 3))
    found = detectors.find(trace, "evil")
    assert found.onset is not None and abs(found.onset - 20) <= 2 and found.no_rate == ()
    assert card(detectors).outside(trace) == () == detectors.caveats(trace)


def changed(trace: Trace, **provenance: Any) -> Trace:
    return trace.replace(provenance=replace(trace.provenance, **provenance))


@pytest.mark.parametrize(
    ("what", "alter"),
    [
        ("this kind of prompt", lambda t: read(np.random.default_rng(1), 3, strange=6.0)),
        ("this sampling", lambda t: changed(t, sampling={"temperature": 1.5, "max_new_tokens": 90})),
        ("a system prompt", lambda t: t.replace(roles=("system", *t.roles[1:]))),
        ("this chat template", lambda t: changed(t, template="t2")),
        ("another model's replies", lambda t: changed(t, reader_adapter="changed")),
        ("text that another wrote", lambda t: changed(t, writer="somebody")),
        ("text that another wrote", lambda t: changed(t, sampling=None)),
        ("steered replies", lambda t: changed(t, written={"steering": [{"trait": "evil"}], "sampling": SAMPLING})),
        ("this sampling", lambda t: changed(t, sampling=None, writer="tiny", written={"sampling": {"temperature": 2}})),
        ("steered replies", lambda t: changed(t, steering=({"trait": "evil"},))),
    ],
)
def test_outside_the_card_the_alarm_is_raised_and_no_rate_is_stated(
    detectors: Detectors, what: str, alter: Any
) -> None:
    trace = raised(alter(read(np.random.default_rng(1), 3)))
    found = detectors.find(trace, "evil")
    assert found.alarm is not None and found.no_rate == (what,)
    assert str(found).endswith(f"; no rate is known for {what}")
    assert found.to_dict()["no_rate"] == [what] and len(detectors.caveats(trace)) == 1
    calm = detectors.find(alter(read(np.random.default_rng(1), 3)), "evil")
    assert calm.alarm is not None or calm.no_rate == ()


def test_a_longer_token_limit_is_no_other_sampling(detectors: Detectors) -> None:
    trace = read(np.random.default_rng(1), 3)
    assert card(detectors).outside(changed(trace, sampling={**SAMPLING, "max_new_tokens": 500})) == ()


def test_in_a_long_reply_the_rate_is_known_up_to_the_supported_token(detectors: Detectors) -> None:
    calm = read(np.random.default_rng(2), 3, n=200)
    early, late = (detectors.find(raised(calm, at), "flattery") for at in (20, 150))
    assert early.alarm is not None and early.no_rate == ()
    assert late.alarm is not None and late.no_rate == ("a reply of this length",)
    assert "up to token" in detectors.caveats(calm)[0]


def test_another_model_is_held_against_the_null_and_its_prompts_are_not_judged(detectors: Detectors) -> None:
    trace = changed(raised(read(np.random.default_rng(1), 3, strange=6.0)), reader_adapter="changed")
    assert detectors.find(trace, "evil").no_rate == ("another model's replies",)
    assert len(detectors.caveats(trace)) == 1 and "differs from that" in detectors.caveats(trace)[0]


def test_the_reader_under_the_name_that_it_is_published_by_is_no_other_model(detectors: Detectors) -> None:
    trace = raised(read(np.random.default_rng(1), 3))
    theirs = changed(trace, reader="me/tiny", writer="me/tiny")
    strange = changed(read(np.random.default_rng(1), 3, strange=6.0), reader="me/tiny", writer="me/tiny")
    published = replace(detectors, card=replace(card(detectors), published_as="me/tiny"))
    assert detectors.find(theirs, "evil").no_rate == ("another model's replies",)
    assert published.find(theirs, "evil").no_rate == () == published.find(trace, "evil").no_rate
    assert [reason.what for reason in card(published).outside(strange)] == ["this kind of prompt"]
    assert [r.what for r in card(published).outside(changed(theirs, reader="you/tiny"))] == ["another model's replies"]


def test_about_as_many_new_everyday_prompts_are_refused_as_the_limit_says(detectors: Detectors) -> None:
    rng = np.random.default_rng(5)
    refused = [bool(card(detectors).outside(read(rng, i, 40))) for i in range(1000, 1400)]
    assert 0.02 <= np.mean(refused) <= 0.10


def test_the_features_are_those_of_the_prompt(neutral: list[Trace]) -> None:
    trace = neutral[0]
    found = prompt_features(trace, BLOCKS)
    last, over = trace.raw[..., 7], trace.raw[..., 1:8].mean(-1)  # the first token is left out
    expected = [*last.ravel(), *over.ravel(), *np.log(trace.norms[:, 7]), np.log(8)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    longer = trace.replace(raw=np.where(np.arange(trace.n_tokens) < 8, trace.raw, 99.0).astype(np.float32))
    np.testing.assert_array_equal(prompt_features(longer, BLOCKS), found)


def test_a_sink_token_in_the_prompt_does_not_make_it_novel(neutral: list[Trace]) -> None:
    raw, norms = neutral[0].raw.copy(), neutral[0].norms.copy()
    raw[..., 4], norms[:, 4] = 500.0, 1e4
    limit = np.full(2, 100.0, np.float32)
    marked, plain = (neutral[0].replace(raw=raw, norms=norms, max_norm=m) for m in (limit, np.array(np.inf)))
    novelty = fit_novelty(neutral[::2], BLOCKS)
    assert novelty is not None
    assert novelty.of(marked) < novelty.limit < novelty.of(plain)


def test_a_prompt_whose_states_are_unknown_has_no_rate(detectors: Detectors) -> None:
    known = read(np.random.default_rng(1), 3, n=40)
    imported = known.replace(norms=np.full_like(known.norms, np.nan))
    assert [reason.what for reason in card(detectors).outside(imported)] == ["this kind of prompt"]
    assert fit_novelty([imported] * 9, BLOCKS) is None


def test_fewer_watched_traits_keep_the_rate_with_a_lower_threshold(detectors: Detectors, neutral: list[Trace]) -> None:
    one = detectors.select(["evil"])
    assert one.traits == ("evil",) and one.of("evil").threshold < detectors.of("evil").threshold
    alarmed = np.array([one.find(t, "evil").alarm is not None for t in neutral])
    together = np.array([any(detectors.find(t, k).alarm is not None for k in TRAITS) for t in neutral])
    assert alarmed.mean() <= 0.06 and together.mean() <= 0.06
    assert detectors.rate("evil") is not None and str(detectors.rate()).endswith("over 120 prompts")


def test_fewer_watched_traits_get_the_threshold_of_the_rate_over_all(detectors: Detectors) -> None:
    assert detectors.peaks is not None and detectors.rate_any == 0.05
    for traits in (("evil",), ("flattery",), TRAITS):
        rows = [TRAITS.index(t) for t in traits]
        chosen, peaks = (
            detectors.select(traits),
            replace(detectors.peaks, traits=traits, peaks=detectors.peaks.peaks[:, rows]),
        )
        assert {one.threshold for one in chosen.by_trait.values()} == {peaks.threshold(0.05)} != {peaks.threshold(0.1)}
        for trait, one in chosen.by_trait.items():
            assert one.rate == peaks.rate(one.threshold, [trait]).value


def test_specific_scores_are_used_where_the_traces_have_them_and_missing_ones_are_refused(neutral: list[Trace]) -> None:
    odds = LogOdds(
        np.ones((2, 2), np.float32), np.full((2, 2), -3.0, np.float32), np.zeros((2, 2), np.float32),
        np.ones((2, 2), np.float32),
    )  # fmt: skip
    specific = calibrate_detectors([t.replace(log_odds=odds) for t in neutral])
    assert {d.kind for d in specific.by_trait.values()} == {"specific"}
    evil = raised(read(np.random.default_rng(1), 3, log_odds=odds))
    raw = evil.raw.copy()
    raw[1] = read(np.random.default_rng(1), 3).raw[1]
    evil = evil.replace(raw=raw)
    flattery = raised(raised(evil.replace(raw=raw[::-1].copy())))  # evil's z rises too, but flattery's far more
    assert specific.find(evil, "evil").alarm is not None and specific.find(evil, "flattery").alarm is None
    assert specific.find(flattery, "evil").alarm is None and specific.find(flattery, "flattery").alarm is not None
    with pytest.raises(NotCalibrated, match="specific"):
        specific.find(neutral[0], "evil")
    plain = calibrate_detectors([t.replace(log_odds=odds) for t in neutral], kind="z")
    assert plain.of("evil").kind == "z" and plain.find(flattery, "evil").alarm is not None


def test_detectors_with_their_card_survive_the_file(detectors: Detectors, neutral: list[Trace], tmp_path: Path) -> None:
    detectors.save(tmp_path)
    again = Detectors.from_pretrained(tmp_path)
    strange = raised(read(np.random.default_rng(1), 3, strange=6.0))
    for trace in (*neutral[:5], strange):
        assert card(again).outside(trace) == card(detectors).outside(trace)
        assert all(again.find(trace, t) == detectors.find(trace, t) for t in TRAITS)
    assert again.rate() == detectors.rate() and again.select(["evil"]).rate() == detectors.select(["evil"]).rate()
    record = json.loads((tmp_path / "onset.json").read_text(encoding="utf-8"))
    changes: list[dict[str, Any]] = [{"novelty": {}}, {"lengths": 3}, {"surplus": 1}]
    for change in changes:
        with pytest.raises(CorruptFile):
            NullCard.from_dict({**record["card"], **change})


def test_neutral_replies_of_two_models_are_refused(neutral: list[Trace]) -> None:
    with pytest.raises(SettingError, match="2 different models"):
        calibrate_detectors([*neutral[:-1], changed(neutral[-1], reader="other")])
    with pytest.raises(SettingError, match="3 kinds for 240"):
        calibrate_detectors(neutral, kinds=["a", "b", "c"])


def test_held_out_replies_are_judged_by_detectors_that_never_saw_their_group(neutral: list[Trace]) -> None:
    """Forty strange replies of one kind alarm where their kind is left out, and set the threshold where it is not."""
    strange = [raised(t, at=0) if i % 6 == 0 else t for i, t in enumerate(neutral)]
    kinds = ["strange" if i % 6 == 0 else f"kind {i % 5}" for i in range(240)]
    own = [prompt for prompt, _ in enumerate(neutral)]
    by_kind = held_out_alarms(strange, kinds, own)
    assert by_kind[::6].all() and by_kind[np.arange(240) % 6 > 0].mean() <= 0.06
    by_prompt = held_out_alarms(strange, own, own)
    assert by_prompt[::6].mean() < 0.5
    assert held_out_alarms(neutral, prompt_keys(neutral), prompt_keys(neutral)).mean() <= 0.08


def test_the_card_tells_the_rate_on_held_out_prompts_and_kinds(neutral: list[Trace]) -> None:
    kinds = [KINDS[i // 2 % 3] for i in range(240)]
    found = card(calibrate_detectors(neutral, ["evil"], kinds=kinds, measured=True)).held_out
    alarmed = held_out_alarms(neutral, kinds, prompt_keys(neutral), ["evil"])
    assert found["kinds"]["value"] == pytest.approx(alarmed.mean(), abs=1e-4) and found["kinds"]["n"] == 3
    assert found["prompts"]["n"] == 120 and found["prompts"]["low"] <= found["prompts"]["value"] <= 0.08


@pytest.mark.parametrize("n", [1, 2])
def test_a_prompt_or_two_make_no_card(n: int) -> None:
    rng = np.random.default_rng(0)
    replies = [read(rng, i // 2, 40) for i in range(6)]
    with pytest.raises(SettingError, match=f"replies to {n} prompts; a card needs three"):
        null_card(replies[: 2 * n], BLOCKS, 40, prompt_keys(replies[: 2 * n]))
    assert null_card(replies, BLOCKS, 40, prompt_keys(replies)).n_prompts == 3
