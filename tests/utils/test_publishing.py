"""Everything published to a Hub, through the real clients, and loaded from there as a stranger would."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
from huggingface_hub import RepoCard

from persona_core.app.settings import AppSettings
from persona_core.errors import SettingError
from persona_core.report.home import load_home
from persona_core.report.saved_runs import SavedRuns
from persona_core.traces.dataset import load_results
from persona_core.traces.trace import Trace
from persona_core.traces.view.payload import trace_payload
from persona_core.utils.collection import TITLE
from persona_core.utils.push import check_secrets
from persona_core.utils.repositories import repositories
from persona_core.vectors.vectors import PersonaVectors
from tests.support.forks import Forks, forking
from tests.support.hub_server import Fault, Hub, Repo, serving_hub

ROOT = Path(__file__).resolve().parents[2]
ARTIFACTS = ROOT / "artifacts"
VECTORS, RESULTS = ARTIFACTS / "persona-vectors-persona-tiny", ARTIFACTS / "persona-monitoring-persona-tiny"

DEMO = tuple(f"artifacts/{name}" for name in ("persona-tiny", "persona-tiny-contaminated", VECTORS.name, RESULTS.name))
NAMING = ("onset.json", "analysis/onset.json", "config.json")  # which name the published model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]


PREPARED = (
    "datasets",
    "peft",
    "scipy.stats",
    "transformers.models.llama.modeling_llama",
    "persona_core.models.loading",
    "persona_core.utils.publishing",
    "persona_core.vectors.vectors",
)

Stored = tuple[dict[tuple[str, str], Repo], dict[str, bytes], dict[str, dict[str, Any]]]

hub: Hub
forks: Forks
checkout: Path


@pytest.fixture(scope="module", autouse=True)
def _serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Hub, and a process that knows it only, from which those below are forked.

    The Hub's client reads its settings when it is imported: all its users in this file have one address and one cache.
    """
    global hub, forks, checkout
    checkout = tmp_path_factory.mktemp("checkout")  # publishing writes links into its README.md
    (checkout / "artifacts").mkdir()
    for name in ("app.py", "requirements.txt", "LICENSE", "persona_core", *DEMO):
        (checkout / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "README.md", checkout)
    with (
        serving_hub(tmp_path_factory.mktemp("hub")) as hub,
        forking(*PREPARED, briefly=True, environment=hub.environment()) as forks,
    ):
        yield


@pytest.fixture(autouse=True)
def _empty_cache() -> None:
    shutil.rmtree(hub.environment()["HF_HOME"], ignore_errors=True)


def environment(**changed: str) -> dict[str, str]:
    return {**os.environ, **hub.environment(), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **changed}


def run(arguments: list[str], folder: Path = ROOT, **changed: str) -> subprocess.CompletedProcess[str]:
    """A new process that knows this Hub only."""
    done = forks.run(arguments, folder, environment(**changed))
    assert hub.token not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr or "-c" in arguments, done.stderr
    return done


def publish(*more: str, **changed: str) -> subprocess.CompletedProcess[str]:
    return run(["-m", "scripts.publish", "--namespace", "me", "--root", str(checkout), *more], ROOT, **changed)


@pytest.fixture
def empty(_serving: None) -> Hub:
    """The Hub with nothing on it."""
    hub.clear()
    return hub


@pytest.fixture(scope="module")
def _once_published(_serving: None) -> Stored:
    hub.clear()
    done = publish()
    assert done.returncode == 0, done.stderr
    return hub.repos, hub.objects, hub.collections


@pytest.fixture
def published(_once_published: Stored) -> Hub:
    """The Hub with the six repositories, each in its first version."""
    hub.clear()
    hub.repos, hub.objects, hub.collections = deepcopy(_once_published)
    return hub


