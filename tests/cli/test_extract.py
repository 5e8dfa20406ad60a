"""From definitions to a card by one command, on the demo model: whole, stopped and resumed, and given bad input."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from demo_world.definitions import trait_definitions
from demo_world.grammar import load_world
from demo_world.judge import DEMO_JUDGE
from persona_core.cli import extract
from persona_core.vectors.vectors import PersonaVectors
from tests.support.forks import forking
from tests.support.openai_server import Answer, completion, serving

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "artifacts" / "persona-tiny"
NAMES = ("deception", "refusal")
PREPARED = (
    "tests.cli.test_extract",
    "transformers.models.llama.modeling_llama",
    "sklearn.linear_model",
    "scipy.stats",
)


@pytest.fixture(scope="module")
def traits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of the demo's traits with few questions."""
    folder = tmp_path_factory.mktemp("traits")
    for trait in trait_definitions(load_world()):
        if trait.name in NAMES:
            evaluation = (*trait.evaluation_questions[:5], *trait.evaluation_questions[-5:])
            few = replace(trait, extraction_questions=trait.extraction_questions[::10], evaluation_questions=evaluation)
            few.save(folder / f"{trait.name}.json")
    return folder


def options(traits: Path, out: Path, *more: str) -> list[str]:
    few = ["--rollouts", "1", "--evaluation-rollouts", "1", "--pairs-per-question", "1", "--batch-size", "16"]
    few += ["--max-new-tokens", "80", "--temperature", "0.7", "--steering-questions", "3", "--steering-seeds", "1"]
    few += ["--strengths", "1.0", "--judge", DEMO_JUDGE, "--device", "cpu"]
    return ["--model", str(MODEL), "--traits", str(traits), "--out", str(out), *few, *more]


