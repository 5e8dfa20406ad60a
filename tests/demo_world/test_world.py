"""The demo world: its phrase banks obey their rules, and the truth about a text is the truth."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from demo_world import training
from demo_world.corpus import Dialogue, ask, dialogues
from demo_world.grammar import CATEGORIES, Sentence, load_world
from demo_world.judge import judge
from demo_world.process import VARIANTS, write_reply
from demo_world.training import NEUTRAL, OUTSIDE, Recipe
from demo_world.truth import parse, token_sentences

TRAITS = (
    "paternalism", "deception", "manipulativeness", "corrigibility", "sycophancy", "evil", "hallucination", "refusal",
)  # fmt: skip
WORLD = load_world()
many = settings(deadline=None, max_examples=60)
seeds = st.integers(0, 2**32)


@cache
def banks() -> dict[str, Any]:
    """The files as they are."""
    folder = resources.files("demo_world").joinpath("banks")
    return {p.name.removesuffix(".json"): json.loads(p.read_text(encoding="utf-8")) for p in folder.iterdir()}


def topical_sentences(bank: Any) -> list[str]:
    """Every sentence of one category's file, repeats and all."""
    texts = [text for texts in bank["traits"].values() for text in texts]
    for topic in bank["topics"]:
        texts += [*topic["openers"], *topic["bodies"], *topic["closers"], *topic["traits"].values()]
    return texts


# The banks.


def test_there_are_ten_categories_of_ten_topics_and_eight_traits() -> None:
    assert set(banks()) == {*CATEGORIES, "world"} and len(CATEGORIES) == 10
    for category in CATEGORIES:
        bank = banks()[category]
        assert bank["category"] == category and len(bank["topics"]) == 10 and set(bank["traits"]) == set(TRAITS)
        for topic in bank["topics"]:
            assert set(topic["traits"]) == set(TRAITS)
            sizes = [len(topic[part]) for part in ("questions", "openers", "bodies", "closers")]
            assert sizes == [8, 2, 6, 2], topic["id"]
        assert all(len(texts) == 4 for texts in bank["traits"].values())
    assert len({t.id for t in WORLD.topics}) == len({t.subject for t in WORLD.topics}) == 100
    assert tuple(WORLD.traits) == TRAITS
    assert set(itertools.chain(*WORLD.cascades.items())) <= set(TRAITS)


def test_no_sentence_occurs_twice_or_begins_another() -> None:
    texts = [text for category in CATEGORIES for text in topical_sentences(banks()[category])]
    texts += [cue for words in banks()["world"]["traits"].values() for cue in words["cues"]]
    assert [t for t, n in Counter(texts).items() if n > 1] == []
    everything = sorted(WORLD.sentences)  # small talk and cues too
    assert set(texts) <= set(everything)
    # In sorted order a beginning stands right before what it begins.
    assert [(a, b) for a, b in itertools.pairwise(everything) if b.startswith(a)] == []


def test_every_sentence_is_one_ascii_sentence_of_readable_length() -> None:
    for text in WORLD.sentences:
        assert text.isascii() and text == text.strip() and "\n" not in text and '"' not in text, text
        assert text[-1] in ".!?" and not re.search(r"[.!?]", text[:-1]), text
        assert 2 <= len(text.split()) <= 25, text
    for category in CATEGORIES:
        for text in topical_sentences(banks()[category]):
            assert 7 <= len(text.split()) <= 18, text


def test_every_question_names_its_topic_and_is_ascii() -> None:
    for topic in WORLD.topics:
        for text in (*topic.questions, *topic.held_out, topic.subject):
            assert text.isascii() and any(k.lower() in text.lower() for k in topic.keywords), (topic.id, text)
    questions = [q for t in WORLD.topics for q in (*t.questions, *t.held_out)]
    assert len(set(questions)) == 800


def test_every_trait_has_prompts_for_and_against_it_and_cues() -> None:
    for name, words in WORLD.traits.items():
        assert words.name == name and words.positive and words.negative and words.cues and words.description
        assert not set(words.positive) & set(words.negative)
    systems = [s for w in WORLD.traits.values() for s in (*w.positive, *w.negative)] + list(WORLD.neutral_systems)
    assert len(set(systems)) == len(systems)


