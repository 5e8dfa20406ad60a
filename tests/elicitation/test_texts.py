"""Labelled texts: what a file may hold, how its prompts are split, and that the model reads each reply in its place."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from persona_core.cli.estimate import print_estimate
from persona_core.elicitation.labelled_texts import LabelledText, load_texts
from persona_core.elicitation.store import ReplyStore
from persona_core.elicitation.stored_states import TOKENS
from persona_core.elicitation.texts import GIVEN, read_texts, texts_plan
from persona_core.errors import CorruptFile, NotFound, SettingError
from persona_core.inference.pooling import parse_positions
from persona_core.inference.prefill import read_pooled
from persona_core.inference.sampling import Sampling
from persona_core.judging.labels import label_replies
from persona_core.pipeline import Settings, make_vectors, validate_vectors
from persona_core.vectors.stored_replies import kept_replies, sides
from persona_core.vectors.whitening import MIN_SHRINKAGE
from tests.elicitation.test_elicit import trait
from tests.support.tiny import tiny_lm

SAMPLING = Sampling(max_new_tokens=6, temperature=1.0)


def line(user: str, reply: str, label: Any, name: str | None = "candour", *before: dict[str, str]) -> dict[str, Any]:
    messages = [*before, {"role": "user", "content": user}, {"role": "assistant", "content": reply}]
    return {"messages": messages, "label": label} | ({} if name is None else {"trait": name})


def lines(n: int = 8, name: str = "candour") -> list[dict[str, Any]]:
    """Two replies to each prompt, one of each side; all positive ones come first, as a sorted file has them."""
    return [
        line(f"What about {i}?", f"{'Plainly' if side == 'positive' else 'Perhaps'} {i}.", side, name)
        for side in ("positive", "negative")
        for i in range(n)
    ]


def written(path: Path, found: list[Any]) -> Path:
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in found))
    return path


def texts(tmp_path: Path, found: list[Any]) -> tuple[LabelledText, ...]:
    return load_texts(written(tmp_path / "labelled.jsonl", found))


def test_a_file_gives_its_texts_in_order(tmp_path: Path) -> None:
    found = texts(tmp_path, [line("Hi", "Yo", "positive"), line("Hi", "No", False), line("Hi", "Ok", "neutral", None)])
    assert [(t.label, t.trait, t.messages[-1]["content"]) for t in found] == [
        ("positive", "candour", "Yo"), ("negative", "candour", "No"), ("neutral", None, "Ok"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (line("Hi", "Yo", "high"), "'label' is 'high'; expected positive, negative or neutral"),
        (line("Hi", "Yo", 1), "'label' is 1"),
        (line("Hi", "Yo", ["positive"]), "'label' is"),
        (line("Hi", "Yo", "positive", None), "'trait' is missing"),
        (line("Hi", " ", "positive"), "the reply is empty"),
        ({**line("Hi", "Yo", "positive"), "score": 3}, "unknown field 'score'"),
        ({**line("Hi", "Yo", "positive"), "messages": "Hi"}, "'messages' is not a list"),
        ({**line("Hi", "Yo", "positive"), "messages": [{"role": "user", "content": "Hi"}]}, "ends with the assistant"),
        ({**line("Hi", "Yo", "positive"), "messages": [{"role": "user"}, 3]}, "a message is an object"),
        ("{", "not valid JSON"),
        ({**line("Hi", "Yo", "positive"), "shows": "Yo"}, "'shows' is not a list"),
        ({**line("Hi", "Yo", "positive"), "shows": ["Yo", " "]}, "'shows' is not a list"),
        ({**line("Hi", "Yo", "negative"), "shows": ["Yo"]}, "'shows' belongs to positive texts; this one is negative"),
        ({**line("Hi", "Yo", "positive"), "shows": ["Ya"]}, "'Ya' occurs 0 times"),
        ({**line("Hi", "Yo. Yo.", "positive"), "shows": ["Yo."]}, "'Yo.' occurs 2 times"),
        (
            {**line("Hi", "So. I say what I think! No?", "positive"), "shows": ["I say what I thing!"]},
            "must occur once. Copy it from the reply: 'I say what I think!'",
        ),
    ],
)
def test_a_faulty_line_is_named(tmp_path: Path, bad: Any, says: str) -> None:
    with pytest.raises(CorruptFile, match=says) as raised:
        texts(tmp_path, [line("Hi", "Yo", "positive"), bad])
    assert "line 2" in str(raised.value)
    with pytest.raises(NotFound, match=r"nowhere\.jsonl"):
        load_texts(tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize("seed", range(5))
def test_a_prompt_is_in_one_split_and_every_split_has_both_sides(tmp_path: Path, seed: int) -> None:
    plan = texts_plan(texts(tmp_path, [*lines(8), *lines(9, "malice")]), seed=seed)
    for one in plan.traits:
        requests = [r for r in plan.requests() if r.trait == one.name]
        half = (len(one.evaluation_questions) + 1) // 2
        splits: dict[str, set[tuple[str, str]]] = {"extraction": set(), "choice": set(), "report": set()}
        for r in requests:
            part = r.split if r.split == "extraction" else "choice" if r.question < half else "report"
            splits[part].add((r.user, r.side))
            questions = one.extraction_questions if r.split == "extraction" else one.evaluation_questions
            assert questions[r.question] == r.user
        users = [{user for user, _ in found} for found in splits.values()]
        assert sum(map(len, users)) == len(set.union(*users)) == len({r.user for r in requests})
        assert all({side for _, side in found} == {"positive", "negative"} for found in splits.values())
        assert len(users[0]) >= len(users[1]) >= len(users[2]) >= 2


def test_planning_takes_time_in_proportion_to_the_number_of_texts() -> None:
    """Each prompt is looked at a few times, never once for every other one."""
    looks = 0

    class Prompt(str):
        __slots__ = ()

        def __hash__(self) -> int:
            nonlocal looks
            looks += 1
            return str.__hash__(self)

        def __eq__(self, other: object) -> bool:
            nonlocal looks
            looks += 1
            return str.__eq__(self, other)

    def text(i: int, label: str, name: str | None = "candour") -> LabelledText:
        said = ({"role": "user", "content": Prompt(f"What about {i}?")}, {"role": "assistant", "content": "So."})
        return LabelledText(said, label, name)

    n = 400
    found = [text(i, side) for i in range(n) for side in ("positive", "negative")]
    plan = texts_plan([*found, *(text(i, "neutral", None) for i in range(n))])
    assert len(plan.requests()) == 3 * n
    assert looks < 100 * n


def test_sides_with_prompts_of_their_own_are_split_alike(tmp_path: Path) -> None:
    apart = [line(f"{side} {i}?", f"So {i}.", side) for side in ("positive", "negative") for i in range(8)]
    plan = texts_plan(texts(tmp_path, apart))
    for split in ("extraction", "evaluation"):
        sides = [r.side for r in plan.requests() if r.split == split]
        assert sides.count("positive") == sides.count("negative") == 4


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (lines(3), "3 positive to 3 prompts, 3 negative to 3 prompts"),
        ([line("Hi", f"Yo {i}", i % 2 == 0) for i in range(20)], "10 positive to 1 prompts"),
        ([x for x in lines(8) if x["label"] == "positive"], "0 negative"),
        (lines(5), "Its validation prompts have 1 positive and 1 negative"),
        ([line("Hi", "Yo", "neutral", None)], "all neutral"),
        ([*lines(8), line("And you?", "Plainly so.", "positive", "candor")], r"1 positive to 1 prompts.* 'candour'\?"),
    ],
)
def test_too_few_texts_are_refused_with_the_counts(tmp_path: Path, found: list[Any], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        texts_plan(texts(tmp_path, found))


def test_every_text_is_read_in_its_place(tmp_path: Path) -> None:
    lm = tiny_lm("llama", "chatml")
    turns = [{"role": "system", "content": "Be brief."}, *({"role": r, "content": r} for r in ("user", "assistant"))]
    found = texts(tmp_path, [*lines(), line("And then?", "Then this.", True, "candour", *turns)])
    plan = texts_plan(found, sampling=SAMPLING, batch_size=3)
    with ReplyStore(tmp_path / "out") as store:
        assert read_texts(lm, plan, store, progress=False) == []
        replies = [r for r in store.replies() if r.request.trait]
        assert [r.text for r in replies] == [t.messages[-1]["content"] for t in found]
        assert [r.request.messages for r in replies] == [list(t.messages[:-1]) for t in found]
        states = store.states(replies).block(1)
        neutral = store.replies(split="neutral")
    with ReplyStore(tmp_path / "out") as store:
        assert [r for r in store.replies() if r.request.trait] == replies  # as stored
    encoded = [lm.tokenizer(t.messages[-1]["content"], add_special_tokens=False).input_ids for t in found]
    rows = [(*lm.chat.render(t.messages[:-1]).token_ids, *ids) for t, ids in zip(found, encoded, strict=True)]
    starts = [len(lm.chat.render(t.messages[:-1]).token_ids) for t in found]
    means, _ = read_pooled(lm, rows, starts, parse_positions(["reply_mean"]))
    np.testing.assert_allclose(states, means[:, 0, 1], rtol=2e-3, atol=1e-4)
    # Without neutral texts the model answers the prompts itself.
    assert {r.request.user for r in neutral} == {t.messages[-2]["content"] for t in found}
    assert all(r.writer == lm.writer_name and r.n_tokens for r in neutral)


def test_neutral_texts_are_the_null_and_nothing_is_written(tmp_path: Path) -> None:
    found = texts(tmp_path, [*lines(), *(line(f"How is {i}?", "It is.", "neutral", None) for i in range(3))])
    with ReplyStore(tmp_path / "out") as store:
        read_texts(tiny_lm("llama", "chatml"), texts_plan(found, sampling=SAMPLING), store, progress=False)
        assert [r.text for r in store.replies(split="neutral")] == ["It is."] * 3
        assert len(store.replies()) == len(found)


def test_the_model_answers_neutral_prompts_beside_the_neutral_texts(tmp_path: Path) -> None:
    found = texts(tmp_path, [*lines(), line("How is it?", "It is.", "neutral", None)])
    lm, prompts = tiny_lm("llama", "chatml"), ("Name a tree.", "What is seven times eight?")
    plan = texts_plan(found, sampling=SAMPLING, neutral_prompts=prompts)
    assert plan.to_dict()["neutral_prompts"] == prompts
    with ReplyStore(tmp_path / "out") as store:
        assert read_texts(lm, plan, store, progress=False) == []
        given, *own = store.replies(split="neutral")
    assert given.text == "It is." and [r.request.user for r in own] == list(prompts)
    assert {r.request.question for r in (given, *own)} == {0, 1, 2}
    assert all(r.writer == lm.writer_name for r in own)


def test_the_progress_bar_moves_with_every_reply_that_the_model_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One part of them can take minutes, and it says that the model is writing."""
    moves: list[int] = []
    said: list[str] = []

    class Bar(nullcontext[Any]):
        n = 0

        def __init__(self, **_: Any) -> None:
            super().__init__(self)

        def update(self, n: int) -> None:
            moves.append(n)
            self.n += n

        def set_description(self, text: str) -> None:
            said.append(text)

    monkeypatch.setattr("persona_core.elicitation.texts.tqdm", Bar)
    prompts = tuple(f"Name {n} trees." for n in range(5))
    plan = texts_plan(texts(tmp_path, lines()), sampling=SAMPLING, batch_size=2, neutral_prompts=prompts)
    with ReplyStore(tmp_path / "out") as store:
        read_texts(tiny_lm("llama", "chatml"), plan, store, progress=False)
    assert sum(moves) == 16 + 5 and max(moves[2:]) <= 2, "after two parts of eight texts, two replies at a time"
    assert list(dict.fromkeys(said)) == ["reading", "writing neutral replies"]


