"""Steering and watching a model in loops that are not ours: transformers' generate, a pipeline, a loop by hand."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from persona_core.errors import (
    NotCalibrated,
    PersonaError,
    PersonaWarning,
    SettingError,
    UnknownBlock,
    UnknownTrait,
    UnsupportedModel,
    VectorsMismatch,
)
from persona_core.inference.steering import Steer
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.monitor.transcripts import Transcript
from tests.support import oracle
from tests.support.families import BY_NAME
from tests.support.tiny import hooks_on, random_vectors, specific_vectors, tiny_lm

# A hybrid, tuples as outputs, a PEFT wrapper, short windows, several kinds of attention.
FAMILIES = ("llama", "qwen3.5", "gptj", "llama-lora", "mistral", "gemma3-multimodal", "lfm2")
PROMPT = [21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31]
SHORT = [41, 42, 43]
PUSH = Steer("malice", 1, strength=6.0)


@pytest.fixture(params=FAMILIES)
def lm(request: pytest.FixtureRequest) -> Any:
    return tiny_lm(request.param)


@pytest.fixture
def llama() -> Any:
    return tiny_lm("llama")


def vectors_of(lm: Any) -> Any:
    return random_vectors(len(lm.blocks))


def greedy(lm: Any, ids: Any = None, n: int = 6, **more: Any) -> Any:
    ids = torch.tensor([PROMPT]) if ids is None else ids
    settings: dict[str, Any] = dict(max_new_tokens=n, do_sample=False, eos_token_id=None, pad_token_id=0)
    return lm.model.generate(input_ids=ids, **settings | more)


def by_hand(lm: Any, n: int = 6, cached: bool = True, ids: Any = None) -> list[int]:
    """A loop of one's own; every token that it writes is read, but for the last."""
    ids, cache = torch.tensor([PROMPT]) if ids is None else ids, None
    with torch.no_grad():
        for _ in range(n):
            given = ids if cache is None else ids[:, -1:]
            out = lm.model(input_ids=given, past_key_values=cache, use_cache=cached)
            cache = out.past_key_values if cached else None
            ids = torch.cat([ids, out.logits[:, -1:].argmax(-1)], dim=1)
    return ids[0].tolist()


