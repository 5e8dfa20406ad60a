"""Steering A and measuring B: in the text that came of it, not in the state that was pushed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from persona_core.analysis.interventional import interventional_effects
from persona_core.errors import NotCalibrated, SettingError, UnknownBlock, UnknownTrait
from persona_core.experiments.steering_edges import EdgePlan, steering_edges
from persona_core.inference.generation import GenerationRun
from persona_core.inference.sampling import Sampling
from persona_core.inference.steering import Intervention, Steer
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.traces.trace import Kind, Trace
from persona_core.vectors.vectors import PersonaVectors
from tests.inference.test_steering import with_null
from tests.support.tiny import hooks_on, random_vectors, tiny_lm

PROMPTS = [f"Should I {what}?" for what in ("quit", "move", "sell", "wait", "ask", "go", "stay", "buy", "run", "rest")]
TRAITS = ("candour", "malice", "flattery")
PLAN = EdgePlan(strength=0.8, seeds=2, sampling=Sampling(10, 1.0), batch_size=4, seed=5)


def monitor_of(traits: tuple[str, ...] = TRAITS) -> PersonaMonitor:
    lm = dataclasses.replace(tiny_lm("llama", "chatml"), eos_ids=frozenset())
    made = random_vectors(len(lm.blocks), traits)
    vectors = PersonaVectors({t: 4 * v / v.norm(dim=1, keepdim=True) for t, v in made.tensors.items()}, made.best_block)
    return PersonaMonitor(lm, with_null(vectors))


def edges(monitor: PersonaMonitor, plan: EdgePlan = PLAN, prompts: Any = PROMPTS, **more: Any) -> Any:
    return steering_edges(monitor, prompts, plan, progress=False, n_flips=99, n_resamples=50, **more)


def steered(monitor: PersonaMonitor, trait: str, strength: float, seed: int) -> list[Trace]:
    """The vector arm of one seed, by the public way; as read while it was steered."""
    block = monitor.vectors.best_block[trait]
    amount = strength * float(monitor.vectors.tensor(trait)[block].norm())
    seeds = [5 + seed * len(PROMPTS) + q for q in range(len(PROMPTS))]
    steer = Steer(trait, block, strength=amount)
    return monitor.generate_batch(PROMPTS, max_new_tokens=10, temperature=1.0, seed=seeds, steer=steer)


def mean_z(traces: list[Trace], trait: str) -> np.ndarray:
    return np.array([t.scores(trait)[t.reply_positions].astype(float).mean() for t in traces])


def test_b_is_measured_in_the_steered_text_read_without_steering() -> None:
    monitor = monitor_of()
    table = edges(monitor, sources=["malice"])[0]
    runs = [steered(monitor, "malice", 0.8, seed) for seed in (0, 1)]
    for trait in TRAITS:
        again = np.mean([mean_z(monitor.read_batch(run), trait) for run in runs])
        pushed = np.mean([mean_z(run, trait) for run in runs])
        assert table.pair("malice", trait).vector == pytest.approx(again, abs=1e-4)
        assert abs(pushed - again) > 0.05 or trait != "malice"


def test_the_cosine_alone_is_no_effect() -> None:
    """A push too small to change a word moves the pushed state's reading of every trait, and no effect is found."""
    monitor = monitor_of()
    plan = dataclasses.replace(PLAN, strength=1e-5, sampling=Sampling(10, 0.0))
    for table in edges(monitor, plan):
        assert all(e.estimate is not None and e.estimate.value == 0 and not e.significant for e in table.effects)
    pushed, plain = (steered(monitor, "malice", s, 0) for s in (0.4, 0.0))
    assert np.abs(mean_z(pushed, "malice") - mean_z(plain, "malice")).min() > 0.1