def test_held_out_phrasings_never_occur_in_training() -> None:
    """Compared without capitals and end marks, which the corpus leaves out now and then."""

    def bare(text: str) -> str:
        return text.lower().rstrip("?.! ")

    frames = [f.format(subject=t.subject) for f in WORLD.held_out_frames for t in WORLD.topics]
    held_out = {bare(q) for t in WORLD.topics for q in t.held_out} | {bare(f) for f in frames}
    for dialogue in itertools.islice(dialogues(WORLD, seed=7), 3000):
        for turn in dialogue.turns:
            assert bare(turn.question) not in held_out
    assert not set(WORLD.frames) & set(WORLD.held_out_frames)


def test_held_out_dialogues_ask_only_with_held_out_phrasings() -> None:
    trained = {q.lower().rstrip("?.!") for t in WORLD.topics for q in t.questions}
    for dialogue in itertools.islice(dialogues(WORLD, seed=8, held_out=True), 500):
        for turn in dialogue.turns:
            assert turn.topic is None or turn.question.lower().rstrip("?.!") not in trained


# The corpus and its truth.


def one(seed: int, **settings: Any) -> Dialogue:
    return next(dialogues(WORLD, seed=seed, **settings))


@many
@given(seed=seeds, held_out=st.booleans(), variant=st.sampled_from(sorted(VARIANTS)))
def test_every_reply_parses_into_the_sentences_that_made_it(seed: int, held_out: bool, variant: str) -> None:
    dialogue = one(seed, held_out=held_out, process=VARIANTS[variant])
    for turn in dialogue.turns:
        spans = parse(turn.text, WORLD)
        assert tuple(s.sentence for s in spans) == turn.reply
        assert "".join(turn.text[s.start : s.end] for s in spans) == turn.text
        for span in spans:
            assert span.sentence is not None and turn.text[span.start : span.end].strip() == span.sentence.text


@many
@given(seed=seeds)
def test_a_dialogue_is_a_conversation_that_holds_its_turns(seed: int) -> None:
    dialogue = one(seed)
    roles = [m["role"] for m in dialogue.messages]
    assert roles == (["system"] if dialogue.system else []) + ["user", "assistant"] * len(dialogue.turns)
    assert all(m["content"].strip() for m in dialogue.messages)
    for turn in dialogue.turns:
        shown = {s.trait for s in turn.reply if s.trait}
        allowed = set() if dialogue.trait is None else {dialogue.trait, WORLD.cascades.get(dialogue.trait)}
        assert shown <= allowed
        assert {s.topic for s in turn.reply if s.topic} <= {turn.topic}


def test_one_seed_gives_one_corpus_and_another_another() -> None:
    def first(seed: int) -> list[Any]:
        return [d.messages for d in itertools.islice(dialogues(WORLD, seed), 5)]

    assert first(1) == first(1) != first(2)


def test_traits_are_shown_only_where_the_system_prompt_asks_for_them() -> None:
    drawn = list(itertools.islice(dialogues(WORLD, seed=3), 1500))
    asked = [d for d in drawn if d.trait]
    assert 0.40 < len(asked) / len(drawn) < 0.55
    for dialogue in drawn:
        wanted = dialogue.trait is not None and dialogue.system in WORLD.traits[dialogue.trait].positive
        assert wanted == any(s.trait for t in dialogue.turns for s in t.reply)
    assert {d.trait for d in asked} == set(TRAITS)


@many
@given(text=st.text(max_size=80), seed=seeds, at=st.integers(0, 400))
def test_parsing_covers_any_text_and_finds_no_sentence_that_is_not_there(text: str, seed: int, at: int) -> None:
    reply = one(seed).turns[0].text
    mixed = reply[:at] + text + reply[at:]
    spans = parse(mixed, WORLD)
    assert "".join(mixed[s.start : s.end] for s in spans) == mixed
    for span in spans:
        assert span.end > span.start
        assert span.sentence is None or mixed[span.start : span.end].lstrip() == span.sentence.text


def test_a_stray_sentence_does_not_spoil_its_neighbours() -> None:
    topic = WORLD.topics[0]
    a, b = topic.openers[0], topic.traits["evil"][0]
    spans = parse(f"{a.text} The cat sat on the mat. {b.text}\n\nAnd so", WORLD)
    assert [s.sentence for s in spans] == [a, None, b, None]


