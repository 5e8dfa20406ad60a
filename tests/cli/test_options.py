"""The command line: what `--help` shows, how fast a command answers, and how it ends."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from demo_world.judge import DEMO_JUDGE, TruthJudge
from persona_core.cli import contaminate, extract, intervene, monitor
from persona_core.cli.judges import judge_kind, make_judge
from persona_core.cli.main import COMMANDS, main, module_of
from persona_core.cli.options import DTYPES, ENGINES
from persona_core.errors import SettingError

ROOT = Path(__file__).resolve().parents[2]


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_every_default(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[argparse.ArgumentParser] = []
    parse_args = argparse.ArgumentParser.parse_args

    def recording(self: argparse.ArgumentParser, *args: object) -> argparse.Namespace:
        seen.append(self)
        return parse_args(self, *args)  # type: ignore[call-overload]

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", recording)
    text = help_of(command, capsys)
    assert f"  persona {command} " in text or f"  persona {command}\n" in text, "an example"
    words = " ".join(text.split())
    for action in seen[-1]._actions:
        assert action.help, action.dest
        if action.default not in (None, False, argparse.SUPPRESS):
            typed = " ".join(map(str, action.default)) if isinstance(action.default, list) else action.default
            assert f"(default: {typed})" in words, action.dest
        assert (action.help or "").count("(default") <= 1


def test_help_loads_no_model_library() -> None:
    code = """
import sys
from persona_core.cli.main import COMMANDS, main
for command in COMMANDS:
    try:
        main([command, "--help"])
    except SystemExit:
        pass
print([m for m in ("torch", "transformers", "numpy", "gradio", "huggingface_hub") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_a_line_appears_before_torch_is_imported(tmp_path: Path) -> None:
    """A folder named torch on the path shows when torch is imported: not before the line."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("import sys; print('TORCH', file=sys.stderr); sys.exit(3)\n")
    command = [sys.executable, "-m", "persona_core.cli.main", "monitor"]
    command += ["--model", "artifacts/persona-tiny", "--vectors", "artifacts/persona-vectors-persona-tiny"]
    command += ["--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = done.stderr.splitlines()
    assert done.returncode == 3 and lines == ["persona monitor: loading artifacts/persona-tiny ...", "TORCH"]


def test_an_unknown_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["montior"])
    assert ended.value.code == 2 and "montior" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_module(command: str) -> None:
    assert callable(importlib.import_module(module_of(command)).main)


def defaults(module: ModuleType, *required: str) -> argparse.Namespace:
    return module.arguments().parse_args([*required, "--model", "m"])


def test_the_defaults_are_those_of_the_library() -> None:
    """They are written out in persona_core/cli, which imports no torch."""
    from persona_core.experiments.finetune import LoraPlan
    from persona_core.experiments.intervention_window import WindowPlan
    from persona_core.experiments.steering_edges import EdgePlan
    from persona_core.inference.sampling import Sampling
    from persona_core.models.loading import DTYPES as LOADABLE
    from persona_core.models.loading import ENGINES as LOADED_ON
    from persona_core.pipeline import Settings
    from persona_core.vectors.extraction import METHODS
    from persona_core.vectors.steering_effect import SteeringPlan

    assert tuple(LOADABLE) == DTYPES[1:] and tuple(LOADED_ON) == ENGINES and tuple(METHODS) == extract.METHODS
    lora, chosen = LoraPlan(), defaults(contaminate, "--data", "d", "--out", "o")
    for name in vars(lora).keys() - {"held_out"}:
        assert getattr(chosen, name) == getattr(lora, name), name

    chosen, steering, settings = defaults(extract, "--traits", "t"), SteeringPlan(), Settings()
    assert (tuple(chosen.strengths), chosen.steering_questions, chosen.steering_seeds) == (
        steering.strengths, steering.n_questions, steering.seeds
    )  # fmt: skip
    assert (chosen.method, chosen.position, chosen.min_trait, chosen.min_coherence) == (
        settings.method, settings.position, settings.min_trait, settings.min_coherence
    )  # fmt: skip

    judged = ("--vectors", "v", "--results", "r", "--traits", "t", "--judge", "local:m")
    chosen, window, edges = defaults(intervene, *judged), WindowPlan(), EdgePlan()
    assert (chosen.push, chosen.max_new_tokens, chosen.temperature) == (
        window.strength, window.sampling.max_new_tokens, window.sampling.temperature
    )  # fmt: skip
    assert (chosen.edge_seeds, chosen.edge_temperature) == (edges.seeds, edges.sampling.temperature)

    chosen, sampling = defaults(monitor, "--vectors", "v", "--out", "o"), Sampling()
    for name in ("temperature", "top_p", "top_k", "repetition_penalty"):
        assert getattr(chosen, name) == getattr(sampling, name), name


# ---- judges ----


@pytest.mark.parametrize("text", ["demo", "openai", "local:", "python:", "python:module", "python::name"])
def test_a_judge_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="expected openai:MODEL, local:MODEL or python:MODULE:NAME"):
        judge_kind(text)


def judge_named(text: str) -> object:
    return make_judge(argparse.Namespace(judge=text), Path())


def test_a_judge_may_be_any_class_or_function_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(judge_named(DEMO_JUDGE), TruthJudge)
    (tmp_path / "my_judges.py").write_text("class Mine:\n    name = 'mine'\n    def score(self, questions): ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert type(judge_named("python:my_judges:Mine")).__name__ == "Mine"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("python:no_such_module:Judge", "No module named 'no_such_module'"),
        ("python:demo_world.judge:Nobody", "Nobody"),
        ("python:demo_world.judge:TruthJudge", "without arguments"),
        ("python:argparse:ArgumentParser", "has no `name` or no method `score`"),
    ],
)
def test_a_judge_of_ones_own_that_does_not_work_is_a_sentence(text: str, says: str) -> None:
    with pytest.raises(SettingError, match=says):
        judge_named(text)