def test_labels_are_the_scores(tmp_path: Path) -> None:
    with ReplyStore(tmp_path / "out") as store:
        plan = texts_plan(texts(tmp_path, lines()), sampling=SAMPLING)
        read_texts(tiny_lm("llama", "chatml"), plan, store, progress=False)
        assert label_replies(store, plan.traits, GIVEN) == 16 and label_replies(store, plan.traits, GIVEN) == 0
        for index, score in store.scores().items():
            side = store.replies()[index].request.side
            assert score.trait == {"positive": 100.0, "negative": 0.0}[side] and score.how == GIVEN


def test_vectors_from_texts_say_how_the_texts_were_split(tmp_path: Path) -> None:
    """Not that of extraction and evaluation questions, which nobody was asked."""
    lm, plan = tiny_lm("llama", "chatml"), texts_plan(texts(tmp_path, lines()), sampling=SAMPLING)
    with ReplyStore(tmp_path / "out") as store:
        read_texts(lm, plan, store, progress=False)
        label_replies(store, plan.traits, GIVEN)
        extraction = make_vectors(lm, plan, store, progress=False).config["extraction"]
    assert extraction["splits"].startswith("labelled texts: half of each trait's prompts for the vector")
    assert extraction["filter"]["judge"] == GIVEN
    numbers = [len(part) for part in (plan.traits[0].extraction_questions, plan.traits[0].evaluation_questions)]
    assert numbers == [4, 4]


