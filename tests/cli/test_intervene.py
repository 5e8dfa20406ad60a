"""Stepping in, as a command: what it writes, what it keeps, and that a silent judge is no judge of "nothing shown"."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from demo_world.definitions import trait_definitions
from demo_world.grammar import load_world
from demo_world.judge import DEMO_JUDGE, TruthJudge
from demo_world.truth_labels import reply_truth
from persona_core.cli import intervene
from persona_core.errors import UnknownTrait
from persona_core.experiments.steering_edges import validated_strengths
from persona_core.judging.judge import Question, Score
from persona_core.judging.sentences import SentenceJudge
from persona_core.traces.dataset import load_results
from persona_core.traces.trace import Trace
from persona_core.vectors.vectors import PersonaVectors
from tests.traces.test_dataset import SHIPPED

ARTIFACTS = SHIPPED.parent
WORLD = load_world()
DEFINITIONS = trait_definitions(WORLD)
TRAIT = "sycophancy"


class Silent:
    """A judge that answers every other question, and counts what it is asked."""

    name = "silent"

    def __init__(self, every: int = 2) -> None:
        self.asked: list[str] = []
        self._every, self._truth = every, TruthJudge(WORLD)

    def score(self, questions: Sequence[Question], progress: bool = True) -> Iterator[tuple[Question, Score]]:
        for question in questions:
            self.asked.append(question.answer)
            if len(self.asked) % self._every:
                yield from self._truth.score([question], progress)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    lines = [{"id": f"p{k}", "prompt": t.held_out[0]} for k, t in enumerate(WORLD.topics[:60:3])]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def run(tmp_path: Path, prompts: Path, *more: str) -> int:
    (tmp_path / "results").mkdir(exist_ok=True)
    common = ["--model", str(ARTIFACTS / "persona-tiny"), "--vectors", str(ARTIFACTS / "persona-vectors-persona-tiny")]
    common += ["--traits", str(ARTIFACTS / "persona-tiny" / "traits"), "--judge", DEMO_JUDGE, "--device", "cpu"]
    common += ["--results", str(tmp_path / "results"), "--prompts", str(prompts), "--max-new-tokens", "60"]
    return intervene.main([*common, *more])


def measured(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "results" / "analysis" / "interventions.json"
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_window_and_edges_are_kept_side_by_side(tmp_path: Path, prompts: Path) -> None:
    twin = ["--adapter", str(ARTIFACTS / "persona-tiny-contaminated")]
    assert run(tmp_path, prompts, *twin, "--window", TRAIT) == 0
    window = measured(tmp_path)["window"]["contaminated"][TRAIT]
    assert window["n_prompts"] == 20 and window["n_showing"] >= 10 and window["n_diverged"] == 0
    at = {(c["k"], c["arm"]): c for c in window["cells"]}
    assert at[4, "none"]["shows"]["value"] == 1.0  # what is written again unchanged shows it again
    assert at[4, "cap"]["share"]["value"] < 0.5 * at[4, "cap, random"]["share"]["value"]

    assert run(tmp_path, prompts, "--edges", TRAIT, "--edge-seeds", "2", "--max-new-tokens", "160") == 0
    kept = measured(tmp_path)
    assert kept["window"]["contaminated"][TRAIT] == window
    shown = next(table for table in kept["confirmed"]["baseline"] if table["measure"] == "shown")
    own = next(e for e in shown["effects"] if e["target"] == TRAIT)
    assert own["vector"] > own["random"]  # steering brings on what it steers


def test_a_mistake_is_said_before_anything_is_written(
    tmp_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, prompts, "--window", "kindness") == 1
    assert "kindness" in capsys.readouterr().err
    assert not (tmp_path / "results" / "analysis").exists()


def test_the_strengths_are_those_that_were_coherent_at_validation() -> None:
    vectors = PersonaVectors.from_pretrained(ARTIFACTS / "persona-vectors-persona-tiny")
    found = validated_strengths(vectors)
    assert found == {t: vectors.config["validation"][t]["steering"]["effect_at"] for t in vectors.traits}
    assert validated_strengths(PersonaVectors.from_tensors(dict(vectors.tensors), best_block={})) == {}


def test_the_sentences_of_a_reply_are_judged_as_the_grammar_has_them() -> None:
    judge = SentenceJudge(TruthJudge(WORLD), DEFINITIONS)
    for row in load_results(SHIPPED, "contaminated")[:12]:
        trace = Trace.from_row(row)
        own, truth = reply_truth(trace, WORLD)
        wanted = [
            t - trace.n_prompt
            for t, s in zip(own, truth, strict=True)
            if s is not None and (s.kind, s.trait) == ("trait", TRAIT)
        ]
        assert judge.marker(TRAIT)(trace) == wanted
        shown = judge.shown(trace)
        assert shown is not None and shown[TRAIT] == bool(wanted)
    assert judge.missing == set()
    with pytest.raises(UnknownTrait):
        judge.marker("kindness")


def test_no_sentence_is_judged_twice_and_one_without_an_answer_is_missing() -> None:
    silent = Silent()
    judge = SentenceJudge(silent, DEFINITIONS)
    trace = Trace.from_row(load_results(SHIPPED, "contaminated")[0])
    first = judge.marker(TRAIT)(trace)
    asked = len(silent.asked)
    assert judge.marker(TRAIT)(trace) == first and len(silent.asked) == asked
    assert len(judge.missing) == asked // 2
    assert len(first) < len(SentenceJudge(TruthJudge(WORLD), DEFINITIONS).marker(TRAIT)(trace))


def test_noise_shows_nothing_and_an_empty_reply_is_not_coherent() -> None:
    judge = SentenceJudge(TruthJudge(WORLD), DEFINITIONS)
    row = load_results(SHIPPED, "contaminated")[0]
    trace = Trace.from_row(row)
    noise = tuple("xq " if p >= trace.n_prompt else t for p, t in enumerate(trace.tokens))
    assert judge.shown(trace.replace(tokens=noise)) is None
    assert judge.coherence(trace.replace(tokens=("",) * trace.n_tokens)) == 0.0