def test_both_arms_have_one_norm_and_one_block_and_the_random_one_a_direction_for_each_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[Intervention, tuple[int, ...]]] = []

    class Recorded(GenerationRun):
        def __init__(self, lm: Any, directions: Any, prompts: Any, sampling: Any, seeds: Any, changes: Any) -> None:
            seen.append((changes[0], tuple(seeds)))
            super().__init__(lm, directions, prompts, sampling, seeds, changes)

    monkeypatch.setattr("persona_core.monitor.monitor.GenerationRun", Recorded)
    monitor = monitor_of()
    edges(monitor, dataclasses.replace(PLAN, strengths={"malice": -0.5}), sources=["candour", "malice"])
    for trait, strength in (("candour", 0.8), ("malice", -0.5)):
        block = monitor.vectors.best_block[trait]
        own = [(i, seeds) for i, seeds in seen if i.steer.trait == trait]
        vector, random = [(i, s) for i, s in own if i.along is None], [(i, s) for i, s in own if i.along is not None]
        assert {i.steer.block for i, _ in own} == {block}
        norm = float(monitor.vectors.tensor(trait)[block].norm())
        assert {round(i.amount, 4) for i, _ in own} == {round(strength * norm, 4)}
        assert all(torch.equal(i.direction, monitor.vectors.direction(trait, block)) for i, _ in own)
        assert [s for _, s in vector] == [s for _, s in random]  # the same seeds, batch by batch
        assert sorted(n for _, s in vector for n in s) == list(range(5, 5 + 2 * len(PROMPTS)))
        assert all(float(i.along.norm()) == pytest.approx(1, rel=1e-5) for i, _ in random if i.along is not None)
        assert len({tuple(i.along.tolist()) for i, _ in random if i.along is not None}) == PLAN.seeds
    directions = [tuple(i.along.tolist()) for i, _ in seen if i.along is not None]
    assert len(set(directions)) == 2 * PLAN.seeds  # and another one for each steered trait


def test_batches_do_not_change_a_figure() -> None:
    monitor = monitor_of()
    whole, parts = (edges(monitor, dataclasses.replace(PLAN, batch_size=n), sources=["malice"]) for n in (10, 3))
    for a, b in zip(whole[0].effects, parts[0].effects, strict=True):
        assert a.vector == pytest.approx(b.vector, abs=1e-4) and a.random == pytest.approx(b.random, abs=1e-4)


def test_what_shows_is_counted_and_noise_counts_in_no_measure() -> None:
    monitor = monitor_of()
    asked: list[Trace] = []

    def shown(trace: Trace) -> Mapping[str, bool] | None:
        asked.append(trace)
        if "quit" in trace.text:
            return None
        return {"candour": trace.provenance.steering == (), "malice": "move" in trace.text}

    score, relative, visible = edges(monitor, sources=["malice"], shown=shown)
    assert (score.measure, relative.measure, visible.measure) == ("score", "relative", "shown")
    # With one prompt left out nine remain, which is too few to tell an effect.
    assert visible.pair("malice", "candour").estimate is None and score.pair("malice", "candour").estimate is None
    assert len(asked) == 2 * 2 * len(PROMPTS)
    _, _, visible = edges(monitor, sources=["malice"], shown=shown, prompts=[*PROMPTS, "May I?"])
    assert visible.pair("malice", "candour").vector == 1.0  # every reply was read without steering
    assert visible.pair("malice", "malice").vector == pytest.approx(0.1)
    assert visible.pair("malice", "flattery").vector == 0.0  # what is not named does not show


def test_a_trait_that_the_steered_text_shows_is_found() -> None:
    """Candour's vector is the direction that makes one token likely, and the judge looks for that token."""
    monitor = monitor_of()
    lm = monitor.lm
    token = 300
    vectors = dict(monitor.vectors.tensors)
    head = lm.model.get_output_embeddings().weight[token].detach().float()
    vectors["candour"] = (60 * head / head.norm()).expand(monitor.vectors.n_blocks, -1).clone()
    changed = PersonaMonitor(lm, with_null(PersonaVectors(vectors, monitor.vectors.best_block)))

    def shown(trace: Trace) -> Mapping[str, bool]:
        return {"malice": token in [trace.token_ids[t] for t in trace.reply_positions]}

    table = edges(changed, dataclasses.replace(PLAN, strength=1.0), sources=["candour"], shown=shown)[-1]
    found = table.pair("candour", "malice")
    assert found.estimate is not None and found.estimate.value > 0.5 and table.edges == (found,)