def padded(*rows: list[int], side: str = "left") -> dict[str, Any]:
    width = max(map(len, rows))
    gaps = [[0] * (width - len(row)) for row in rows]
    ids = [g + r if side == "left" else r + g for r, g in zip(rows, gaps, strict=True)]
    ones = [[1] * len(row) for row in rows]
    mask = [g + o if side == "left" else o + g for o, g in zip(ones, gaps, strict=True)]
    return {"ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def read_alike(lm: Any, trace: Any, ids: list[int], n_prompt: int, change: oracle.Change | None = None) -> None:
    """The trace is that of these ids: of the plain forward of one text, and of the monitor."""
    assert list(trace.token_ids) == list(ids) and trace.n_prompt == n_prompt
    modules = BY_NAME[lm.name.removeprefix("tiny-")].blocks(lm.model)
    vectors = vectors_of(lm)
    wanted = oracle.raw(lm.model, modules, ids, {t: v.numpy() for t, v in vectors.tensors.items()}, change)
    wanted = wanted[:, list(trace.blocks)]
    for trait in range(len(wanted)):
        assert oracle.relative_error(trace.raw[trait], wanted[trait]) < 1e-4
    if change is None:
        assert oracle.relative_error(trace.norms, oracle.norms(lm.model, modules, ids)[list(trace.blocks)]) < 1e-4
        text = Transcript(tuple(ids), trace.tokens, trace.roles, n_prompt)
        read = PersonaMonitor(lm, vectors, trace.blocks).read_batch([text])[0]
        assert oracle.relative_error(trace.raw, read.raw) < 1e-5


# ---- watching ---------------------------------------------------------------------------------------------------


def test_what_generate_reads_is_what_the_monitor_reads(lm: Any) -> None:
    before = hooks_on(lm.model)
    plain = greedy(lm)
    with vectors_of(lm).watch(lm) as seen:
        written = greedy(lm)
    assert hooks_on(lm.model) == before and written.tolist() == plain.tolist()
    read_alike(lm, seen.trace, written[0, :-1].tolist(), len(PROMPT))
    assert seen.trace.blocks == (0, 1) and seen.trace.provenance.writer == lm.writer_name
    assert seen.trace.provenance.sampling is None and seen.trace.finish == "stopped"


def test_rows_of_a_batch_are_texts_without_their_padding(lm: Any) -> None:
    with vectors_of(lm).watch(lm, blocks="all") as seen:
        written = greedy(lm, **padded(PROMPT, SHORT))[:, len(PROMPT) :].tolist()
    for trace, prompt, reply in zip(seen.traces, (PROMPT, SHORT), written, strict=True):
        read_alike(lm, trace, prompt + reply[:-1], len(prompt))


def test_several_calls_are_several_traces(llama: Any) -> None:
    with vectors_of(llama).watch(llama) as seen:
        torch.manual_seed(0)
        first, drawn = greedy(llama), greedy(llama, torch.tensor([SHORT]), do_sample=True, num_return_sequences=2)
        with torch.no_grad():
            llama.model(torch.tensor([SHORT[:2]]))  # ids by position
    wanted = [(first[0, :-1], 11), (drawn[0, :-1], 3), (drawn[1, :-1], 3), (torch.tensor(SHORT[:2]), 2)]
    for trace, (ids, n) in zip(seen.traces, wanted, strict=True):
        read_alike(llama, trace, ids.tolist(), n)
    assert seen.traces[3].finish == "read" and seen.traces[3].provenance.writer is None
    with pytest.raises(SettingError, match="4 texts were read"):
        _ = seen.trace


def test_a_finished_text_that_is_read_once_more_is_a_text_of_its_own(llama: Any) -> None:
    with vectors_of(llama).watch(llama) as seen, torch.no_grad():
        ids = by_hand(llama)
        llama.model(torch.tensor([ids]))
    read_alike(llama, seen.traces[0], ids[:-1], len(PROMPT))
    read_alike(llama, seen.traces[1], ids, len(ids))


def test_a_loop_that_generate_was_given_is_followed(llama: Any) -> None:
    def custom(model: Any, input_ids: Any, **_: Any) -> Any:
        return torch.tensor([by_hand(llama, ids=input_ids)])

    with vectors_of(llama).watch(llama) as seen:
        written = greedy(llama, custom_generate=custom)
    read_alike(llama, seen.trace, written[0, :-1].tolist(), len(PROMPT))


def test_the_example_of_the_documentation_runs() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", text, re.S) if "vectors.watch" in b)
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["seen"].trace.n_reply > 0 and names["steered"].shape[1] > names["prompt"]["input_ids"].shape[1]


@pytest.mark.parametrize("more", [{"use_cache": False}, {"prefill_chunk_size": 5}, {"cache_implementation": "static"}])
@pytest.mark.parametrize("family", ["llama", "mistral"])  # whose static cache is a window
def test_every_way_of_caching_is_read_alike(family: str, more: dict[str, Any]) -> None:
    lm, batch = tiny_lm(family), padded(PROMPT, SHORT)
    with vectors_of(lm).watch(lm) as seen:
        written = greedy(lm, **batch, **more)
    for trace, prompt, row in zip(seen.traces, (PROMPT, SHORT), written[:, len(PROMPT) :].tolist(), strict=True):
        read_alike(lm, trace, prompt + row[:-1], len(prompt))


@pytest.mark.parametrize("cached", [True, False])
def test_a_loop_by_hand_is_followed(lm: Any, cached: bool) -> None:
    with vectors_of(lm).watch(lm) as seen:
        ids = by_hand(lm, cached=cached)
    read_alike(lm, seen.trace, ids[:-1], len(PROMPT))


@pytest.mark.parametrize("cached", [True, False])
def test_a_loop_that_writes_into_one_tensor_is_followed(llama: Any, cached: bool) -> None:
    ids, cache, n = torch.zeros(1, 20, dtype=torch.long), None, len(PROMPT)
    ids[0, :n] = torch.tensor(PROMPT)
    token = torch.empty(1, 1, dtype=torch.long)
    with torch.no_grad(), vectors_of(llama).watch(llama) as seen:
        for end in range(n, n + 5):
            given = ids[:, :end] if cache is None else token
            out = llama.model(input_ids=given, past_key_values=cache, use_cache=cached)
            cache = out.past_key_values if cached else None
            token.copy_(out.logits[:, -1:].argmax(-1))
            ids[:, end] = token[:, 0]
    wanted = ids[0, : n + 4].tolist()
    assert len(set(wanted[n:])) > 1  # else the last one is as good as any
    ids.zero_()
    read_alike(llama, seen.trace, wanted, n)


def test_a_second_turn_with_the_same_cache_goes_on_with_the_text(llama: Any) -> None:
    cache = transformers.DynamicCache(config=llama.model.config)
    with vectors_of(llama).watch(llama) as seen:
        first = greedy(llama, past_key_values=cache)
        second = greedy(llama, torch.cat([first, torch.tensor([SHORT])], dim=1), past_key_values=cache)
    read_alike(llama, seen.trace, second[0, :-1].tolist(), len(PROMPT) + 6 + len(SHORT))


def test_a_reply_that_has_ended_is_not_read_on_with_its_padding(llama: Any) -> None:
    batch = padded(PROMPT, SHORT)
    plain = greedy(llama, **batch)[:, len(PROMPT) :].tolist()
    end = plain[1][1]
    assert end not in plain[0]
    with vectors_of(llama).watch(llama) as seen:
        greedy(llama, **batch, eos_token_id=end)
    read_alike(llama, seen.traces[0], PROMPT + plain[0][:-1], len(PROMPT))
    ended = plain[1][: plain[1].index(end) + 1]
    read_alike(llama, seen.traces[1], SHORT + ended, len(SHORT))


def test_two_threads_are_told_apart(llama: Any) -> None:
    written: dict[int, Any] = {}
    prompts = [PROMPT, SHORT]
    meet = threading.Barrier(2)

    class Together(transformers.StoppingCriteria):
        def __call__(self, *_: Any, **__: Any) -> Any:
            meet.wait(30)
            return torch.zeros(1, dtype=torch.bool)

    def write(i: int) -> None:
        written[i] = greedy(llama, torch.tensor([prompts[i]]), stopping_criteria=[Together()])

    with vectors_of(llama).watch(llama) as seen:
        threads = [threading.Thread(target=write, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for trace in seen.traces:
        i = 0 if trace.n_prompt == len(PROMPT) else 1
        read_alike(llama, trace, written[i][0, :-1].tolist(), len(prompts[i]))
    assert len(seen.traces) == 2


def test_a_pipeline_and_a_streamer_are_watched(llama: Any) -> None:
    pipe = transformers.pipeline("text-generation", model=llama.model, tokenizer=llama.tokenizer, device="cpu")
    streamer = transformers.TextIteratorStreamer(llama.tokenizer)
    with vectors_of(llama).watch(llama.model, llama.tokenizer) as seen:
        out = pipe("Hi", max_new_tokens=5, do_sample=False, return_tensors=True)
        thread = threading.Thread(target=lambda: greedy(llama, streamer=streamer))
        thread.start()
        assert "".join(streamer)
        thread.join()
    ids = list(out[0]["generated_token_ids"])
    read_alike(llama, seen.traces[0], ids[:-1], len(llama.tokenizer("Hi").input_ids))
    assert len(seen.traces) == 2 and seen.traces[1].n_reply == 5


def test_a_watch_leaves_gradients_as_they_are(llama: Any) -> None:
    def gradient() -> torch.Tensor:
        weight = llama.model.model.layers[0].mlp.up_proj.weight
        (found,) = torch.autograd.grad(llama.model(torch.tensor([PROMPT])).logits.sum(), weight)
        return found

    plain = gradient()
    with vectors_of(llama).watch(llama) as seen:
        assert torch.equal(gradient(), plain)
    assert seen.trace.n_tokens == len(PROMPT)


def test_projections_are_float32_under_autocast(llama: Any) -> None:
    caught: list[torch.Tensor] = []
    handle = llama.blocks.modules[1].register_forward_hook(lambda _m, _a, out: caught.append(out.double()[0]))
    with vectors_of(llama).watch(llama) as seen, torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        llama.model(torch.tensor([PROMPT]))
    handle.remove()
    wanted = oracle.project(caught[0].numpy(), vectors_of(llama).tensors["malice"][1].numpy())
    assert oracle.relative_error(seen.trace.scores("malice", kind="raw"), wanted) < 1e-5


def test_a_monitors_own_run_is_not_watched(llama: Any) -> None:
    with vectors_of(llama).watch(llama) as seen:
        PersonaMonitor(llama, vectors_of(llama)).generate("Hi", max_new_tokens=3, seed=0)
        with vectors_of(llama).watch(llama.model, llama.tokenizer):  # verified with forwards of its own
            pass
    assert seen.traces == []


# ---- steering ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [None, 0, 2])
def test_steering_writes_what_the_monitor_writes(lm: Any, start: int | None) -> None:
    vectors, text = vectors_of(lm), "Should I quit?"
    steer = Steer("malice", 1, strength=40.0, start=start)
    wanted = PersonaMonitor(lm, vectors).generate(text, temperature=0, max_new_tokens=6, steer=steer)
    ids, before = torch.tensor([lm.chat.render(text).token_ids]), hooks_on(lm.model)
    ends: dict[str, Any] = {"eos_token_id": sorted(lm.eos_ids)}
    with vectors.steer(lm, "malice", strength=40.0, unit="residual", start=start):
        assert greedy(lm, ids, **ends)[0].tolist() == list(wanted.token_ids)
    assert hooks_on(lm.model) == before
    plain = PersonaMonitor(lm, vectors).generate(text, temperature=0, max_new_tokens=6)
    assert greedy(lm, ids, **ends)[0].tolist() == list(plain.token_ids) != list(wanted.token_ids)


@pytest.mark.parametrize("mode", [{"mode": "ablate"}, {"mode": "cap", "threshold": -1.0}, {"strength": -4}])
def test_modes_and_units_are_those_of_steer(llama: Any, mode: dict[str, Any]) -> None:
    vectors = specific_vectors(3)
    made = Steer("malice", 1, start=None, **({"unit": "sd"} | mode))
    wanted = PersonaMonitor(llama, vectors).generate("Hi", temperature=0, max_new_tokens=6, steer=made)
    ids = torch.tensor([llama.chat.render("Hi").token_ids])
    asked: list[tuple[Any, dict[str, Any]]] = [(made, {}), ([made], {}), ("malice", mode)]
    for what, how in asked:
        with vectors.steer(llama, what, **how):
            assert greedy(llama, ids)[0].tolist() == list(wanted.token_ids)


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("cached", [True, False])
def test_a_start_is_found_in_every_row_and_loop(llama: Any, start: int, cached: bool) -> None:
    vectors, batch = vectors_of(llama), padded(PROMPT, SHORT)
    steer = Steer("malice", 1, strength=6.0, start=start)
    alone = []
    for prompt in (PROMPT, SHORT):
        first = len(prompt) + start - 1

        def change(b: int, h: torch.Tensor, first: int = first) -> torch.Tensor:
            unit = vectors.direction("malice", 1)
            return h if b != 1 else torch.cat([h[:first], h[first:] + 6.0 * unit])

        modules = list(llama.blocks.modules)
        alone.append(oracle.greedy(llama.model, modules, prompt, 6, change=change))
    with vectors.steer(llama.model, steer):
        assert greedy(llama, **batch, use_cache=cached)[:, len(PROMPT) :].tolist() == alone
        assert by_hand(llama, cached=cached)[len(PROMPT) :] == alone[0]


def test_a_loop_that_pads_on_the_right_is_followed_and_steered(llama: Any) -> None:
    vectors, batch = vectors_of(llama), padded(PROMPT, SHORT, side="right")
    ids, mask, cache = batch["ids"], batch["attention_mask"], transformers.DynamicCache(config=llama.model.config)
    with torch.no_grad(), vectors.watch(llama) as seen, vectors.steer(llama, PUSH):
        for step in range(3):
            positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
            llama.model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache)
            ids, mask = torch.tensor([[60 + step], [70 + step]]), torch.nn.functional.pad(mask, (0, 1), value=1)
    for trace, prompt, reply in zip(seen.traces, (PROMPT, SHORT), ([60, 61], [70, 71]), strict=True):

        def change(b: int, h: torch.Tensor, first: int = len(prompt) - 1) -> torch.Tensor:
            unit = vectors.direction("malice", 1)
            return h if b != 1 else torch.cat([h[:first], h[first:] + 6.0 * unit])

        read_alike(llama, trace, prompt + reply, len(prompt), change)


def test_a_watch_reads_the_steered_state(llama: Any) -> None:
    """Whichever `with` is the outer one."""
    vectors, unit = vectors_of(llama), vectors_of(llama).direction("malice", 1)

    def change(block: int, h: torch.Tensor) -> torch.Tensor:
        return h + 6.0 * unit if block == 1 else h

    every = Steer("malice", 1, strength=6.0, start=None)
    with vectors.watch(llama) as outer, vectors.steer(llama, every), vectors.watch(llama) as inner:
        written = greedy(llama)
    for seen in (outer, inner):
        read_alike(llama, seen.trace, written[0, :-1].tolist(), len(PROMPT), change)
        assert seen.trace.provenance.steering == (every.to_dict(),)


def test_steers_nest_interleave_and_go_after_an_error(llama: Any) -> None:
    vectors, before, plain = vectors_of(llama), hooks_on(llama.model), greedy(llama).tolist()
    half = dict(strength=3.0, unit="residual")
    with vectors.steer(llama, "malice", strength=6.0, unit="residual"):
        whole = greedy(llama).tolist()
    with vectors.steer(llama, "malice", **half), vectors.steer(llama, "malice", **half):
        assert greedy(llama).tolist() == whole != plain
    first, second = vectors.steer(llama, "malice", **half), vectors.steer(llama, "malice", **half)
    first.__enter__()
    second.__enter__()
    assert greedy(llama).tolist() == whole
    first.__exit__(None, None, None)
    assert greedy(llama).tolist() != whole
    second.__exit__(None, None, None)
    with pytest.raises(ZeroDivisionError), vectors.watch(llama), vectors.steer(llama, PUSH):
        raise ZeroDivisionError
    with pytest.raises(IndexError), vectors.watch(llama) as seen, vectors.steer(llama, PUSH):
        llama.model(torch.tensor([[10**6]]))  # the forward fails
    assert seen.traces == [] and hooks_on(llama.model) == before and greedy(llama).tolist() == plain


def test_a_thread_of_its_own_is_steered_too(llama: Any) -> None:
    vectors, found = vectors_of(llama), []
    with vectors.steer(llama, PUSH):
        wanted = greedy(llama).tolist()
        thread = threading.Thread(target=lambda: found.append(greedy(llama).tolist()))
        thread.start()
        thread.join()
    assert found == [wanted] and wanted != greedy(llama).tolist()


def test_a_monitor_keeps_its_own_steering(llama: Any) -> None:
    vectors, traces = vectors_of(llama), []
    monitor = PersonaMonitor(llama, vectors)
    wanted = monitor.generate("Hi", max_new_tokens=4, temperature=0)

    def run() -> None:
        traces.append(monitor.generate("Hi", max_new_tokens=4, temperature=0))

    with vectors.steer(llama, PUSH):
        greedy(llama)
        with pytest.raises(SettingError, match="takes its own interventions"):
            run()
        thread = threading.Thread(target=run)  # somebody else's
        thread.start()
        thread.join()
    assert traces[0].token_ids == wanted.token_ids and np.array_equal(traces[0].raw, wanted.raw)


# ---- what is refused --------------------------------------------------------------------------------------------


def reordered(lm: Any) -> None:
    """A beam search of one's own."""
    ids, cache = torch.tensor([PROMPT, [*PROMPT[:-1], 77]]), transformers.DynamicCache(config=lm.model.config)
    with torch.no_grad():
        lm.model(ids, past_key_values=cache)
        cache.reorder_cache(torch.tensor([0, 0]))
        lm.model(torch.tensor([[5], [6]]), past_key_values=cache)


def cropped(lm: Any) -> None:
    cache = transformers.DynamicCache(config=lm.model.config)
    with torch.no_grad():
        lm.model(torch.tensor([PROMPT]), past_key_values=cache)
        cache.crop(-2)
        lm.model(torch.tensor([SHORT]), past_key_values=cache)


def packed(lm: Any) -> None:
    with torch.no_grad():
        lm.model(torch.tensor([PROMPT]), position_ids=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6]]))


