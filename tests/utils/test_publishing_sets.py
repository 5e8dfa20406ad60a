"""Two sets of artifacts published at once, of which one was made on a GGUF file: its weights are published as well."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import RepoCard
from safetensors.torch import load as load_tensors

from persona_core.models.loading import load_model
from persona_core.traces.dataset import load_results
from persona_core.traces.trace import Trace
from persona_core.utils.files import read_json
from tests.support.forks import Forks, forking
from tests.support.gguf_files import write_gguf
from tests.support.hub_server import Hub, serving_hub

ROOT = Path(__file__).resolve().parents[2]
DEMO, NAME, FILE = "persona-tiny", "small", "small.Q8_0.gguf"
PREPARED = (
    "datasets", "gguf", "peft", "scipy.stats", "transformers.models.llama.modeling_llama",
    "persona_core.experiments.published_model", "persona_core.utils.publishing",
)  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

hub: Hub
forks: Forks
checkout: Path
weights: dict[str, torch.Tensor]
record: dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def _published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Both sets on a Hub, published once."""
    global hub, forks, checkout, weights, record
    folder = tmp_path_factory.mktemp("sets")
    checkout = folder / "checkout"
    assets = {"HF_ASSETS_CACHE": str(folder / "assets")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", assets["HF_ASSETS_CACHE"])
        demo = load_model(ROOT / "artifacts" / DEMO, device="cpu")
        read = load_model(write_gguf(folder / FILE, demo.model, demo.tokenizer, quantized=True), device="cpu")
    weights, record = {k: v.clone() for k, v in read.model.state_dict().items()}, read.record
    _write_checkout(record)
    with (
        serving_hub(folder / "hub") as hub,
        forking(*PREPARED, briefly=True, environment={**hub.environment(), **assets}) as forks,
    ):
        done = publish()
        assert done.returncode == 0, done.stderr
        yield


def _write_checkout(base: dict[str, Any]) -> None:
    """The demo's set, and a copy of it that names the GGUF file as its model and has no folder for it."""
    artifacts = checkout / "artifacts"
    for name in (DEMO, f"{DEMO}-contaminated", f"persona-vectors-{DEMO}", f"persona-monitoring-{DEMO}"):
        (artifacts / name).parent.mkdir(parents=True, exist_ok=True)
        (artifacts / name).symlink_to(ROOT / "artifacts" / name)
        if name != DEMO:
            shutil.copytree(ROOT / "artifacts" / name, artifacts / name.replace(DEMO, NAME))
    for name in ("app.py", "requirements.txt", "LICENSE", "persona_core"):
        (checkout / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "README.md", checkout)
    edit(artifacts / f"persona-vectors-{NAME}" / "config.json", base_model=base)
    config = {"base_model_name_or_path": FILE, "revision": base["revision"]}
    edit(artifacts / f"{NAME}-contaminated" / "adapter_config.json", **config)
    for name in (f"persona-vectors-{NAME}", f"{NAME}-contaminated"):
        card = RepoCard.load(artifacts / name / "README.md")
        card.data["base_model"] = FILE
        card.save(artifacts / name / "README.md")


def edit(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}, indent=2))


def run(arguments: list[str], folder: Path = ROOT, **changed: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **hub.environment(), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **changed}
    return forks.run(arguments, folder, environment)


def publish(*more: str, root: Path | None = None, **changed: str) -> subprocess.CompletedProcess[str]:
    arguments = ["--namespace", "me", "--root", str(root or checkout), "--source", "https://github.com/me/it", *more]
    return run(["-m", "scripts.publish", *arguments], ROOT, **changed)


def card(kind: str, name: str) -> RepoCard:
    return RepoCard(hub.files(kind, f"me/{name}")["README.md"].decode())


def test_all_repositories_of_both_sets_are_there_and_in_the_collection() -> None:
    own = [(kind, f"me/{form.format(name)}") for name in (DEMO, NAME) for kind, form in (
        ("model", "{}"), ("model", "{}-contaminated"), ("model", "persona-vectors-{}"),
        ("dataset", "persona-monitoring-{}"),
    )]  # fmt: skip
    assert set(hub.repos) == {*own, ("space", "me/persona-traits-runs"), ("space", "me/persona-traits")}
    (collection,) = hub.collections.values()
    assert {(item["type"], item["id"]) for item in collection["items"]} == set(hub.repos)


def test_the_space_serves_the_real_set_first_each_at_the_revisions_just_pushed() -> None:
    heads = {repo_id: repo.commits[-1][0] for (_, repo_id), repo in hub.repos.items()}
    variables = hub.repos["space", "me/persona-traits"].variables
    served = json.loads(variables["PERSONA_SETS"])
    assert [one["name"] for one in served] == [NAME, DEMO] and set(variables) == {"PERSONA_SETS"}
    for one in served:
        pins = [one[key] for key in ("model", "adapter", "vectors", "results")]
        assert all(heads[repo_id] == revision for repo_id, revision in (pin.split("@") for pin in pins))
        assert all(one["name"] in pin for pin in pins)