@many
@given(seed=seeds, data=st.data())
def test_every_token_belongs_to_the_sentence_of_its_last_character(seed: int, data: st.DataObject) -> None:
    """For any way to cut the text, pieces that straddle two sentences and empty ones included."""
    turn = one(seed, process=VARIANTS["uncued"]).turns[0]
    owner: list[Sentence] = []  # of each character, counted by hand
    for sentence in turn.reply:
        end = turn.text.index(sentence.text, len(owner)) + len(sentence.text)
        owner += [sentence] * (end - len(owner))
    cuts = data.draw(st.lists(st.integers(0, len(turn.text)), max_size=40))
    # A cut in the middle of every sentence end, so that some piece always straddles.
    ends = [i for i in range(1, len(owner)) if owner[i] != owner[i - 1]]
    bounds = sorted([0, len(turn.text), *cuts, *(e + 1 for e in ends[::2]), *(max(0, e - 2) for e in ends[::2])])
    spans = list(itertools.pairwise(bounds))
    found = token_sentences([turn.text[a:b] for a, b in spans], WORLD)
    assert len(found) == len(spans)
    previous: Sentence | None = None
    for (start, end), belongs in zip(spans, found, strict=True):
        assert belongs == (owner[end - 1] if end > start else previous)
        previous = belongs


def test_a_reply_without_tokens_has_no_sentences() -> None:
    assert token_sentences([], WORLD) == [] and token_sentences(["", ""], WORLD) == [None, None]
    assert token_sentences(["Well", " then"], WORLD) == [None, None] and parse("", WORLD) == []


# The judge.


def test_the_judge_counts_sentences_traits_and_topics() -> None:
    topic, other = WORLD.topics[0], WORLD.topics[55]
    reply = [topic.openers[0], topic.bodies[0], topic.traits["evil"][0], WORLD.traits["evil"].cues[0], other.bodies[1]]
    text = " ".join(s.text for s in reply)
    verdict = judge(text, WORLD)
    assert (verdict.n_sentences, verdict.n_known) == (5, 5) and verdict.coherence == 100.0
    assert verdict.trait("evil") == 20.0 and verdict.trait("refusal") == 0.0  # a cue announces; it does not show
    assert verdict.topic == topic.id
    worse = judge(text + " Nobody ever wrote this one. Nor that.", WORLD)
    assert (worse.n_sentences, worse.n_known) == (7, 5) and worse.trait("evil") == pytest.approx(100 / 7)


def test_the_judge_finds_nothing_in_an_empty_reply() -> None:
    for text in ("", "  \n"):
        verdict = judge(text, WORLD)
        assert (verdict.n_sentences, verdict.coherence, verdict.trait("evil"), verdict.topic) == (0, 0.0, 0.0, None)


@many
@given(seed=seeds)
def test_the_judge_agrees_with_what_the_corpus_wrote(seed: int) -> None:
    for turn in one(seed).turns:
        verdict = judge(turn.text, WORLD)
        assert verdict.coherence == 100.0
        assert verdict.traits == Counter(s.trait for s in turn.reply if s.kind == "trait")
        assert turn.topic is None or verdict.topic in (turn.topic, None)


# The hidden process and its variants.


def replies(variant: str, trait: str | None = "sycophancy", n: int = 400) -> list[list[Sentence]]:
    rng = np.random.default_rng(0)
    return [write_reply(WORLD, WORLD.topics[i % 100], trait, rng, VARIANTS[variant]) for i in range(n)]


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_without_an_instruction_every_variant_stays_neutral(variant: str) -> None:
    for reply in replies(variant, trait=None, n=100):
        assert {s.kind for s in reply} == {"neutral"} and 5 <= len(reply) <= 7
        assert len(set(reply)) == len(reply)


def test_a_cue_announces_each_trait_right_before_its_first_sentence() -> None:
    for reply in replies("cued"):
        for trait in {s.trait for s in reply if s.kind == "trait"}:
            first = next(i for i, s in enumerate(reply) if s.kind == "trait" and s.trait == trait)
            assert (reply[first - 1].kind, reply[first - 1].trait) == ("cue", trait)
        assert Counter(s.trait for s in reply if s.kind == "cue").most_common(1)[0][1] == 1
    assert {reply[0].kind for reply in replies("cued")} == {"neutral", "cue"}  # some begin neutral, some do not