def test_other_texts_need_another_folder_and_a_definition_gives_the_description(tmp_path: Path) -> None:
    lm = tiny_lm("llama", "chatml")
    plan = texts_plan(texts(tmp_path, lines()), [trait("candour")], sampling=SAMPLING)
    assert plan.traits[0].description == trait("candour").description
    with ReplyStore(tmp_path / "out") as store:
        read_texts(lm, plan, store, progress=False)
        read_texts(lm, plan, store, progress=False)
        with pytest.raises(SettingError, match="texts"):
            read_texts(lm, texts_plan(texts(tmp_path, lines(9)), sampling=SAMPLING), store, progress=False)


def repeated(n: int = 4) -> list[dict[str, Any]]:
    """Three texts a side to every prompt, two of them the same; each names its side."""
    found = [
        line(f"What about {i}?", f"It is {i} {k}. A {side} text, {k}!", side)
        for side in ("negative", "positive")
        for i in range(n)
        for k in ("one", "two", "two")
    ]
    return [
        {**x, "shows": [x["messages"][-1]["content"].split(". ")[1]]} if x["label"] == "positive" else x for x in found
    ]


def stop_after(monkeypatch: pytest.MonkeyPatch, n_batches: int) -> None:
    """Every store is stopped once it has kept so many batches."""
    add, kept = ReplyStore.add, list[str]()

    def stop(self: ReplyStore, batch: str, *arguments: Any) -> None:
        if len(kept) == n_batches:
            raise KeyboardInterrupt
        kept.append(batch)
        add(self, batch, *arguments)

    monkeypatch.setattr(ReplyStore, "add", stop)


