"""Eliciting replies: what is asked, what is pooled, and what a kill, exhausted memory or a bad prompt costs."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from persona_core.elicitation.elicit import ElicitationPlan, elicit
from persona_core.elicitation.store import CrossTraitScore, ReplyScore, ReplyStore
from persona_core.elicitation.stored_states import TOKENS
from persona_core.elicitation.traits import TraitDefinition
from persona_core.elicitation.writing import sink_limits, write_batch
from persona_core.errors import CorruptFile, SettingError
from persona_core.inference.memory import BATCHES_PER_PART
from persona_core.inference.pooling import parse_position, parse_positions
from persona_core.inference.prefill import read_pooled
from persona_core.inference.sampling import Sampling
from tests.support import oracle
from tests.support.forks import Fork, forking
from tests.support.tiny import hooks_on, tiny_lm

ROOT = Path(__file__).resolve().parents[2]
POSITIONS = ("reply_mean", "reply_first_3", "prompt_last", "prompt_mean")


def trait(name: str = "candour", n: int = 3) -> TraitDefinition:
    return TraitDefinition(
        name=name,
        description="Says what it thinks.",
        positive=("Be frank.", "Say it all, and say it plainly, to whoever asks."),
        negative=("Be guarded.", "Say little, and say it in hints, to whoever asks."),
        extraction_questions=tuple(f"Is {i} a good number to choose?" for i in range(n)),
        evaluation_questions=tuple(f"What about {name} {i}?" for i in range(n)),
        judge_prompt="{question} {answer}",
    )


def plan(**changes: Any) -> ElicitationPlan:
    settings = {"rollouts": 1, "evaluation_rollouts": 1, "batch_size": 5, "seed": 11}
    return ElicitationPlan(
        **{"traits": (trait(),), "sampling": Sampling(max_new_tokens=8, temperature=1.0), **settings, **changes}
    )


# What is asked.


def test_every_pair_and_question_is_asked_on_both_sides() -> None:
    requests = plan(traits=(trait("candour"), trait("malice")), rollouts=2).requests()
    assert [r.index for r in requests] == list(range(len(requests)))
    for name in ("candour", "malice"):
        for side in ("positive", "negative"):
            own = [r for r in requests if (r.trait, r.side, r.split) == (name, side, "extraction")]
            assert {(r.question, r.pair, r.rollout) for r in own} == {
                (q, p, k) for q in range(3) for p in range(2) for k in range(2)
            }
    positive = next(r for r in requests if r.side == "positive" and r.pair == 1)
    assert positive.messages == [
        {"role": "system", "content": trait().positive[1]},
        {"role": "user", "content": positive.user},
    ]


def test_neutral_replies_answer_each_distinct_question_without_an_instruction() -> None:
    both = plan(traits=(trait("candour"), trait("malice")), neutral_rollouts=2)
    neutral = [r for r in both.requests() if r.split == "neutral"]
    assert len(neutral) == 2 * (3 + 3 + 3)  # extraction questions are shared
    assert all(r.system is None and len(r.messages) == 1 for r in neutral)


def test_pairs_take_turns_where_not_all_are_asked() -> None:
    requests = plan(pairs_per_question=1).requests()
    pairs = {(r.question, r.pair) for r in requests if r.split == "extraction" and r.side == "positive"}
    assert pairs == {(0, 0), (1, 1), (2, 0)}


def test_the_batches_hold_every_request_once() -> None:
    for size in (1, 4, 100):
        batches = plan(batch_size=size).batches()
        assert sorted(r.index for b in batches for r in b.requests) == list(range(len(plan().requests())))
        assert max(len(b.requests) for b in batches) <= size * BATCHES_PER_PART and len(
            {b.name for b in batches}
        ) == len(batches)


@pytest.mark.parametrize(
    "changes",
    [{"rollouts": 0}, {"batch_size": True}, {"positions": ("reply_last",)}, {"positions": "reply_mean"}, {"traits": ()},
     {"positions": ("reply_mean", "reply_mean")}, {"pairs_per_question": 0}],
)  # fmt: skip
def test_a_plan_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        plan(**changes)


# What is pooled.


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_pooled_states_are_those_of_a_naive_second_pass(tmp_path: Path, family: str) -> None:
    """One reply at a time, no cache, no padding, plain hooks in float64."""
    lm = tiny_lm(family, "chatml")
    with ReplyStore(tmp_path) as store:
        assert elicit(lm, plan(positions=POSITIONS), store, progress=False) == []
        replies = store.replies()
        states = {p: list(store.states(replies, p)) for p in POSITIONS}
    assert len(replies) == len(plan().requests())
    for place, reply in enumerate(replies):
        prompt = lm.chat.render(reply.request.messages).token_ids
        own = [i for i in reply.token_ids if i not in lm.eos_ids]
        assert reply.n_tokens == len(own) > 0
        full = oracle.states(lm.model, list(lm.blocks.modules), [*prompt, *reply.token_ids])  # [n_blocks, tokens, d]
        n = len(prompt)
        wanted = {
            "reply_mean": full[:, n : n + len(own)].mean(1),
            "reply_first_3": full[:, n : n + min(3, len(own))].mean(1),
            "prompt_last": full[:, n - 1],
            "prompt_mean": full[:, :n].mean(1),
        }
        for position, values in wanted.items():
            for a, b in zip(states[position][place].astype("f8"), values, strict=True):
                assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.99999
                assert oracle.relative_error(a, b) < 1e-4


def test_reading_given_ids_pools_the_same_states(tmp_path: Path) -> None:
    lm = tiny_lm("llama", "chatml")
    with ReplyStore(tmp_path) as store:
        elicit(lm, plan(positions=POSITIONS), store, progress=False)
        replies = store.replies()
        prompts = [lm.chat.render(r.request.messages).token_ids for r in replies]
        rows = [(*p, *r.token_ids) for p, r in zip(prompts, replies, strict=True)]
        made = plan(positions=POSITIONS)
        limits = sink_limits(lm, made)
        read, sampled = read_pooled(
            lm, rows, [len(p) for p in prompts], parse_positions(POSITIONS), 200, limits, made.tokens_per_reply
        )
        for i, position in enumerate(POSITIONS):
            written = np.stack(list(store.states(replies, position)))
            assert oracle.relative_error(read[:, i], written) < 1e-4
        for block in range(len(lm.blocks)):
            written = store.states(replies, TOKENS).block(block)
            np.testing.assert_allclose(sampled[:, :, block], written, rtol=1e-2, atol=1e-3)


def test_states_are_read_by_reply_by_block_and_by_choice(tmp_path: Path) -> None:
    with ReplyStore(tmp_path) as store:
        elicit(tiny_lm("llama", "chatml"), plan(), store, progress=False)
        states = store.states(store.replies())
        whole = np.stack(list(states))
        assert whole.shape == (len(states), states.n_blocks, states.d_model)
        assert all((states.block(b) == whole[:, b]).all() for b in range(states.n_blocks))
        some = [7, 0, 7]
        assert (np.stack(list(states.take(some))) == whole[some]).all()
        assert (states.take(some).take([1]).block(1) == whole[[0], 1]).all()
        with pytest.raises(SettingError, match="stored: reply_mean"):
            store.states(store.replies(), "prompt_last").block(0)


@pytest.mark.parametrize("name", ["reply_first_0", "reply_first_", "last", "", "reply_first_1e3", "prompt"])
def test_an_unknown_position_names_the_known_ones(name: str) -> None:
    with pytest.raises(SettingError, match="prompt_mean"):
        parse_position(name)


# What goes wrong.


def short_of_memory(lm: Any, most: int) -> tuple[Any, list[int]]:
    """The same model, which runs out of memory with more than `most` rows; and the rows of each forward that ran."""
    ran: list[int] = []

    class Forward:
        def __getattr__(self, name: str) -> Any:
            return getattr(lm.model, name)

        def __call__(self, **inputs: Any) -> Any:
            if inputs["input_ids"].shape[0] > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")
            ran.append(inputs["input_ids"].shape[0])
            return lm.model(**inputs)

    return replace(lm, model=Forward()), ran


def test_a_batch_that_does_not_fit_into_memory_is_written_in_parts(tmp_path: Path) -> None:
    lm = tiny_lm("llama", "chatml")
    small, ran = short_of_memory(lm, 2)
    before = hooks_on(lm.model)
    with ReplyStore(tmp_path / "a") as one, ReplyStore(tmp_path / "b") as other:
        assert elicit(lm, plan(), one, progress=False) == elicit(small, plan(), other, progress=False) == []
        assert [r.token_ids for r in one.replies()] == [r.token_ids for r in other.replies()]
        a, b = (np.stack(list(s.states(s.replies()))) for s in (one, other))
        assert oracle.relative_error(a, b) < 1e-4 and max(ran) == 2
    assert hooks_on(lm.model) == before


def test_where_not_even_one_row_fits_all_that_is_missing_is_named(tmp_path: Path) -> None:
    small, _ = short_of_memory(tiny_lm("llama", "chatml"), 0)
    with ReplyStore(tmp_path) as store:
        failed = elicit(small, plan(), store, progress=False)
        assert len(failed) == len(plan().requests()) and "out of memory" in failed[0][1] and not store.replies()


def test_a_prompt_that_is_too_long_fails_alone_and_is_tried_again(tmp_path: Path) -> None:
    lm = tiny_lm("llama", "chatml")
    long = replace(trait(), extraction_questions=("Why? " * 120, "And now?", "Or then?"))
    with ReplyStore(tmp_path) as store:
        failed = elicit(lm, plan(traits=(long,)), store, progress=False)
        assert {r.question for r, _ in failed if r.split == "extraction"} == {0}
        assert all("context" in why.lower() for _, why in failed)
        assert len(store.replies()) == len(plan().requests()) - len(failed)
        assert len(elicit(lm, plan(traits=(long,)), store, progress=False)) == len(failed)


def test_what_a_second_try_wrote_is_not_overwritten_by_a_third(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each try writes one more of what failed; the states of all tries stay those of their replies."""
    lm, allowed = tiny_lm("llama", "chatml"), [3]
    real = write_batch

    def picky(lm: Any, plan: ElicitationPlan, batch: Any, *rest: Any) -> Any:
        written = real(lm, plan, batch, *rest)
        kept = [i for i, r in enumerate(written.replies) if r.request.index % 7 <= allowed[0]]
        return replace(
            written,
            replies=tuple(written.replies[i] for i in kept),
            states={p: s[kept] for p, s in written.states.items()},
            failed=tuple((r.request, "not yet") for i, r in enumerate(written.replies) if i not in kept),
        )

    monkeypatch.setattr("persona_core.elicitation.writing.write_batch", picky)
    with ReplyStore(tmp_path / "tries") as store, ReplyStore(tmp_path / "once") as once:
        for allowed[0] in (3, 4, 5, 6):
            elicit(lm, plan(batch_size=30), store, progress=False)
        elicit(lm, plan(batch_size=30), once, progress=False)
        a, b = (np.stack(list(s.states(s.replies()))) for s in (store, once))
        assert a.shape == b.shape and oracle.relative_error(a, b) < 1e-4


