"""What a clumsy or hostile user brings: a clear error of the family, and nothing lost or silently wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from persona_core import PersonaMonitor, Steer, load_model
from persona_core.errors import CorruptFile, NotFound, NumericalError, PersonaError, PromptError, SettingError
from persona_core.models.loading import wrap_model
from persona_core.monitor.transcripts import Transcript
from persona_core.traces.trace import Trace
from persona_core.vectors.calibration import calibrate
from tests.support.chat_templates import tokenizer_for
from tests.support.families import build
from tests.support.tiny import Maker, hooks_on, random_vectors

ARTIFACT = Path(__file__).resolve().parents[2] / "artifacts" / "persona-tiny"


def broken_monitor() -> Any:
    """A model whose final norm holds a NaN, as after an overflow in float16."""
    model = build("llama", 0)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    lm = wrap_model(model, tokenizer_for("llama3"))
    return PersonaMonitor(lm, random_vectors(len(lm.blocks)), blocks="all")


@pytest.mark.parametrize("temperature", [0, 0.7])
@pytest.mark.parametrize("prompts", [["Hi"], ["Hi", "A longer prompt"]])
def test_scores_that_are_not_finite_are_an_error_that_names_the_remedy(temperature: float, prompts: list[str]) -> None:
    monitor = broken_monitor()
    with pytest.raises(NumericalError, match=r"token 0 of prompt 0.*NaN"):
        monitor.generate_batch(prompts, temperature=temperature, max_new_tokens=3)
    assert hooks_on(monitor.lm.model) == 0


def test_a_text_whose_states_are_not_finite_is_named() -> None:
    model = build("llama", 0)
    with torch.no_grad():
        model.model.embed_tokens.weight[65] = float("nan")
    lm = wrap_model(model, tokenizer_for("llama3"))
    monitor = PersonaMonitor(lm, random_vectors(len(lm.blocks)), blocks="all")
    texts = [Transcript((5, 6, i), ("", "", ""), ("user", "user", "assistant"), 2) for i in (7, 65)]
    assert monitor.read_batch(texts[:1])
    with pytest.raises(NumericalError, match=r"Text 1: its states are not finite from block 0 on"):
        monitor.read_batch(texts)


def test_a_model_in_training_mode_is_refused(make_monitor: Maker) -> None:
    """Dropout would make every number another at each reading, without a word."""
    monitor = make_monitor("llama")
    trace = monitor.generate("Hi", max_new_tokens=2)
    monitor.lm.model.train()
    try:
        for work in (lambda: monitor.generate("Hi"), lambda: monitor.read(trace)):
            with pytest.raises(SettingError, match=r"training mode.*model\.eval"):
                work()
    finally:
        monitor.lm.model.eval()


@pytest.mark.parametrize(("ids", "says"), [((), "no token"), ((5, 10**6), r"Token 1000000 has no embedding.*resize")])
def test_ids_that_the_model_cannot_be_given_are_named(make_monitor: Maker, ids: tuple[int, ...], says: str) -> None:
    text = Transcript(ids, ("",) * len(ids), ("user",) * len(ids), 0)
    with pytest.raises(PromptError, match=says):
        make_monitor("llama").read_batch([text])


def test_a_tokenizer_larger_than_the_model_is_named() -> None:
    tokenizer = tokenizer_for("llama3")
    tokenizer.add_tokens(["<new>"])
    lm = wrap_model(build("llama", 0), tokenizer)
    monitor = PersonaMonitor(lm, random_vectors(len(lm.blocks)))
    if len(tokenizer) <= lm.vocabulary_size:
        tokenizer.add_tokens([f"<new{i}>" for i in range(lm.vocabulary_size)])
    new = f"<new{lm.vocabulary_size - 1}>"
    with pytest.raises(PromptError, match="resize_token_embeddings"):
        monitor.generate(f"Hi {new}", max_new_tokens=2)


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(ARTIFACT, folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    name = next(n for n in index["weight_map"] if "layers.3.mlp" in n)
    shard = folder / index["weight_map"].pop(name)
    tensors = load_file(shard)
    del tensors[name]
    save_file(tensors, shard, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CorruptFile, match=r"lacks 1 weights.*layers\.3\.mlp"):
        load_model(folder)


class Harmful:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (open, (str(self.mark), "w"))


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_a_pickle_in_place_of_weights_is_never_opened(tmp_path: Path, kind: str) -> None:
    import pickle

    source = ARTIFACT if kind == "model" else ARTIFACT.parent / "persona-tiny-contaminated"
    folder, mark = tmp_path / kind, tmp_path / "opened"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
    name = "pytorch_model.bin" if kind == "model" else "adapter_model.bin"
    (folder / name).write_bytes(pickle.dumps(Harmful(mark)))
    with pytest.raises(NotFound, match="safetensors"):
        load_model(folder) if kind == "model" else load_model(ARTIFACT, adapter=folder)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "~/no/such/folder", "a/b/c", ""])
def test_a_folder_that_is_not_there_never_becomes_a_request(name: str) -> None:
    with pytest.raises(NotFound, match="No such folder"):
        load_model(name)


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(SettingError, match=r"cuda:7|no-device"):
        load_model(ARTIFACT, device="no-device" if torch.cuda.is_available() else "cuda:7")


def test_a_lone_surrogate_is_named(make_monitor: Maker) -> None:
    monitor = make_monitor("llama")
    with pytest.raises(PromptError, match="surrogate"):
        monitor.generate("hi \ud800")
    with pytest.raises(PromptError, match=r"Prompt 1: .*surrogate"):
        monitor.read_batch(["hi", [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\udfff"}]])


def test_a_single_text_is_not_a_batch_of_letters(make_monitor: Maker) -> None:
    monitor = make_monitor("llama")
    for batch in (monitor.generate_batch, monitor.read_batch):
        with pytest.raises(PromptError, match="list of prompts"):
            batch("Hello")
    assert len(monitor.generate_batch((p for p in ("a", "b")), max_new_tokens=1)) == 2


def test_memory_is_reserved_for_what_fits_not_for_what_was_requested(make_monitor: Maker) -> None:
    trace = make_monitor("llama").generate("Hi", max_new_tokens=10**12, seed=0)
    assert trace.finish in ("context", "eos")


def test_settings_may_be_numpy_numbers(make_monitor: Maker) -> None:
    monitor = make_monitor("llama")
    settings: Any = {"temperature": np.float32(0.5), "max_new_tokens": np.int64(3), "seed": np.int64(1)}
    assert monitor.generate("Hi", **settings).n_reply <= 3


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 1e-42}, {"repetition_penalty": 1e-300}, {"steer": "candour"}, {"steer": [3]}],
    ids=str,
)
def test_settings_that_leave_float32_or_make_no_sense_are_refused(make_monitor: Maker, settings: Any) -> None:
    with pytest.raises(SettingError):
        make_monitor("llama").generate("Hi", max_new_tokens=2, **settings)


def test_a_strength_beyond_float32_is_refused() -> None:
    with pytest.raises(SettingError, match="strength"):
        Steer("candour", 0, 1e300)


def test_a_null_of_steered_or_broken_replies_is_refused(make_monitor: Maker) -> None:
    monitor = make_monitor("llama")
    plain = monitor.generate_batch(["a", "b"], max_new_tokens=6, seed=0)
    assert calibrate(monitor.vectors, plain).null
    steered = monitor.generate("a", max_new_tokens=6, seed=0, steer=Steer("candour", 0, 3.0))
    with pytest.raises(SettingError, match="steered"):
        calibrate(monitor.vectors, [*plain, steered])
    raw = plain[0].raw.copy()
    raw[0, 0, -2] = np.nan
    with pytest.raises(SettingError, match="NaN"):
        calibrate(monitor.vectors, [plain[0].replace(raw=raw), plain[1]])
    still = [t.replace(raw=np.ones_like(t.raw)) for t in plain]
    with pytest.raises(SettingError, match="same at all"):
        calibrate(monitor.vectors, still)


def test_an_adapted_model_is_never_taken_for_its_base(make_monitor: Maker) -> None:
    trace = make_monitor("llama-lora").generate("Hi", max_new_tokens=2, seed=0)
    assert trace.provenance.reader_adapter and trace.provenance.writer != trace.provenance.reader


def test_a_trace_that_is_read_again_keeps_how_it_was_written(make_monitor: Maker) -> None:
    monitor = make_monitor("llama")
    written = monitor.generate("Hi", max_new_tokens=4, seed=7, steer=Steer("candour", 0, 1.0))
    again = Trace.from_dict(monitor.read(monitor.read(written)).to_dict())
    assert again.provenance.written and again.provenance.written["seed"] == 7
    assert again.provenance.written["steering"][0]["trait"] == "candour" and not again.provenance.steering
    assert again.provenance.seed is None and again.finish == "read"


def test_every_error_belongs_to_one_family() -> None:
    from persona_core import errors

    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, Exception)]
    assert all(issubclass(k, (PersonaError, UserWarning)) for k in kinds) and len(kinds) > 8