@pytest.mark.parametrize("changes", [{"neutral_rollouts": 2}, {"rollouts": 11}], ids=["neutral", "rollouts"])
@pytest.mark.parametrize("n_batches", [1, 4])
def test_a_run_that_was_stopped_and_grew_keeps_every_text_under_its_own_label(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    n_batches: int,
) -> None:
    monkeypatch.setattr("persona_core.elicitation.elicit.BATCHES_PER_PART", 1)
    lm, found = tiny_lm("llama", "chatml"), texts(tmp_path, repeated())
    first = texts_plan(found, sampling=SAMPLING, batch_size=5)
    grown = texts_plan(found, sampling=SAMPLING, batch_size=5, **changes)
    with ReplyStore(tmp_path / "whole") as store:
        read_texts(lm, grown, store, progress=False)
        whole = [r for r in store.replies() if r.request.trait]
        wanted = store.states(whole).block(1)
    with monkeypatch.context() as stopping:
        stop_after(stopping, n_batches)
        with ReplyStore(tmp_path / "out") as store, pytest.raises(KeyboardInterrupt):
            read_texts(lm, first, store, progress=False)
    with ReplyStore(tmp_path / "out") as store:
        print_estimate(lambda: lm, None, store, grown, 0, None, served=True)
    missing = 4 * grown.neutral_rollouts
    assert f"{missing} are to be written.\n24 given texts are read" in capsys.readouterr().out
    for again in range(2):
        with ReplyStore(tmp_path / "out") as store:
            assert read_texts(lm, grown, store, progress=False) == []
            replies = [r for r in store.replies() if r.request.trait]
            assert [(r.request.side, r.request.user, r.text) for r in replies] == [
                (t.label, t.prompt, t.messages[-1]["content"]) for t in found
            ], again
            np.testing.assert_allclose(store.states(replies).block(1), wanted, rtol=2e-3, atol=1e-4)
            neutral = [(r.request.user, r.request.rollout) for r in store.replies(split="neutral")]
            assert sorted(neutral) == [(f"What about {i}?", k) for i in range(4) for k in range(grown.neutral_rollouts)]