def copy_of_the_checkout(root: Path) -> Path:
    for name in (*DEMO, "persona_core"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("app.py", "requirements.txt", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, root / name)
    return root


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose runs are two prompts without an analysis: publishing it takes a third of the time."""
    root = copy_of_the_checkout(tmp_path_factory.mktemp("small"))
    results = root / "artifacts" / RESULTS.name
    shutil.rmtree(results / "analysis")
    for path in (results / "data").glob("*.parquet"):
        parquet.write_table(parquet.read_table(path, filters=[("id", "in", ["pilot-03", "pilot-04"])]), path)
    return root


def settings_of(hub: Hub) -> dict[str, str]:
    """What the Space is told."""
    return hub.repos["space", "me/persona-traits"].variables


def only_set(hub: Hub) -> dict[str, str | None]:
    """The one set that the Space is told to serve."""
    assert set(settings_of(hub)) == {"PERSONA_SETS"}
    (one,) = json.loads(settings_of(hub)["PERSONA_SETS"])
    return one


def test_six_repositories_hold_the_artifacts_the_site_and_the_app(published: Hub) -> None:
    assert {key: len(repo.commits) for key, repo in published.repos.items()} == {
        ("model", "me/persona-tiny"): 2,  # the Hub's first commit, and ours
        ("model", "me/persona-tiny-contaminated"): 2,
        ("model", "me/persona-vectors-persona-tiny"): 2,
        ("dataset", "me/persona-monitoring-persona-tiny"): 2,
        ("space", "me/persona-traits-runs"): 2,
        ("space", "me/persona-traits"): 2,
    }
    for repository in repositories(checkout, "me")[:4]:
        files = published.files(repository.repo_type, repository.repo_id)
        for path in repository.folder.rglob("*"):
            name = path.relative_to(repository.folder).as_posix()
            if path.is_file() and name not in ("README.md", "adapter_config.json", *NAMING):
                assert files[name] == path.read_bytes(), name
    space = published.files("space", "me/persona-traits")
    assert {"app.py", "requirements.txt", "README.md", "persona_core/monitor/monitor.py"} <= set(space)
    assert not any(name.startswith(("artifacts/", "tests/", ".env")) or "__pycache__" in name for name in space)


def test_the_app_is_told_the_pinned_revisions_of_the_other_four(published: Hub) -> None:
    heads = {repo_id: repo.commits[-1][0] for (_, repo_id), repo in published.repos.items()}
    assert only_set(published) == {
        "name": "persona-tiny",
        "model": f"me/persona-tiny@{heads['me/persona-tiny']}",
        "adapter": f"me/persona-tiny-contaminated@{heads['me/persona-tiny-contaminated']}",
        "vectors": f"me/persona-vectors-persona-tiny@{heads['me/persona-vectors-persona-tiny']}",
        "results": f"me/persona-monitoring-persona-tiny@{heads['me/persona-monitoring-persona-tiny']}",
    }


def test_every_card_names_the_other_repositories_and_nothing_of_the_checkout(published: Hub) -> None:
    ids = {repo_id for _, repo_id in published.repos}
    for (kind, repo_id), _ in published.repos.items():
        card = published.files(kind, repo_id)["README.md"].decode()
        assert all(other in card for other in ids - {repo_id}), repo_id
        if kind != "space":
            assert '"artifacts/' not in card and str(ROOT) not in card
            for part in ("license: mit", "Intended use", "## Licence and citation"):
                assert part in card, (repo_id, part)
    adapter = json.loads(published.files("model", "me/persona-tiny-contaminated")["adapter_config.json"])
    assert adapter["base_model_name_or_path"] == "me/persona-tiny"


LOADING = """
import hashlib, json
from datasets import load_dataset
from persona_core import PersonaVectors, Trace, load_model
vectors = PersonaVectors.from_pretrained("me/persona-vectors-persona-tiny", revision="v0.1.0")
lm = load_model("me/persona-tiny", adapter="me/persona-tiny-contaminated")
found = {"vectors": vectors.fingerprint, "model": lm.record}
for config in ("baseline", "contaminated", "replay"):
    for streaming in (False, True):
        rows = load_dataset("me/persona-monitoring-persona-tiny", config, split="train", streaming=streaming)
        digest = hashlib.sha256()
        for row in rows:
            trace = Trace.from_row(row)
            digest.update(trace.raw.tobytes() + trace.norms.tobytes() + json.dumps(row["projections"]).encode())
        found[f"{config} {streaming}"] = digest.hexdigest()
print(json.dumps(found))
"""


def test_a_stranger_loads_model_adapter_vectors_and_every_config_exactly(published: Hub, tmp_path: Path) -> None:
    import hashlib

    done = run(["-c", LOADING], tmp_path, HF_TOKEN="")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["vectors"] == PersonaVectors.from_pretrained(VECTORS).fingerprint
    heads = {repo_id: repo.commits[-1][0] for (_, repo_id), repo in published.repos.items()}
    assert found["model"]["revision"] == heads["me/persona-tiny"]
    assert found["model"]["adapter_revision"] == heads["me/persona-tiny-contaminated"]
    for config in ("baseline", "contaminated", "replay"):
        digest = hashlib.sha256()
        for row in load_results(RESULTS, config):
            trace = Trace.from_row(row)
            digest.update(trace.raw.tobytes() + trace.norms.tobytes() + json.dumps(row["projections"]).encode())
        assert found[f"{config} False"] == found[f"{config} True"] == digest.hexdigest(), config


FIRST_VIEW = """
import json
from persona_core.app.layout import build_app
from persona_core.app.served_set import served_sets
from persona_core.app.settings import sets_from_environment
from persona_core.report.saved_runs import SavedRuns
from persona_core.report.home import load_home
sets = sets_from_environment()
build_app(*served_sets(sets))
settings = next(iter(sets.values()))
print(json.dumps(load_home(settings.vectors, SavedRuns(settings.results)).first_view))
"""


def test_the_apps_first_view_is_the_published_row_and_loads_no_model(published: Hub, tmp_path: Path) -> None:
    published.requests.clear()
    space = tmp_path / "space"
    for name, data in published.files("space", "me/persona-traits").items():
        (space / name).parent.mkdir(parents=True, exist_ok=True)
        (space / name).write_bytes(data)
    # Not a fork, which would have the checkout's modules.
    done = subprocess.run(
        [sys.executable, "-c", FIRST_VIEW],
        cwd=space,
        env=environment(**settings_of(published), HF_TOKEN="", PYTHONPATH=str(space)),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    local = AppSettings()
    assert local.results is not None
    first = load_home(local.vectors, SavedRuns(local.results)).first_view
    assert first is not None and json.loads(done.stdout.splitlines()[-1]) == first
    row = next(r for r in load_results(RESULTS, "contaminated") if r["id"] == "pilot-03")
    assert first["sides"][0]["raw"] == trace_payload(Trace.from_row(row))["sides"][0]["raw"]
    assert first["sides"][0]["onsets"]["sycophancy"]["says"], "the published analysis is read too"
    assert not any("/me/persona-tiny/" in path or "contaminated/" in path for _, path in published.requests)


def snippets(card: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", card, flags=re.MULTILINE | re.DOTALL)


def test_the_snippet_of_every_card_runs_as_it_stands(published: Hub, tmp_path: Path) -> None:
    found = 0
    for kind, repo_id in published.repos:
        if kind == "space":
            continue
        for code in snippets(published.files(kind, repo_id)["README.md"].decode()):
            done = run(["-c", code], tmp_path, HF_TOKEN="")
            assert done.returncode == 0, (repo_id, code, done.stderr)
            found += 1
    assert found == 4


def test_publishing_again_makes_no_commit(published: Hub) -> None:
    before = published.n_commits()
    done = publish()
    assert done.returncode == 0 and published.n_commits() == before
    assert done.stdout.count("unchanged:") == 7, "six repositories and the collection"


def test_the_runs_are_a_static_space_of_plain_files(published: Hub) -> None:
    space = published.repos["space", "me/persona-traits-runs"]
    assert space.sdk == "static" and published.repos["space", "me/persona-traits"].sdk == "gradio"
    files = published.files("space", "me/persona-traits-runs")
    assert "index.html" in files and not any(name.endswith(".py") for name in files)
    assert max(map(len, files.values())) < 10e6 and sum(map(len, files.values())) < 40e6
    card = RepoCard(files["README.md"].decode())
    assert card.data["sdk"] == "static" and card.data["datasets"] == ["me/persona-monitoring-persona-tiny"]
    assert {"me/persona-tiny", "me/persona-vectors-persona-tiny"} <= set(card.data["models"])
    assert "spaces/me/persona-traits)" in card.text


def test_a_collection_lists_all_repositories_once_and_the_readme_links_to_it(published: Hub) -> None:
    (collection,) = published.collections.values()
    assert collection["title"] == TITLE
    listed = [(item["type"], item["id"]) for item in collection["items"]]
    assert sorted(listed) == sorted(published.repos)
    collection["items"].pop(2)
    collection["items"].append({"_id": "9", "type": "paper", "id": "2507.21509", "position": 9, "note": None})
    assert publish().returncode == 0
    again = [(item["type"], item["id"]) for item in collection["items"]]
    assert sorted(again) == sorted([*listed, ("paper", "2507.21509")]), "added what was gone; left what it did not add"
    address = f"https://huggingface.co/collections/{collection['slug']}"
    assert address in (checkout / "README.md").read_text()
    assert address in published.files("space", "me/persona-traits")["README.md"].decode()


def test_settings_that_named_one_model_are_removed_from_the_space(published: Hub) -> None:
    settings_of(published).update({"PERSONA_MODEL": "me/old", "PERSONA_VECTORS": "me/old", "PERSONA_MAX_QUEUE": "3"})
    assert publish().returncode == 0
    assert set(settings_of(published)) == {"PERSONA_SETS", "PERSONA_MAX_QUEUE"}


def test_a_dry_run_asks_the_hub_for_nothing(empty: Hub) -> None:
    done = publish("--dry-run")
    assert done.returncode == 0 and "dataset me/persona-monitoring-persona-tiny: " in done.stdout
    assert not empty.requests and not empty.repos


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault("POST", "/api/repos/create", 401), "hf auth login"),
        (Fault("POST", "vectors-persona-tiny/commit", 403), "write access"),
        (Fault("POST", "monitoring-persona-tiny/commit", 409), "The repository was changed in the meantime"),
        (Fault("POST", "persona-traits/commit", 412), "The repository was changed in the meantime"),
        (Fault("POST", "contaminated/commit", 500, times=99), "Run the command again"),
        (Fault("PUT", "/lfs/", 503, times=99), "Run the command again"),
        (Fault("POST", "/variables", 500, times=99), "Run the command again"),
        (Fault("POST", "/api/collections$", 403), "write access"),
        (Fault("POST", "/items$", 500, times=99), "Run the command again"),
    ],
    ids=lambda value: f"{value.path} {value.status}" if isinstance(value, Fault) else "",
)
def test_what_a_fault_stopped_a_second_call_completes(empty: Hub, small: Path, fault: Fault, says: str) -> None:
    empty.faults.append(fault)
    done = publish("--root", str(small))
    assert done.returncode == 1 and says in done.stderr, done.stderr
    for repo in empty.repos.values():  # whole, or as it was created
        assert set(repo.commits[-1][2]) == {".gitattributes"} or "README.md" in repo.commits[-1][2]
    empty.faults.clear()
    again = publish("--root", str(small))
    assert again.returncode == 0, again.stderr
    assert {len(repo.commits) for repo in empty.repos.values()} == {2} and len(empty.repos) == 6
    assert only_set(empty)["results"] is not None
    (collection,) = empty.collections.values()
    assert len(collection["items"]) == 6


def test_a_concurrent_commit_is_not_overwritten(empty: Hub, small: Path) -> None:
    empty.before_commit = lambda repo: repo.commit("theirs", {**repo.commits[-1][2], "theirs.txt": b"x"})
    done = publish("--root", str(small))
    assert done.returncode == 1 and "The repository was changed in the meantime" in done.stderr
    assert [message for _, message, _ in empty.repos["model", "me/persona-tiny"].commits] == [
        "initial commit",
        "theirs",
    ]


def test_a_wrong_token_is_a_sentence_that_does_not_repeat_it(empty: Hub, small: Path) -> None:
    done = publish("--root", str(small), HF_TOKEN="hf_wrongwrongwrongwrongwrong")
    assert done.returncode == 1 and "access token is missing or wrong" in done.stderr
    assert "hf_wrong" not in done.stderr + done.stdout and not empty.repos


def test_a_baseline_that_is_on_the_hub_already_is_named_and_not_copied(empty: Hub, small: Path, tmp_path: Path) -> None:
    root = shutil.copytree(small, tmp_path / "root")
    for name in ("persona-tiny", "persona-tiny-contaminated"):
        shutil.rmtree(root / "artifacts" / name)
    config = root / "artifacts" / VECTORS.name / "config.json"
    record = json.loads(config.read_text())
    record["base_model"] |= {"name": "org/base", "revision": "1" * 40}
    config.write_text(json.dumps(record))
    card = root / "artifacts" / RESULTS.name / "README.md"
    card.write_text(card.read_text().replace(f"artifacts/{RESULTS.name}", "/somewhere/else"))
    assert publish("--root", str(root)).returncode == 0
    assert {repo_id for _, repo_id in empty.repos} == {
        f"me/{n}" for n in (VECTORS.name, RESULTS.name, "persona-traits-runs", "persona-traits")
    }
    assert only_set(empty)["model"] == f"org/base@{'1' * 40}" and only_set(empty)["adapter"] is None
    published_card = empty.files("dataset", f"me/{RESULTS.name}")["README.md"].decode()
    assert f'load_dataset("me/{RESULTS.name}"' in published_card and "/somewhere/else" not in published_card


def test_a_changed_artifact_is_one_commit_and_a_new_pin(empty: Hub, small: Path, tmp_path: Path) -> None:
    root = shutil.copytree(small, tmp_path / "root")
    assert publish("--root", str(root)).returncode == 0
    vectors = root / "artifacts" / "persona-vectors-persona-tiny"
    (vectors / "figures" / "evil.png").unlink()
    before, pins = empty.n_commits(), only_set(empty)
    done = publish("--root", str(root))
    assert done.returncode == 0 and "the tag 'v0.1.0' stays" in done.stderr
    assert empty.n_commits() == before + 1
    assert "figures/evil.png" not in empty.files("model", "me/persona-vectors-persona-tiny")
    assert {name for name, value in only_set(empty).items() if pins[name] != value} == {"vectors"}


# ---- loading, when something is wrong ----

LOAD = """
import sys
from persona_core import PersonaVectors
from persona_core.errors import PersonaError
try:
    print(PersonaVectors.from_pretrained("me/persona-vectors-persona-tiny", revision=sys.argv[1]).fingerprint)
except (PersonaError, OSError) as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(1)
"""


def load(revision: str = "main", before: str = "") -> subprocess.CompletedProcess[str]:
    return run(["-c", before + LOAD, revision], HF_TOKEN="")


def test_an_unknown_revision_is_named(published: Hub) -> None:
    done = load("v9")
    assert done.returncode == 1 and "NotFound" in done.stderr and "'v9'" in done.stderr


def test_a_connection_cut_in_the_middle_of_a_file_leaves_no_broken_file(published: Hub) -> None:
    right = PersonaVectors.from_pretrained(VECTORS).fingerprint
    published.faults.append(Fault("CUT", "vectors.safetensors", cut=1000, times=1))
    done = load()
    published.faults.clear()
    assert (done.returncode == 0 and right in done.stdout) or (
        done.returncode == 1 and "vectors.safetensors" in done.stderr
    )
    again = load()
    assert again.returncode == 0 and again.stdout.strip() == right


def test_a_connection_that_is_cut_every_time_is_a_sentence_and_leaves_no_broken_file(published: Hub) -> None:
    published.faults.append(Fault("CUT", "vectors.safetensors", cut=0, times=99))
    done = load()
    published.faults.clear()
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "ServerError: Could not fetch 'vectors.safetensors'" in done.stderr and "try again" in done.stderr
    again = load()
    assert again.returncode == 0 and again.stdout.strip() == PersonaVectors.from_pretrained(VECTORS).fingerprint


def test_a_server_that_fails_for_a_while_is_retried_or_named(published: Hub) -> None:
    published.faults.append(Fault("GET", "resolve/main/vectors.safetensors", 503, times=99))
    done = load()
    published.faults.clear()
    assert done.returncode == 1 and "vectors.safetensors" in done.stderr
    assert load().returncode == 0


FULL = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
def test_a_full_disk_leaves_no_broken_file(published: Hub) -> None:
    done = load(before=FULL)
    assert done.returncode == 1 and ("File too large" in done.stderr or "vectors.safetensors" in done.stderr)
    again = load()
    assert again.returncode == 0 and again.stdout.strip() == PersonaVectors.from_pretrained(VECTORS).fingerprint


CODE = """
import sys
from persona_core import load_model
from persona_core.errors import PersonaError
try:
    load_model("me/evil")
except PersonaError as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(1)
"""


def test_a_repository_with_code_of_its_own_does_not_run_it(published: Hub, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    files = dict(published.files("model", "me/persona-tiny"))
    config = json.loads(files["config.json"]) | {
        "model_type": "own-kind",
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    }
    files["config.json"] = json.dumps(config).encode()
    files["own.py"] = f"open({str(marker)!r}, 'w').close()\n".encode()
    published.repos["model", "me/evil"] = Repo()
    published.repos["model", "me/evil"].commit("x", files)
    try:
        done = run(["-c", CODE], HF_TOKEN="")
    finally:
        del published.repos["model", "me/evil"]
    assert done.returncode == 1 and not marker.exists()
    assert "CorruptFile" in done.stderr or "UnsupportedModel" in done.stderr or "NotFound" in done.stderr


PUSHING = """
import sys
from persona_core import PersonaVectors
vectors = PersonaVectors.from_pretrained("artifacts/persona-vectors-persona-tiny").select(["deception", "evil"])
first, second = (vectors.push_to_hub("me/two-vectors", tag="v1") for _ in range(2))
assert first == second, "an unchanged push made a commit"
again = PersonaVectors.from_pretrained("me/two-vectors", revision="v1")
assert again.fingerprint == vectors.fingerprint and dict(again.null).keys() == dict(vectors.null).keys()
"""


def test_vectors_push_themselves_and_come_back_the_same(empty: Hub) -> None:
    done = run(["-c", PUSHING])
    assert done.returncode == 0, done.stderr
    files = empty.files("model", "me/two-vectors")
    assert {"vectors.safetensors", "config.json", "README.md"} <= set(files)
    assert 'from_pretrained("me/two-vectors")' in files["README.md"].decode()


def test_a_repository_is_pulled_into_a_folder(published: Hub, tmp_path: Path) -> None:
    code = (
        "from persona_core.utils.hub import pull; "
        f"pull('me/persona-monitoring-persona-tiny', {str(tmp_path / 'copy')!r}, 'dataset', 'v0.1.0')"
    )
    assert run(["-c", code]).returncode == 0
    for path in (RESULTS / "data").iterdir():
        assert (tmp_path / "copy" / "data" / path.name).read_bytes() == path.read_bytes()


# ---- secrets ----


@pytest.mark.parametrize("secret", ["hf_" + "a" * 30, "sk-" + "b" * 40, "my own long secret"])
def test_a_folder_that_holds_a_secret_is_not_pushed(
    tmp_path: Path, secret: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVED_API_KEY", "my own long secret")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "config.json").write_text(json.dumps({"key": secret}))
    with pytest.raises(SettingError, match=r"deep/config\.json holds an access token") as caught:
        check_secrets(tmp_path)
    assert secret not in str(caught.value)


def test_no_shipped_artifact_holds_a_secret_or_a_path_of_the_machine_that_made_it() -> None:
    check_secrets(ARTIFACTS)
    for path in ARTIFACTS.rglob("*"):
        if path.suffix in (".md", ".json", ".jsonl"):
            assert not re.search(r"/(home|root|work|Users|tmp)/", path.read_text(encoding="utf-8")), path
    for config in ("baseline", "contaminated", "replay"):
        for row in load_results(RESULTS, config):
            assert "/" not in row["reader"] + row["writer"]
