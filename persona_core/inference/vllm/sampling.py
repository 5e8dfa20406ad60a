"""How vLLM's next token is chosen: as on transformers, with the same processors and the same draw for a seed.

vLLM calls it with the scores of a step. It leaves the chosen token's alone, and vLLM's greedy sampler takes that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessorList

from persona_core.inference.sampling import Sampling, choose, draws

try:
    from vllm.v1.sample.logits_processor import LogitsProcessor
except ImportError:  # the module is looked at, not used, where vLLM is not installed
    LogitsProcessor = object

ARGUMENT = "persona"
"""The name under which a request's `SamplingParams.extra_args` carry what `Drawn` needs."""


@dataclass(frozen=True)
class Drawn:
    """How one request's tokens are chosen.

    Attributes:
        sampling: the settings.
        processors: of the settings.
        uniform: float32 `[limit]`, a draw for each token of the reply.
        n_kept: tokens of the reply that are part of vLLM's prompt.
        prompt: ids before the first new token; seen by a repetition penalty.
        new: ids of the new tokens so far, kept up to date by vLLM.
    """

    sampling: Sampling
    processors: LogitsProcessorList
    uniform: torch.Tensor
    n_kept: int
    prompt: Sequence[int]
    new: Sequence[int]


class SeededSampler(LogitsProcessor):
    """Chooses the next token of each request that says how; others are left to vLLM."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:  # noqa: ARG002
        self._device = device
        self._rows: dict[int, Drawn] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._rows.pop(row, None)
        for row, params, prompt, new in batch_update.added:
            self._rows.pop(row, None)
            wanted = (params.extra_args or {}).get(ARGUMENT)
            if wanted is not None:
                sampling = Sampling(**wanted["sampling"])
                uniform = draws(wanted["seed"], wanted["limit"] + 1)  # one more: the token after the last is not used
                self._rows[row] = Drawn(
                    sampling, sampling.processors(), uniform, wanted["n_kept"], list(prompt or ()), new
                )
        for one, other, direction in batch_update.moved:
            first, second = self._rows.pop(one, None), self._rows.pop(other, None)
            if first is not None:
                self._rows[other] = first
            if second is not None and direction.name == "SWAP":
                self._rows[one] = second

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        groups: dict[Sampling, list[int]] = {}
        for row, drawn in self._rows.items():
            if row < len(logits):
                groups.setdefault(drawn.sampling, []).append(row)
        for sampling, rows in groups.items():
            if sampling.temperature == 0 and sampling.repetition_penalty == 1.0:
                continue  # vLLM takes the largest
            index = torch.tensor(rows, device=logits.device)
            kinds = [self._rows[row] for row in rows]
            scores = kinds[0].processors(self._history(kinds), logits[index].float())  # [rows, vocab]
            if sampling.temperature == 0:
                chosen = scores.argmax(-1)
            else:
                at = [[float(k.uniform[min(k.n_kept + len(k.new), len(k.uniform) - 1)])] for k in kinds]
                chosen = choose(scores, torch.tensor(at, device=logits.device))
            logits[index] = -torch.inf
            logits[index, chosen] = 0.0
        return logits

    def _history(self, kinds: Sequence[Drawn]) -> torch.Tensor:
        """All ids so far, `[rows, longest]`; shorter ones are padded with an id that they hold already."""
        if kinds[0].sampling.repetition_penalty == 1.0:
            return torch.zeros(len(kinds), 1, dtype=torch.long, device=self._device)
        histories = [[*k.prompt, *k.new] for k in kinds]
        longest = max(map(len, histories))
        return torch.tensor([[*[h[-1]] * (longest - len(h)), *h] for h in histories], device=self._device)
