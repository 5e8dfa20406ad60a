"""What the contract promises, as functions that raise `AssertionError` where it is broken.

Two kinds of test call them: those of the contract itself, on the library as it is, and the mutation tests, which break
the library on purpose and demand that the check notices. Wanted values come from tests/support/oracle.py, never from
the library.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from persona_core.inference.decode import decode
from persona_core.inference.hooks import ResidualTap
from persona_core.inference.pooled_states import PooledStates
from persona_core.inference.pooling import parse_position
from persona_core.inference.sampling import Sampling
from persona_core.models.loading import wrap_model
from persona_core.monitor.monitor import PersonaMonitor
from tests.support import oracle
from tests.support.chat_templates import tokenizer_for
from tests.support.families import BY_NAME, build
from tests.support.tiny import random_vectors

TOLERANCE = 1e-4  # relative, float32
LONG = "The quick brown fox jumps over the lazy dog, and the rest will follow."
PROMPTS = [LONG, "Hi", "Should I quit my job?"]
SAMPLING: dict[str, Any] = dict(max_new_tokens=6, temperature=1.0)


def modules_of(monitor: Any) -> list[torch.nn.Module]:
    """The model's blocks by the path that tests/support/families.py writes down."""
    return BY_NAME[monitor.lm.name.removeprefix("tiny-")].blocks(monitor.lm.model)


def wanted_raw(monitor: Any, ids: Any, change: oracle.Change | None = None) -> oracle.Floats:
    """Projections that a reading of `ids` must show, float64 `[n_traits, n_blocks, n_tokens]`."""
    vectors = {t: _rows(monitor.vectors, t) for t in monitor.vectors.traits}
    return oracle.raw(monitor.lm.model, modules_of(monitor), ids, vectors, change)


def _rows(vectors: Any, trait: str) -> Any:
    return vectors.tensors[trait].numpy()  # the stored rows, not what an accessor may make of them


def close(found: Any, wanted: Any, tolerance: float = TOLERANCE) -> None:
    """Every trait and block, each on its scale: `[n_traits, n_blocks, n_tokens]` both."""
    assert np.shape(found) == np.shape(wanted), (np.shape(found), np.shape(wanted))
    for trait in range(len(found)):
        for block in range(len(found[trait])):
            error = oracle.relative_error(found[trait][block], wanted[trait][block])
            assert error < tolerance, f"trait {trait}, block {block}: relative error {error:.1e}"


def check_blocks(monitor: Any) -> None:
    """Row b of a reading is the output of block b, projected on row b of the vectors."""
    trace = monitor.read([{"role": "user", "content": LONG}])
    assert trace.blocks == tuple(range(len(modules_of(monitor))))
    close(trace.raw, wanted_raw(monitor, trace.token_ids))


def check_tokens(monitor: Any) -> None:
    """Entry t of a reading is the state after token t was read; prompt and last token have one too."""
    trace = monitor.generate(LONG, seed=3, **SAMPLING)
    assert trace.raw.shape[-1] == len(trace.token_ids) > trace.n_prompt
    wanted = wanted_raw(monitor, trace.token_ids)
    close(trace.raw, wanted)
    trait, block = trace.traits[0], trace.blocks[-1]
    at = trace.scores(trait, kind="raw", block=block)
    before = trace.scores(trait, kind="raw", block=block, alignment="before")
    row = wanted[0, -1]
    assert oracle.relative_error(at, row) < TOLERANCE
    assert np.isnan(before[0]) and oracle.relative_error(before[1:], row[:-1]) < TOLERANCE


def check_one_bos(lm: Any) -> None:
    """A prompt begins with exactly one BOS, though template and tokenizer would both write one."""
    ids = lm.chat.render([{"role": "user", "content": LONG}]).token_ids
    assert ids[0] == lm.tokenizer.bos_token_id, "no BOS at the beginning"
    assert ids.count(lm.tokenizer.bos_token_id) == 1, "more than one BOS"