INTERRUPTED = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits it as ignored
from persona_core.elicitation import elicit as module
from persona_core.elicitation.store import ReplyStore
from tests.elicitation.test_elicit import plan
from tests.support.tiny import tiny_lm

class Bar:  # in place of the progress bar: tells the test that some replies have ended
    n = 0
    def __init__(self, **_): pass
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def update(self, n):
        self.n += n
        if self.n >= 7:
            print("ready", flush=True)
            sys.stdin.read(1)

module.tqdm = Bar
with ReplyStore(sys.argv[1]) as store:
    module.elicit(tiny_lm("llama", "chatml"), plan(), store)
"""


def test_ctrl_c_keeps_the_replies_that_have_ended(tmp_path: Path) -> None:
    """A part of four batches is stored together; a signal in the middle of it costs only what is being written."""
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path / "cut")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=120)
    assert "KeyboardInterrupt" in errors or "Interrupted" in errors
    lm = tiny_lm("llama", "chatml")
    with ReplyStore(tmp_path / "cut") as cut, ReplyStore(tmp_path / "whole") as whole:
        kept = cut.replies()
        assert 7 <= len(kept) < len(plan().requests())
        assert elicit(lm, plan(), cut, progress=False) == elicit(lm, plan(), whole, progress=False) == []
        assert [r for r in cut.replies() if r in kept] == kept  # not written again
        assert [r.token_ids for r in cut.replies()] == [r.token_ids for r in whole.replies()]
        for position in (*plan().positions, TOKENS):
            a, b = (np.stack(list(s.states(s.replies(), position))) for s in (cut, whole))
            assert np.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True), position


def test_an_error_of_the_code_is_not_taken_for_a_full_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("persona_core.elicitation.writing.GenerationRun.steps", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        lm = tiny_lm("llama", "chatml")
        write_batch(lm, plan(), plan().batches()[0], sink_limits(lm, plan()))


def test_another_plan_in_the_same_folder_is_refused_and_says_what_differs(tmp_path: Path) -> None:
    lm = tiny_lm("llama", "chatml")
    with ReplyStore(tmp_path) as store:
        elicit(lm, plan(), store, progress=False)
        with pytest.raises(SettingError, match=r"sampling\.temperature = 1\.0; now it is 0\.5"):
            elicit(lm, plan(sampling=Sampling(8, 0.5)), store, progress=False)
        with pytest.raises(SettingError, match=r"model\.name"):
            elicit(tiny_lm("gpt2", "chatml"), plan(), store, progress=False)


# What a kill costs.

RUN = """
    import sys
    import torch
    from persona_core.elicitation.elicit import elicit
    from persona_core.elicitation.store import ReplyStore
    from tests.support.tiny import tiny_lm
    from tests.elicitation.test_elicit import plan
    torch.set_num_threads(1)
    with ReplyStore(sys.argv[1]) as store:
        elicit(tiny_lm("llama", "chatml"), plan(rollouts=12), store)
    """


@pytest.mark.slow
def test_killed_at_any_moment_a_run_ends_with_the_same_numbers(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(RUN))
    with forking("tests.elicitation.test_elicit") as forks:

        def start(folder: Path) -> Fork:
            return forks.start([str(script), str(folder)])

        assert start(tmp_path / "whole").wait() == 0
        rng = random.Random(5)
        killed = 0
        for _ in range(12):
            listed = tmp_path / "killed" / "replies.jsonl"
            before = listed.stat().st_size if listed.is_file() else 0
            process = start(tmp_path / "killed")
            while process.poll() is None and (not listed.is_file() or listed.stat().st_size == before):
                time.sleep(0.01)
            time.sleep(rng.random() * 0.3)
            killed += process.poll() is None
            process.kill()
            process.wait()
            if killed >= 3:
                break
        assert killed >= 2
        assert start(tmp_path / "killed").wait() == 0
    lines = [(tmp_path / f / "replies.jsonl").read_text().splitlines() for f in ("whole", "killed")]
    assert lines[0] == lines[1] and len(lines[0]) == len(plan(rollouts=12).requests())  # nothing was written twice
    for path in sorted((tmp_path / "whole" / "states").iterdir()):
        assert path.read_bytes() == (tmp_path / "killed" / "states" / path.name).read_bytes()


@pytest.fixture
def store_folder(tmp_path: Path) -> Path:
    with ReplyStore(tmp_path) as store:
        elicit(tiny_lm("llama", "chatml"), plan(), store, progress=False)
        store.add_scores([ReplyScore(0, 50.0, None, "text")])
    return tmp_path


def test_a_line_that_was_cut_off_is_dropped_and_its_reply_written_again(store_folder: Path) -> None:
    path = store_folder / "replies.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with ReplyStore(store_folder) as store:
        assert len(store.replies()) == len(plan().requests()) - 1
        elicit(tiny_lm("llama", "chatml"), plan(), store, progress=False)
        assert len(store.replies()) == len(plan().requests())
    assert {json.loads(x)["text"] for x in path.read_text().splitlines()} == {
        json.loads(x)["text"] for x in whole.decode().splitlines()
    }


def test_a_broken_line_in_the_middle_is_named(store_folder: Path) -> None:
    path = store_folder / "replies.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], "{broken\n", *lines[2:]]))
    with pytest.raises(CorruptFile, match=r"replies\.jsonl, line 2"):
        ReplyStore(store_folder)
    path.write_text("".join([lines[0], '{"request": {}}\n', *lines[2:]]))
    with pytest.raises(CorruptFile, match=r"replies\.jsonl, line 2"):
        ReplyStore(store_folder)
    path.write_text("".join(lines))
    ReplyStore(store_folder).close()


def test_replies_whose_states_are_lost_are_written_again(store_folder: Path) -> None:
    lost = sorted((store_folder / "states").iterdir())[0]
    content = lost.read_bytes()
    lost.unlink()
    with ReplyStore(store_folder) as store:
        assert len(store.replies()) == len(plan().requests()) - min(5 * BATCHES_PER_PART, len(plan().requests()))
        elicit(tiny_lm("llama", "chatml"), plan(), store, progress=False)
        assert len(store.replies()) == len(plan().requests())
    assert lost.read_bytes() == content


def test_lines_of_lost_states_do_not_come_back_with_the_rows_of_another_batch(store_folder: Path) -> None:
    lost = sorted((store_folder / "states").iterdir())[0]
    lost.unlink()
    with ReplyStore(store_folder) as store:
        gone = {r.index for r in plan().batches()[0].requests}
        # A file of that name again, holding one row: the five lines that named it must not claim it.
        store.add(lost.stem, store.replies()[:1], {p: np.zeros((1, 1, 2), "f4") for p in plan().positions})
    with ReplyStore(store_folder) as store:
        assert not any(store.has(index) for index in gone)


def test_a_truncated_states_file_is_named_with_the_remedy(store_folder: Path) -> None:
    broken = sorted((store_folder / "states").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:100])
    with ReplyStore(store_folder) as store, pytest.raises(CorruptFile, match=r"Delete it"):
        store.states(store.replies()).block(0)


def test_two_runs_in_one_folder_are_refused(store_folder: Path) -> None:
    with ReplyStore(store_folder), pytest.raises(SettingError, match="Another process"):
        ReplyStore(store_folder)
    ReplyStore(store_folder).close()


def test_scores_are_kept(store_folder: Path) -> None:
    with ReplyStore(store_folder) as store:
        assert store.scores() == {0: ReplyScore(0, 50.0, None, "text")}


def test_a_folder_with_the_former_names_is_read_as_it_is(store_folder: Path) -> None:
    """Sides were once called high and low, and the file of cross-trait scores across.jsonl."""
    listed = store_folder / "replies.jsonl"
    text = (
        listed.read_text()
        .replace('"side": "positive"', '"side": "high"')
        .replace('"side": "negative"', '"side": "low"')
    )
    with ReplyStore(store_folder) as store:
        before = store.replies()
        store.add_cross_trait_scores([CrossTraitScore(before[0].request.index, "malice", 12.0)])
    assert '"high"' in text and '"low"' in text
    listed.write_text(text)
    (store_folder / "cross_trait_scores.jsonl").rename(store_folder / "across.jsonl")
    with ReplyStore(store_folder) as store:
        assert store.replies() == before and store.replies(side="positive") and store.replies(side="negative")
        assert [score.value for score in store.cross_trait_scores().values()] == [12.0]
        assert elicit(tiny_lm("llama", "chatml"), plan(), store, progress=False) == [] and store.replies() == before


def test_plans_and_stores_print_as_one_line(store_folder: Path) -> None:
    with ReplyStore(store_folder) as store:
        n = len(store.replies())
        assert repr(store) == f"ReplyStore({str(store_folder)!r}; {n} replies, 1 judged)"
    assert "\n" not in repr(plan()) and repr(plan()).startswith("ElicitationPlan(") and len(repr(plan())) < 120
    assert all("\n" not in repr(trait) and len(repr(trait)) < 120 for trait in plan().traits)


def test_a_folder_from_before_tokens_were_kept_is_continued_without_them(tmp_path: Path) -> None:
    lm, older = tiny_lm("llama", "chatml"), plan(tokens_per_reply=0)
    assert "tokens_per_reply" not in older.to_dict()
    with ReplyStore(tmp_path) as store:
        elicit(lm, older, store, progress=False)
        with pytest.raises(SettingError, match="tokens_per_reply"):
            elicit(lm, plan(), store, progress=False)
        assert not elicit(lm, older, store, progress=False)
        with pytest.raises(SettingError, match="'tokens'"):
            store.states(store.replies(), TOKENS).block(0)