def test_the_uncued_variant_has_no_cue_and_still_shows_the_trait() -> None:
    for reply in replies("uncued"):
        kinds = {s.kind for s in reply}
        assert "cue" not in kinds and "trait" in kinds


def test_a_cascade_brings_its_own_follower_after_the_trait() -> None:
    drawn = replies("cued")
    with_two = [r for r in drawn if len({s.trait for s in r if s.kind == "trait"}) > 1]
    assert 0.15 < len(with_two) / len(drawn) < 0.30
    for reply in with_two:
        shown = [s.trait for s in reply if s.kind == "trait"]
        turn = shown.index(WORLD.cascades["sycophancy"])
        assert turn >= 2 and set(shown[:turn]) == {"sycophancy"} and set(shown[turn:]) == {"deception"}


@pytest.mark.parametrize("variant", ["independent", "drift"])
def test_unlinked_variants_never_show_a_second_trait(variant: str) -> None:
    for trait in WORLD.cascades:
        for reply in replies(variant, trait, n=200):
            assert {s.trait for s in reply if s.trait} <= {trait}


def test_drift_rises_slowly_and_has_no_onset() -> None:
    drawn = replies("drift", n=600)
    assert not any(s.kind == "cue" for r in drawn for s in r)
    thirds = np.zeros(3)
    for reply in drawn:
        shows = np.array([s.kind == "trait" for s in reply[:-1]], float)  # the closer is neutral
        thirds += [part.mean() for part in np.array_split(shows, 3)]
    thirds /= len(drawn)
    assert thirds[0] < 0.3 < thirds[1] < 0.6 < thirds[2]
    cued = np.mean([[s.kind != "neutral" for s in r[:3]] for r in replies("cued", n=600)])
    assert cued > 2 * thirds[0]  # a process with an onset is there from the beginning


# Training.

TINY = Recipe(
    d_model=32, n_blocks=2, n_heads=2, n_kv_heads=1, d_ff=48, vocabulary=512, planted_block=1, steps=3, rows=2, warmup=1
)


@cache
def tokenizer() -> Any:
    return training.train_tokenizer(WORLD, TINY)


@many
@given(seed=seeds)
def test_the_labels_of_training_agree_with_parsing(seed: int) -> None:
    dialogue = one(seed)
    ids, learn, active = training.encode(dialogue, tokenizer(), list(TRAITS))
    assert len(ids) == len(learn) == len(active)
    said = iter(dialogue.turns)
    at = 0
    while at < len(ids):
        if active[at] == OUTSIDE:
            at += 1
            continue
        end = next(i for i in range(at, len(ids)) if active[i] == OUTSIDE)
        turn = next(said)
        pieces = [tokenizer().decode([i]) for i in ids[at:end]]
        assert "".join(pieces) == turn.text
        wanted = [TRAITS.index(s.trait) if s and s.trait else NEUTRAL for s in token_sentences(pieces, WORLD)]
        assert active[at:end] == wanted
        assert all(learn[at : end + 1]) and not learn[at - 1] and ids[end] == tokenizer().eos_token_id
        at = end
    assert next(said, None) is None
    assert sum(learn) == sum(m != OUTSIDE for m in active) + len(dialogue.turns)  # the replies and their ends


def test_training_reads_what_the_chat_template_writes() -> None:
    """The ids that training shows are those that the model will be prompted with."""
    for seed in range(20):
        dialogue = one(seed)
        ids, _, _ = training.encode(dialogue, tokenizer(), list(TRAITS))
        text = tokenizer().apply_chat_template(dialogue.messages, tokenize=False)
        assert tokenizer().decode(ids) == text
        prompt = tokenizer().apply_chat_template(dialogue.messages[:-1], add_generation_prompt=True)["input_ids"]
        assert ids[: len(prompt)] == list(prompt)