def check_live_is_replay(monitor: Any) -> None:
    """A row's numbers do not depend on how it was run: alone, streamed, in a batch, or read afterwards."""
    alone = [monitor.generate(p, seed=3 + i, **SAMPLING) for i, p in enumerate(PROMPTS)]
    streamed = [list(monitor.stream(p, seed=3 + i, **SAMPLING))[-1].trace() for i, p in enumerate(PROMPTS)]
    batched = monitor.generate_batch(PROMPTS, batch_size=3, seed=3, **SAMPLING)
    replayed = monitor.read_batch(alone)
    single = [monitor.read(trace) for trace in alone]
    for found in (streamed, batched, replayed, single):
        for one, wanted in zip(found, alone, strict=True):
            assert one.token_ids == wanted.token_ids
            close(one.raw, wanted.raw)
    for trace in alone:
        close(trace.raw, wanted_raw(monitor, trace.token_ids))


def check_ids_are_kept(monitor: Any) -> None:
    """The ids that were sampled are the ids that are read; the prompt's are the rendering's."""
    trace = monitor.generate(LONG, max_new_tokens=24, temperature=1.5, seed=0)
    messages = [{"role": "user", "content": LONG}]
    wanted = monitor.lm.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert list(trace.token_ids[: trace.n_prompt]) == list(wanted), "the prompt is not the template's"
    text = monitor.lm.tokenizer.decode(list(trace.token_ids))
    again = monitor.lm.tokenizer(text, add_special_tokens=False).input_ids
    assert list(trace.token_ids) != list(again), "this text survives re-tokenising, so it would prove nothing"
    replay = monitor.read(trace)
    assert replay.token_ids == trace.token_ids
    close(replay.raw, trace.raw)


def check_precision(monitor: Any) -> None:
    """With bfloat16 weights, projections, norms and pooled sums still carry float32's accuracy.

    The wanted values come from the states that the run produced, caught by plain hooks.
    """
    modules = modules_of(monitor)
    caught: list[Any] = []
    with plain_hooks(modules, caught):
        trace = monitor.read([{"role": "user", "content": LONG}])
    states = np.array([c[0] for c in caught[: len(modules)]])  # [n_blocks, n_tokens, d_model]
    wanted = np.array(
        [[oracle.project(h, _rows(monitor.vectors, t)[b]) for b, h in enumerate(states)] for t in trace.traits]
    )
    close(trace.raw, wanted, tolerance=1e-5)
    assert oracle.relative_error(trace.norms, np.sqrt((states**2).sum(-1))) < 1e-5

    prompt, caught = monitor.lm.chat.render(LONG).token_ids, []
    pooled = PooledStates([parse_position("reply_mean")], len(modules), n_rows=1)
    tap = ResidualTap(monitor.lm.blocks, pooled=pooled)
    with plain_hooks(modules, caught), tap:
        for _ in decode(monitor.lm, [prompt], Sampling(max_new_tokens=40, temperature=0), [0], tap):
            pass
    steps = [c for c in caught if c.shape[1] == 1]  # the reply's forwards, [1, 1, d_model] each
    per_block = np.array([np.sum([s[0, 0] for s in steps[b :: len(modules)]], axis=0) for b in range(len(modules))])
    assert oracle.relative_error(pooled.sums()[0, 0].cpu().numpy(), per_block) < 1e-5


class plain_hooks:
    """Plain hooks: append each block's output, float64 `[rows, tokens, d_model]`, to `into`."""

    def __init__(self, modules: list[torch.nn.Module], into: list[Any]) -> None:
        self._modules, self._into, self._handles = modules, into, []  # type: ignore[var-annotated]

    def __enter__(self) -> None:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            self._into.append(first.detach().double().cpu().numpy().copy())

        self._handles = [module.register_forward_hook(hook) for module in self._modules]

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def low_precision_monitor(dtype: torch.dtype) -> Any:
    """A tiny model in `dtype` with one channel a thousand times the others: real models' massive activations."""
    model = build("llama", seed=0)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 3] *= 1000.0
    lm = wrap_model(model.to(dtype), tokenizer_for("llama3"), name="tiny-llama")
    lm = dataclasses.replace(lm, eos_ids=frozenset())
    return PersonaMonitor(lm, random_vectors(len(lm.blocks)), blocks="all")
