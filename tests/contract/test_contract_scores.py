"""The contract, clauses 9 to 13: sinks, specific scores, one rate, where a given reply is read, all weights there.

Each check is a function that raises `AssertionError` where the clause is broken; beside it stands a mutation that
breaks the library on purpose and demands that the check notices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from safetensors.torch import load_file, save_file

from persona_core.analysis.comparison import token_differences
from persona_core.analysis.detectors import Detectors, calibrate_detectors
from persona_core.elicitation.elicit import write_replies
from persona_core.errors import PersonaError
from persona_core.inference.pooled_states import PooledStates
from persona_core.inference.pooling import parse_position
from persona_core.inference.prefill import read_pooled
from persona_core.inference.sampling import Sampling
from persona_core.models.chat import ChatFormat
from persona_core.models.loading import load_model
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.traces import specific
from persona_core.traces import trace as trace_module
from persona_core.traces.trace import Trace
from persona_core.vectors import calibration
from persona_core.vectors.calibration import calibrate
from tests.support import oracle
from tests.support.tiny import specific_vectors, tiny_lm

TEXTS = ["The quick brown fox jumps.", "Should I quit my job?", "Once upon a time there was a bird.", "Go on."]


def conversations() -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}] for text in TEXTS]


def with_sinks() -> tuple[PersonaMonitor, list[Trace]]:
    """A monitor whose limit lies within the norms of its own texts, so that some tokens of each are sinks."""
    lm = tiny_lm("llama", "chatml")
    plain = PersonaMonitor(lm, specific_vectors(len(lm.blocks)), blocks="all").read_batch(conversations())
    limit = float(np.quantile(np.concatenate([t.norms[:, t.reply_positions].ravel() for t in plain]), 0.8))
    monitor = PersonaMonitor(lm, specific_vectors(len(lm.blocks), limit), blocks="all")
    return monitor, monitor.read_batch(conversations())


# 9. Sinks are left out of pooling, nulls, means and comparisons; a trace marks them.


def check_sinks() -> None:
    monitor, traces = with_sinks()
    limits: Any = monitor.vectors.max_norm
    n_marked = 0
    for trace in traces:
        marked = np.array([[norm > limits[b] for norm in trace.norms[row]] for row, b in enumerate(trace.blocks)])
        n_marked += int(marked[:, trace.reply_positions].sum())
        np.testing.assert_array_equal(trace.sinks, marked)
        for trait in trace.traits:
            row = trace.blocks.index(trace.best_block[trait])
            lost = np.isnan(trace.reply_scores(trait))
            np.testing.assert_array_equal(lost, marked[row, trace.reply_positions])
    # A comparison of two readings gives no number where either reads a sink.
    difference = token_differences(traces[0], traces[0], "candour")
    row = traces[0].blocks.index(traces[0].best_block["candour"])
    np.testing.assert_array_equal(
        np.isnan(difference[traces[0].n_prompt :]), traces[0].sinks[row, traces[0].n_prompt :]
    )


def check_the_null_leaves_sinks_out() -> None:
    monitor, traces = with_sinks()
    # One token of one reply is a thousand times the others, at every block.
    position = traces[0].reply_positions[2]
    raw, norms = traces[0].raw.copy(), traces[0].norms.copy()
    raw[..., position], norms[:, position] = 1e4, 1e5
    spoilt = [traces[0].replace(raw=raw, norms=norms), *traces[1:]]
    found: Any = calibrate(monitor.vectors, spoilt)
    for k, trait in enumerate(monitor.vectors.traits):
        for block in monitor.vectors.blocks:
            values = [
                float(t.raw[k, block, p])
                for t in spoilt
                for p in t.reply_positions
                if t.norms[block, p] <= found.max_norm[block]
            ]
            assert max(np.abs(values)) < 1e4
            assert oracle.relative_error(found.null[trait].mean[block], np.mean(values)) < 1e-4


def check_pooling_leaves_sinks_out() -> None:
    monitor, traces = with_sinks()
    limits: Any = monitor.vectors.max_norm
    trace = traces[1]
    means, _ = read_pooled(
        monitor.lm, [trace.token_ids], [trace.n_prompt], [parse_position("reply_mean")], max_norm=limits
    )
    states = oracle.states(monitor.lm.model, list(monitor.lm.blocks.modules), list(trace.token_ids))
    for block in range(len(monitor.lm.blocks)):
        plain = [p for p in trace.reply_positions if np.linalg.norm(states[block, p]) <= limits[block]]
        assert oracle.relative_error(means[0, 0, block], states[block, plain].mean(0)) < 1e-4


def test_clause_9_sink_tokens_are_marked_and_counted_nowhere() -> None:
    check_sinks()
    check_the_null_leaves_sinks_out()
    check_pooling_leaves_sinks_out()


def test_mutation_sinks_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trace, "sinks", property(lambda self: np.zeros(self.norms.shape, bool)))
    with pytest.raises(AssertionError):
        check_sinks()


def test_mutation_a_null_with_sinks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "norm_limits", lambda norms: np.full(len(norms), np.inf, np.float32))
    with pytest.raises(AssertionError):
        check_the_null_leaves_sinks_out()


def test_mutation_pooling_with_sinks(monkeypatch: pytest.MonkeyPatch) -> None:
    original = PooledStates.__init__

    def forgetful(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **{**options, "max_norm": None})

    monkeypatch.setattr(PooledStates, "__init__", forgetful)
    with pytest.raises(AssertionError):
        check_pooling_leaves_sinks_out()


# 10. What is said of a trait rests on its specific score, the default.


def check_specific() -> None:
    _, traces = with_sinks()
    for trace in traces:
        assert trace.default_kind == "specific"
        known: Any = trace.log_odds
        for k, trait in enumerate(trace.traits):
            column = trace.blocks.index(trace.best_block[trait])
            for t in range(trace.n_tokens):
                raw = trace.raw[:, column, t].astype(float)
                likelihood = np.exp(known.slope[:, column].astype(float) * raw + known.offset[:, column])
                odds = np.log(likelihood[k]) - np.log(1 + likelihood.sum() - likelihood[k])
                wanted = (odds - float(known.mean[k, column])) / float(known.std[k, column])
                assert abs(trace.scores(trait)[t] - wanted) < 1e-3 * max(1, abs(wanted))


def test_clause_10_scores_are_specific_by_default() -> None:
    check_specific()


@pytest.mark.parametrize("broken", ["no rivals", "no neutral"])
def test_mutation_scores_that_are_not_specific(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    def wrong(raw: np.ndarray, slope: np.ndarray, offset: np.ndarray, trait: int) -> np.ndarray:
        each = slope[:, None] * raw + offset[:, None]
        rivals = np.logaddexp.reduce(np.delete(each, trait, 0), axis=0)
        return each[trait] if broken == "no rivals" else each[trait] - rivals

    monkeypatch.setattr(specific, "_odds", wrong)
    with pytest.raises(AssertionError):
        check_specific()


def test_mutation_z_as_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_module.Trace, "has_specific", property(lambda _: False))
    with pytest.raises(AssertionError):
        check_specific()


# 11. A stated rate is over all the traits watched, by prompt.


def noise(n_prompts: int, repeats: int, seed: int) -> tuple[list[Trace], list[str]]:
    """Neutral traces whose scores are white noise with a shift shared by all replies to a prompt."""
    base = with_sinks()[1][0]
    rng, found, prompts = np.random.default_rng(seed), [], []
    n = base.n_prompt + 40
    for prompt in range(n_prompts):
        shift = rng.normal(0, 0.8, size=(len(base.traits), 1, 1))
        for _ in range(repeats):
            raw = (rng.normal(size=(len(base.traits), len(base.blocks), n)) + shift).astype("f4")
            found.append(
                base.replace(
                    token_ids=(*base.token_ids[: base.n_prompt], *range(3, 43)),
                    tokens=(*base.tokens[: base.n_prompt], *("x" * 40)),
                    roles=(*base.roles[: base.n_prompt], *(("assistant",) * 40)),
                    special=(False,) * n,
                    raw=raw,
                    norms=np.ones((len(base.blocks), n), "f4"),
                    null_mean=np.zeros_like(base.null_mean),
                    null_std=np.ones_like(base.null_std),
                    log_odds=None,
                )
            )
            prompts.append(f"{seed}-{prompt}")
    return found, prompts


def check_one_rate(make: Callable[..., Detectors] = calibrate_detectors) -> None:
    null, prompts = noise(120, 3, seed=1)
    detectors: Any = make(null, rate=0.1, prompts=prompts)
    test, _ = noise(400, 1, seed=2)
    any_alarm = np.mean([any(detectors.find(t, trait).alarm is not None for trait in detectors.traits) for t in test])
    assert any_alarm < 0.1 + 3 * np.sqrt(0.1 * 0.9 / 400) + 0.03  # the threshold is a draw, too
    assert detectors.rate_any == 0.1 and detectors.rate(detectors.traits[0]).value < 0.1
    assert detectors.peaks.n_prompts == 120  # replies to one prompt count once


def test_clause_11_the_rate_is_over_all_traits_and_by_prompt() -> None:
    check_one_rate()


def test_mutation_a_rate_by_trait() -> None:
    def by_trait(null: Any, rate: float, prompts: Any) -> Detectors:
        whole = calibrate_detectors(null, rate=rate, prompts=prompts)
        return replace(whole, by_trait={t: whole.select([t]).of(t) for t in whole.traits})  # each at the rate by itself

    with pytest.raises(AssertionError):
        check_one_rate(by_trait)


def test_mutation_replies_counted_as_prompts() -> None:
    with pytest.raises(AssertionError):
        check_one_rate(lambda null, rate, prompts: calibrate_detectors(null, rate=rate, prompts=range(len(null))))


# 12. A given reply is read where the template would have put it.


def check_given_replies(lm: Any) -> None:
    monitor = PersonaMonitor(lm, specific_vectors(len(lm.blocks)))
    for text in TEXTS:
        trace = monitor.read([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": text}])
        prompt = lm.chat.render("Hi").token_ids
        assert trace.token_ids[: trace.n_prompt] == prompt
        assert trace.reply_text == text
    (reply,) = write_replies(lm, ["Hi"], Sampling(max_new_tokens=5, temperature=0), 0)
    assert reply.token_ids  # the same prompt is what a reply is written after


def test_clause_12_a_given_reply_follows_the_generation_prompt() -> None:
    check_given_replies(tiny_lm("llama", "chatml"))


def test_mutation_a_given_reply_after_a_space(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ChatFormat.place
    monkeypatch.setattr(
        ChatFormat,
        "place",
        lambda self, talk: original(self, [*talk[:-1], {"role": "assistant", "content": " " + talk[-1]["content"]}]),
    )
    with pytest.raises(AssertionError):
        check_given_replies(tiny_lm("llama", "chatml"))


# 13. What is loaded is all there.


def check_all_weights(folder: Path) -> None:
    lm = tiny_lm("llama", "chatml")
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    weights = load_file(str(folder / "model.safetensors"))
    lost = next(name for name in weights if "mlp" in name)
    save_file({k: v for k, v in weights.items() if k != lost}, str(folder / "model.safetensors"), {"format": "pt"})
    try:
        load_model(folder)
    except PersonaError as error:
        assert lost.split(".")[-2] in str(error) or lost in str(error), str(error)
    else:
        raise AssertionError(f"A checkpoint without {lost} was loaded.")


def test_clause_13_a_checkpoint_without_a_weight_is_refused_by_name(tmp_path: Path) -> None:
    check_all_weights(tmp_path)


def test_mutation_missing_weights_are_drawn_at_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = transformers.AutoModelForCausalLM.from_pretrained

    def silent(*args: Any, **options: Any) -> Any:
        found = original(*args, **options)
        if isinstance(found, tuple):
            found[1]["missing_keys"] = set()
        return found

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", silent)
    with pytest.raises(AssertionError):
        check_all_weights(tmp_path)
