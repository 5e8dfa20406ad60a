"""The comparison of vectors made by instruction with those from texts, against plain loops and the monitor's scores."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from benchmarks.instructed_vectors import InstructedPlan, kept
from benchmarks.vector_comparison import InstructedReplies, aurocs, cosines, random_limits, token_scores
from persona_core.elicitation.elicit import elicit
from persona_core.elicitation.store import ElicitationRequest, Reply, ReplyScore, ReplyStore
from persona_core.elicitation.traits import load_traits
from persona_core.inference.sampling import Sampling
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.monitor.transcripts import written_by
from persona_core.vectors.extraction import keep
from tests.support.tiny import random_vectors, specific_vectors, tiny_lm


def share_of_pairs(scores: np.ndarray, own: np.ndarray) -> float:
    return float(np.mean([(a > b) + 0.5 * (a == b) for a, b in product(scores[own], scores[~own])]))


@pytest.mark.parametrize(("shared", "n_questions"), [(True, 6), (False, 12)])
def test_a_mean_auroc_is_over_traits_and_its_interval_over_all_their_questions(shared: bool, n_questions: int) -> None:
    rng = np.random.default_rng(0)
    parts = {}
    for name, gain in (("evil", 1.0), ("refusal", 0.2)):
        own = rng.random(30) < 0.5
        parts[name] = (rng.normal(size=30).round(1) + gain * own, own, np.arange(30) % 6)
    found = aurocs(parts, shared)
    each = {name: share_of_pairs(scores, own) for name, (scores, own, _) in parts.items()}
    assert {t: f["value"] for t, f in found["by_trait"].items()} == pytest.approx(each, abs=1e-5)
    assert found["mean"]["value"] == pytest.approx(np.mean(list(each.values())), abs=1e-5)
    assert (found["mean"]["n"], found["by_trait"]["evil"]["n"]) == (n_questions, 6)


def test_nothing_to_rank_is_no_figure() -> None:
    assert aurocs({}, True) == {"mean": None, "by_trait": {}}
    one_side = (np.arange(4.0), np.ones(4, bool), np.arange(4))
    assert aurocs({"evil": one_side}, True) == {"mean": None, "by_trait": {"evil": None}}


def test_the_limit_of_chance_for_a_mean_is_that_of_means() -> None:
    rng = np.random.default_rng(1)
    found = {
        "evil": rng.permutation(np.linspace(0.5, 0.7, 101)),
        "refusal": rng.permutation(np.linspace(0.5, 0.9, 101)),
    }
    limits = random_limits(found)
    assert limits["by_trait"] == {"evil": 0.69, "refusal": 0.88}
    means = sorted((a + b) / 2 for a, b in zip(*found.values(), strict=True))
    assert limits["mean"] == pytest.approx(means[95], abs=1e-4)
    assert limits["mean"] < (0.69 + 0.88) / 2


def test_each_direction_is_held_against_its_counterpart_at_its_own_block() -> None:
    one = {"a": np.array([1.0, 0.0, 0.0]), "b": np.array([0.0, 2.0, 0.0]), "c": np.array([0.0, 0.0, 1.0])}
    same = {"a": one["a"], "b": one["b"], "c": np.array([1.0, 0.0, 1.0])}
    turned = {name: -direction for name, direction in same.items()}
    found = cosines(one, {3: same, 7: turned}, {"a": 3, "b": 7, "c": 3})
    assert found["by_trait"] == pytest.approx({"a": 1, "b": -1, "c": 0.7071}, abs=1e-4)
    assert found["mean"] == pytest.approx(0.2357, abs=1e-4)
    assert found["others"] == pytest.approx(0.7071 / 6, abs=1e-4), "only a with the counterpart of c"
    assert found["more"]["value"] == pytest.approx(found["mean"] - found["others"], abs=1e-4)


def test_what_the_judge_keeps_is_what_the_filter_keeps() -> None:
    def reply(index: int, side: str) -> Reply:
        request = ElicitationRequest(index, "extraction", "evil", side, 0, index, 0, "Be so.", "Why?")
        return Reply(request, "Because.", (1, 2), 2, "eos", index, "m")

    replies = [reply(i, "positive" if i < 6 else "negative") for i in range(12)]
    values = [(50, 50), (49, 80), (90, 49), (None, 90), (80, None), (100, 100)]
    values += [(50, 50), (49, 80), (0, 49), (None, 90), (0, None), (20, 100)]
    scores = {i: ReplyScore(i, t, c, "text") for i, (t, c) in enumerate(values)}
    ours, filtered = kept(replies, scores), keep("evil", replies, scores).counts
    assert ours["positive"] == {"judged": 6, "no_score": 2, "incoherent": 1, "off_side": 1, "kept": 2}
    for side, counts in ours.items():
        assert counts.pop("judged") == filtered[side]["written"]
        assert counts.items() <= filtered[side].items()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> ReplyStore:
    lm = tiny_lm("llama", "chatml")
    plan = InstructedPlan(
        load_traits("evil"), Sampling(max_new_tokens=6), rollouts=1, evaluation_rollouts=1, pairs_per_question=1
    )
    with ReplyStore(tmp_path_factory.mktemp("written")) as store:
        assert not elicit(lm, plan, store, progress=False)
    return store


def test_neutral_replies_answer_no_question_that_the_vectors_are_measured_on(written: ReplyStore) -> None:
    (trait,) = load_traits("evil")
    assert {r.request.user for r in written.replies(split="neutral")} == set(trait.extraction_questions)
    assert len(written.replies()) == 100


def test_instructed_replies_are_read_as_the_monitor_reads_them(written: ReplyStore) -> None:
    lm = tiny_lm("llama", "chatml")
    vectors, block = random_vectors(len(lm.blocks), ("evil",)), 1
    monitor = PersonaMonitor(lm, vectors, blocks="all")
    replies = InstructedReplies.of(lm, written, "evil", block)
    own = [r for r in written.replies(split="evaluation") if r.n_tokens]
    assert replies.positive.tolist() == [r.request.side == "positive" for r in own]
    assert replies.question.tolist() == [r.request.question for r in own]
    for read, first in (("states", 0), ("alone", 1)):  # of the messages, the first is the instruction
        texts = [written_by(lm, r.request.messages[first:], r.answer_ids) for r in own]
        traces = monitor.read_batch(texts, progress=False)
        wanted = [trace.scores("evil", kind="raw", block=block)[text.n_prompt :].mean()
                  for trace, text in zip(traces, texts, strict=True)]  # fmt: skip
        assert replies.along(vectors, "evil", block, read) == pytest.approx(wanted, rel=2e-3, abs=2e-3)


def test_scores_of_tokens_are_those_of_the_monitor() -> None:
    lm = tiny_lm("llama", "chatml")
    vectors, block = specific_vectors(len(lm.blocks)), 1
    trace = PersonaMonitor(lm, vectors, blocks="all").read(
        [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because it rained all night."}]
    )
    directions = {t: vectors.reading_direction(t, block).numpy() for t in vectors.traits}
    basis = np.linalg.pinv(np.stack(list(directions.values())))  # states with just these projections
    raw = np.stack([trace.scores(t, kind="raw", block=block) for t in vectors.traits])
    states = (basis @ raw).T
    for trait in vectors.traits:
        found = token_scores(vectors, states, trait, block)
        assert found["z"] == pytest.approx(raw[vectors.traits.index(trait)], rel=1e-3, abs=1e-3)
        assert found["specific"] == pytest.approx(trace.scores(trait, kind="specific", block=block), rel=1e-2, abs=1e-2)
