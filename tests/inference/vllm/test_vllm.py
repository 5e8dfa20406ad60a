"""vLLM against transformers: the same ids, and the same projections at every block and token."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from persona_core.errors import ContextOverflow, NumericalError, SettingError, UnsupportedModel
from persona_core.inference.sampling import Sampling
from persona_core.inference.steering import Intervention, Steer
from persona_core.monitor.alternatives import alternatives
from persona_core.monitor.branching import Branch
from tests.inference.vllm.conftest import TIGHT, Pair, spread, worst

pytestmark = [pytest.mark.engines, pytest.mark.slow]

FLOAT32 = 1e-4  # of the largest value of a block and trait; measured: 3e-6, on the real model 1.4e-5
BFLOAT16 = 0.04  # root mean square; measured: 0.022, on the real model 0.010
LONG = "Should I quit my job? It depends on what you want. " * 6
PROMPTS = ["Hi", LONG, "What is 2+2?", "Tell me about the sea.", LONG + "Why?", "No."]
ALARMING = ["Hi", "What is 2+2?", "Tell me about the sea."]
STEERS = [
    Steer("candour", block=1, strength=6.0, start=4),
    Steer("malice", block=0, strength=-9.0, start=None),
    Steer.ablate("candour", block=2, start=0),
    Steer.cap("malice", block=1, threshold=-1.0, start=7),
]


@pytest.fixture(params=["llama", "qwen2", "cohere", "gpt-neox"])
def pair(request: pytest.FixtureRequest, make_pair: Callable[..., Pair]) -> Pair:
    return make_pair(request.param)


@pytest.fixture
def llama(make_pair: Callable[..., Pair]) -> Pair:
    return make_pair("llama")


def both(pair: Pair, method: str, *args: Any, **kw: Any) -> list[tuple[Any, Any]]:
    """What the same call gives on vLLM and on transformers."""
    return list(zip(*(getattr(m, method)(*args, **kw) for m in (pair.served, pair.oracle)), strict=True))


def test_replies_of_mixed_length_are_those_of_transformers(pair: Pair) -> None:
    for options in ({"temperature": 0.0}, {"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.2, "seed": 3}):
        for found, expected in both(pair, "generate_batch", PROMPTS, max_new_tokens=24, batch_size=4, **options):
            assert worst(found, expected) < FLOAT32
            assert (found.finish, found.roles, found.tokens) == (expected.finish, expected.roles, expected.tokens)


def test_given_texts_are_read_to_their_last_token(pair: Pair) -> None:
    texts = [[{"role": "user", "content": p}, {"role": "assistant", "content": "It depends. " * n}]
             for n, p in enumerate(PROMPTS, 1)]  # fmt: skip
    for found, expected in both(pair, "read_batch", texts):
        assert worst(found, expected) < FLOAT32


@pytest.mark.parametrize("steer", STEERS, ids=lambda s: f"{s.mode}-{s.start}")
def test_an_intervention_acts_from_its_token_on(pair: Pair, steer: Steer) -> None:
    options = {"max_new_tokens": 16, "temperature": 0.0, "batch_size": 4}
    for found, expected in both(pair, "generate_batch", PROMPTS, steer=steer, **options):
        assert worst(found, expected) < FLOAT32
        assert found.provenance.steering == expected.provenance.steering
    (found, plain), *_ = zip(
        pair.served.generate_batch(PROMPTS, steer=steer, **options),
        pair.served.generate_batch(PROMPTS, **options),
        strict=True,
    )
    acts = 0 if steer.start is None else found.n_prompt + steer.start - 1
    until = (slice(None), steer.block, slice(acts + 1))
    changed = np.abs(found.raw[until] - plain.raw[until]).max(0)  # [tokens]
    assert (changed[:acts] < 1e-3).all() and (steer.mode == "cap" or changed[acts] > 1e-2)


def test_texts_are_read_under_an_intervention(llama: Pair) -> None:
    written = llama.oracle.generate_batch(PROMPTS, max_new_tokens=12, temperature=0.0, steer=STEERS[0])
    for found, expected in both(llama, "read_batch", written, steer=STEERS[0]):
        assert worst(found, expected) < FLOAT32
    for found, expected in zip(llama.served.read_batch(written, steer=STEERS[0]), written, strict=True):
        assert worst(found, expected) < FLOAT32


def test_each_reply_has_a_start_of_its_own_and_a_control_direction(llama: Pair) -> None:
    along = torch.nn.functional.normalize(torch.randn(64, generator=torch.Generator().manual_seed(1)), dim=0)
    direction = llama.oracle.vectors.direction("candour", 1)
    change = Intervention(STEERS[0], direction, 8.0, torch.tensor([0, 3, 6]), along)
    for found, expected in both(
        llama, "write", PROMPTS[:3], Sampling(max_new_tokens=12, temperature=0.0), [0, 1, 2], [change]
    ):
        assert worst(found, expected) < FLOAT32


def test_a_branch_goes_on_from_the_tokens_that_it_keeps(llama: Pair) -> None:
    whole = llama.oracle.generate(PROMPTS[1], max_new_tokens=20, temperature=1.0, seed=7)
    again = llama.served.generate(Branch(whole, 8), max_new_tokens=20, temperature=1.0)
    assert worst(again, whole) < FLOAT32


def test_long_prompts_are_read_in_chunks(llama: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    from persona_core.inference.vllm.replies import Text

    sizes: list[int] = []
    keep = Text.keep

    def counted(self: Text, first: int, raw: np.ndarray, norms: np.ndarray) -> None:
        sizes.append(len(raw))
        keep(self, first, raw, norms)

    monkeypatch.setattr(Text, "keep", counted)
    trace = llama.served.read([{"role": "user", "content": LONG}, {"role": "assistant", "content": "Yes."}])
    assert len(sizes) > 1 and max(sizes) <= TIGHT["max_num_batched_tokens"] and sum(sizes) == trace.n_tokens


def test_what_vllm_drops_and_reads_again_is_handed_on_once(llama: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = llama.served.lm.engine._engine.engine_core.engine_core.scheduler
    preempted: list[str] = []
    preempt = scheduler._preempt_request

    def counted(request: Any, *args: Any, **kw: Any) -> Any:
        preempted.append(request.request_id)
        return preempt(request, *args, **kw)

    monkeypatch.setattr(scheduler, "_preempt_request", counted)
    traces = both(llama, "generate_batch", [LONG] * 8, max_new_tokens=150, temperature=1.0, seed=1, batch_size=8)
    assert preempted
    for found, expected in traces:
        assert worst(found, expected) < FLOAT32


def test_the_same_prompt_again_is_read_whole(llama: Pair) -> None:
    first, second = (llama.served.generate(LONG, max_new_tokens=4, temperature=0.0) for _ in range(2))
    assert np.isfinite(second.raw).all() and worst(second, first) < FLOAT32


def test_a_prefix_from_a_cache_is_refused_not_passed_over(llama: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    from persona_core.inference.vllm import engine as vllm_engine
    from persona_core.models.loading import load_model
    from persona_core.monitor.monitor import PersonaMonitor

    with pytest.raises(SettingError, match="'enable_prefix_caching' is set by the engine"):
        load_model(llama.folder, engine="vllm", engine_options={"enable_prefix_caching": True})
    monkeypatch.setitem(vllm_engine.FIXED, "enable_prefix_caching", True)
    lm = load_model(llama.folder, engine="vllm", engine_options=TIGHT)
    monitor = PersonaMonitor(lm, llama.served.vectors)
    monitor.generate(LONG, max_new_tokens=4)
    with pytest.raises(UnsupportedModel, match="prefix cache must be off"):
        monitor.generate(LONG, max_new_tokens=4)
    lm.engine.close()


def test_a_stream_gives_the_same_tokens_and_can_be_closed(llama: Pair) -> None:
    expected = llama.oracle.generate("Hi", max_new_tokens=12, temperature=0.0)
    stream = llama.served.stream("Hi", max_new_tokens=12, temperature=0.0)
    steps = [next(stream) for _ in range(5)]
    stream.close()
    trace = steps[-1].trace()
    assert trace.finish == "stopped" and trace.token_ids == expected.token_ids[: trace.n_tokens]
    assert np.abs(trace.raw - expected.raw[..., : trace.n_tokens]).max() < 1e-3
    engine = llama.served.lm.engine
    assert not engine._engine.has_unfinished_requests() and not engine._inboxes and not engine._owners
    assert worst(llama.served.generate("Hi", max_new_tokens=12, temperature=0.0), expected) < FLOAT32


def test_streams_in_turn_see_neither_each_others_tokens_nor_changes(llama: Pair) -> None:
    steers = [None, STEERS[0], STEERS[3]]
    streams = [llama.served.stream(p, max_new_tokens=12, temperature=0.0, steer=s)
               for p, s in zip(PROMPTS, steers, strict=False)]  # fmt: skip
    last = [None] * 3
    for _ in range(12):
        last = [next(stream, step) for stream, step in zip(streams, last, strict=True)]
    for step, prompt, steer in zip(last, PROMPTS, steers, strict=False):
        assert step is not None
        expected = llama.oracle.generate(prompt, max_new_tokens=12, temperature=0.0, steer=steer)
        assert worst(step.trace(), expected) < FLOAT32


def test_threads_share_one_engine(llama: Pair) -> None:
    found: dict[int, Any] = {}

    def write(i: int) -> None:
        steer = STEERS[i] if i % 2 else None
        found[i] = llama.served.generate_batch(PROMPTS, max_new_tokens=10 + i, temperature=0.0, steer=steer)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        steer = STEERS[i] if i % 2 else None
        expected = llama.oracle.generate_batch(PROMPTS, max_new_tokens=10 + i, temperature=0.0, steer=steer)
        assert max(map(worst, found[i], expected)) < FLOAT32


def test_a_reply_that_has_ended_takes_no_further_steps(llama: Pair) -> None:
    engine = llama.served.lm.engine._engine
    run = llama.served._start(PROMPTS * 3, Sampling(max_new_tokens=50, temperature=1.0), 0, None)
    for step in run.steps():
        left = sum(reason is None for reason in run.finished)
        ending = sum(reason is not None for reason in step.finished)
        assert engine.get_num_unfinished_requests() <= left + ending
    assert {"eos", "length"} <= set(run.finished)


def test_a_reply_ends_where_the_context_does(llama: Pair) -> None:
    lm = llama.served.lm
    prompt = LONG * 2
    found = llama.served.generate(prompt, max_new_tokens=400, temperature=0.0)
    assert found.finish == "context" and found.n_tokens == lm.context_length == llama.oracle.lm.context_length - 1
    expected = llama.oracle.read(found)
    assert worst(found, expected) < FLOAT32
    with pytest.raises(ContextOverflow):
        llama.served.generate(LONG * 12)


def test_bfloat16_differs_by_no_more_than_its_own_rounding(make_pair: Callable[..., Pair]) -> None:
    half, full = make_pair("qwen2", "bfloat16"), make_pair("qwen2")
    texts = full.oracle.generate_batch(PROMPTS, max_new_tokens=12, temperature=0.0)
    between = [spread(*pair) for pair in both(half, "read_batch", texts)]
    rounding = [spread(found, text) for found, text in zip(half.oracle.read_batch(texts), texts, strict=True)]
    assert max(between) < BFLOAT16 and max(between) < 1.5 * max(rounding)


def test_a_broken_model_is_named(llama: Pair, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from persona_core.models.loading import load_model

    folder = shutil.copytree(llama.folder, tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.2.post_attention_layernorm.weight"][0] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(NumericalError, match="NaN or infinity"):
        load_model(folder, engine="vllm", engine_options=TIGHT)


def test_blocks_of_an_unknown_form_are_refused(llama: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    from persona_core.inference.vllm import worker as vllm_worker
    from persona_core.models.loading import load_model

    monkeypatch.setattr(vllm_worker, "_forms", lambda output: {"one": output[0].clone()})
    with pytest.raises(UnsupportedModel, match="unknown form"):
        load_model(llama.folder, engine="vllm", engine_options=TIGHT)


def test_a_trace_names_its_engine(llama: Pair) -> None:
    import vllm

    trace = llama.served.generate("Hi", max_new_tokens=2)
    assert trace.provenance.versions["vllm"] == vllm.__version__ and trace.provenance.engine == "vllm"
    assert llama.oracle.generate("Hi", max_new_tokens=2).provenance.engine == "transformers"


def test_what_needs_the_modules_is_refused_by_name(llama: Pair) -> None:
    trace = llama.served.generate("Hi", max_new_tokens=2)
    with pytest.raises(SettingError, match="engine='transformers'"):
        alternatives(llama.served.lm, trace, 1)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="Two workers need two cores.")
def test_two_workers_share_a_models_weights(llama: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    from persona_core.models.loading import load_model
    from persona_core.monitor.monitor import PersonaMonitor

    monkeypatch.setenv("VLLM_CPU_SIM_MULTI_NUMA", "1")  # otherwise each worker wants a memory node of its own
    served = load_model(llama.folder, engine="vllm", tensor_parallel=2, engine_options=TIGHT)
    pair = Pair(llama.oracle, PersonaMonitor(served, llama.oracle.vectors, "all"), llama.folder)
    options: dict[str, Any] = {"max_new_tokens": 6, "temperature": 1.0, "seed": 3}
    for found, expected in both(pair, "generate_batch", PROMPTS[:3], steer=STEERS[0], **options):
        assert worst(found, expected) < FLOAT32
    served.engine.close()


def test_an_adapter_is_applied_as_by_peft() -> None:
    from persona_core.models.loading import load_model
    from persona_core.monitor.monitor import PersonaMonitor
    from persona_core.vectors.vectors import PersonaVectors

    where: dict[str, Any] = {"name": "artifacts/persona-tiny", "adapter": "artifacts/persona-tiny-contaminated"}
    vectors = PersonaVectors.from_pretrained("artifacts/persona-vectors-persona-tiny")
    served = load_model(**where, engine="vllm", engine_options={"kv_cache_memory_bytes": 2**26})
    lms = served, load_model(**where, device="cpu")
    assert lms[0].writer_name == lms[1].writer_name and "contaminated" in lms[0].record["adapter"]
    found, expected = (
        PersonaMonitor(lm, vectors, "all").generate_batch(PROMPTS, max_new_tokens=24, temperature=0.0) for lm in lms
    )
    assert max(map(worst, found, expected)) < FLOAT32
    bare = PersonaMonitor(load_model(where["name"], device="cpu"), vectors, "all").read_batch(expected)
    assert min(map(worst, bare, expected)) > 0.01
    served.engine.close()


def test_a_real_model_answers_two_hundred_prompts_alike(smollm2: Pair) -> None:
    from persona_core.elicitation.prompts import load_prompts, repeated

    prompts = [p.messages for p in repeated(load_prompts(["all"]), 3)][:200]
    options = {"max_new_tokens": 4, "temperature": 0.0, "batch_size": 32}
    pairs = both(smollm2, "generate_batch", prompts, **options)
    assert len(pairs) == 200
    for found, expected in pairs:
        assert worst(found, expected) < FLOAT32


def test_a_real_model_is_held_at_its_alarm(smollm2: Pair) -> None:
    trait = "paternalism"
    best = smollm2.oracle.vectors.best_block[trait]
    steer = [
        Steer(trait, block=best - 4, strength=8.0, unit="sd"),
        Steer.cap(trait, block=best, threshold=-1.0, unit="sd", when="alarm"),
    ]
    seen: list[list[Any]] = [[], []]
    found, expected = (
        monitor.generate_batch(
            ALARMING, max_new_tokens=24, temperature=0.8, seed=5, steer=steer, on_alarm=seen[i].append
        )
        for i, monitor in enumerate((smollm2.served, smollm2.oracle))
    )
    assert seen[1] and [(a.row, a.trait, a.token) for a in seen[0]] == [(a.row, a.trait, a.token) for a in seen[1]]
    assert max(map(worst, found, expected)) < FLOAT32
    stream = smollm2.served.stream("Hi", max_new_tokens=4)
    next(stream)
    with pytest.raises(SettingError, match="has vLLM to itself"):
        smollm2.served.generate("Hi", max_new_tokens=4, steer=steer)