def filled(lm: Any) -> Any:
    cache = transformers.DynamicCache(config=lm.model.config)
    with torch.no_grad():
        lm.model(torch.tensor([PROMPT]), past_key_values=cache)
    return cache


def copied(lm: Any) -> None:
    cache = transformers.DynamicCache(config=lm.model.config)
    with torch.no_grad():
        lm.model(torch.tensor([PROMPT]), past_key_values=cache)
        cache.batch_repeat_interleave(2)
        lm.model(torch.tensor([[5], [6]]), past_key_values=cache)


def embedded(lm: Any) -> None:
    lm.model.generate(inputs_embeds=torch.zeros(1, 3, lm.blocks.d_model), max_new_tokens=2)


def inner(lm: Any) -> None:
    lm.model.model(torch.tensor([PROMPT]))


def compiled(lm: Any) -> None:
    config = transformers.CompileConfig()
    config._compile_all_devices = True
    greedy(lm, cache_implementation="static", compile_config=config)


Run = Callable[[Any], Any]
ALWAYS: list[tuple[Run, str]] = [
    (lambda lm: greedy(lm, prompt_lookup_num_tokens=2), "Assisted decoding"),
    (lambda lm: greedy(lm, assistant_model=tiny_lm("llama", seed=1).model), "Assisted decoding"),
    (compiled, "disable_compile=True"),
]
FOLLOWED: list[tuple[Run, str]] = [
    (cropped, "tokens were taken back"),
    (packed, "several texts are packed"),
    (copied, "a search that copies rows"),
    (embedded, "inputs_embeds"),
    (inner, "ran outside a forward"),
    (lambda lm: greedy(lm, guidance_scale=2.0), "guidance_scale"),
]


