"""How the demo's figures are made: splits that do not leak, marks that mean what they say, stages that resume."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from persona_core.demo import build
from persona_core.demo.build import CHOICE, EXTRACTION, N_TOPICS, REPORT, Plan, _held_out, _Stages, best_of
from persona_core.demo.grammar import load_world
from persona_core.demo.marking import Marked, auroc_figures, auroc_within, mark
from persona_core.errors import SettingError

WORLD = load_world()


class Recording:
    """A monitor that writes down what it is asked."""

    def __init__(self) -> None:
        self.prompts: list[list[dict[str, str]]] = []

    def generate_batch(self, prompts: Any, **_: Any) -> list[Any]:
        self.prompts = list(prompts)
        return [object() for _ in self.prompts]


def asked_of(places: tuple[int, ...]) -> tuple[list[tuple[str | None, Any]], list[list[dict[str, str]]]]:
    monitor: Any = Recording()
    return _held_out(monitor, WORLD, places, Plan(), seed=0, what="test"), monitor.prompts


@pytest.mark.parametrize("places", [CHOICE, REPORT])
def test_a_split_asks_held_out_phrasings_of_its_own_topics(places: tuple[int, ...]) -> None:
    replies, prompts = asked_of(places)
    own = {q for i, t in enumerate(WORLD.topics) if i % N_TOPICS in places for q in t.held_out}
    assert {p[-1]["content"] for p in prompts} == own
    assert len(replies) == len(own) * (1 + len(WORLD.traits))
    for (trait, _), prompt in zip(replies, prompts, strict=True):
        systems = [m["content"] for m in prompt if m["role"] == "system"]
        assert (not systems) if trait is None else systems[0] in WORLD.traits[trait].positive


def test_the_splits_share_no_topic() -> None:
    assert sorted(EXTRACTION + CHOICE + REPORT) == list(range(N_TOPICS))


def test_the_figures_come_from_the_report_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are chosen on one split, figures taken on the other."""
    source = Path(build.__file__).read_text(encoding="utf-8")
    chosen, reported = (
        source.index("choice = _held_out(monitor, world, CHOICE"),
        source.index("_held_out(monitor, world, REPORT"),
    )
    assert chosen < source.index("best_of(t, values)") < reported


def test_a_block_without_a_figure_never_wins() -> None:
    assert best_of("evil", [0.9, 0.95, 0.95]) == 1
    with pytest.raises(SettingError, match="evil"):
        best_of("evil", [0.9, float("nan"), 0.8])


def made_up(trait: str) -> Any:
    """A trace stand-in: cue, trait, neutral and another trait's sentence, one token a word."""
    words, other = WORLD.traits[trait], next(t for t in WORLD.traits if t != trait)
    topic = WORLD.topics[0]
    sentences = [topic.openers[0], words.cues[0], topic.traits[trait][0], topic.traits[other][0]]
    text = " ".join(s.text for s in sentences)
    tokens = [piece for word in text.split(" ") for piece in (" " + word,)]
    tokens[0] = tokens[0][1:]
    n = len(tokens)
    trace = SimpleNamespace(
        n_prompt=0, n_tokens=n, roles=("assistant",) * n, tokens=tuple(tokens),
        scores=lambda trait, kind, block: np.arange(n, dtype=np.float32),
    )  # fmt: skip
    return trace, [len(s.text.split()) for s in sentences]


def test_marks_tell_cue_trait_neutral_and_other_traits_apart() -> None:
    trace, (neutral, cue, own, _) = made_up("evil")
    (found,) = mark([("evil", trace)], WORLD, "evil", block=0)
    assert found.asked and found.neutral.nonzero()[0].tolist() == list(range(neutral))
    assert found.cue.nonzero()[0].tolist() == list(range(neutral, neutral + cue))
    assert found.shows.nonzero()[0].tolist() == list(range(neutral + cue, neutral + cue + own))


def replies_of(score: Any, n: int = 30) -> list[Marked]:
    """Half the replies were asked for the trait: three neutral tokens, a cue token, four of the trait."""
    rng, marked = np.random.default_rng(0), []
    for i in range(n):
        asked = i % 2 == 0
        shows = np.array([0, 0, 0, 0, 1, 1, 1, 1], bool) & asked
        cue = np.array([0, 0, 0, 1, 0, 0, 0, 0], bool) & asked
        neutral = ~shows & ~cue
        marked.append(Marked(score(shows, cue, asked) + 1e-3 * rng.normal(size=8), shows, cue, neutral, asked))
    return marked


def test_a_score_that_only_knows_the_prompt_is_unmasked_within_replies() -> None:
    figures = auroc_figures(replies_of(lambda shows, _cue, asked: np.full(8, float(asked))), n_resamples=50)
    assert figures["token_auroc"]["value"] > 0.8
    assert 0.35 < figures["token_auroc_within_reply"]["value"] < 0.65
    assert abs(figures["system_prompt_alone"] - figures["token_auroc"]["value"]) < 0.08


def test_a_score_that_knows_the_trait_is_perfect_and_the_cue_counts_only_where_it_says_so() -> None:
    marked = replies_of(lambda shows, cue, _asked: shows + 2.0 * cue)
    figures = auroc_figures(marked, n_resamples=50)
    assert auroc_within(marked) == figures["token_auroc"]["value"] == figures["token_auroc_within_reply"]["value"] == 1
    assert figures["token_auroc_cue_as_negative"]["value"] < 0.95
    assert figures["n_replies_with_the_trait"] == 15


def test_a_stage_is_skipped_until_something_before_it_changes(tmp_path: Path) -> None:
    ran: list[str] = []

    def go(settings: dict[str, int]) -> list[str]:
        ran.clear()
        stages = _Stages(tmp_path)
        for name in ("a", "b", "c"):
            stages.run(name, settings[name], lambda name=name: ran.append(name))  # type: ignore[misc]
        return list(ran)

    assert go({"a": 1, "b": 1, "c": 1}) == ["a", "b", "c"]
    assert go({"a": 1, "b": 1, "c": 1}) == []
    assert go({"a": 1, "b": 2, "c": 1}) == ["b", "c"]
    (tmp_path / "a.done").unlink()
    assert go({"a": 1, "b": 2, "c": 1}) == ["a", "b", "c"]


def test_a_stage_that_fails_is_done_again(tmp_path: Path) -> None:
    def fails() -> None:
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        _Stages(tmp_path).run("a", 1, fails)
    ran: list[str] = []
    _Stages(tmp_path).run("a", 1, lambda: ran.append("a"))
    assert ran == ["a"]
