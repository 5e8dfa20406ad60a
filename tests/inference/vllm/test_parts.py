"""The parts of the vLLM engine that need no vLLM: choosing tokens, the hooks in a worker, and what is refused."""

from __future__ import annotations

import itertools
import json
import shutil
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from persona_core.errors import CorruptFile, NumericalError, SettingError, UnsupportedModel
from persona_core.inference.engine import Readout
from persona_core.inference.sampling import Sampling, draws
from persona_core.inference.steering import Intervention, Steer
from persona_core.inference.vllm.adapter import find_lora
from persona_core.inference.vllm.engine import VllmEngine
from persona_core.inference.vllm.replies import Text, Texts
from persona_core.inference.vllm.sampling import ARGUMENT, SeededSampler
from persona_core.inference.vllm.worker import ReadingWorker, request_id
from persona_core.models.checkpoint import tensor_shapes, weight_files
from persona_core.models.loading import load_model
from tests.inference.vllm.conftest import HAS_VLLM

VOCAB, WIDTH = 11, 6


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"engine": "vlm"}, "engine='vlm'; expected one of transformers, vllm"),
        ({"engine": "vllm", "quantization": "4bit"}, "engine='vllm' takes no quantization"),
        ({"engine": "vllm", "static_cache": True}, "takes no static_cache"),
        ({"engine": "vllm", "device": "cuda:1"}, "takes no device"),
        ({"engine": "vllm", "tensor_parallel": 0}, "tensor_parallel"),
        ({"tensor_parallel": 2}, "are for engine='vllm'"),
        ({"engine_options": {"seed": 1}}, "are for engine='vllm'"),
        pytest.param(
            {"engine": "vllm"}, "pip install", marks=pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed here.")
        ),
    ],
)
def test_what_an_engine_does_not_take_is_refused_by_name(arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(SettingError, match=why):
        load_model("artifacts/persona-tiny", **arguments)


def test_an_adapter_that_vllm_would_apply_in_part_is_refused(tmp_path: Path) -> None:
    source = Path("artifacts/persona-tiny-contaminated")
    names = {name for path in weight_files("artifacts/persona-tiny") for name in tensor_shapes(path)}
    assert find_lora(source, None, names).rank == 8
    with pytest.raises(CorruptFile, match=r"no place for its weight '.*layers\.5\.mlp\.up_proj"):
        find_lora(source, None, names - {"model.layers.5.mlp.up_proj.weight"})
    folder = shutil.copytree(source, tmp_path / "adapter")
    config = json.loads((source / "adapter_config.json").read_text())
    for name, value in {"use_dora": True, "alpha_pattern": {"q_proj": 2}, "bias": "all", "peft_type": "IA3"}.items():
        (folder / "adapter_config.json").write_text(json.dumps({**config, name: value}))
        with pytest.raises(SettingError, match=f"its {name} is"):
            find_lora(folder, None, names)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    weights = load_file(folder / "adapter_model.safetensors")
    weights.pop(next(name for name in weights if ".lora_B." in name))
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(CorruptFile, match="lacks a matrix of"):
        find_lora(folder, None, names)


def test_a_token_is_read_once_and_none_is_passed_over() -> None:
    def rows(first: int, n: int) -> tuple[int, np.ndarray, np.ndarray]:
        at = np.arange(first, first + n, dtype=np.float32)
        return first, np.tile(at[:, None, None], (1, 2, 3)), np.tile(at[:, None], (1, 2))

    text = Text(0, n_given=5)
    text.keep(*rows(0, 3))
    text.keep(*rows(0, 5))  # vLLM dropped its keys and values, and reads them again
    raw, norms = text.take(5)
    assert raw[:, 0, 0].tolist() == norms[:, 0].tolist() == [0, 1, 2, 3, 4]
    text.keep(*rows(5, 1))
    assert text.take(1)[0].shape == (1, 2, 3)
    with pytest.raises(UnsupportedModel, match="read token 8 of text 0 without token 6"):
        text.keep(*rows(8, 1))
    with pytest.raises(UnsupportedModel, match="read 0 tokens of text 0 where 1 were expected"):
        text.take(1)


def test_a_state_that_is_not_finite_is_named_by_its_block() -> None:
    texts = Texts(SimpleNamespace(why_not_finite="Why."), Readout({4: torch.ones(1, 1), 2: torch.ones(1, 1)}))  # type: ignore[arg-type]
    texts.active["a"] = Text(7, n_given=1)
    norms = np.array([[1.0, np.inf]], np.float32)
    with pytest.raises(NumericalError, match="Text 7: its states are not finite from block 4 on"):
        texts.keep([("a", 0, np.ones((1, 2, 1), np.float32), norms), ("gone", 0, norms, norms)])


def test_texts_come_back_in_the_order_in_which_they_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, given = VllmEngine.__new__(VllmEngine), list[tuple[str, int]]()
    engine._numbers = itertools.count()

    def read(_key: str) -> Any:  # the last one given ends first
        name, n = given.pop()
        values = np.full((n, 1, 1), n, np.float32)
        return [SimpleNamespace(request_id=name)], [(name, 0, values, values[..., 0])]

    monkeypatch.setattr(engine, "_run", lambda readout: nullcontext("run0"))
    monkeypatch.setattr(engine, "_params", lambda max_tokens: None)
    monkeypatch.setattr(engine, "_add", lambda key, name, ids, params: given.append((name, len(ids))))
    monkeypatch.setattr(engine, "_next", read)
    lm: Any = None
    found = engine.read(lm, [[1, 2, 3], [4], [5, 6]], [1, 1, 1], Readout({0: torch.ones(1, 1)}))
    assert [raw[0, 0].tolist() for raw, _ in found] == [[3, 3, 3], [1], [2, 2]]


def test_tokens_are_drawn_as_on_transformers() -> None:
    sampler = SeededSampler(None, torch.device("cpu"), False)
    settings = {"a": Sampling(temperature=0.7), "b": Sampling(temperature=1.0, top_k=3, repetition_penalty=1.3)}
    new: dict[str, list[int]] = {"a": [], "b": [], "other": []}
    prompts = {"a": [1, 2], "b": [3, 4, 5], "other": [1]}

    def added(row: int, name: str, n_kept: int) -> tuple[int, Any, list[int], list[int]]:
        if name == "other":  # not ours: vLLM chooses
            return row, SimpleNamespace(extra_args=None), prompts[name], new[name]
        wanted = {"sampling": settings[name].to_dict(), "seed": ord(name), "n_kept": n_kept, "limit": 20}
        return row, SimpleNamespace(extra_args={ARGUMENT: wanted}), prompts[name], new[name]

    def update(removed: Any = (), added: Any = (), moved: Any = ()) -> None:
        sampler.update_state(SimpleNamespace(removed=removed, added=added, moved=moved))

    def expected(name: str, logits: torch.Tensor, n_kept: int) -> int:
        """Plain: scores in the order of transformers' generate, then the first id whose cumulative share passes u."""
        sampling, scores = settings[name], logits.double().tolist()
        for i in {*prompts[name], *new[name]}:
            scores[i] = (
                scores[i] / sampling.repetition_penalty if scores[i] > 0 else scores[i] * sampling.repetition_penalty
            )
        scores = [s / sampling.temperature for s in scores]
        if sampling.top_k:
            least = sorted(scores)[-sampling.top_k]
            scores = [s if s >= least else -np.inf for s in scores]
        shares = np.exp(np.array(scores) - max(scores))
        u = float(draws(ord(name), 20)[n_kept + len(new[name])])
        return int(np.searchsorted(shares.cumsum() / shares.sum(), u, side="right"))

    update(added=[added(0, "a", 0), added(1, "other", 0), added(2, "b", 3)])
    rows = {"a": 0, "other": 1, "b": 2}
    generator = torch.Generator().manual_seed(0)
    for step in range(12):
        if step == 4:
            update(moved=[(0, 2, SimpleNamespace(name="SWAP"))])
            rows = {"a": 2, "other": 1, "b": 0}
        if step == 8:
            update(removed=[1], moved=[(2, 1, SimpleNamespace(name="UNIDIRECTIONAL"))])
            rows = {"a": 1, "b": 0}
        logits = 2 * torch.randn(3, VOCAB, generator=generator)
        chosen = sampler.apply(logits.clone())
        if "other" in rows:
            assert torch.equal(chosen[rows["other"]], logits[rows["other"]])
        for name, n_kept in (("a", 0), ("b", 3)):
            token_id = int(chosen[rows[name]].argmax())
            assert token_id == expected(name, logits[rows[name]], n_kept)
            new[name].append(token_id)


class _Block(nn.Module):
    """As vLLM's: returns what it adds, and what it adds it to."""

    def __init__(self, sums: bool) -> None:
        super().__init__()
        self.map, self._sums = nn.Linear(WIDTH, WIDTH), sums

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        stream = hidden + residual if self._sums else hidden
        added = self.map(stream)
        return (added, stream) if self._sums else (stream + added, stream)


class _Norm(nn.Module):
    def forward(self, hidden: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        stream = hidden if residual is None else hidden + residual
        return stream / stream.norm(dim=-1, keepdim=True)


class _Trunk(nn.Module):
    def __init__(self, sums: bool) -> None:
        super().__init__()
        self.embed, self.layers, self.norm = (
            nn.Embedding(VOCAB, WIDTH),
            nn.ModuleList(_Block(sums) for _ in range(3)),
            _Norm(),
        )
        self._sums = sums

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(ids)
        residual = torch.zeros_like(hidden)
        for layer in self.layers:
            hidden, residual = layer(hidden, residual)
        return self.norm(hidden, residual if self._sums else None)


class _Model(nn.Module):
    def __init__(self, sums: bool) -> None:
        super().__init__()
        self.model = _Trunk(sums)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model(ids)

    def states(self, ids: list[int], block: int, changes: dict[int, Any]) -> torch.Tensor:
        """Plain: the stream after a block, each block's output changed token by token."""
        stream = self.model.embed(torch.tensor(ids))
        for b in range(block + 1):
            stream = stream + self.model.layers[b].map(stream)  # type: ignore[operator]
            if b in changes:
                stream = torch.stack([changes[b](at, state) for at, state in enumerate(stream)])
        return stream


@dataclass
class _Worker(ReadingWorker):
    """A worker of vLLM with one request after the other in each forward."""

    sums: bool = True
    rank: int = 0
    queue: list[tuple[str, int, list[int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(1)
        self.model = _Model(self.sums)
        self.model_runner = SimpleNamespace(
            get_model=lambda: self.model,
            model_config=SimpleNamespace(get_hidden_size=lambda: WIDTH),
            device=torch.device("cpu"),
        )
        self.run([])

    @torch.inference_mode()
    def run(self, requests: list[tuple[str, int, list[int]]]) -> torch.Tensor:
        """A forward over (id, tokens read before, ids)."""
        ends = np.cumsum([0, *(len(ids) for _, _, ids in requests)])
        self.model_runner.query_start_loc = SimpleNamespace(np=ends)
        self.model_runner.input_batch = SimpleNamespace(
            num_reqs=len(requests),
            req_ids=[f"{name}0a1b" for name, _, _ in requests],
            num_computed_tokens_cpu=np.array([before for _, before, _ in requests]),
        )
        return self.model(torch.tensor([i for _, _, ids in requests for i in ids] or [0, 1, 2]))


@pytest.mark.parametrize("sums", [True, False])
def test_a_worker_reads_and_changes_each_request_apart(sums: bool) -> None:
    worker = _Worker(sums=sums)
    assert worker.persona_start() == (3, WIDTH)
    worker.persona_probe()
    worker.run([])
    assert worker.persona_form() == ("sum" if sums else "one")

    generator = torch.Generator().manual_seed(2)
    directions = {b: torch.randn(WIDTH, 2, generator=generator) for b in (0, 2)}
    unit = nn.functional.normalize(torch.randn(WIDTH, generator=generator), dim=0)
    push = Intervention(Steer("t", block=1, strength=5.0, start=2), unit, 5.0)
    hold = Intervention(Steer.cap("t", block=0, threshold=-3.0, start=0), unit, -3.0, torch.tensor([0, 2]))
    worker.persona_open("one", Readout(directions, [push]))
    worker.persona_open("two", Readout({1: directions[0]}, [hold]))
    ids = {"one": [1, 2, 3, 4, 5, 6], "two": [6, 5, 4, 3], "plain": [7, 8]}
    names = {"one": request_id("one", 0, 3, 8), "two": request_id("two", 1, 1, 9), "plain": "other"}
    worker.run([(names["plain"], 0, ids["plain"]), (names["two"], 0, ids["two"]), (names["one"], 0, ids["one"])])
    taken = worker.persona_take()
    assert worker.persona_take() == {} and taken.keys() == {"one", "two"}

    def pushed(at: int, state: torch.Tensor) -> torch.Tensor:
        return state + 5.0 * unit if at - 3 >= 1 else state

    def held(at: int, state: torch.Tensor) -> torch.Tensor:
        over = max(float(state.detach() @ unit) + 3.0, 0.0)
        return state - over * unit if at - 1 >= 1 else state

    for key, blocks, changes in (("one", (0, 2), {1: pushed}), ("two", (1,), {0: held})):
        ((name, first, raw, norms),) = taken[key]
        assert (name, first) == (names[key], 0)
        for slot, block in enumerate(blocks):
            expected = worker.model.states(ids[key], block, changes).detach()
            of = directions[block if key == "one" else 0]
            np.testing.assert_allclose(raw[:, slot], (expected @ of).numpy(), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(norms[:, slot], expected.norm(dim=-1).numpy(), rtol=1e-5)

    worker.persona_starts("two", [torch.tensor([0, 4])])
    worker.persona_close("one")
    worker.run([(names["one"], 3, [4]), (names["two"], 3, [3])])
    ((_, first, raw, _),) = worker.persona_take()["two"]
    plain = worker.model.states([3], 1, {}).detach()
    assert first == 3 and np.allclose(raw[:, 0], (plain @ directions[0]).numpy(), rtol=1e-4, atol=1e-5)


def test_a_stream_of_unknown_form_is_not_read() -> None:
    worker = _Worker()
    worker.persona_start()
    worker.model.model.norm.register_forward_pre_hook(lambda _m, args: (args[0] * 2 + 1, *args[1:]))
    worker.persona_probe()
    worker.run([])
    assert worker.persona_form() is None


def test_readings_come_from_the_first_worker_alone() -> None:
    worker = _Worker(rank=1)
    worker.persona_start()
    worker.persona_open("one", Readout({0: torch.ones(WIDTH, 1)}))
    worker.run([(request_id("one", 0, 1, 0), 0, [1, 2])])
    assert worker.persona_take() == {}