@pytest.mark.parametrize(
    ("run", "says"),
    [*ALWAYS, *FOLLOWED, (lambda lm: greedy(lm, num_beams=2), "beam search"), (reordered, "Rows of the cache")],
)
def test_a_watch_refuses_what_it_cannot_follow(llama: Any, run: Run, says: str) -> None:
    before = hooks_on(llama.model)
    with pytest.raises(SettingError, match=says), vectors_of(llama).watch(llama) as seen:
        run(llama)
        _ = seen.traces
    assert hooks_on(llama.model) == before


@pytest.mark.parametrize("start", [None, 0])
@pytest.mark.parametrize(("run", "says"), ALWAYS[:1])
def test_a_steer_refuses_loops_that_take_tokens_back(llama: Any, run: Run, says: str, start: int | None) -> None:
    with pytest.raises(SettingError, match=says), vectors_of(llama).steer(llama, Steer("malice", 1, 3.0, start)):
        run(llama)


@pytest.mark.parametrize(
    ("run", "says"), [*FOLLOWED, (lambda lm: greedy(lm, prefill_chunk_size=5), "The prompt is read in parts")]
)
def test_a_steer_with_a_start_refuses_where_it_cannot_place_it(llama: Any, run: Run, says: str) -> None:
    with pytest.raises(SettingError, match=says), vectors_of(llama).steer(llama, PUSH):
        run(llama)
    with vectors_of(llama).steer(llama, Steer("malice", 1, 3.0, None)):
        run(llama)  # every token: nothing to place


