"""Read, pool and change the residual stream while a model runs.

The contract, each clause with a test:

1. The state of block b at token t is the output of block b after the model has read token t. `raw[..., t]` is its
   projection (h·v)/‖v‖ on that block's directions.
2. Every token of a forward is read: all of a prompt, and each generated token, the last one too.
3. Changes act before reading, in the order given: the reading of a steered block shows the steered state.
4. Projections, norms and pooled sums are computed and accumulated in float32, whatever the model's dtype.
5. All directions of a block are one matrix product on the block's device. The few states of a decoding step are
   gathered, and all blocks are one product. Nothing is copied to the host here.
6. Hooks act only for the run that registered them: a context variable holds the run whose forward is running, so
   two threads, or two interleaved streams, on one model see neither each other's states nor each other's changes.
7. The hooks come first in each block's list, so that other hooks see the changed state, and they are removed when
   the tap closes, also after an error.
8. Padding tokens are read like others; the caller knows which positions are padding. No change touches them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from persona_core.errors import UnsupportedModel
from persona_core.inference.pooled_states import PooledStates
from persona_core.inference.steering import Intervention
from persona_core.models.blocks import Blocks, block_output

# States of a forward are gathered up to this many numbers (16 MB): a step of 32 blocks x 4,096 with 32 rows fits.
GATHERED = 2**22

_running: ContextVar[ResidualTap | None] = ContextVar("persona_core_running_tap", default=None)


def in_monitored_run() -> bool:
    """Whether a forward of a run with a tap is running in this context: hooks of others leave it alone."""
    return _running.get() is not None


class _StopForward(Exception):
    """Leaves a forward from inside: everything requested has been read."""


@dataclass(frozen=True)
class Reading:
    """What one forward read, on the first block's device.

    Attributes:
        raw: projections, float32 `[rows, tokens, n_blocks, n_traits]`, in residual-stream units.
        norms: ‖h‖, float32 `[rows, tokens, n_blocks]`.
    """

    raw: torch.Tensor
    norms: torch.Tensor


class ResidualTap:
    """The hooks of one run on one model.

    Args:
        blocks: the model's blocks.
        directions: unit directions for each block to read, float32 `[d_model, n_traits]`; the same traits in each.
        interventions: changes to the residual stream.
        pooled: also takes the states of all blocks.
        stop: leave a forward once the last block that is needed has run; its output is lost.

    Use: `with ResidualTap(...) as tap:` around the run, `with tap.forward(reply_index):` around each forward, then
    `tap.reading()`.
    """

    def __init__(
        self,
        blocks: Blocks,
        directions: dict[int, torch.Tensor] | None = None,
        interventions: Sequence[Intervention] = (),
        pooled: PooledStates | None = None,
        stop: bool = False,
    ) -> None:
        self._blocks = blocks
        self.read_blocks = tuple(sorted(directions or {}))
        self._directions = [
            (directions or {})[b].to(blocks.device(b), torch.float32).contiguous() for b in self.read_blocks
        ]
        self._stacked: torch.Tensor | None = None  # [n_blocks, d_model, n_traits]
        if len({v.device for v in self._directions}) == 1:
            self._stacked = torch.stack(self._directions)
            self._directions = list(self._stacked)  # views, so that they are stored once
        self._states: torch.Tensor | None = None  # [n_blocks, rows, tokens, d_model], of a small forward
        self._state_of: tuple[torch.Tensor, ...] = ()  # of each block, views
        self._slot = {b: slot for slot, b in enumerate(self.read_blocks)}
        changed = {i.steer.block for i in interventions}
        self._changes = {b: [i for i in interventions if i.steer.block == b] for b in changed}
        self.pooled = pooled
        self._last = max(self.read_blocks, default=None) if stop and pooled is None else None
        self._handles: list[Any] = []
        self._reply_index = torch.empty(0)
        self._rows: torch.Tensor | None = None
        self._raw: list[torch.Tensor] = []
        self._norms: list[torch.Tensor] = []
        self._shape = (0, 0)

    @property
    def is_repeatable(self) -> bool:
        """Whether every forward runs the same operations, with nothing that the host changes in between."""
        in_place = self.pooled is None or self.pooled.adds_in_place
        return in_place and all(i.starts is None for changes in self._changes.values() for i in changes)

    def __enter__(self) -> ResidualTap:
        needed = (
            set(self._slot) | set(self._changes) | (set() if self.pooled is None else set(range(len(self._blocks))))
        )
        try:
            for b in sorted(needed):
                module = self._blocks.modules[b]
                self._handles.append(module.register_forward_hook(self._hook_for(b), prepend=True))
            if self._last is not None and self._last + 1 < len(self._blocks):
                # Before the next block, so that other hooks on the last block that is needed still run.
                after = self._blocks.modules[self._last + 1]
                self._handles.append(after.register_forward_pre_hook(self._leave))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    @contextmanager
    def forward(
        self, reply_index: torch.Tensor, answer_index: torch.Tensor | None = None, rows: torch.Tensor | None = None
    ) -> Iterator[None]:
        """Make the hooks act for the one forward inside the `with`.

        Args:
            reply_index: `[rows, tokens]`, position of each token in its reply; -1 is the last prompt token, `PAD_INDEX`
                a padding token.
            answer_index: long `[rows, tokens]`, position of each token in its answer, `THOUGHT` or `NEITHER`; None:
                this forward is not pooled.
            rows: `[rows]`, which of the run's texts each row is; None: all, in order.
        """
        n_rows, tokens = self._shape = (reply_index.shape[0], reply_index.shape[1])
        self._reply_index, self._rows = reply_index, rows
        if self.pooled is not None:
            self.pooled.begin(reply_index, answer_index, rows)
        # Allocated for each forward: a reading stays valid when the next forward starts.
        self._reached: set[int] = set()
        self._states, self._raw, self._norms = None, [], []
        if self._stacked is not None and n_rows * tokens * self._stacked[..., 0].numel() <= GATHERED:
            self._states = self._stacked.new_empty(len(self._stacked), n_rows, tokens, self._stacked.shape[1])
            self._state_of = self._states.unbind()
        else:
            self._raw = [v.new_empty(n_rows * tokens, v.shape[1]) for v in self._directions]
            self._norms = [v.new_empty(n_rows * tokens) for v in self._directions]
        token = _running.set(self)
        try:
            yield
        except _StopForward:
            pass
        finally:
            _running.reset(token)

    def reading(self) -> Reading:
        """The projections of the last forward.

        Raises:
            UnsupportedModel: that forward did not run a block, so there is nothing to read.
        """
        missing = [b for b in self.read_blocks if b not in self._reached]
        if missing:
            raise UnsupportedModel(f"The forward did not run block {missing[0]}; its states cannot be read.")
        if self._states is not None and self._stacked is not None:
            states = self._states.flatten(1, 2)  # [n_blocks, rows * tokens, d_model]
            raw = torch.bmm(states, self._stacked).unflatten(1, self._shape)  # [n_blocks, rows, tokens, n_traits]
            norms = torch.linalg.vector_norm(self._states, dim=-1)  # [n_blocks, rows, tokens]
            return Reading(raw.movedim(0, 2), norms.movedim(0, 2))
        device = self._directions[0].device
        raw = torch.stack([r.to(device) for r in self._raw], dim=1)  # [rows * tokens, n_blocks, n_traits]
        norms = torch.stack([n.to(device) for n in self._norms], dim=1)  # [rows * tokens, n_blocks]
        return Reading(raw.view(*self._shape, *raw.shape[1:]), norms.view(*self._shape, norms.shape[1]))

    def _leave(self, _module: nn.Module, _args: Any) -> None:
        if _running.get() is self:
            raise _StopForward

    def _hook_for(self, block: int) -> Any:
        slot, changes = self._slot.get(block), self._changes.get(block, [])

        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            if _running.get() is not self:
                return None
            states = block_output(output)  # [rows, tokens, d_model]
            for change in changes:
                states = change.apply(states, self._reply_index, self._rows)
            if slot is not None:
                self._read(slot, states)
                self._reached.add(block)
            if self.pooled is not None and self.pooled.active:
                self.pooled.add(block, states.float())
            if not changes:
                return None
            return (states, *output[1:]) if isinstance(output, tuple) else states

        return hook

    def _read(self, slot: int, states: torch.Tensor) -> None:
        if self._states is not None:
            self._state_of[slot].copy_(states)  # converts to float32
            return
        flat = states.reshape(-1, states.shape[-1]).float()  # [rows * tokens, d_model]
        torch.mm(flat, self._directions[slot], out=self._raw[slot])
        torch.linalg.vector_norm(flat, dim=-1, out=self._norms[slot])