def test_with_specific_scores_their_table_stands_beside_that_of_z_and_no_mean_counts_a_sink_token() -> None:
    plain = monitor_of()
    n = plain.vectors.n_blocks
    rng = np.random.default_rng(0)
    odds, null = ({t: rng.uniform(0.5, 1.5, (n, 2)).astype("f4") for t in TRAITS} for _ in range(2))
    norms = np.concatenate([t.norms for t in plain.read_batch(steered(plain, "malice", 0.8, 0))], axis=1)
    limits = np.quantile(norms, 0.8, axis=1).astype("f4")  # every fifth token is a sink token
    vectors = dataclasses.replace(plain.vectors, log_odds=odds, specific_null=null, max_norm=limits)
    monitor = PersonaMonitor(plain.lm, vectors)
    score, specific = edges(monitor, sources=["malice"])
    assert (score.measure, specific.measure) == ("score", "specific")
    runs = [monitor.read_batch(steered(monitor, "malice", 0.8, seed)) for seed in (0, 1)]
    kinds: tuple[Kind, Kind] = ("z", "specific")
    for table, kind in zip((score, specific), kinds, strict=True):
        means, n_sinks = [], 0
        for trace in (trace for run in runs for trace in run):
            column = trace.blocks.index(vectors.best_block["candour"])
            kept = [t for t in trace.reply_positions if trace.norms[column, t] <= limits[trace.blocks[column]]]
            means.append(trace.scores("candour", kind)[kept].astype(float).mean())
            n_sinks += len(trace.reply_positions) - len(kept)
        assert n_sinks > 0 and table.pair("malice", "candour").vector == pytest.approx(np.mean(means), abs=1e-4)


def test_two_traits_have_no_others_to_be_compared_with() -> None:
    assert [table.measure for table in edges(monitor_of(("candour", "malice")))] == ["score"]


def test_the_model_is_left_as_it_was_found() -> None:
    monitor = monitor_of()
    before = hooks_on(monitor.lm.model)
    edges(monitor, sources=["malice"])
    assert hooks_on(monitor.lm.model) == before


def test_what_cannot_be_tried_is_refused_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("something was written")

    monkeypatch.setattr("persona_core.monitor.monitor.GenerationRun", never)
    monitor = monitor_of()
    with pytest.raises(SettingError, match="9 prompts; at least 10"):
        edges(monitor, prompts=PROMPTS[:9])
    with pytest.raises(UnknownTrait):
        edges(monitor, sources=["evil"])
    with pytest.raises(UnknownTrait):
        edges(monitor, dataclasses.replace(PLAN, strengths={"evil": 1.0}))
    blind = PersonaMonitor(monitor.lm, PersonaVectors(monitor.vectors.tensors, {}, monitor.vectors.null), blocks="all")
    with pytest.raises(UnknownBlock, match="no best block"):
        edges(blind)
    uncalibrated = PersonaMonitor(monitor.lm, random_vectors(len(monitor.lm.blocks), TRAITS))
    with pytest.raises(NotCalibrated):
        edges(uncalibrated)


@pytest.mark.parametrize("changes", [{"strength": 0.0}, {"strengths": {"a": np.inf}}, {"seeds": 0}, {"batch_size": 0}])
def test_a_plan_without_a_push_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        EdgePlan(**changes)


def test_effects_are_corrected_over_all_pairs_of_different_traits() -> None:
    from scipy.stats import false_discovery_control

    rng = np.random.default_rng(0)
    names = ["a", "b", "c", "d"]
    arms = {s: rng.normal(size=(20, 2, 4)) for s in names}, {s: rng.normal(size=(20, 2, 4)) for s in names}
    arms[0]["a"][..., 1] += 1.0
    found = interventional_effects(names, arms[0], arms[1], "score", n_flips=999)
    others = [e for e in found.effects if e.source != e.target]
    wanted = false_discovery_control([e.p for e in others])
    assert [e.q for e in others] == pytest.approx(wanted.tolist()) and len(others) == 12
    assert any(e.q > e.p for e in others if e.p is not None and e.q is not None)
    assert all(e.q is None for e in found.effects if e.source == e.target)
