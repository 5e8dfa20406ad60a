"""How the demo's figures are made: splits that do not leak, labels that are right, stages that resume."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from demo_world.build import DemoPlan
from demo_world.definitions import EVALUATION, EXTRACTION, N_TOPICS, topics_at, trait_definitions
from demo_world.grammar import load_world
from demo_world.judge import TruthJudge
from demo_world.stages import Stages
from demo_world.truth_labels import LabelledReply, auroc_statistics, label_replies
from persona_core.errors import UnknownTrait
from persona_core.judging.judge import COHERENCE, Question, Score

WORLD = load_world()
DEFINITIONS = trait_definitions(WORLD)


def test_extraction_and_evaluation_share_no_topic_and_the_halves_of_the_evaluation_share_none() -> None:
    assert sorted(EXTRACTION + EVALUATION) == list(range(N_TOPICS))
    topic_of = {q: t.id for t in WORLD.topics for q in (*t.questions, *t.held_out)}
    for trait in DEFINITIONS:
        questions = trait.evaluation_questions
        parts = (trait.extraction_questions, questions[: len(questions) // 2], questions[len(questions) // 2 :])
        asked = [{topic_of[q] for q in part} for part in parts]
        assert len(asked[0]) == 50 and len(asked[1]) == len(asked[2]) == 25
        assert not (asked[0] & asked[1] or asked[0] & asked[2] or asked[1] & asked[2])


def test_evaluation_asks_in_phrasings_that_training_never_showed() -> None:
    held_out = {q for t in WORLD.topics for q in t.held_out}
    for trait in DEFINITIONS:
        assert set(trait.evaluation_questions) <= held_out and not set(trait.extraction_questions) & held_out
        assert trait.positive == WORLD.traits[trait.name].positive


def test_topics_are_in_order_of_position() -> None:
    found = topics_at(WORLD, (2, 7))
    assert [WORLD.topics.index(t) % N_TOPICS for t in found] == [2] * 10 + [7] * 10


def test_the_truth_judge_counts_sentences_and_gives_no_score_to_nothing() -> None:
    topic = WORLD.topic("quit-job")
    answer = f"{topic.openers[0].text} {topic.traits['evil'][0].text}"
    judge = TruthJudge(WORLD)

    def ask(trait: str, text: str) -> Score:
        ((_, score),) = judge.score([Question("0", trait, "", "", text)], progress=False)
        return score

    assert ask("evil", answer) == Score(50.0, "truth") and ask("refusal", answer) == Score(0.0, "truth")
    assert ask(COHERENCE, answer + " Blah blah.").value == pytest.approx(200 / 3)
    assert ask("evil", " ").value is None
    with pytest.raises(UnknownTrait):
        ask("verbosity", answer)


def test_the_plan_matches_the_card() -> None:
    requests = DemoPlan().elicitation(DEFINITIONS).requests()
    for trait in DEFINITIONS:
        own = [r for r in requests if r.trait == trait.name and r.side == "positive"]
        assert sum(r.split == "extraction" for r in own) == sum(r.split == "evaluation" for r in own) == 100
    assert sum(r.split == "neutral" for r in requests) == 450


def made_up(trait: str) -> Any:
    """A trace stand-in: cue, trait, neutral and another trait's sentence, one token a word."""
    words, other = WORLD.traits[trait], next(t for t in WORLD.traits if t != trait)
    topic = WORLD.topics[0]
    sentences = [topic.openers[0], words.cues[0], topic.traits[trait][0], topic.traits[other][0]]
    text = " ".join(s.text for s in sentences)
    tokens = [piece for word in text.split(" ") for piece in (" " + word,)]
    tokens[0] = tokens[0][1:]
    n = len(tokens)
    trace = SimpleNamespace(
        reply_positions=list(range(n)), n_prompt=0, n_tokens=n, roles=("assistant",) * n, tokens=tuple(tokens),
        scores=lambda trait, kind, block: np.arange(n, dtype=np.float32),
    )  # fmt: skip
    return trace, [len(s.text.split()) for s in sentences]


def test_labels_tell_cue_trait_neutral_and_other_traits_apart() -> None:
    trace, (neutral, cue, own, _) = made_up("evil")
    (found,) = label_replies([("evil", trace)], WORLD, "evil", block=0)
    assert found.requested and found.neutral.nonzero()[0].tolist() == list(range(neutral))
    assert found.cue.nonzero()[0].tolist() == list(range(neutral, neutral + cue))
    assert found.shows.nonzero()[0].tolist() == list(range(neutral + cue, neutral + cue + own))


def replies_of(score: Any, n: int = 30) -> list[LabelledReply]:
    """For half the replies the trait is requested: three neutral tokens, a cue token, four of the trait."""
    rng, marked = np.random.default_rng(0), []
    for i in range(n):
        asked = i % 2 == 0
        shows = np.array([0, 0, 0, 0, 1, 1, 1, 1], bool) & asked
        cue = np.array([0, 0, 0, 1, 0, 0, 0, 0], bool) & asked
        neutral = ~shows & ~cue
        marked.append(LabelledReply(score(shows, cue, asked) + 1e-3 * rng.normal(size=8), shows, cue, neutral, asked))
    return marked


def test_a_score_that_only_knows_the_prompt_is_unmasked_within_replies() -> None:
    figures = auroc_statistics(replies_of(lambda shows, _cue, asked: np.full(8, float(asked))))
    assert figures["token_auroc"]["value"] > 0.8
    assert 0.35 < figures["token_auroc_within_reply"]["value"] < 0.65
    assert abs(figures["system_prompt_alone"] - figures["token_auroc"]["value"]) < 0.08


def test_a_score_that_knows_the_trait_is_perfect_and_the_cue_counts_only_where_it_says_so() -> None:
    marked = replies_of(lambda shows, cue, _asked: shows + 2.0 * cue)
    figures = auroc_statistics(marked)
    assert figures["token_auroc"]["value"] == figures["token_auroc_within_reply"]["value"] == 1
    assert figures["token_auroc_cue_as_negative"]["value"] < 0.95
    assert figures["n_replies_with_the_trait"] == 15


def test_a_stage_is_skipped_until_something_before_it_changes(tmp_path: Path) -> None:
    ran: list[str] = []

    def go(settings: dict[str, int]) -> list[str]:
        ran.clear()
        stages = Stages(tmp_path)
        for name in ("a", "b", "c"):
            stages.run(name, settings[name], lambda name=name: ran.append(name))  # type: ignore[misc]
        return list(ran)

    assert go({"a": 1, "b": 1, "c": 1}) == ["a", "b", "c"]
    assert go({"a": 1, "b": 1, "c": 1}) == []
    assert go({"a": 1, "b": 2, "c": 1}) == ["b", "c"]
    (tmp_path / "a.done").unlink()
    assert go({"a": 1, "b": 2, "c": 1}) == ["a", "b", "c"]


def test_a_stage_that_fails_is_done_again(tmp_path: Path) -> None:
    def fails() -> None:
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        Stages(tmp_path).run("a", 1, fails)
    ran: list[str] = []
    Stages(tmp_path).run("a", 1, lambda: ran.append("a"))
    assert ran == ["a"]