def test_the_published_weights_are_those_of_the_file_rounded_to_bfloat16() -> None:
    files = hub.files("model", f"me/{NAME}")
    found = load_tensors(files["model.safetensors"])
    tied = {name for name in weights if name not in found}
    assert tied <= {"lm_head.weight"} and len(found) > 50
    for name, weight in found.items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, weights[name].bfloat16()), name
    assert any(not torch.equal(weight.float(), weights[name]) for name, weight in found.items()), "some were rounded"
    config = json.loads(files["config.json"])
    assert config["dtype"] == "float32" and config["converted_from"]["sha256"] == record["gguf"]["sha256"]
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"} <= set(files)
    assert str(checkout.parent) not in "".join(files[n].decode() for n in files if n.endswith((".json", ".md")))


LOADING = """
import json, sys, warnings
import numpy as np
from datasets import load_dataset
from persona_core import PersonaMonitor, PersonaVectors, Trace, load_model
from persona_core.analysis.detectors import Detectors
name, adapter = sys.argv[1], sys.argv[2] or None
warnings.simplefilter("error")
lm = load_model(f"me/{name}", adapter=adapter, device="cpu")
vectors = PersonaVectors.from_pretrained(f"me/persona-vectors-{name}")
monitor = PersonaMonitor(lm, vectors)
rows = load_dataset(f"me/persona-monitoring-{name}", "contaminated" if adapter else "baseline", split="train")
stored = [Trace.from_row(row) for row in rows.select(range(6))]
again = monitor.read_batch(stored)
largest = max(
    np.nanmax(np.abs(a.scores(t, "z") - b.scores(t, "z"))[a.reply_positions])
    for a, b in zip(stored, again) for t in a.traits
)
own = monitor.generate(rows[0]["messages"], max_new_tokens=8, seed=0, temperature=0.7)
caveats = Detectors.from_pretrained(f"me/persona-vectors-{name}").caveats(own)
print(json.dumps({"dz": float(largest), "dtype": str(lm.dtype), "record": lm.record, "names": lm.writer_names,
                  "base": vectors.config["base_model"], "caveats": caveats}))
"""


def loaded(name: str, adapter: str, folder: Path) -> dict[str, Any]:
    done = run(["-c", LOADING, name, adapter], folder, HF_TOKEN="", HF_HOME=str(folder / "home"))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_model_vectors_and_runs_of_the_real_set_fit_each_other_without_a_warning(tmp_path: Path) -> None:
    found = loaded(NAME, "", tmp_path)
    assert found["dtype"] == "torch.float32" and 0 < found["dz"] < 0.5
    assert found["base"]["gguf"] == record["gguf"] and found["base"]["published"] == f"me/{NAME}"
    assert found["record"]["converted_from"] == record["gguf"]
    assert found["names"] == [f"me/{NAME}", FILE]
    assert not any("another model" in c or "differs from that" in c or "written by" in c for c in found["caveats"])


def test_the_adapter_of_the_real_set_fits_the_published_weights(tmp_path: Path) -> None:
    found = loaded(NAME, f"me/{NAME}-contaminated", tmp_path)
    assert 0 < found["dz"] < 0.5
    assert found["names"] == [f"me/{NAME} + me/{NAME}-contaminated", f"{FILE} + me/{NAME}-contaminated"]
    assert any("differs from that" in caveat for caveat in found["caveats"]), "the contaminated model is another"


def test_the_demo_set_is_exact(tmp_path: Path) -> None:
    found = loaded(DEMO, "", tmp_path)
    assert found["dz"] < 1e-3 and found["base"]["published"] == f"me/{DEMO}"
    assert not any("differs from that" in caveat for caveat in found["caveats"])


def test_cards_name_a_base_model_that_the_hub_has() -> None:
    for name in (DEMO, NAME):
        adapter = card("model", f"{name}-contaminated")
        assert adapter.data["base_model"] == f"me/{name}" and adapter.data["base_model_relation"] == "adapter"
        assert f'load_model("me/{name}", adapter="me/{name}-contaminated")' in adapter.text
        config = json.loads(hub.files("model", f"me/{name}-contaminated")["adapter_config.json"])
        assert config["base_model_name_or_path"] == f"me/{name}" and config["revision"] is None
        assert card("model", f"persona-vectors-{name}").data["base_model"] == f"me/{name}"
        assert f"[me/{name}](https://huggingface.co/me/{name})" in card("dataset", f"persona-monitoring-{name}").text
    space = card("space", "persona-traits")
    assert len(space.data["models"]) == 6 and len(space.data["datasets"]) == 2
    assert f"- {NAME}, persona vectors: [me/persona-vectors-{NAME}]" in space.text


def test_the_site_shows_the_real_sets_runs() -> None:
    site = card("space", "persona-traits-runs")
    assert site.data["datasets"] == [f"me/persona-monitoring-{NAME}"]
    for name, there in ((NAME, True), (DEMO, False)):
        links = card("model", f"persona-vectors-{name}").text
        assert ("spaces/me/persona-traits-runs)" in links) == there


