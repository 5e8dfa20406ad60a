"""The contract, clauses 1 and 2: which block a number belongs to, and which token. And what happens when they slip."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from persona_core.errors import UnknownBlock
from persona_core.inference import hooks
from persona_core.inference.steering import Steer
from persona_core.models.blocks import Blocks
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.traces.trace import Trace
from persona_core.vectors.vectors import PersonaVectors
from tests.support import contract_checks as checks
from tests.support import oracle
from tests.support.families import D_MODEL
from tests.support.tiny import Maker, random_vectors, tiny_lm

FAMILIES = ("llama", "gptj", "gemma3")  # a tensor output, a tuple output, a sliding window


# 1. Blocks.


@pytest.mark.parametrize("family", FAMILIES)
def test_clause_1_row_b_is_the_output_of_block_b(make_monitor: Maker, family: str) -> None:
    checks.check_blocks(make_monitor(family))


def test_clause_1_neither_embeddings_nor_final_norm_is_read(make_monitor: Maker) -> None:
    monitor = make_monitor("llama")
    trace = monitor.read("Hello there")
    with torch.no_grad():
        out = monitor.lm.model(input_ids=torch.tensor([trace.token_ids]), output_hidden_states=True)
    embeddings, final = (out.hidden_states[row][0].double().numpy() for row in (0, -1))
    vectors = {t: monitor.vectors.tensor(t).double().numpy() for t in trace.traits}
    for index, vector in enumerate(vectors.values()):
        assert oracle.relative_error(trace.raw[index, 0], oracle.project(embeddings, vector[0])) > 0.1
        assert oracle.relative_error(trace.raw[index, -1], oracle.project(final, vector[-1])) > 0.1


def test_clause_1_a_choice_of_blocks_reads_those_blocks(make_monitor: Maker) -> None:
    every = make_monitor("llama").read(checks.LONG)
    lm = tiny_lm("llama")
    for blocks in ([1], [2, 0]):
        trace = PersonaMonitor(lm, random_vectors(3), blocks=blocks).read(checks.LONG)
        assert trace.blocks == tuple(sorted(blocks))
        checks.close(trace.raw, every.raw[:, sorted(blocks)])
    best = PersonaMonitor(lm, random_vectors(3), blocks="best").read(checks.LONG)
    for trait in best.traits:
        own = best.best_block[trait]
        assert np.array_equal(best.scores(trait, kind="raw"), best.scores(trait, kind="raw", block=own))
        assert oracle.relative_error(best.scores(trait, kind="raw"), every.scores(trait, kind="raw", block=own)) < 1e-4


@pytest.mark.parametrize("block", [3, -1, 99, True, 1.5, "1", None], ids=repr)
def test_clause_1_an_unknown_block_is_an_error(make_monitor: Maker, block: Any) -> None:
    monitor = make_monitor("llama")
    with pytest.raises(UnknownBlock, match="lock"):
        PersonaMonitor(monitor.lm, monitor.vectors, blocks=[0, block])
    if block is not None:  # None means the trait's best block
        with pytest.raises(UnknownBlock):
            monitor.read("Hi").scores("candour", kind="raw", block=block)
    with pytest.raises(UnknownBlock):
        monitor.generate("Hi", max_new_tokens=1, steer=Steer("candour", block=block, strength=1.0))


def _reference_file(folder: Path, lm: Any) -> tuple[Path, torch.Tensor]:
    """A `.pt` file in the hidden_states convention, made by the model's `output_hidden_states`."""
    ids = torch.tensor([lm.chat.render(checks.LONG).token_ids])
    with torch.no_grad():
        rows = torch.stack([h[0].mean(0) for h in lm.model(input_ids=ids, output_hidden_states=True).hidden_states])
    torch.save(rows, folder / "candour.pt")
    return folder / "candour.pt", rows  # [n_blocks + 1, d_model]


def check_import(folder: Path) -> None:
    """A vector made of mean states points along the mean state of that block and no other."""
    lm = tiny_lm("llama")
    path, rows = _reference_file(folder, lm)
    vectors = PersonaVectors.from_reference({"candour": path}, convention="hidden_states")
    assert vectors.n_blocks == len(lm.blocks) == rows.shape[0] - 1
    assert vectors.blocks == (0, 1)
    states = oracle.states(lm.model, list(lm.blocks.modules), lm.chat.render(checks.LONG).token_ids)
    for block in vectors.blocks:
        mean = states[block].mean(0)
        cosine = oracle.project(mean, vectors.tensor("candour")[block]) / np.linalg.norm(mean)
        assert cosine > 0.9999, (block, cosine)


def test_clause_1_hidden_states_files_are_converted(tmp_path: Path) -> None:
    check_import(tmp_path)


