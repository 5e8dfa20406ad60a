"""How tokens are chosen and when a reply ends: compared with transformers' `generate`, and with statistics."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from persona_core.elicitation.elicit import write_replies
from persona_core.errors import ContextOverflow, PromptError, SettingError
from persona_core.inference.decode import decode
from persona_core.inference.sampling import Sampling, SamplingOptions
from persona_core.models.loading import wrap_model
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.vectors.calibration import calibrate
from persona_core.vectors.extraction import RunningMean
from tests.support import oracle
from tests.support.chat_templates import tokenizer_for
from tests.support.families import PAD_ID, VOCAB, build
from tests.support.tiny import Maker, random_vectors, tiny_lm

PROMPT = "Should I quit my job?"
PROMPTS = [PROMPT + " I have been there for seven years, and the pay is good.", "Hi", PROMPT]
FAMILIES = ("llama", "gpt2", "mistral", "gemma3", "bloom")


def endless(family: str = "llama") -> Any:
    """A tiny model whose replies never end by themselves."""
    return dataclasses.replace(tiny_lm(family, "chatml"), eos_ids=frozenset())


def monitor_of(lm: Any) -> PersonaMonitor:
    return PersonaMonitor(lm, random_vectors(len(lm.blocks)), blocks="all")


def reply(trace: Any) -> list[int]:
    return list(trace.token_ids[trace.n_prompt :])


FEW_IDS = (1, 40, 41, 42)  # a short prompt, as thousands of copies of it are read at once


def first_tokens(lm: Any, sampling: Sampling, n: int) -> np.ndarray:
    """The first token of `n` replies with the seeds 0 to n - 1."""
    *_, last = decode(lm, [FEW_IDS] * n, sampling, range(n))
    return np.array(last.token_ids)


def generate_with_transformers(lm: Any, prompt: str, **settings: Any) -> Any:
    ids = torch.tensor([lm.chat.render(prompt).token_ids])
    known: dict[str, Any] = dict(eos_token_id=sorted(lm.eos_ids) or None, pad_token_id=PAD_ID)
    extra: dict[str, Any] = dict(return_dict_in_generate=True, output_scores=True, output_logits=True)
    return lm.model.generate(ids, attention_mask=torch.ones_like(ids), **(known | extra | settings))


# Greedy.


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_writes_what_transformers_writes(family: str) -> None:
    lm = tiny_lm(family, "chatml")
    traces = monitor_of(lm).generate_batch(PROMPTS, max_new_tokens=16, temperature=0)
    for prompt, trace in zip(PROMPTS, traces, strict=True):
        theirs = generate_with_transformers(lm, prompt, do_sample=False, max_new_tokens=16)
        assert list(trace.token_ids) == theirs.sequences[0].tolist()


@pytest.mark.parametrize("penalty", [1.3, 4.0, 0.5])
def test_greedy_with_a_repetition_penalty_writes_what_transformers_writes(penalty: float) -> None:
    lm = endless("gpt2")
    settings: dict[str, Any] = dict(max_new_tokens=16, repetition_penalty=penalty)
    plain = monitor_of(lm).generate(PROMPT, max_new_tokens=16, temperature=0)
    trace = monitor_of(lm).generate(PROMPT, temperature=0, **settings)
    theirs = generate_with_transformers(lm, PROMPT, do_sample=False, **settings)
    assert list(trace.token_ids) == theirs.sequences[0].tolist()
    assert trace.token_ids != plain.token_ids


def test_greedy_does_not_depend_on_the_seed_top_k_or_top_p() -> None:
    monitor = monitor_of(endless())
    wanted = monitor.generate(PROMPT, max_new_tokens=8, temperature=0).token_ids
    for extra in ({"seed": 7}, {"top_k": 3}, {"top_p": 0.1}):
        assert monitor.generate(PROMPT, max_new_tokens=8, temperature=0, **extra).token_ids == wanted


@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_only_the_best_token_is_greedy(family: str) -> None:
    monitor = monitor_of(endless(family))
    wanted = monitor.generate(PROMPT, max_new_tokens=12, temperature=0).token_ids
    for seed in range(3):
        for extra in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
            settings: dict[str, Any] = {"temperature": 1.7, "seed": seed, "max_new_tokens": 12} | extra
            assert monitor.generate(PROMPT, **settings).token_ids == wanted


# Sampling.

CHAINS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.7},
    {"temperature": 1.0},
    {"temperature": 2.5},
    {"temperature": 1.3, "top_k": 7},
    {"temperature": 1.3, "top_p": 0.6},
    {"temperature": 0.9, "top_k": 40, "top_p": 0.8, "repetition_penalty": 1.4},
)


@pytest.mark.parametrize("settings", CHAINS, ids=str)
def test_scores_are_processed_as_transformers_does(settings: dict[str, Any]) -> None:
    lm = endless()
    theirs = generate_with_transformers(
        lm, PROMPT, do_sample=True, max_new_tokens=6, **({"top_k": 0, "top_p": 1.0} | settings)
    )
    processors = Sampling(**settings).processors()
    n_prompt = theirs.sequences.shape[1] - 6
    for step in range(6):
        ours = processors(theirs.sequences[:, : n_prompt + step], theirs.logits[step].float())
        assert torch.equal(ours, theirs.scores[step])


@pytest.mark.parametrize("settings", CHAINS, ids=str)
def test_sampled_frequencies_follow_the_softmax(settings: dict[str, Any]) -> None:
    """Chi-square over the tokens that are expected often enough; the seeds are fixed, so is the result."""
    lm, n = endless(), 3000
    ids = torch.tensor([FEW_IDS])
    with torch.no_grad():
        logits = lm.model(input_ids=ids).logits[:, -1]
    expected = Sampling(**settings).processors()(ids, logits).double().softmax(-1)[0].numpy() * n
    counts = np.bincount(first_tokens(lm, Sampling(max_new_tokens=1, **settings), n), minlength=VOCAB)
    assert counts.sum() == n and not counts[expected == 0].any()
    often = expected >= 5
    found = np.append(counts[often], counts[~often].sum())
    wanted = np.append(expected[often], expected[~often].sum())
    if wanted[-1] < 5:  # too rare even together
        found, wanted = found[:-1], wanted[:-1]
    assert len(found) > 2
    assert stats.chisquare(found, wanted * found.sum() / wanted.sum()).pvalue > 1e-3


def test_draws_of_neighbouring_seeds_are_independent() -> None:
    """Seeds i and i + 1 stand side by side in every batch."""
    tokens = first_tokens(endless(), Sampling(max_new_tokens=1, temperature=1.0), 3000)
    common = np.bincount(tokens).argmax()
    hit = (tokens == common).astype(float)
    assert abs(np.corrcoef(hit[:-1], hit[1:])[0, 1]) < 0.06  # three standard errors


def test_a_seed_gives_one_reply_and_other_seeds_give_others() -> None:
    monitor = monitor_of(endless())
    replies = [monitor.generate(PROMPT, max_new_tokens=12, temperature=1.5, seed=s).token_ids for s in (0, 0, 1, 2)]
    assert replies[0] == replies[1] and len(set(replies)) == 3


def test_a_longer_reply_begins_with_the_shorter_one_of_the_same_seed() -> None:
    monitor = monitor_of(endless())
    short, long = (monitor.generate(PROMPT, max_new_tokens=n, temperature=1.2, seed=4).token_ids for n in (5, 15))
    assert long[: len(short)] == short


def test_sampling_neither_uses_nor_disturbs_the_global_random_state() -> None:
    monitor = monitor_of(endless())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        before = torch.random.get_rng_state()
        first = monitor.generate(PROMPT, max_new_tokens=6, temperature=1.0, seed=0).token_ids
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.manual_seed(2)
        assert monitor.generate(PROMPT, max_new_tokens=6, temperature=1.0, seed=0).token_ids == first


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_row_i_of_a_batch_is_the_reply_of_seed_plus_i(batch_size: int) -> None:
    monitor = monitor_of(tiny_lm("gpt2", "chatml"))
    settings: dict[str, Any] = dict(max_new_tokens=10, temperature=1.2, top_k=50, repetition_penalty=1.2)
    rows = monitor.generate_batch(PROMPTS, batch_size=batch_size, seed=20, **settings)
    pooled = write_replies(monitor.lm, PROMPTS, Sampling(**settings), 20, batch_size)
    for i, (row, other) in enumerate(zip(rows, pooled, strict=True)):
        alone = monitor.generate(PROMPTS[i], seed=20 + i, **settings)
        assert row.token_ids == alone.token_ids and row.provenance.seed == 20 + i
        assert list(other.token_ids) == reply(alone) and other.text == alone.reply_text


def test_the_repetition_penalty_does_not_see_the_padding() -> None:
    """A model that would say the padding token at once: in a batch its row is padded with it."""
    model = build("llama", seed=0)
    ids = wrap_model(model, tokenizer_for("chatml")).chat.render("Hi").token_ids
    assert PAD_ID not in ids
    with torch.no_grad():
        row = model.lm_head.weight[int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
        model.lm_head.weight[PAD_ID] = 1.1 * row
    lm = dataclasses.replace(wrap_model(model, tokenizer_for("chatml"), name="tiny-llama"), eos_ids=frozenset())
    settings: dict[str, Any] = dict(max_new_tokens=6, temperature=0, repetition_penalty=3.0)
    alone = monitor_of(lm).generate("Hi", **settings)
    assert reply(alone)[0] == PAD_ID
    batched = monitor_of(lm).generate_batch([PROMPTS[0], "Hi"], **settings)[1]
    assert batched.token_ids == alone.token_ids


# How a reply ends.


def test_every_eos_id_of_the_generation_config_ends_a_row() -> None:
    tokenizer, model = tokenizer_for("chatml"), build("llama", seed=0)
    lm = dataclasses.replace(wrap_model(model, tokenizer, name="tiny-llama"), eos_ids=frozenset())
    free = reply(monitor_of(lm).generate(PROMPT, max_new_tokens=12, temperature=1.0, seed=0))
    assert len(set(free)) > 3
    default = {tokenizer.eos_token_id}
    for end in sorted(set(free) - default):
        model.generation_config.eos_token_id = [end, 311]
        ending = wrap_model(model, tokenizer, name="tiny-llama")
        assert ending.eos_ids == {end, 311} | default
        trace = monitor_of(ending).generate(PROMPT, max_new_tokens=12, temperature=1.0, seed=0)
        assert reply(trace) == free[: free.index(end) + 1]
        assert trace.finish == "eos" and trace.roles[-1] == "template"
        assert set(trace.roles[trace.n_prompt : -1]) <= {"assistant"}


def test_a_single_eos_id_and_none_at_all_are_understood() -> None:
    tokenizer, model = tokenizer_for("chatml"), build("llama", seed=0)
    for given, wanted in ((7, {7}), (None, set())):
        model.generation_config.eos_token_id = given
        assert wrap_model(model, tokenizer).eos_ids == wanted | {tokenizer.eos_token_id}


def test_a_reply_that_reaches_its_length_says_so() -> None:
    trace = monitor_of(endless()).generate(PROMPT, max_new_tokens=5, seed=0)
    assert (trace.n_reply, trace.finish) == (5, "length") and set(trace.roles[-5:]) == {"assistant"}


@pytest.mark.parametrize("left", [1, 4])
def test_a_reply_is_shortened_at_the_end_of_the_context_and_says_so(left: int) -> None:
    lm = endless("gpt2")
    n = len(lm.chat.render(PROMPT).token_ids)
    short = dataclasses.replace(lm, context_length=n + left)
    wanted = monitor_of(lm).generate(PROMPT, max_new_tokens=10, seed=0)
    trace = monitor_of(short).generate(PROMPT, max_new_tokens=10, seed=0)
    assert (trace.n_reply, trace.finish) == (left, "context")
    assert trace.token_ids == wanted.token_ids[: n + left]
    assert oracle.relative_error(trace.raw, wanted.raw[..., : n + left]) < 1e-4
    assert [s.finish for s in monitor_of(short).stream(PROMPT, max_new_tokens=10, seed=0)][-1] == "context"


def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers() -> None:
    lm = endless()
    n = len(lm.chat.render(PROMPT).token_ids)
    for length in (n, n - 1, 1):
        monitor = monitor_of(dataclasses.replace(lm, context_length=length))
        for run in (monitor.generate, monitor.stream, lambda p, m=monitor: m.generate_batch(["Hi", p])):
            with pytest.raises(ContextOverflow, match=rf"{n} tokens.*{length}" if length > 20 else "context"):
                run(PROMPT)
    with pytest.raises(ContextOverflow):
        next(write_replies(dataclasses.replace(lm, context_length=n), [PROMPT], Sampling(), 0))


# An empty reply: the end of turn comes first.


def silent(make_lm: Maker) -> Any:
    """A model that ends its turn at once."""
    lm = make_lm("llama", "chatml")
    first = reply(monitor_of(lm).generate(PROMPT, max_new_tokens=1, temperature=0))[0]
    return dataclasses.replace(lm, eos_ids=frozenset({first}))


def test_a_reply_of_no_token_is_a_whole_trace(make_lm: Maker, tmp_path: Any) -> None:
    monitor = monitor_of(silent(make_lm))
    settings: dict[str, Any] = dict(max_new_tokens=5, temperature=0)
    steps = list(monitor.stream(PROMPT, **settings))
    both = monitor.generate_batch([PROMPT, PROMPTS[0]], **settings)
    for trace in (monitor.generate(PROMPT, **settings), steps[-1].trace(), both[0]):
        assert (trace.n_reply, trace.finish, trace.reply_text) == (1, "eos", "")
        assert trace.roles[-1] == "template"
        for kind in ("raw", "cosine"):
            for alignment in ("at", "before"):
                scores = trace.scores("malice", kind=kind, alignment=alignment)
                assert scores.shape == (trace.n_tokens,) and np.isfinite(scores[1:]).all()
        assert type(trace).load(trace.save(tmp_path / "trace.json")).token_ids == trace.token_ids
        assert monitor.read(trace).token_ids == trace.token_ids
        trace.figure(kind="raw")
        trace.to_html(kind="raw")
    assert len(steps) == 1 and steps[0].finish == "eos"


def test_the_pooled_mean_of_an_empty_reply_is_nan(make_lm: Maker) -> None:
    lm = silent(make_lm)
    (only,) = write_replies(lm, [PROMPT], Sampling(max_new_tokens=5, temperature=0), 0)
    assert (only.n_tokens, only.text, len(only.token_ids)) == (0, "", 1)
    assert only.mean_state.shape == (3, 32) and np.isnan(only.mean_state).all()
    with pytest.raises(SettingError, match="empty reply"):
        RunningMean().add(only.mean_state)


def test_an_empty_reply_beside_others_leaves_their_means_alone(make_lm: Maker) -> None:
    lm = silent(make_lm)
    sampling = Sampling(max_new_tokens=6, temperature=0)
    alone = [next(write_replies(lm, [p], sampling, 0)) for p in PROMPTS]
    assert {r.n_tokens == 0 for r in alone} == {True, False}
    for one, batched in zip(alone, write_replies(lm, PROMPTS, sampling, 0), strict=True):
        assert batched.n_tokens == one.n_tokens
        assert np.allclose(batched.mean_state, one.mean_state, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_calibrating_on_empty_replies_only_is_refused(make_lm: Maker) -> None:
    monitor = monitor_of(silent(make_lm))
    with pytest.raises(SettingError, match="no token"):
        calibrate(monitor.vectors, [monitor.generate(PROMPT, max_new_tokens=5, temperature=0)] * 3)


# What is refused.


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("max_new_tokens", [0, -1, 1.5, True, "8", None]),
        ("temperature", [-0.1, float("nan"), float("inf"), "warm", None, True]),
        ("top_p", [0, 0.0, -0.5, 1.01, float("nan"), None]),
        ("top_k", [-1, 2.5, None, True]),
        ("repetition_penalty", [0, -1.0, float("nan"), float("inf"), None]),
    ],
)
def test_a_setting_out_of_its_range_is_refused_by_name(name: str, values: list[Any]) -> None:
    monitor = monitor_of(endless())
    for value in values:
        with pytest.raises(SettingError, match=rf"{name}={value!r}"):
            Sampling(**{name: value})
        for run in (monitor.generate, monitor.stream, lambda p, **kw: monitor.generate_batch([p], **kw)):
            with pytest.raises(SettingError, match=name):
                run(PROMPT, **{name: value})


@pytest.mark.parametrize("seed", [-1, 1.5, "0"])
def test_a_seed_that_is_no_whole_number_from_zero_is_refused(seed: Any) -> None:
    with pytest.raises(SettingError, match="seed"):
        monitor_of(endless()).generate(PROMPT, max_new_tokens=1, seed=seed)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_one_is_refused(batch_size: int) -> None:
    monitor = monitor_of(endless())
    for run in (
        lambda: monitor.generate_batch([PROMPT], batch_size=batch_size, max_new_tokens=1),
        lambda: monitor.read_batch([PROMPT], batch_tokens=batch_size),
        lambda: list(write_replies(monitor.lm, [PROMPT], Sampling(max_new_tokens=1), 0, batch_size)),
    ):
        with pytest.raises(SettingError, match=r"batch_(size|tokens)="):
            run()


def test_an_empty_prompt_and_an_empty_list_are_refused() -> None:
    monitor = monitor_of(endless())
    nothing: tuple[Any, ...] = ("", "  \n", [])
    for prompt in nothing:
        with pytest.raises(PromptError):
            monitor.generate(prompt)
    with pytest.raises(PromptError, match="No prompt"):
        monitor.generate_batch([])


def test_no_token_is_ever_chosen_that_has_no_probability() -> None:
    """The largest draw, beside a cumulative sum that float32 leaves below or above one."""
    from persona_core.inference.sampling import LARGEST_DRAW, choose

    scores = torch.full((1, 50_000), -torch.inf)
    scores[0, 100:40_000] = torch.randn(39_900, generator=torch.Generator().manual_seed(0))
    for draw, wanted in ((0.0, 100), (LARGEST_DRAW, None)):
        token = int(choose(scores, torch.tensor([[draw]], dtype=torch.float32)))
        assert 100 <= token < 40_000 and (wanted is None or token == wanted)


def test_the_keyword_arguments_are_the_fields_of_sampling() -> None:
    fields = {field.name: field.type for field in dataclasses.fields(Sampling)}
    assert {name: hint.__forward_arg__ for name, hint in SamplingOptions.__annotations__.items()} == fields


@pytest.mark.parametrize("method", ["generate", "stream", "generate_batch"])
def test_an_unknown_sampling_argument_is_named(method: str) -> None:
    with pytest.raises(TypeError, match="max_tokens"):
        getattr(monitor_of(endless()), method)([PROMPT], max_tokens=3)