def test_a_card_names_what_is_of_its_own_set_the_app_the_collection_and_the_notebook() -> None:
    links = card("model", f"persona-vectors-{NAME}").text.partition("Published together:")[2].partition("<!--")[0]
    assert f"me/{NAME}-contaminated" in links and "spaces/me/persona-traits" in links and "/collections/me/" in links
    assert DEMO not in links


def test_the_models_card_says_what_was_measured_on_the_stored_runs() -> None:
    text = card("model", NAME).text
    known = read_json(checkout / "artifacts" / f"persona-monitoring-{NAME}" / "analysis" / "weights.json")
    exact = known["difference"]["float32"]
    assert exact["n_replies"] == 48, "24 of each side"
    figures = exact["scores"]["z"]
    assert f"| float32 | z | {figures['largest']:g} | {figures['p99']:g} | {figures['median']:g} |" in text
    assert 0 < figures["median"] < figures["p99"] < figures["largest"] < 1
    assert known["difference"]["bfloat16"]["scores"]["z"]["p99"] > figures["p99"], "bfloat16 arithmetic is coarser"
    alarms = exact["alarms"]
    assert alarms["n"] == 48 * 8 and 10 < alarms["raised"] < 100 and alarms["same"] <= alarms["agree"] <= alarms["n"]
    assert alarms["agree"] >= alarms["n"] - 2, "rounding seldom moves a score across the threshold"
    assert f"| {alarms['agree']} of {alarms['n']} ({alarms['raised']} with one) |" in text


def test_the_measured_differences_are_those_of_a_plain_reading() -> None:
    """The same figure by other means: each stored reply alone, read by the rounded weights."""
    from persona_core.monitor.monitor import PersonaMonitor
    from persona_core.vectors.vectors import PersonaVectors

    lm = load_model(ROOT / "artifacts" / DEMO, device="cpu")
    with torch.no_grad():
        for name, weight in lm.model.state_dict().items():
            weight.copy_(weights[name].bfloat16().float())
    monitor = PersonaMonitor(lm, PersonaVectors.from_pretrained(ROOT / "artifacts" / f"persona-vectors-{DEMO}"))
    rows = load_results(ROOT / "artifacts" / f"persona-monitoring-{DEMO}", "baseline")
    largest = 0.0
    for row in rows[::3][:24]:
        stored = Trace.from_row(row)
        again = monitor.read(stored)
        for trait in stored.traits:
            block = stored.blocks.index(stored.best_block[trait])
            kept = [t for t in stored.reply_positions if not (stored.sinks[block, t] or again.sinks[block, t])]
            raw = again.raw[stored.traits.index(trait), again.blocks.index(stored.best_block[trait])]
            mean, sd = monitor.vectors.null[trait].at(stored.best_block[trait])
            largest = max(largest, float(np.abs((raw - mean) / sd - stored.scores(trait, "z"))[kept].max()))
    known = read_json(checkout / "artifacts" / f"persona-monitoring-{NAME}" / "analysis" / "weights.json")
    assert largest <= known["difference"]["float32"]["scores"]["z"]["largest"] * 1.06
    assert largest > 1e-3


def test_publishing_again_makes_no_commit_and_reads_nothing_again() -> None:
    before = hub.n_commits()
    path = checkout / "artifacts" / f"persona-monitoring-{NAME}" / "analysis" / "weights.json"
    written = path.stat().st_mtime_ns
    done = publish()
    assert done.returncode == 0, done.stderr
    assert hub.n_commits() == before and done.stdout.count("unchanged:") == 11
    assert path.stat().st_mtime_ns == written


def test_weights_that_are_not_here_are_a_sentence_that_says_how_to_get_them(tmp_path: Path) -> None:
    before = hub.n_commits()
    assets = checkout.parent / "assets"
    assets.rename(tmp_path / "elsewhere")
    try:
        done = publish("--dry-run")
    finally:
        (tmp_path / "elsewhere").rename(assets)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert FILE in done.stderr and "make weights" in done.stderr and hub.n_commits() == before


def test_a_dry_run_writes_nothing_beside_the_runs(tmp_path: Path) -> None:
    root = shutil.copytree(checkout, tmp_path / "root", symlinks=True)
    (root / "artifacts" / f"persona-monitoring-{NAME}" / "analysis" / "weights.json").unlink(missing_ok=True)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    done = publish("--dry-run", root=root)
    assert done.returncode == 0 and f"model me/{NAME}: " in done.stdout, done.stderr
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_half_a_set_is_a_sentence(tmp_path: Path) -> None:
    shutil.copytree(checkout, tmp_path / "root", symlinks=True)
    shutil.rmtree(tmp_path / "root" / "artifacts" / f"persona-monitoring-{NAME}")
    done = publish("--dry-run", root=tmp_path / "root")
    assert done.returncode == 1 and f"persona-monitoring-{NAME}" in done.stderr and "no results" in done.stderr
    shutil.copytree(checkout / "artifacts" / f"{NAME}-contaminated", tmp_path / "root" / "artifacts" / f"{NAME}-other")
    done = publish("--dry-run", root=tmp_path / "root")
    assert done.returncode == 1 and f"{NAME}-other" in done.stderr and "belongs to no set" in done.stderr
