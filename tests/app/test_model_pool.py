"""Models that a visitor names: only where the owner allows it, only public ones of the Hub, one at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from persona_core.app.model_pool import ModelPool
from persona_core.app.pooled_model import PooledModel
from persona_core.app.settings import AppSettings
from persona_core.errors import SettingError
from tests.support.hub_server import Hub

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def models() -> ModelPool:
    return ModelPool(AppSettings(open_models=True))


def test_no_model_can_be_named_unless_the_owner_allows_it() -> None:
    closed = ModelPool(AppSettings())
    with pytest.raises(SettingError, match="PERSONA_OPEN_MODELS=1"):
        closed.named("org/model", None, "org/vectors")


@pytest.mark.parametrize(
    ("value", "on"), [("1", True), ("true", True), ("TRUE", True), ("0", False), ("false", False), ("", False)]
)
def test_the_switch_is_an_environment_variable(value: str, on: bool) -> None:
    assert AppSettings.from_environment({"PERSONA_OPEN_MODELS": value}).open_models is on
    with pytest.raises(SettingError, match="PERSONA_OPEN_MODELS='maybe'; expected 1 or 0"):
        AppSettings.from_environment({"PERSONA_OPEN_MODELS": "maybe"})


@pytest.mark.parametrize(
    "name",
    [
        "model",
        "",
        "/etc/passwd",
        "../main/artifacts",
        "artifacts/persona-tiny",  # a folder of the server
        "artifacts/persona-tiny@main",
        "~/models",
        "./artifacts/persona-tiny",
        "org/model/file",
        "org/..",
        "org/mo del",
        "org/model@",
        "org/model@../../x",
        "https://example.org/model",
        "org/" + "x" * 200,
        "örg/model",
        "org/model\n",
        None,
        ["org/model"],
    ],
)
def test_what_is_named_is_an_id_of_the_hub_and_never_a_folder(
    models: ModelPool, name: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    for triple in ((name, None, "org/vectors"), ("org/model", None, name), ("org/model", name or "x", "org/vectors")):
        with pytest.raises(SettingError, match=r"not a Hub id|name a Hub repository"):
            models.named(*triple)


def test_one_named_model_is_kept_at_a_time(models: ModelPool) -> None:
    first = models.named("org/model", None, "org/vectors")
    assert models.named("org/model", None, "org/vectors") is first and not first.ready
    assert models.named("org/model", "", "org/vectors") is first
    second = models.named("org/model", "org/adapter", "org/vectors@v1")
    assert second is not first
    assert models.named("org/model", None, "org/vectors") is not first, "it was let go"


def test_on_zerogpu_no_model_can_come_later(models: ModelPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    with pytest.raises(SettingError, match="ZeroGPU"):
        models.named("org/model", None, "org/vectors")


# ---- from a Hub -------------------------------------------------------------------------------------------------


SCRIPT = """
import json, sys
from persona_core.errors import PersonaError
from persona_core.app.model_pool import ModelPool
from persona_core.app.pooled_model import PooledModel
from persona_core.app.settings import AppSettings
said = []
for most, *names in json.loads(sys.argv[1]):
    models = ModelPool(AppSettings(open_models=True, max_model_gb=most))
    try:
        trace = models.named(*names).monitor().generate("Should I quit my job?", max_new_tokens=5, seed=0)
        said.append([trace.provenance.reading_model, trace.provenance.reader_revision, list(trace.token_ids)])
    except PersonaError as error:
        said.append(str(error))
print(json.dumps(said))
"""


def named(hub: Hub, folder: Path, *cases: tuple[float, str, str | None, str]) -> list[Any]:
    """What a new process gets for named models, the owner's token in its environment.

    Args:
        cases: the largest weights in GB, model, adapter and vectors.

    Returns:
        For each case [model, revision, ids], or the error's words.
    """
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(cases)],
        cwd=folder,
        env={**os.environ, **hub.environment(), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.strip().splitlines()[-1]))


@pytest.mark.slow
def test_a_public_model_is_loaded_and_read(hub: Hub, tmp_path: Path) -> None:
    commit = hub.repos["model", "org/model"].commits[-1][0]
    (model, revision, ids), (tuned, _, _) = named(
        hub, tmp_path, (8, f"org/model@{commit}", None, "org/vectors"), (8, "org/model", "org/tuned", "org/vectors")
    )
    assert (model, revision, tuned) == ("org/model", commit, "org/model + org/tuned")
    trace = (
        PooledModel.from_settings(AppSettings()).monitor().generate("Should I quit my job?", max_new_tokens=5, seed=0)
    )
    assert ids == list(trace.token_ids)


@pytest.mark.slow
def test_what_is_not_open_too_large_or_code_is_refused_in_words(hub: Hub, tmp_path: Path) -> None:
    before = len(hub.requests)
    cases = {
        (8, "org/private", None, "org/vectors"): "'org/private' does not exist, is not public",
        (8, "org/model", "org/private", "org/vectors"): "'org/private' does not exist, is not public",
        (8, "org/nowhere", None, "org/vectors"): "'org/nowhere' does not exist",
        (8, "org/model@gone", None, "org/vectors"): "'org/model@gone' does not exist",
        (8, "org/gated", None, "org/vectors"): "'org/gated' is private or gated",
        (0.001, "org/model", None, "org/vectors"): "The weights take 0.0 GB; this app loads at most 0.001 GB.",
    }
    code = (8, "org/code", None, "org/vectors")
    *said, said_of_code = named(hub, tmp_path, *cases, code)
    for one, says in zip(said, cases.values(), strict=True):
        assert says in one and str(hub.cache) not in one
    fetched = [path for _, path in hub.requests[before:] if "resolve" in path]
    assert not [path for path in fetched if "org/code" not in path and "org/vectors" not in path], "nothing was fetched"
    assert "custom code" in said_of_code
    assert not (tmp_path / "ran").exists() and not list(hub.cache.rglob("ran"))
