"""Which tokens show a trait by the labelled texts, and the figures on them, against plain loops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from persona_core.errors import SettingError
from persona_core.monitor.monitor import PersonaMonitor
from real_model import build
from real_model.build import RealPlan, elicitation, null_prompts, vector_prompts
from real_model.texts import TextQuestion, TextReply, load_questions
from real_model.truth import NEW_STYLES, read_replies, sentence_figures, token_figures, tokens_that_show, words_alone
from tests.support.tiny import random_vectors, tiny_lm

TRAITS = ("sycophancy", "evil")


@pytest.fixture(scope="module")
def questions() -> tuple[TextQuestion, ...]:
    found = load_questions(TRAITS, "test")
    return tuple(q for trait in TRAITS for q in [x for x in found if x.trait == trait][::4])


@pytest.fixture(scope="module")
def monitor() -> PersonaMonitor:
    lm = tiny_lm("llama", "chatml")
    return PersonaMonitor(lm, random_vectors(len(lm.blocks), TRAITS))


def test_a_token_shows_the_trait_if_its_last_character_is_in_such_a_sentence(
    monitor: PersonaMonitor, questions: tuple[TextQuestion, ...]
) -> None:
    for one in read_replies(monitor, questions[:3]):
        text, marked = one.reply.text, set()
        for sentence, shows in zip(one.reply.sentences, one.reply.shows, strict=True):
            begin = text.index(sentence)
            marked |= set(range(begin - 1, begin + len(sentence))) if shows else set()  # with the space before it
        at, wanted = -1, []
        for t in one.trace.reply_positions:
            at += len(one.trace.tokens[t])
            wanted.append(at in marked and at < len(text))
        inside = [w == s for w, s in zip(wanted, one.shows.tolist(), strict=True)]
        assert sum(inside) >= len(inside) - 2 * len(one.reply.sentences), "but for the spaces between sentences"
        assert one.shows.any() == any(one.reply.shows)
        solid = [k for k, t in enumerate(one.trace.reply_positions) if one.trace.tokens[t].strip()]
        assert all(inside[k] for k in solid)
    with pytest.raises(SettingError, match="The trace reads"):
        tokens_that_show(one.trace, TextReply("neutral", ("Something else.",), (False,)))


def test_the_figures_are_aurocs_of_the_right_tokens(
    monitor: PersonaMonitor, questions: tuple[TextQuestion, ...]
) -> None:
    read = read_replies(monitor, questions)
    found = token_figures(read, "evil", "raw")

    def auroc(own: list[float], others: list[float]) -> float:
        return float(np.mean([(a > b) + 0.5 * (a == b) for a, b in product(own, others)]))

    def scores(keep: object) -> list[float]:
        return [
            float(z)
            for one in read
            for z, shows in zip(one.trace.reply_scores("evil", "raw"), one.shows, strict=True)
            if keep(one, bool(shows) and one.question.trait == "evil")  # type: ignore[operator]
        ]

    own = scores(lambda _, shows: shows)
    assert found["neutral"]["value"] == pytest.approx(
        auroc(own, scores(lambda one, _: one.reply.side == "neutral")), abs=1e-5
    )
    assert found["else"]["value"] == pytest.approx(auroc(own, scores(lambda _, shows: not shows)), abs=1e-5)
    assert {found[name]["n"] for name in ("neutral", "else")} == {len(questions)}, "intervals are over questions"
    of_new = [scores(lambda o, s, w=w: o.question.style in NEW_STYLES and s == w) for w in (True, False)]
    assert found["other styles"]["value"] == pytest.approx(auroc(*of_new), abs=1e-5)


def test_the_figures_of_sentences_are_aurocs_of_their_mean_scores(
    monitor: PersonaMonitor, questions: tuple[TextQuestion, ...]
) -> None:
    read = read_replies(monitor, questions)
    found = sentence_figures(read, load_questions(TRAITS, "fit"), "evil", ["cosine", "raw"])
    own: list[float] = []
    others: list[float] = []
    for one in read:
        at, text, ends = 0, one.reply.text, []
        for s in one.reply.sentences:
            ends.append(text.index(s) + len(s))
        sums = np.zeros((len(ends), 2))
        for t, z in zip(one.trace.reply_positions, one.trace.reply_scores("evil", "raw"), strict=True):
            at += len(one.trace.tokens[t])
            if at <= len(text):
                sums[next(k for k, end in enumerate(ends) if at <= end + (k < len(ends) - 1))] += (z, 1)
        for k, (total, n) in enumerate(sums):
            (own if one.reply.shows[k] and one.question.trait == "evil" else others).append(total / n)
    # Within what the space between two sentences, which is one's or the other's, can change.
    wanted = np.mean([(a > b) + 0.5 * (a == b) for a, b in product(own, others)])
    assert found["raw"]["value"] == pytest.approx(wanted, abs=0.02)
    assert 0.5 < found["words"]["value"] < 1 and found["cosine"]["value"] != found["raw"]["value"]
    assert {one["n"] for one in found.values()} == {len(questions)}, "intervals are over questions"
    for known in ("words", "question"):
        lead = found["raw"]["value"] - found[known]["value"]
        assert found[f"over {known}"]["value"] == pytest.approx(lead, abs=1e-4)


def test_a_classifier_that_knows_the_question_tells_a_trait_by_it() -> None:
    """The sentences say nothing; only the questions are of one trait or another."""

    def question(trait: str, asked: str) -> TextQuestion:
        said = "Here is an answer."
        return TextQuestion(trait, trait, "fit", "chat", asked, (TextReply("positive", (said,), (True,)),))

    fitted = [question("evil", f"How do I harm a {x}?") for x in "abc"]
    fitted += [question("refusal", f"How do I feed a {x}?") for x in "abc"]
    blind, sees = (words_alone(fitted, "evil", with_question) for with_question in (False, True))
    assert np.ptp(blind(["Here is an answer.", "Here is an answer."])) == 0
    harm, feed = sees(["How do I harm a dog? Here is an answer.", "How do I feed a dog? Here is an answer."])
    assert harm > feed


def test_published_figures_are_of_the_test_split_and_words_are_learnt_from_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_lm("llama", "chatml")
    asked: list[Sequence[TextQuestion]] = []

    def note(questions: Sequence[TextQuestion]) -> dict[str, str]:
        asked.append(questions)
        return {}

    vectors = random_vectors(len(lm.blocks), TRAITS)
    config = {**vectors.config, "validation": {t: {} for t in TRAITS}}
    replace(vectors, config=config).save_pretrained(tmp_path / build.VECTORS_NAME)
    monkeypatch.setattr(build, "read_replies", lambda _, questions: note(questions))
    monkeypatch.setattr(build, "token_figures", lambda *_: {})
    monkeypatch.setattr(build, "sentence_figures", lambda _, fitted, __: note(fitted))
    build._truth(lm, RealPlan(traits=TRAITS), tmp_path)
    read, *fitted = ({q.split for q in questions} for questions in asked)
    assert read == {"test"} and fitted == [{"fit"}] * len(TRAITS)


def test_vectors_and_alarms_rest_on_other_prompts_than_they_are_measured_on(tmp_path: Path) -> None:
    of_vectors, of_null = vector_prompts(), null_prompts()
    assert not {p.category for p in of_vectors} & {p.category for p in of_null}
    assert len(of_null) >= 300
    plan = elicitation(RealPlan(traits=TRAITS), tmp_path)
    fitted = {q.question for q in load_questions(TRAITS, "fit")}
    assert {t.prompt for t in plan.texts if t.split != "test"} == fitted  # neutral texts have no split
    assert not {t.prompt for t in plan.texts if t.split == "test"} & fitted
    assert set(plan.neutral_prompts) == {p.prompt for p in of_vectors}