def test_clause_1_the_absent_last_block_is_an_error(tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    path, _ = _reference_file(tmp_path, lm)
    vectors = PersonaVectors.from_reference({"candour": path}, convention="hidden_states", best_block={"candour": 1})
    assert PersonaMonitor(lm, vectors, blocks="all").read("Hi").blocks == (0, 1)
    with pytest.raises(UnknownBlock, match="absent"):
        PersonaMonitor(lm, vectors, blocks=[2])
    with pytest.raises(UnknownBlock):
        PersonaMonitor(lm, vectors, blocks="all").generate("Hi", max_new_tokens=1, steer=Steer("candour", 2, 1.0))
    with pytest.raises(UnknownBlock):
        PersonaVectors.from_reference({"candour": path}, best_block={"candour": 2})


# 2. Tokens.


@pytest.mark.parametrize("family", FAMILIES)
def test_clause_2_entry_t_is_the_state_at_token_t(make_monitor: Maker, family: str) -> None:
    checks.check_tokens(make_monitor(family))


def test_clause_2_every_token_is_read_even_of_a_one_token_reply(make_monitor: Maker) -> None:
    monitor = make_monitor("llama")
    trace = monitor.generate("Hi", max_new_tokens=1, temperature=0)
    assert trace.n_prompt + 1 == len(trace.token_ids) == trace.raw.shape[-1] == trace.norms.shape[-1]
    checks.close(trace.raw, checks.wanted_raw(monitor, trace.token_ids))


def test_clause_2_the_token_that_ends_the_reply_is_read(make_monitor: Maker) -> None:
    monitor = make_monitor("llama")
    settings: dict[str, Any] = dict(max_new_tokens=5, temperature=1.0, seed=0)
    free = monitor.generate(checks.LONG, **settings)
    reply = free.token_ids[free.n_prompt :]
    assert len(set(reply)) == len(reply)
    ending = dataclasses.replace(monitor.lm, eos_ids=frozenset({reply[2]}))
    trace = PersonaMonitor(ending, monitor.vectors, blocks="all").generate(checks.LONG, **settings)
    assert trace.finish == "eos" and trace.token_ids == free.token_ids[: free.n_prompt + 3]
    checks.close(trace.raw, checks.wanted_raw(monitor, trace.token_ids))


def test_clause_2_the_state_before_is_requested_by_name(make_monitor: Maker) -> None:
    trace = make_monitor("llama").read("Hello there")
    at = trace.scores("candour", kind="raw", block=1)
    before = trace.scores("candour", kind="raw", block=1, alignment="before")
    assert np.isnan(before[0]) and np.array_equal(before[1:], at[:-1])
    assert np.array_equal(trace.scores("candour", kind="raw", block=1, alignment="at"), at)


# The same checks, with the library broken on purpose.


def test_mutation_block_off_by_one(make_monitor: Maker) -> None:
    """Hooks on the module before: what `hidden_states[b]` instead of `[b + 1]` amounts to."""
    monitor = make_monitor("llama")
    modules = monitor.lm.blocks.modules
    late = Blocks((modules[0], *modules[:-1]), monitor.lm.blocks.d_model)
    broken = PersonaMonitor(dataclasses.replace(monitor.lm, blocks=late), monitor.vectors, blocks="all")
    with pytest.raises(AssertionError):
        checks.check_blocks(broken)


def test_mutation_vector_row_off_by_one(make_monitor: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = make_monitor("llama").vectors
    rolled = {t: v.roll(1, dims=0) for t, v in vectors.tensors.items()}
    original = PersonaVectors.reading_direction
    monkeypatch.setattr(PersonaVectors, "reading_direction", lambda self, t, b: original(_with(self, rolled), t, b))
    with pytest.raises(AssertionError):
        checks.check_blocks(make_monitor("llama"))


def _with(vectors: PersonaVectors, tensors: dict[str, torch.Tensor]) -> PersonaVectors:
    return PersonaVectors.from_tensors(tensors, best_block=dict(vectors.best_block))


def test_mutation_import_without_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of a hidden_states file taken as they come: row 0, the embeddings, becomes block 0."""
    import persona_core.vectors.files as module

    original = module.read_pt
    monkeypatch.setattr(module, "read_pt", lambda path: original(path).roll(1, dims=0))
    with pytest.raises(AssertionError):
        check_import(tmp_path)


def test_mutation_token_off_by_one(make_monitor: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that keeps what the previous forward showed: value t is the state before token t was read."""
    original = hooks.ResidualTap.reading
    previous: dict[int, hooks.Reading] = {}

    def late(self: Any) -> hooks.Reading:
        now = original(self)
        before = previous.get(id(self))
        previous[id(self)] = now
        if before is None or now.raw.shape[1] > 1:
            return now
        return hooks.Reading(before.raw[:, -1:], before.norms[:, -1:])

    monkeypatch.setattr(hooks.ResidualTap, "reading", late)
    with pytest.raises(AssertionError):
        checks.check_tokens(make_monitor("llama"))


def test_mutation_prompt_shifted_by_one(make_monitor: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    original = hooks.ResidualTap.reading

    def shifted(self: Any) -> hooks.Reading:
        now = original(self)
        return hooks.Reading(now.raw.roll(1, dims=1), now.norms.roll(1, dims=1))

    monkeypatch.setattr(hooks.ResidualTap, "reading", shifted)
    with pytest.raises(AssertionError):
        checks.check_tokens(make_monitor("llama"))
    with pytest.raises(AssertionError):
        checks.check_blocks(make_monitor("llama"))


def test_mutation_alignment_swapped(make_monitor: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trace.scores

    def swapped(self: Trace, trait: str, kind: Any = "z", block: Any = None, alignment: str = "at") -> Any:
        return original(self, trait, kind, block, "before" if alignment == "at" else "at")

    monkeypatch.setattr(Trace, "scores", swapped)
    with pytest.raises(AssertionError):
        checks.check_tokens(make_monitor("llama"))


def test_mutation_final_norm_taken_for_the_last_block(make_monitor: Maker) -> None:
    monitor = make_monitor("llama")
    modules = monitor.lm.blocks.modules
    normed = Blocks((*modules[:-1], monitor.lm.model.model.norm), D_MODEL)
    broken = PersonaMonitor(dataclasses.replace(monitor.lm, blocks=normed), monitor.vectors, blocks="all")
    with pytest.raises(AssertionError):
        checks.check_blocks(broken)
