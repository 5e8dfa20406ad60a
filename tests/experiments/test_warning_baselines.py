"""Baselines: each is what its definition says, computed another way, and none has seen what it scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from persona_core.analysis.separation import separation
from persona_core.errors import SettingError, UnknownBlock, VectorsMismatch
from persona_core.experiments.warning_baselines import (
    entropy_scores,
    last_prompt_scores,
    ngram_scores,
    position_scores,
    random_direction_scores,
)
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.traces.trace import Trace
from tests.inference.test_steering import monitor_of
from tests.support import oracle
from tests.support.families import BY_NAME
from tests.support.tiny import random_vectors, tiny_lm

TEXTS = ["Stay where you are.", "Leave, and do it soon: nobody will thank you for waiting.", "No."]


def conversations() -> list[list[dict[str, str]]]:
    return [
        [{"role": "user", "content": f"Should I quit{' my job' * i}?"}, {"role": "assistant", "content": text}]
        for i, text in enumerate(TEXTS)
    ]


@pytest.fixture(scope="module")
def monitor() -> PersonaMonitor:
    return monitor_of()


@pytest.fixture(scope="module")
def traces(monitor: PersonaMonitor) -> list[Trace]:
    return monitor.read_batch(conversations())


def test_every_baseline_has_one_number_for_each_reply_token(monitor: PersonaMonitor, traces: list[Trace]) -> None:
    trait, neutral = ngram_scores([*traces, *traces], traces, ([1, 2, 3, 4, 5, 6], [1, 2, 3]))
    for found in (
        position_scores(traces),
        last_prompt_scores(traces, "malice"),
        entropy_scores(monitor.lm, traces),
        *random_direction_scores(monitor.lm, 1, traces, traces, n_draws=2),
        trait[:3],
        neutral,
    ):
        assert [len(z) for z in found] == [len(t.reply_positions) for t in traces]
    assert position_scores(traces)[0].tolist() == list(range(len(traces[0].reply_positions)))


# Entropy.


def test_entropy_is_that_of_the_distribution_after_the_token_whatever_the_batch(
    monitor: PersonaMonitor, traces: list[Trace]
) -> None:
    blocks = BY_NAME["llama"].blocks(monitor.lm.model)
    for batch_tokens in (1, 100, 1024):
        for trace, found in zip(traces, entropy_scores(monitor.lm, traces, batch_tokens), strict=True):
            logits = oracle.logits(monitor.lm.model, blocks, trace.token_ids)[trace.reply_positions]  # [n_own, vocab]
            shifted = logits - logits.max(-1, keepdims=True)
            p = np.exp(shifted) / np.exp(shifted).sum(-1, keepdims=True)
            wanted = [-sum(float(q) * np.log(float(q)) for q in row if q > 0) for row in p]
            assert found == pytest.approx(wanted, rel=1e-4)
    with pytest.raises(SettingError, match="batch_tokens=0"):
        entropy_scores(monitor.lm, traces, 0)


def test_a_token_that_is_excluded_leaves_the_entropy_finite(monitor: PersonaMonitor, traces: list[Trace]) -> None:
    class Excluding(torch.nn.Module):
        get_input_embeddings = monitor.lm.model.get_input_embeddings

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
            logits = torch.full((*input_ids.shape, 8), float("-inf"))
            logits[..., :2] = 0.0
            return type("Output", (), {"logits": logits})

    found = entropy_scores(replace(monitor.lm, model=Excluding().eval()), traces[:1])
    assert found[0] == pytest.approx(np.full(len(traces[0].reply_positions), np.log(2)))


def test_ids_of_another_tokenizer_are_refused(monitor: PersonaMonitor, traces: list[Trace]) -> None:
    strange = traces[0].replace(token_ids=tuple(reversed(traces[0].token_ids)))
    with pytest.raises(VectorsMismatch):
        entropy_scores(monitor.lm, [strange])


# The prompt.


def test_the_last_prompt_token_is_the_one_before_the_reply(traces: list[Trace]) -> None:
    for trace, found in zip(traces, last_prompt_scores(traces, "malice"), strict=True):
        assert set(found.tolist()) == {float(trace.scores("malice")[trace.reply_positions[0] - 1])}


def test_a_sink_token_at_the_end_of_the_prompt_is_passed_over(traces: list[Trace]) -> None:
    trace = traces[1]
    column = trace.blocks.index(trace.best_block["malice"])
    norms = np.ones_like(trace.norms)
    norms[column, trace.n_prompt - 2 : trace.n_prompt] = 99.0
    sunk = trace.replace(norms=norms, max_norm=np.full(len(trace.blocks), 9.0, "f4"))
    (found,) = last_prompt_scores([sunk], "malice")
    assert set(found.tolist()) == {float(trace.scores("malice")[trace.n_prompt - 3])}
    with pytest.raises(SettingError, match="no prompt token with a score"):
        last_prompt_scores([sunk.replace(norms=np.full_like(norms, 99.0))], "malice")


def test_traces_that_do_not_belong_together_are_refused(traces: list[Trace]) -> None:
    other = traces[1].replace(provenance=replace(traces[1].provenance, reader="another"))
    with pytest.raises(SettingError, match="2 different models"):
        last_prompt_scores([traces[0], other], "malice")
    with pytest.raises(SettingError, match="no prompt"):
        last_prompt_scores([traces[0].replace(n_prompt=0)], "malice")


# Random directions.


def test_random_directions_are_standardised_by_the_neutral_replies_and_differ(
    monitor: PersonaMonitor, traces: list[Trace]
) -> None:
    null = monitor.read_batch([c for c in conversations() for _ in range(2)])
    draws = random_direction_scores(monitor.lm, 1, null, null, n_draws=3, seed=4)
    for series in draws:
        flat = np.concatenate(series)
        assert flat.mean() == pytest.approx(0, abs=1e-6) and flat.std(ddof=1) == pytest.approx(1, rel=1e-6)
    assert len({round(series[0][0], 4) for series in draws}) == 3
    again, other = (random_direction_scores(monitor.lm, 1, traces, null, 1, seed=s)[0] for s in (4, 5))
    assert again[0] == pytest.approx(draws[0][0], rel=1e-4) and again[0] != pytest.approx(other[0])


def test_random_directions_leave_out_the_sink_tokens_of_the_traces(
    monitor: PersonaMonitor, traces: list[Trace]
) -> None:
    column, limit = traces[0].blocks.index(1), np.full(len(traces[0].blocks), np.inf, "f4")
    limit[column] = np.median(np.concatenate([t.norms[column, t.n_prompt :] for t in traces]))
    sunk = [t.replace(max_norm=limit) for t in traces]
    (plain,), (found,) = (random_direction_scores(monitor.lm, 1, own, own, n_draws=1) for own in (traces, sunk))
    kept = [t.norms[column, t.reply_positions] <= limit[column] for t in traces]
    for z, keep in zip(found, kept, strict=True):
        np.testing.assert_array_equal(np.isfinite(z), keep)
    flat = np.concatenate([z[keep] for z, keep in zip(plain, kept, strict=True)])
    wanted = [(z[keep] - flat.mean()) / flat.std(ddof=1) for z, keep in zip(plain, kept, strict=True)]
    assert np.concatenate([z[np.isfinite(z)] for z in found]) == pytest.approx(np.concatenate(wanted), abs=1e-4)


def test_random_directions_are_read_at_the_requested_block(monitor: PersonaMonitor, traces: list[Trace]) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn((len(monitor.lm.blocks), monitor.lm.blocks.d_model), generator=generator)
    blocks = BY_NAME["llama"].blocks(monitor.lm.model)
    raw = [oracle.states(monitor.lm.model, blocks, t.token_ids)[2] @ vectors[2].double().numpy() for t in traces]
    own = [r[t.reply_positions] for r, t in zip(raw, traces, strict=True)]
    flat = np.concatenate(own)
    (found,) = random_direction_scores(monitor.lm, 2, traces, traces, n_draws=1)
    for z, wanted in zip(found, own, strict=True):
        assert z == pytest.approx((wanted - flat.mean()) / flat.std(ddof=1), rel=1e-3, abs=1e-3)
    with pytest.raises(UnknownBlock):
        random_direction_scores(monitor.lm, 99, traces, traces)
    with pytest.raises(SettingError, match="No neutral replies"):
        random_direction_scores(monitor.lm, 2, traces, [])


# Words.


def spoken(ids: list[int]) -> Trace:
    """A trace of one prompt token and these reply ids."""
    n = len(ids) + 1
    return Trace(
        token_ids=(0, *ids), tokens=tuple(f" {i}" for i in (0, *ids)), roles=("user", *["assistant"] * len(ids)),
        n_prompt=1, traits=("t",), blocks=(0,), raw=np.zeros((1, 1, n), "f4"), norms=np.ones((1, n), "f4"),
        best_block={"t": 0}, null_mean=np.zeros((1, 1), "f4"), null_std=np.ones((1, 1), "f4"),
        special=(False,) * n, finish="read",
    )  # fmt: skip


def test_the_score_at_a_token_is_that_of_a_classifier_on_the_text_so_far() -> None:
    """Two folds, one of which holds replies 0 of both kinds: fitted by hand on the others, with plain counts."""
    from sklearn.naive_bayes import MultinomialNB

    trait = [spoken(ids) for ids in ([1, 2, 9, 9, 3], [2, 9, 1, 9], [9, 9, 2])]
    neutral = [spoken(ids) for ids in ([1, 2, 3, 1], [3, 2, 1, 2], [1, 1, 3])]
    groups = (["a", "b", "b"], ["a", "b", "b"])
    found = ngram_scores(trait, neutral, groups, longest=2, n_folds=2)

    def grams(ids: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [ids[t : t + n] for n in (1, 2) for t in range(len(ids) - n + 1)]

    fitted = [t.token_ids[1:] for t in (*trait[1:], *neutral[1:])]
    names = sorted({g for ids in fitted for g in grams(ids)})
    counts = np.array([[grams(ids).count(name) for name in names] for ids in fitted])
    bayes = MultinomialNB(fit_prior=False).fit(counts, [1, 1, 0, 0])
    for series, trace in ((found[0][0], trait[0]), (found[1][0], neutral[0])):
        for t in range(len(series)):
            so_far = grams(trace.token_ids[1 : t + 2])
            row = np.array([[so_far.count(name) for name in names]])
            log = bayes.predict_joint_log_proba(row)[0]
            assert series[t] == pytest.approx(log[1] - log[0])


def test_words_that_tell_are_found_in_replies_that_were_not_fitted() -> None:
    rng = np.random.default_rng(0)

    def ids(at: int | None) -> list[int]:
        words = rng.integers(1, 30, 40).tolist()
        return words if at is None else [*words[:at], 77, 78, *words[at:]]

    trait, neutral = [spoken(ids(20)) for _ in range(60)], [spoken(ids(None)) for _ in range(200)]
    groups = ([i % 10 for i in range(60)], [i % 10 for i in range(200)])
    series = ngram_scores(trait, neutral, groups)
    before, after = separation(series[0], [21] * 60, series[1], (0, 4))
    assert before.auroc and before.auroc.value > 0.95
    assert after.auroc and after.auroc.low < 0.5 < after.auroc.high


def test_a_word_of_one_group_alone_is_never_learnt_from_the_reply_that_is_scored() -> None:
    """Each group's trait replies have a word of their own. A classifier that saw the group would know it."""
    rng = np.random.default_rng(1)
    trait = [spoken([*rng.integers(1, 30, 20).tolist(), 100 + i % 6]) for i in range(24)]
    neutral = [spoken(rng.integers(1, 30, 21).tolist()) for _ in range(48)]
    groups = ([i % 6 for i in range(24)], [i % 6 for i in range(48)])
    for series in ngram_scores(trait, neutral, groups, longest=1)[0]:
        assert series[-1] == series[-2]  # the word has never been met: it counts nothing
    mixed = (list(range(24)), list(range(24, 72)))
    assert any(series[-1] > series[-2] for series in ngram_scores(trait, neutral, mixed, longest=1)[0])


def test_groups_that_do_not_allow_cross_fitting_are_refused() -> None:
    some = [spoken([1, 2, 3])] * 4
    with pytest.raises(SettingError, match="for each reply"):
        ngram_scores(some, some, ([1], [1, 2, 3, 4]))
    with pytest.raises(SettingError, match="1 group of replies"):
        ngram_scores(some, some, ([1] * 4, [1] * 4))
    with pytest.raises(SettingError, match="one kind of reply"):
        ngram_scores(some, some, ([1] * 4, [2] * 4))


def test_scikit_learn_is_imported_only_where_it_is_used() -> None:
    source = Path(__file__).resolve().parents[2] / "persona_core" / "experiments" / "warning_baselines.py"
    assert "\nfrom sklearn" not in source.read_text(encoding="utf-8")


def test_vectors_of_another_model_are_not_needed(traces: list[Trace]) -> None:
    """Random directions and entropy need the model alone: no persona vectors."""
    lm = tiny_lm("llama", "chatml")
    uncalibrated = PersonaMonitor(lm, random_vectors(len(lm.blocks))).read_batch(conversations())
    assert len(random_direction_scores(lm, 0, uncalibrated, uncalibrated, 1)[0]) == len(uncalibrated)