def test_a_cache_from_before_is_refused(llama: Any) -> None:
    cache = filled(llama)
    for room in (vectors_of(llama).watch(llama), vectors_of(llama).steer(llama, PUSH)):
        with pytest.raises(SettingError, match="11 tokens from before"), room:
            greedy(llama, torch.tensor([[*PROMPT, 5]]), past_key_values=cache)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda v, lm: v.steer(lm, "malice", strength=1), NotCalibrated, "use unit='residual'"),
        (lambda v, lm: v.steer(lm, "kindness", strength=1), UnknownTrait, "kindness"),
        (lambda v, lm: v.steer(lm, "malice"), SettingError, "takes strength; got neither"),
        (lambda v, lm: v.steer(lm, "malice", mode="cap", strength=1), SettingError, "takes threshold"),
        (lambda v, lm: v.steer(lm, "malice", mode="ablate", strength=1), SettingError, "no strength"),
        (lambda v, lm: v.steer(lm, "malice", mode="push", strength=1), SettingError, "expected 'add'"),
        (lambda v, lm: v.steer(lm, "malice", mode="ablate", block=9), UnknownBlock, "9"),
        (lambda v, lm: v.steer(lm, PUSH, strength=1), SettingError, "a Steer has its own"),
        (lambda v, lm: v.steer(lm, []), SettingError, "Nothing to steer"),
        (lambda v, lm: v.steer(lm, Steer("malice", 1, 1.0, when="alarm")), SettingError, "detectors"),
        (lambda v, lm: v.steer("gpt2", PUSH), SettingError, "'gpt2'"),
        (lambda v, lm: v.steer(replace(lm, model=object()), PUSH), UnsupportedModel, "another engine"),
        (lambda v, lm: v.steer(torch.nn.Linear(2, 2), PUSH), UnsupportedModel, "not a transformers model"),
        (lambda v, lm: v.steer(torch.compile(lm.model), PUSH), UnsupportedModel, "compiled"),
        (lambda v, lm: random_vectors(7).steer(lm, PUSH), VectorsMismatch, "7 blocks"),
        (lambda v, lm: random_vectors(7).watch(lm), VectorsMismatch, "7 blocks"),
        (lambda v, lm: v.watch(lm.model), SettingError, "tokenizer"),
        (lambda v, lm: v.watch(lm, blocks=[9]), UnknownBlock, "9"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(llama: Any, call: Any, error: type[PersonaError], says: str) -> None:
    with pytest.raises(error, match=says), call(vectors_of(llama), llama):
        pass


def test_a_steer_that_never_acts_says_so(llama: Any) -> None:
    with pytest.warns(PersonaWarning, match="Nothing was steered"), vectors_of(llama).steer(llama, PUSH):
        greedy(tiny_lm("llama", seed=1))