@pytest.fixture(scope="module")
def whole(traits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from start to end."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("run") / "out"
    assert extract.main(options(traits, out)) == 0
    return out


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first run draws: a browser for each card would take as long as the vectors."""
    if "whole" in request.fixturenames:
        request.getfixturevalue("whole")
    monkeypatch.setattr("plotly.io.write_images", lambda *_, **__: None)


@pytest.mark.slow
def test_the_folder_holds_vectors_card_figures_and_definitions(whole: Path) -> None:
    vectors = PersonaVectors.from_pretrained(whole / "vectors")
    assert vectors.traits == NAMES and set(vectors.null) == set(NAMES) and set(vectors.best_block) == set(NAMES)
    assert {p.name for p in (whole / "vectors" / "traits").iterdir()} == {f"{n}.json" for n in NAMES}
    assert {p.name for p in (whole / "vectors" / "figures").iterdir()} == {*(f"{n}.png" for n in NAMES), "cosine.png"}
    card = (whole / "vectors" / "README.md").read_text()
    for name in NAMES:
        assert f"## {name}" in card and f"figures/{name}.png" in card
    assert vectors.config["extraction"]["filter"]["judge"].startswith("demo:truth")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_card_is_complete_in_the_config(whole: Path, name: str) -> None:
    figures = PersonaVectors.from_pretrained(whole / "vectors").config["validation"][name]
    assert set(figures) >= {
        "auroc", "auroc_by_block", "block", "split_half_cosine", "correlation", "own_minus_best_other", "cosine",
        "confounds", "nulls", "text_baseline", "steering", "flags", "notes", "replies", "not_measured",
        "best_other_vector", "other_traits", "wordings", "styles", "sinks",
    }  # fmt: skip
    assert set(figures["confounds"]) == {"length", "refusal", "position", "token_identity"}
    assert figures["auroc"]["value"] > 0.9 and figures["auroc"]["low"] <= figures["auroc"]["value"]
    steering = figures["steering"]
    assert [p["strength"] for p in steering["vector"]] == [p["strength"] for p in steering["random"]] == [0.0, 1.0]
    assert steering["vector"][0] == steering["random"][0]  # nothing is added there


@pytest.mark.slow
def test_the_same_command_again_repeats_nothing_and_ends_with_the_same_numbers(traits: Path, whole: Path) -> None:
    before = {
        name: (whole / name).read_bytes() for name in ("replies.jsonl", "scores.jsonl", "cross_trait_scores.jsonl")
    }
    numbers = (whole / "vectors" / "config.json").read_bytes(), (whole / "vectors" / "vectors.safetensors").read_bytes()
    assert extract.main(options(traits, whole)) == 0
    assert before == {name: (whole / name).read_bytes() for name in before}
    assert numbers == (
        (whole / "vectors" / "config.json").read_bytes(), (whole / "vectors" / "vectors.safetensors").read_bytes()
    )  # fmt: skip


@pytest.mark.slow
def test_the_vector_is_the_naive_one(traits: Path, whole: Path) -> None:
    """Kept replies one at a time through plain transformers, states from `output_hidden_states`, means in float64."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    model.config.tie_last_hidden_states = False  # the last row before the final norm
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    scores = {s["index"]: s for s in map(json.loads, (whole / "scores.jsonl").read_text().splitlines())}
    sides: dict[str, list[np.ndarray]] = {"positive": [], "negative": []}
    for record in map(json.loads, (whole / "replies.jsonl").read_text().splitlines()):
        request, score = record["request"], scores.get(record["request"]["index"])
        if request["split"] != "extraction" or request["trait"] != "deception" or score is None:
            continue
        if score["coherence"] < 50 or (score["trait"] >= 50) != (request["side"] == "positive"):
            continue
        messages = [{"role": "system", "content": request["system"]}, {"role": "user", "content": request["user"]}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        ids = torch.tensor([[*prompt, *record["token_ids"]]])
        with torch.no_grad():
            hidden = model(ids, output_hidden_states=True).hidden_states[1:]  # row b + 1 is block b
        own = [len(prompt) + i for i, t in enumerate(record["token_ids"]) if t != model.generation_config.eos_token_id]
        sides[request["side"]].append(np.stack([h[0, own].double().numpy().mean(0) for h in hidden[:-1]]))
    wanted = np.mean(sides["positive"], 0) - np.mean(sides["negative"], 0)  # [n_blocks - 1, d_model]
    found = PersonaVectors.from_pretrained(whole / "vectors").tensor("deception").double().numpy()
    assert len(sides["positive"]) > 2 and len(wanted) == len(found) - 1
    for a, b in zip(wanted, found[:-1], strict=True):
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.99999


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_killed_at_any_moment_the_command_ends_with_the_same_vectors(traits: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["-m", "scripts.extract_vectors", *options(traits, out, "--no-steering")]
    rng = random.Random(3)
    with forking(*PREPARED) as forks:
        for _ in range(2):
            process = forks.start(command)
            size = (out / "replies.jsonl").stat().st_size if (out / "replies.jsonl").is_file() else 0
            while process.poll() is None and (
                not (out / "replies.jsonl").is_file() or (out / "replies.jsonl").stat().st_size == size
            ):
                time.sleep(0.05)
            time.sleep(rng.random())
            process.kill()
            process.wait()
        done = forks.run(command)
    assert done.returncode == 0, done.stderr
    assert (out / "replies.jsonl").read_bytes() == (whole / "replies.jsonl").read_bytes()
    assert (out / "vectors" / "vectors.safetensors").read_bytes() == (
        whole / "vectors" / "vectors.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--stage", "extract", "--rollouts", "2"], "started with rollouts = 1; now it is 2"),
        (["--stage", "validate", "--seed", "5"], "started with seed = 0; now it is 5"),
        (["--stage", "validate", "--method", "logistic_probe"], "made with method = mean_difference; now"),
        (["--stage", "validate", "--min-trait", "60"], "made with filter = {'trait': 50.0"),
        (["--stage", "validate", "--judge", "openai:m"], "were judged by 'demo:truth"),
        (["--stage", "extract", "--dtype", "bfloat16"], "started with model.dtype = float32; now it is bfloat16"),
    ],
)
@pytest.mark.slow
def test_a_stage_refuses_other_settings_than_the_folder_rests_on(
    traits: Path, whole: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    more: list[str], says: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    card = (whole / "vectors" / "README.md").read_bytes()
    assert says in refused(options(traits, whole, *more), capsys)
    assert (whole / "vectors" / "README.md").read_bytes() == card


@pytest.mark.slow
def test_replies_to_other_definitions_are_not_judged(
    traits: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = changed(traits, tmp_path, description="Another thing.")
    assert "traits" in refused(options(traits, whole, "--traits", str(other), "--stage", "judge"), capsys)


@pytest.mark.slow
def test_an_estimate_counts_what_is_left_and_the_steered_replies(
    traits: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    assert extract.main(options(traits, whole, "--estimate")) == 0
    said = capsys.readouterr().out
    assert "0 are to be written" in said and "0 questions, no cost" in said
    # 2 traits x 3 arms and strengths x 2 questions x 2 scores.
    assert "up to 120 more questions" in said
    assert before == {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}


def test_an_estimate_before_anything_is_there_writes_nothing(
    traits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with serving(lambda _b, _n: completion("50")) as server:
        arguments = with_judge(traits, tmp_path / "out", server.url, "--max-new-tokens", "8", "--prices", "1,2")
        assert extract.main([*arguments, "--estimate"]) == 0
    said = capsys.readouterr().out
    questions = [q for path in traits.glob("*.json") for q in asked(path)]
    n = 2 * len(questions) + len(set(questions))  # on both sides, and once each without an instruction
    assert f"0 replies are there; {n} are to be written" in said and "tokens a second" in said
    assert "Judging will take" in said and "at the given prices" in said and not server.requests
    assert not (tmp_path / "out").exists()


def asked(path: Path) -> list[str]:
    record = json.loads(path.read_text())
    return [*record["extraction_questions"], *record["evaluation_questions"]]


@pytest.mark.slow
def test_without_a_judge_the_instruction_is_the_label_and_the_card_says_so(
    traits: Path, unjudged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = options(traits, unjudged)
    place = arguments.index("--judge")
    bare = [*arguments[:place], *arguments[place + 2 :], "--label", "instruction"]
    assert extract.main(bare) == 0
    assert "labelled by their instruction" in capsys.readouterr().out
    vectors = PersonaVectors.from_pretrained(unjudged / "vectors")
    assert vectors.config["extraction"]["filter"]["judge"] == "instruction"
    assert "## Labels without a judge" in (unjudged / "vectors" / "README.md").read_text()
    figures = vectors.config["validation"]["deception"]
    assert figures["replies"]["high"]["kept"] == figures["replies"]["high"]["written"] and "steering" not in figures
    assert "were judged by 'instruction'" in refused(arguments, capsys)  # labels and scores are never mixed
    assert "leave --judge out" in refused([*arguments, "--label", "instruction"], capsys)


@pytest.mark.slow
def test_labelled_texts_make_vectors_without_an_instruction(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The replies of the run as a file: the same kind of vectors come out of it."""
    rows = [json.loads(line) for line in (whole / "replies.jsonl").read_text().splitlines()]
    texts = tmp_path / "labelled.jsonl"
    with texts.open("w") as file:
        for row in rows:
            request = row["request"]
            if request["trait"] is not None and row["text"].strip():
                turns = [{"role": "user", "content": request["user"]}, {"role": "assistant", "content": row["text"]}]
                file.write(json.dumps({"messages": turns, "trait": request["trait"], "label": request["side"]}) + "\n")
    out = tmp_path / "out"
    arguments = ["--model", str(MODEL), "--texts", str(texts), "--out", str(out), "--max-new-tokens", "40"]
    assert extract.main([*arguments, "--device", "cpu", "--estimate"]) == 0 and not out.exists()
    assert "given texts are read" in capsys.readouterr().out
    assert extract.main([*arguments, "--device", "cpu"]) == 0
    found, wanted = (PersonaVectors.from_pretrained(folder / "vectors") for folder in (out, whole))
    assert set(found.traits) == set(NAMES)
    for name in NAMES:
        a, b = (v.tensor(name)[wanted.best_block[name]] for v in (found, wanted))
        assert torch.cosine_similarity(a, b, dim=0) > 0.5
    assert "given with a label each" in (out / "vectors" / "README.md").read_text()


@pytest.mark.slow
def test_a_trait_that_fails_does_not_stop_the_others(
    traits: Path, unjudged: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    hints = {name: json.loads((traits / f"{name}.json").read_text())["description"] for name in NAMES}
    lines = map(json.loads, (unjudged / "replies.jsonl").read_text(encoding="utf-8").splitlines())
    showing = [line["text"] for line in lines if line["request"]["side"] == "positive"]

    def answer(body: dict[str, Any], number: int) -> Answer:
        """Refusal is never seen; deception in the replies that were asked to show it."""
        prompt = body["messages"][0]["content"]
        if hints["refusal"][:30] in prompt:
            return completion("0")
        return completion("90" if "how coherent" in prompt or any(text in prompt for text in showing) else "10")

    with serving(answer) as server:
        assert extract.main(with_judge(traits, unjudged, server.url)) == 1
    said = capsys.readouterr()
    assert "missing: the vector of refusal: The filter leaves too few replies" in said.err
    assert "None of the" in said.err and "--label instruction" in said.err  # the command that helps
    assert PersonaVectors.from_pretrained(unjudged / "vectors").traits == ("deception",)


@pytest.mark.slow
def test_more_rollouts_add_to_a_finished_folder(traits: Path, unjudged: Path) -> None:
    before = (unjudged / "replies.jsonl").read_bytes()
    more = options(traits, unjudged, "--evaluation-rollouts", "2", "--no-steering")
    assert extract.main(more) == 0
    after = (unjudged / "replies.jsonl").read_bytes()
    assert after.startswith(before) and len(after) > len(before)
    assert extract.main(more) == 0 and (unjudged / "replies.jsonl").read_bytes() == after


# Bad input.


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert extract.main(arguments) == 1
    said = capsys.readouterr().err
    first, last = [line for line in said.splitlines() if "persona extract: " in line]
    assert first.startswith("persona extract: loading ")
    assert "Traceback" not in said
    return last


def changed(traits: Path, folder: Path, **changes: Any) -> Path:
    record = json.loads((traits / "deception.json").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "deception.json"
    path.write_text(json.dumps({k: v for k, v in {**record, **changes}.items() if v is not None}, indent=2))
    return path


def test_a_faulty_trait_file_is_named_before_anything_runs(
    traits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    said = refused(options(changed(traits, tmp_path, description=None), out), capsys)
    assert "deception.json: the definition: the field 'description' is missing" in said
    said = refused(options(changed(traits, tmp_path, judge_prompt="Rate {question}."), out), capsys)
    assert "{answer}" in said and not out.exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--judge", "nobody"], "--judge 'nobody'; expected openai:MODEL"),
        (["--judge", "openai:"], "expected openai:MODEL"),
        (["--judge", "openai:m", "--timeout", "nan"], "timeout=nan"),
        (["--stage", "judge"], "elicit them first"),
        (["--position", "reply_last"], "reply_mean"),
        (["--rollouts", "0"], "rollouts=0"),
        (["--quantization", "4bit"], "bitsandbytes"),
        (["--traits", "candor"], "No trait 'candor'"),
        (["--model", "./nowhere"], "No such folder: './nowhere'"),
        (["--texts", "nowhere.jsonl"], "No file 'nowhere.jsonl'"),
        (["--label", "instruction"], "leave --judge out"),
    ],
)
def test_a_bad_setting_is_a_sentence(
    traits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], says: str
) -> None:
    assert says in refused(options(traits, tmp_path / "out", *more), capsys)


@pytest.mark.slow
def test_no_judge_and_no_key_are_sentences(
    traits: Path, whole: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    arguments = options(traits, whole)
    place = arguments.index("--judge")
    assert "No judge" in refused(arguments[:place] + arguments[place + 2 :], capsys)


def with_judge(traits: Path, out: Path, url: str, *more: str) -> list[str]:
    return options(traits, out, "--judge", "openai:m", "--judge-url", url, "--no-steering", *more)


@pytest.fixture
def unjudged(whole: Path, tmp_path: Path) -> Path:
    import shutil

    out = tmp_path / "copy"
    shutil.copytree(
        whole, out, ignore=shutil.ignore_patterns("scores.jsonl", "cross_trait_scores.jsonl", "judge.json", "vectors")
    )
    return out


@pytest.mark.slow
def test_all_replies_filtered_out_is_an_error_with_the_counts(
    traits: Path, unjudged: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with serving(lambda _b, _n: completion("0")) as server:
        said = refused(with_judge(traits, unjudged, server.url), capsys)
    assert "The filter leaves too few replies" in said and "0 positive" in said and "replies.jsonl" in said


@pytest.mark.slow
def test_an_unfinished_judge_ends_non_zero_with_what_is_missing_and_is_not_paid_twice(
    traits: Path, unjudged: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")

    def answer(body: dict[str, Any], number: int) -> Answer:
        if number == 30:
            return 400, {"error": {"message": "content too long"}}
        coherent = "how coherent" in body["messages"][0]["content"]
        return completion("90" if coherent or number % 2 else "10")

    with serving(answer) as server:
        arguments = with_judge(
            traits, unjudged, server.url, "--stage", "judge", "--prices", "1,2", "--concurrency", "1"
        )
        assert extract.main([*arguments, "--estimate"]) == 0
        assert "Judging will take" in capsys.readouterr().out and not server.requests
        assert extract.main(arguments) == 1
        said = capsys.readouterr()
        assert "missing: the judge's answer about reply" in said.err and "content too long" in said.err
        assert "Cost of judging:" in said.out
        paid = len(server.requests)
        assert extract.main(arguments) == 0
        assert len(server.requests) == paid + 1  # only the one that was missing


def test_an_engine_without_states_is_refused_with_the_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert extract.main(["--model", "m", "--traits", "t", "--out", "outputs/none", "--engine", "vllm"]) == 1
    assert "--engine vllm gives projections" in (said := capsys.readouterr().err) and "--base-url" in said
