"""The window: what is written again is the same before t* - k, changed as stated after it, and counted as by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from persona_core.analysis.intervention_statistics import Outcome, arm_statistics, mean_over_groups
from persona_core.errors import NotCalibrated, SettingError, UnknownTrait
from persona_core.experiments import intervention_window as module
from persona_core.experiments.intervention_window import WindowPlan, cap_side_effects, intervention_window
from persona_core.inference.sampling import Sampling
from persona_core.inference.steering import Intervention
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.traces.trace import Trace
from persona_core.vectors.null import Null
from persona_core.vectors.vectors import PersonaVectors
from tests.inference.test_steering import monitor_of
from tests.support import oracle
from tests.support.families import BY_NAME

PROMPTS = ["Should I quit my job?", "Hi", "Is it wise to lend a friend money?", "Why?"]
SAMPLING = Sampling(max_new_tokens=14, temperature=1.0)
BLOCK = 1  # the best block of "malice" below


def with_quantiles(monitor: PersonaMonitor, level: float = 0.0) -> PersonaMonitor:
    """The same with a null whose 95th percentile is `level` everywhere, and malice read at block 1."""
    vectors, n = monitor.vectors, monitor.vectors.n_blocks
    null = Null(np.zeros(n, "f4"), np.ones(n, "f4"), np.full((n, 2), level, "f4"), (0.5, 0.95))
    null.quantiles[:, 0] = -1000.0  # the median must not be taken for it
    best = {t: BLOCK for t in vectors.traits}
    return PersonaMonitor(monitor.lm, PersonaVectors(vectors.tensors, best, dict.fromkeys(vectors.traits, null)))


@pytest.fixture(scope="module")
def monitor() -> PersonaMonitor:
    return with_quantiles(monitor_of())


def own_ids(trace: Trace) -> list[int]:
    return list(trace.token_ids[trace.n_prompt :])


def trait_positions(trace: Trace) -> list[int]:
    """Every token with an id divisible by 3, from the seventh on, stands for the trait."""
    return [p for p, i in enumerate(own_ids(trace)) if p >= 6 and i % 3 == 0]


def coherence(trace: Trace) -> float:
    return min(100.0, float(len(trace.reply_text)))


def plan_of(**changes: Any) -> WindowPlan:
    given: dict[str, Any] = {"ahead": (0, 2, 5), "strength": 30.0, "sampling": SAMPLING, "batch_size": 4}
    return WindowPlan(**(given | changes))


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Trace, Trace]]:
    """Pairs of second and first writings, as they are made."""
    pairs: list[tuple[Trace, Trace]] = []
    real = module._again

    def again(monitor: Any, prompts: Any, written: Any, *rest: Any) -> list[Trace]:
        found = real(monitor, prompts, written, *rest)
        pairs.extend(zip(found, written, strict=True))
        return found

    monkeypatch.setattr(module, "_again", again)
    return pairs


# The second writing.


def slowly(monitor: PersonaMonitor, trace: Trace, record: dict[str, Any]) -> list[int]:
    """The reply as one writes it by hand: a whole forward for each token, its own draw, a plain hook for the change."""
    lm, start = monitor.lm, record["start"]
    direction = monitor.vectors.direction("malice", BLOCK).double()
    draws = np.random.default_rng(trace.provenance.seed).random(SAMPLING.max_new_tokens)
    ids = list(trace.token_ids[: trace.n_prompt])

    def change(block: int, states: torch.Tensor) -> torch.Tensor:
        if block != BLOCK:
            return states
        hidden = states.double().clone()
        for t in range(trace.n_prompt + start - 1, len(hidden)):
            if record["mode"] == "cap":
                over = float(hidden[t] @ direction) - record["amount"]
                hidden[t] -= max(0.0, over) * direction
            else:
                hidden[t] += record["amount"] * direction  # the null's sd is 1
        return hidden.to(states.dtype)

    for step in range(SAMPLING.max_new_tokens):
        logits = oracle.logits(lm.model, BY_NAME["llama"].blocks(lm.model), ids, change)[-1]
        p = np.exp(logits - logits.max())
        ids.append(int(np.searchsorted(np.cumsum(p / p.sum()), draws[step], side="right")))
    return ids[trace.n_prompt :]


def test_a_second_writing_is_what_a_slow_loop_with_a_plain_hook_writes(
    monitor: PersonaMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = recorded(monkeypatch)
    intervention_window(monitor, PROMPTS, "malice", trait_positions, coherence, plan_of(), seeds=3)
    plain = [(a, b) for a, b in pairs if "along" not in a.provenance.steering[0]]
    assert {a.provenance.steering[0]["mode"] for a, _ in plain} == {"cap", "add"}
    changed = 0
    for again, before in plain:
        record = dict(again.provenance.steering[0])
        assert record["amount"] == (0.0 if record["mode"] == "cap" else -30.0)  # away from the trait
        assert own_ids(again) == slowly(monitor, again, record)
        assert own_ids(again)[: record["start"]] == own_ids(before)[: record["start"]]
        changed += own_ids(again) != own_ids(before)
    assert changed > len(plain) / 2


def test_every_start_is_t_star_minus_k_of_its_own_reply(
    monitor: PersonaMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = recorded(monkeypatch)
    found = intervention_window(monitor, PROMPTS, "malice", trait_positions, coherence, plan_of(ahead=(2,)), seeds=3)
    assert found.n_prompts == 4 and len(pairs) == 4 * found.n_showing
    firsts = [trait_positions(before)[0] for _, before in pairs]
    assert [again.provenance.steering[0]["start"] for again, _ in pairs] == [f - 2 for f in firsts]
    assert found.first == np.median(firsts)
    assert len(set(firsts)) > 1  # rows of one batch begin at different positions


def test_the_choice_of_token_t_star_minus_k_can_change_and_none_before_it(
    monitor: PersonaMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = recorded(monkeypatch)
    for seed in range(6):
        intervention_window(
            monitor,
            PROMPTS,
            "malice",
            trait_positions,
            coherence,
            plan_of(ahead=(0, 3), strength=3000.0),
            seeds=40 * seed,
        )
    at_start = [
        own_ids(again)[again.provenance.steering[0]["start"]] != own_ids(before)[again.provenance.steering[0]["start"]]
        for again, before in pairs
        if again.provenance.steering[0]["mode"] == "add"
    ]
    assert np.mean(at_start) > 0.8  # so large a push changes nearly every choice, the first one too


def test_the_random_arm_moves_the_state_by_the_same_amount_elsewhere(
    monitor: PersonaMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Intervention, torch.Tensor, torch.Tensor, torch.Tensor]] = []
    real = Intervention.apply

    def apply(self: Intervention, states: torch.Tensor, reply_index: torch.Tensor, rows: Any) -> torch.Tensor:
        moved = real(self, states, reply_index, rows)
        seen.append((self, states[0].double(), (moved - states)[0].double(), reply_index[0]))
        return moved

    monkeypatch.setattr(Intervention, "apply", apply)
    intervention_window(monitor, PROMPTS[:1], "malice", trait_positions, coherence, plan_of(ahead=(0, 2)), seeds=3)
    directions: set[float] = set()
    for change, states, moved, index in seen:
        assert change.starts is not None
        acts = index >= int(change.starts[0]) - 1
        along = (change.direction if change.along is None else change.along).double()
        wanted = torch.full_like(states[:, 0], -30.0)  # sd of the null: 1
        if change.steer.mode == "cap":
            wanted = -(states @ monitor.vectors.direction("malice", BLOCK).double()).clamp_min(0.0)  # the cap is 0
        expected = torch.where(acts, wanted, 0.0)[:, None] * along
        assert torch.allclose(moved, expected, atol=1e-4), change.steer.mode
        if change.along is not None:
            assert abs(float(along.norm()) - 1) < 1e-5 and abs(float(along @ change.direction.double())) < 0.9
            directions.add(round(float(along[0]), 5))
    assert len(directions) == 4  # two arms, two k


def test_a_writing_that_differs_before_the_intervention_is_left_out_and_counted(
    monitor: PersonaMonitor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = module._again

    def again(*given: Any) -> list[Trace]:
        first, *rest = real(*given)
        spoilt = list(first.token_ids)
        spoilt[first.n_prompt] += 1
        return [first.replace(token_ids=tuple(spoilt)), *rest]

    monkeypatch.setattr(module, "_again", again)
    found = intervention_window(monitor, PROMPTS, "malice", trait_positions, coherence, plan_of(ahead=(2,)), seeds=3)
    assert found.n_diverged == 4 and "differ before the intervention" in caplog.text
    assert found.at(2, "cap").n == found.n_showing - 1 == found.at(2, "none").n - 1


# What is counted.


def test_the_figures_are_what_one_counts_in_the_replies(
    monitor: PersonaMonitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = recorded(monkeypatch)
    found = intervention_window(monitor, PROMPTS, "malice", trait_positions, coherence, plan_of(ahead=(2,)), seeds=3)
    n = found.n_showing
    for number, arm in enumerate(("cap", "cap, random", "steer", "steer, random")):
        cell, of = found.at(2, arm), pairs[number * n : (number + 1) * n]  # type: ignore[arg-type]
        shows, share, text = [], [], []
        for again, _ in of:
            start = again.provenance.steering[0]["start"]
            later = [p for p in trait_positions(again) if p >= start]
            shows.append(bool(later))
            share.append(len(later) / (len(own_ids(again)) - start))
            text.append(coherence(again))
        assert cell.shows and cell.share and cell.coherence and cell.changed
        assert cell.shows.value == pytest.approx(np.mean(shows)) and cell.share.value == pytest.approx(np.mean(share))
        assert cell.coherence.value == pytest.approx(np.mean(text))
        assert cell.changed.value == pytest.approx(np.mean([own_ids(a) != own_ids(b) for a, b in of]))
    none = found.at(2, "none")
    assert none.shows and none.shows.value == 1.0 and none.changed and none.changed.value == 0.0


def test_replies_too_short_for_a_k_are_left_out_of_it_and_common_holds_the_same_replies_throughout(
    monitor: PersonaMonitor,
) -> None:
    found = intervention_window(
        monitor, PROMPTS * 2, "malice", trait_positions, coherence, plan_of(ahead=(0, 8)), seeds=3, groups=PROMPTS * 2
    )
    all_of, late = found.at(0, "none").n, found.at(8, "none").n
    assert 0 < late < all_of == found.n_showing
    assert {cell.n for cell in found.common} == {late}
    record = json.loads(json.dumps(found.to_dict()))
    assert len(record["cells"]) == 10 and record["cells"][0]["minus_random"] is None
    with pytest.raises(SettingError, match="No cell k=3"):
        found.at(3, "cap")


def outcome(reply: int, arm: Any, shows: float, **changes: Any) -> Outcome:
    return Outcome(**({"reply": reply, "group": reply, "k": 4, "arm": arm, "shows": shows, "share": shows / 2,
                       "coherence": 80.0, "changed": 1.0} | changes))  # fmt: skip


def test_arms_are_paired_by_reply() -> None:
    """What differs between replies is in both arms; the difference is the same in all of them."""
    rng = np.random.default_rng(0)
    base = rng.uniform(0.2, 0.8, 40)
    outcomes = [outcome(i, "steer, random", 1.0, share=b + 0.1) for i, b in enumerate(base)]
    outcomes += [outcome(i, "steer", 0.0, share=b) for i, b in reversed(list(enumerate(base)))]
    steer, _ = arm_statistics(outcomes)
    difference = steer.minus_random["share"]
    assert difference is not None and difference.value == pytest.approx(-0.1)
    assert difference.high - difference.low < 1e-9
    assert steer.share is not None and steer.share.high - steer.share.low > 0.05
    with pytest.raises(SettingError, match="occurs twice"):
        arm_statistics([*outcomes, outcomes[0]])


def test_what_is_not_known_is_left_out_and_one_prompt_has_no_interval() -> None:
    known = [outcome(i, "cap", 1.0, coherence=50.0) for i in range(5)]
    (cell,) = arm_statistics([*known, outcome(5, "cap", 1.0, coherence=None, share=None)])
    assert cell.n == 6 and cell.coherence and (cell.coherence.value, cell.coherence.n) == (50.0, 5)
    (alone,) = arm_statistics([outcome(i, "cap", 1.0, group="same") for i in range(5)])
    assert alone.shows is None and alone.to_dict()["shows"] is None


def test_the_interval_over_prompts_holds_the_truth() -> None:
    runs, covered, certain = 200, 0, 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        level = rng.beta(4, 1, 30)  # of each prompt; mean 0.8
        values = (rng.random((30, 3)) < level[:, None]).astype(float).ravel().tolist()
        found = mean_over_groups(values, np.repeat(np.arange(30), 3).tolist(), (0.0, 1.0), 300, seed)
        assert found is not None
        covered += found.low <= 0.8 <= found.high
        rare = mean_over_groups((rng.random(40) < 0.97).astype(float).tolist(), range(40), (0.0, 1.0), 300, seed)
        certain += rare is not None and rare.low <= 0.97 <= rare.high
    assert 0.90 <= covered / runs <= 0.985 and certain / runs > 0.85


# A cap on neutral text.


def test_a_cap_above_everything_leaves_every_id_and_one_below_everything_does_not() -> None:
    monitor = monitor_of()
    high, low = (
        cap_side_effects(with_quantiles(monitor, level), PROMPTS, "malice", coherence, plan_of(), 3)
        for level in (1e4, -1e4)
    )
    assert high.identical and high.identical.value == 1.0 and high.coherence == high.coherence_before
    assert low.identical and low.identical.value < 1.0 and low.cap == -1e4
    assert json.loads(json.dumps(low.to_dict()))["n"] == 4


def test_a_chosen_z_is_taken_in_place_of_the_percentile(monitor: PersonaMonitor) -> None:
    found = cap_side_effects(monitor, PROMPTS[:2], "malice", coherence, plan_of(cap=2.5), 3)
    assert found.cap == pytest.approx(2.5)  # the null has mean 0 and sd 1


# What cannot be done.


def test_bad_input_is_refused_with_the_reason(monitor: PersonaMonitor) -> None:
    def window(marker: Any = trait_positions, trait: str = "malice", **changes: Any) -> Any:
        return intervention_window(monitor, PROMPTS, trait, marker, coherence, plan_of(), seeds=3, **changes)

    with pytest.raises(SettingError, match="None of the 4 replies shows 'malice'"):
        window(marker=lambda trace: [])
    with pytest.raises(SettingError, match="for a reply of"):
        window(marker=lambda trace: [trace.n_tokens])
    with pytest.raises(SettingError, match="1 groups for 4 prompts"):
        window(groups=["a"])
    with pytest.raises(UnknownTrait):
        window(trait="kindness")
    for bad, message in (
        ({"ahead": (-1,)}, "from 0"),
        ({"ahead": (1, 1)}, "distinct"),
        ({"strength": 0.0}, "above 0"),
        ({"batch_size": 0}, "batch_size"),
    ):
        with pytest.raises(SettingError, match=message):
            plan_of(**bad)


def test_vectors_without_that_percentile_ask_for_a_cap_as_z() -> None:
    monitor = monitor_of()  # its null holds the median alone
    arguments: tuple[Sequence[str], str, Any] = (PROMPTS[:2], "malice", coherence)
    with pytest.raises(NotCalibrated, match=r"0\.95"):
        cap_side_effects(monitor, *arguments, plan_of())
    assert cap_side_effects(monitor, *arguments, plan_of(cap=2.0)).n == 2