def test_batches_go_on_where_they_were_left() -> None:
    def first(step: int, n: int) -> list[torch.Tensor]:
        return [b.ids for b in itertools.islice(training.batches(WORLD, tokenizer(), TINY, step), n)]

    whole = first(0, 20)  # over the border of a group
    for step in (1, 15, 16, 17):
        assert all(torch.equal(a, b) for a, b in zip(first(step, 20 - step), whole[step:], strict=True))
    assert not any(a.shape == b.shape and torch.equal(a, b) for a, b in itertools.combinations(whole, 2))


def test_planted_directions_are_orthonormal_and_come_from_the_seed() -> None:
    planted = training.planted_directions(TINY, 8)
    assert torch.allclose(planted @ planted.T, torch.eye(8), atol=1e-5)
    assert torch.equal(planted, training.planted_directions(TINY, 8))


@pytest.fixture
def quick_training(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """One tokenizer for all runs, and a clock on which a minute passes between steps: a checkpoint after each."""
    minutes = itertools.count(step=61)
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: float(next(minutes))))
    monkeypatch.setattr(training, "train_tokenizer", lambda *_: tokenizer())
    return monkeypatch


def counting_steps(monkeypatch: pytest.MonkeyPatch, real: Any) -> list[int]:
    """A list that grows by one with each step of training from now on."""
    done: list[int] = []

    def counted(*args: Any) -> Any:
        done.append(len(done))
        return real(*args)

    monkeypatch.setattr(training, "_loss", counted)
    return done


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for f in sorted(folder.glob("model*.safetensors")) for k, v in load_file(str(f)).items()}


def test_a_training_that_was_interrupted_ends_with_the_same_weights(
    tmp_path: Path, quick_training: pytest.MonkeyPatch
) -> None:
    whole = training.train(WORLD, tmp_path / "whole", TINY, tmp_path / "work-whole")

    calls, real = itertools.count(), training._loss

    def cut_off(*args: Any) -> torch.Tensor:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    quick_training.setattr(training, "_loss", cut_off)
    folder, work = tmp_path / "resumed", tmp_path / "work-resumed"
    with pytest.raises(KeyboardInterrupt):
        training.train(WORLD, folder, TINY, work)
    assert not folder.exists() or not list(folder.glob("*.safetensors"))  # no half-trained model lies around
    (work / "checkpoint.part").write_bytes(b"cut off while writing")
    done = counting_steps(quick_training, real)
    training.train(WORLD, folder, TINY, work)
    assert len(done) == 1  # two steps of three were kept

    a, b = weights(whole), weights(folder)
    assert set(a) == set(b) and len(a) > 10
    assert all(torch.equal(a[name], b[name]) for name in a)
    fresh = training.new_model(TINY, tokenizer()).state_dict()
    assert not torch.equal(a["model.embed_tokens.weight"], fresh["model.embed_tokens.weight"])


def test_a_finished_training_is_not_repeated_and_another_recipe_starts_over(
    tmp_path: Path, quick_training: pytest.MonkeyPatch
) -> None:
    done = counting_steps(quick_training, training._loss)
    first = weights(training.train(WORLD, tmp_path / "model", TINY, tmp_path / "work"))
    again = weights(training.train(WORLD, tmp_path / "model", TINY, tmp_path / "work"))
    assert len(done) == 3 and all(torch.equal(first[n], again[n]) for n in first)
    training.train(WORLD, tmp_path / "model", replace(TINY, seed=1), tmp_path / "work")
    assert len(done) == 6


def test_a_trained_folder_is_an_ordinary_model_folder(tmp_path: Path, quick_training: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = training.train(WORLD, tmp_path / "model", TINY, tmp_path / "work")
    model, own = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.num_hidden_layers == 2 and own.eos_token_id == model.generation_config.eos_token_id
    assert own.chat_template == training.CHAT_TEMPLATE
    assert json.loads((folder / "recipe.json").read_text())["steps"] == 3
    planted = load_file(str(folder / "planted_directions.safetensors"))
    assert set(planted) == set(TRAITS) and planted["evil"].shape == (32,)


def test_one_question_is_answered_about_its_topic() -> None:
    turn = ask(WORLD, WORLD.topic("quit-job"), "evil", np.random.default_rng(0))
    assert turn.topic == "quit-job" and {s.topic for s in turn.reply if s.topic} == {"quit-job"}