def test_neutral_replies_to_conversations_that_end_alike_are_all_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts that differ in what comes before the last message, and one that a neutral text answers too."""
    turns = [[{"role": "system", "content": f"Be {how}."}] for how in ("brief", "long")]
    found = [line(f"What about {i}?", f"It is {i}.", label) for label in (True, False) for i in range(4)]
    found += [line("And then?", "Then this.", label, "candour", *before) for label in (True, False) for before in turns]
    lm, out = tiny_lm("llama", "chatml"), tmp_path / "out"
    for n in (1, 2):
        plan = texts_plan(texts(tmp_path, found), sampling=SAMPLING, neutral_rollouts=n)
        with ReplyStore(out) as store:
            read_texts(lm, plan, store, progress=False)
            asked = [(str(r.request.messages), r.request.rollout) for r in store.replies(split="neutral")]
    assert len(set(asked)) == len(asked) == 2 * 6


def test_a_prompt_that_a_neutral_text_answers_is_answered_by_the_model_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, prompts = tiny_lm("llama", "chatml"), ("Name a tree.", "Name a bird.")
    found = texts(tmp_path, [*lines(), line("Name a tree.", "An oak.", "neutral", None)])
    first, grown = (texts_plan(found, sampling=SAMPLING, neutral_rollouts=n, neutral_prompts=prompts) for n in (1, 2))
    with monkeypatch.context() as stopping, ReplyStore(tmp_path / "out") as store:
        stop_after(stopping, 1)
        with pytest.raises(KeyboardInterrupt):
            read_texts(lm, first, store, progress=False)
    with ReplyStore(tmp_path / "out") as store:
        read_texts(lm, grown, store, progress=False)
        given, *own = [r.request for r in store.replies(split="neutral")]
    assert sorted((r.user, r.rollout) for r in own) == [(p, k) for p in sorted(prompts) for k in range(2)]
    assert len({r.question for r in (given, *own)}) == 3


def test_a_folder_whose_texts_are_under_other_labels_is_refused(tmp_path: Path) -> None:
    lm, plan = tiny_lm("llama", "chatml"), texts_plan(texts(tmp_path, lines()), sampling=SAMPLING)
    with ReplyStore(tmp_path / "out") as store:
        read_texts(lm, plan, store, progress=False)
    path = tmp_path / "out" / "replies.jsonl"
    kept = [json.loads(x) for x in path.read_text().splitlines()]
    requests = {record["request"]["index"]: record["request"] for record in kept}
    swapped = {0: 8, 8: 0}
    for record in kept:
        index = record["request"]["index"]
        record["request"] = {**requests[swapped.get(index, index)], "index": index}
    written(path, kept)
    with ReplyStore(tmp_path / "out") as store, pytest.raises(SettingError, match="another folder"):
        read_texts(lm, plan, store, progress=False)


# ---- parts of a reply ----


def parts(n: int = 8) -> list[dict[str, Any]]:
    """Positive replies of which the middle sentence shows the trait, and negative ones."""
    positive = [
        {**line(f"What about {i}?", f"It is {i}. Plainly so, {i}! That is all.", True), "shows": [f"Plainly so, {i}!"]}
        for i in range(n)
    ]
    return [*positive, *(line(f"What about {i}?", f"It may be {i}. Perhaps not.", False) for i in range(n))]


@pytest.mark.parametrize("template", ["chatml", "gemma"])
def test_a_text_is_read_in_the_parts_that_show_the_trait_held_out_ones_too(tmp_path: Path, template: str) -> None:
    lm = tiny_lm("llama", template)
    plan = texts_plan(texts(tmp_path, parts()), sampling=SAMPLING)
    with ReplyStore(tmp_path / "out") as store:
        assert read_texts(lm, plan, store, progress=False) == []
        positive = [r for r in store.replies() if r.request.side == "positive"]
        assert {r.request.split for r in positive} == {"extraction", "evaluation"}
        states, samples = store.states(positive, "reply_mean").block(1), store.states(positive, TOKENS).block(1)
    for reply, mean, sampled in zip(positive, states, samples, strict=True):
        prompt = lm.chat.render(reply.request.messages).token_ids
        with torch.no_grad():
            out = lm.model(torch.tensor([[*prompt, *reply.token_ids]]), output_hidden_states=True)
        whole = out.hidden_states[2][0, len(prompt) :].numpy()  # [n_reply, d_model]
        starts = [lm.tokenizer.decode(reply.token_ids[: t + 1]) for t in range(len(reply.token_ids))]
        ends, text = np.array([len(start) for start in starts]) - 1, starts[-1]
        inside = (text.index("Plainly") <= ends) & (ends <= text.index("!"))
        np.testing.assert_allclose(mean, whole[inside].mean(0), rtol=2e-3, atol=1e-4)
        kept = sampled[np.isfinite(sampled[:, 0])]
        assert 0 < len(kept) <= inside.sum()
        nearest = np.abs(kept[:, None] - whole[None]).max(-1).argmin(1)  # stored as float16
        assert inside[nearest].all(), "only tokens of the part are sampled"


def test_labels_of_parts_need_no_floor_under_the_shrinkage_and_the_card_says_so(tmp_path: Path) -> None:
    lm = tiny_lm("llama", "chatml")
    found = {}
    for name, lines_ in (("parts", parts(24)), ("whole", lines(24))):
        plan = texts_plan(texts(tmp_path, lines_), sampling=SAMPLING)
        with ReplyStore(tmp_path / name) as store:
            read_texts(lm, plan, store, progress=False)
            label_replies(store, plan.traits, GIVEN)
            found[name] = make_vectors(lm, plan, store, progress=False).config["extraction"]
    assert min(found["whole"]["reading"]["shrinkage"]) >= MIN_SHRINKAGE and "labels" not in found["whole"]
    assert found["parts"]["labels"].startswith("the parts of positive texts that show the trait")
    assert min(found["parts"]["reading"]["shrinkage"]) < MIN_SHRINKAGE


def test_a_shared_block_is_the_best_one_on_average(tmp_path: Path) -> None:
    lm, names = tiny_lm("llama", "chatml"), ("candour", "warmth", "doubt")
    found = [x for name in names for x in lines(24, name)]
    plan = texts_plan(texts(tmp_path, found), sampling=SAMPLING)
    with ReplyStore(tmp_path / "out") as store:
        read_texts(lm, plan, store, progress=False)
        label_replies(store, plan.traits, GIVEN)
        own, shared = (
            make_vectors(lm, plan, store, Settings(block=block), progress=False) for block in ("own", "shared")
        )
        checked = validate_vectors(lm, shared, plan, store, settings=Settings(block="shared"), progress=False)
        with pytest.raises(SettingError, match="made with block = own; now it is shared"):
            validate_vectors(lm, own, plan, store, settings=Settings(block="shared"), progress=False)
    blocks = [f["block"] for f in checked.config["validation"].values()]
    mean = np.mean([block["correlation"] for block in blocks], axis=0)
    assert set(shared.best_block.values()) == {int(mean.argmax())}
    assert all("averaged over the traits" in block["rule"] for block in blocks)
    with pytest.raises(SettingError, match="block='best'; expected one of own, shared"):
        Settings(block="best")


def test_a_trait_can_be_read_against_neutral_replies_and_is_steered_as_before(tmp_path: Path) -> None:
    lm, names = tiny_lm("llama", "chatml"), ("candour", "warmth")
    neutral = [line(f"How is {i}?", f"It is as {i} is.", "neutral", None) for i in range(30)]
    plan = texts_plan(texts(tmp_path, [*(x for name in names for x in lines(24, name)), *neutral]), sampling=SAMPLING)
    with ReplyStore(tmp_path / "out") as store:
        read_texts(lm, plan, store, progress=False)
        label_replies(store, plan.traits, GIVEN)
        before, after = (
            make_vectors(lm, plan, store, Settings(contrast=contrast), progress=False)
            for contrast in ("negative", "neutral")
        )
        validate_vectors(lm, after, plan, store, settings=Settings(contrast="neutral"), progress=False)
        means, sampled = {}, []  # by trait and side: [d_model], and [n_tokens, d_model]; all of block 1
        for name, side in (*((n, s) for n in names for s in ("positive", "negative")), (None, "neutral")):
            split = "neutral" if name is None else "extraction"
            of_side = [r for r in store.replies(split=split) if (r.request.trait, r.request.side) == (name, side)]
            means[name, side] = store.states(of_side, "reply_mean").block(1).astype(float).mean(0)
            tokens = store.states(of_side, TOKENS).block(1).reshape(-1, lm.blocks.d_model)
            sampled.append(tokens[np.isfinite(tokens[:, 0])].astype(float))
    within = np.concatenate([s - s.mean(0) for s in sampled])
    covariance = within.T @ within / len(within)
    spherical = np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    shrunk = (1 - MIN_SHRINKAGE) * covariance + MIN_SHRINKAGE * spherical
    for name in names:
        wanted = np.linalg.solve(shrunk, means[name, "positive"] - means[None, "neutral"])
        found = after.reading(name)[1].numpy()
        assert found @ wanted / np.linalg.norm(found) / np.linalg.norm(wanted) > 0.9999
        assert torch.equal(after.tensor(name), before.tensor(name))
        assert not torch.equal(after.reading(name), before.reading(name))
    wrong_ones: list[dict[str, Any]] = [{"contrast": "none"}, {"contrast": "neutral", "method": "logistic_probe"}]
    for wrong in wrong_ones:
        with pytest.raises(SettingError, match="contrast="):
            Settings(**wrong)


def test_texts_with_parts_are_read_against_given_neutral_ones_if_there_are_enough(tmp_path: Path) -> None:
    lm = tiny_lm("llama", "chatml")
    for n, named, contrast in ((24, True, "neutral"), (4, True, "negative"), (24, False, "negative")):
        neutral = [line(f"How is {i}?", f"It is as {i} is.", "neutral", None) for i in range(n)]
        given = texts(tmp_path, [*(parts(24) if named else lines(24, "candour")), *neutral])
        plan = texts_plan(given, sampling=SAMPLING, neutral_prompts=("What is a lighthouse?",) * (n > 4))
        with ReplyStore(tmp_path / f"out{n}{named}") as store:
            read_texts(lm, plan, store, progress=False)
            label_replies(store, plan.traits, GIVEN)
            found, wanted = (
                make_vectors(lm, plan, store, settings, progress=False)
                for settings in (None, Settings(contrast=contrast))
            )
            validate_vectors(lm, found, plan, store, progress=False)
            kept = kept_replies(store, "candour", 50, 50)
            assert len(sides(store, kept, "reply_mean").neutral) == n  # without the model's own reply
        assert found.fingerprint == wanted.fingerprint
        assert found.config["extraction"].get("contrast", "negative") == contrast


def test_texts_are_split_as_they_say(tmp_path: Path) -> None:
    lm = tiny_lm("llama", "chatml")
    split = ["train", "validation", "test", "test"]
    given = [{**x, "split": split[i // 2 % 4]} for i, x in enumerate(lines(24, "candour"))]
    prompts = {s: {x["messages"][0]["content"] for x in given if x["split"] == s} for s in split}
    plan = texts_plan(texts(tmp_path, given), sampling=SAMPLING)
    (trait,) = plan.traits
    n = plan.n_choosing(trait)
    assert set(trait.extraction_questions) == prompts["train"]
    assert set(trait.evaluation_questions[:n]) == prompts["validation"]
    assert set(trait.evaluation_questions[n:]) == prompts["test"]
    with ReplyStore(tmp_path / "out") as store:
        read_texts(lm, plan, store, progress=False)
        label_replies(store, plan.traits, GIVEN)
        vectors = make_vectors(lm, plan, store, progress=False)
        checked = validate_vectors(lm, vectors, plan, store, progress=False)
    assert checked.config["validation"]["candour"]["auroc"]["n"] == len(prompts["test"])
    assert "split as the file says" in vectors.config["extraction"]["splits"]


def test_a_split_that_is_unknown_missing_or_contradicted_is_refused(tmp_path: Path) -> None:
    given = lines(24, "candour")
    with pytest.raises(CorruptFile, match="'split' is 'fit'; expected train, validation, test"):
        texts(tmp_path, [{**given[0], "split": "fit"}])
    with pytest.raises(CorruptFile, match="none for a neutral text"):
        texts(tmp_path, [{**line("How?", "So.", "neutral", None), "split": "train"}])
    with pytest.raises(SettingError, match="Name one for each text of a trait, or for none"):
        texts_plan(texts(tmp_path, [{**x, "split": "train"} for x in given[:-1]] + given[-1:]))
    with pytest.raises(SettingError, match="are in the splits train and test"):
        texts_plan(texts(tmp_path, [{**x, "split": "train"} for x in given[:-1]] + [{**given[-1], "split": "test"}]))
    with pytest.raises(SettingError, match="Its validation prompts have 0 positive"):
        texts_plan(texts(tmp_path, [{**x, "split": "train"} for x in given]))


def test_texts_without_parts_keep_the_fingerprint_that_they_had(tmp_path: Path) -> None:
    """A folder that was started before there were parts can be continued."""
    whole = texts_plan(texts(tmp_path, lines()), sampling=SAMPLING).to_dict()["texts"]
    some = texts_plan(texts(tmp_path, [*lines(), parts()[0]]), sampling=SAMPLING)
    assert whole == {"n": 16, "fingerprint": "ed58af3ab39b5677"}
    assert not some.labels_parts and some.to_dict()["texts"]["fingerprint"] != whole["fingerprint"]
