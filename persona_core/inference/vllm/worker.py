"""What runs beside the model inside a vLLM worker: reads, changes and projects the residual stream of each request.

vLLM mixes this class into its worker (`worker_extension_cls`); its methods are called by name from `VllmEngine`. One
forward holds tokens of many requests one behind the other, and of several runs. Each run has a `Readout`; a request's
id says which run it belongs to, which of its replies it is and where that reply starts.

A block of vLLM returns the stream in one of two forms: as one tensor, or as what the block adds and what it adds it
to, which the next block sums. Which form a model has is measured when it is loaded: the final norm of the right one is
what the model's own final norm gave.

With tensor parallelism every worker holds the whole stream; all make the same changes, and the first one's readings
are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from persona_core.inference.steering import Intervention
from persona_core.models.blocks import BLOCK_LISTS

if TYPE_CHECKING:
    from persona_core.inference.engine import Readout

FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f")
PROBED = {torch.float32: 1e-4, torch.bfloat16: 0.02, torch.float16: 0.005}
"""By how much of its norm the final norm's output may differ from that of the stream it was given."""

Chunk = tuple[str, int, np.ndarray, np.ndarray]
"""Consecutive tokens of one request as they were read: its id, the first one's position, raw `[tokens, n_blocks,
n_traits]` and norms `[tokens, n_blocks]`, float32."""


@dataclass(frozen=True)
class Span:
    """The tokens of one request in one forward.

    Attributes:
        request: its id.
        first: position in the text of its first token here.
        rows: its rows in the forward, a range.
        reply: which of the run's replies it is.
        n_prompt: tokens before the reply.
    """

    request: str
    first: int
    rows: range
    reply: int
    n_prompt: int


@dataclass
class _Run:
    """One run's readout on this device, and what it has read since it was last asked."""

    directions: dict[int, torch.Tensor]
    changes: dict[int, list[Intervention]]
    read: list[tuple[list[Span], torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.slots = {block: slot for slot, block in enumerate(sorted(self.directions))}


@dataclass(frozen=True)
class _Pass:
    """One run's part of the forward that is running.

    Attributes:
        run: the run.
        rows: long `[tokens]`, its rows of the forward; None: all of them.
        n: how many rows the forward has.
        reply_index: `[tokens, 1]`, position of each token in its reply.
        replies: `[tokens]`, which of the run's replies each belongs to.
        raw: float32 `[tokens, n_blocks, n_traits]`, filled block by block.
        norms: float32 `[tokens, n_blocks]`.
    """

    run: _Run
    rows: torch.Tensor | None
    n: int
    reply_index: torch.Tensor
    replies: torch.Tensor
    raw: torch.Tensor
    norms: torch.Tensor


def request_id(run: str, reply: int, n_prompt: int, number: int) -> str:
    """The id of a request; vLLM appends a suffix of its own.

    >>> request_id("run3", 2, 17, 9)
    'run3/2/17/9/'
    """
    return f"{run}/{reply}/{n_prompt}/{number}/"


class ReadingWorker:
    """Mixed into vLLM's worker, whose `model_runner` it uses. Names start with persona_, so that none clashes."""

    model_runner: Any

    def persona_start(self) -> tuple[int, int]:
        """Install the hooks, once; returns how many blocks there are and their width."""
        model = self.model_runner.get_model()
        self._persona_runs: dict[str, _Run] = {}
        self._persona_passes: list[_Pass] = []
        self._persona_probed: dict[str, Any] | None = None
        self._persona_sums = False
        name, self._persona_blocks = _blocks_of(model)
        trunk = model.get_submodule(name.rpartition(".")[0])
        self._persona_norm = next((m for n, m in trunk.named_children() if n in FINAL_NORMS), None)
        model.register_forward_pre_hook(lambda *_: self._persona_begin())
        for index, block in enumerate(self._persona_blocks):
            block.register_forward_hook(self._persona_hook(index))
        width = self.model_runner.model_config.get_hidden_size()
        return len(self._persona_blocks), width

    def persona_probe(self) -> None:
        """Keep what the last block and the final norm give in the next forward."""
        self._persona_probed = {}
        if self._persona_norm is not None:
            self._persona_norm.register_forward_hook(self._persona_keep_norm, prepend=True)

    @torch.inference_mode()
    def persona_form(self) -> str | None:
        """Which form the stream has, now that a probe has run: "one", "sum", None where neither fits, "nan" for NaN."""
        probed, self._persona_probed = self._persona_probed, None
        if not probed or "normed" not in probed or self._persona_norm is None:
            return None
        normed = probed["normed"].float()
        if not normed.isfinite().all():
            return "nan"
        limit = PROBED.get(probed["normed"].dtype, 0.0) * float(normed.norm())
        for form, stream in probed["forms"].items():
            found = self._persona_norm(stream)
            found = found[0] if isinstance(found, tuple) else found
            if found.shape == probed["normed"].shape and float((found.float() - normed).norm()) <= limit:
                self._persona_sums = form == "sum"
                return form
        return None

    def _persona_keep_norm(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if self._persona_probed is not None and "forms" in self._persona_probed:
            kept = output[0] if isinstance(output, tuple) else output
            self._persona_probed.setdefault("normed", kept.clone())

    def persona_open(self, key: str, readout: Readout) -> None:
        """Begin a run."""
        device = self.model_runner.device
        changes: dict[int, list[Intervention]] = {}
        for i in readout.interventions:
            # A copy: alarms write into the run's own tensor, at any time.
            along, starts = (None if t is None else t.to(device, copy=True) for t in (i.along, i.starts))
            placed = replace(i, direction=i.direction.to(device), along=along, starts=starts)
            changes.setdefault(i.steer.block, []).append(placed)
        directions = {b: v.to(device, torch.float32).contiguous() for b, v in readout.directions.items()}
        self._persona_runs[key] = _Run(directions, changes)

    def persona_starts(self, key: str, starts: Sequence[torch.Tensor | None]) -> None:
        """The starts of a run's interventions as alarms have moved them; in the order of `persona_open`, by block."""
        changes = self._persona_runs[key].changes
        for change, moved in zip((c for b in sorted(changes) for c in changes[b]), starts, strict=True):
            if moved is not None and change.starts is not None:
                change.starts.copy_(moved)

    def persona_close(self, key: str) -> None:
        """End a run, and discard what it has not been asked for."""
        self._persona_runs.pop(key, None)

    def persona_take(self) -> dict[str, list[Chunk]]:
        """What each run has read since the last call, on the host; nothing from workers other than the first."""
        taken: dict[str, list[Chunk]] = {}
        for key, run in self._persona_runs.items():
            for spans, raw, norms in run.read:
                host_raw, host_norms = raw.cpu().numpy(), norms.cpu().numpy()
                at = 0
                for span in spans:
                    rows = slice(at, at := at + len(span.rows))
                    taken.setdefault(key, []).append((span.request, span.first, host_raw[rows], host_norms[rows]))
            run.read.clear()
        return taken if getattr(self, "rank", 0) == 0 else {}

    def _persona_begin(self) -> None:
        """Before each forward: which rows belong to which run."""
        batch = self.model_runner.input_batch
        n_requests = batch.num_reqs
        self._persona_passes = []
        if not self._persona_runs or not n_requests:
            return
        ends = self.model_runner.query_start_loc.np[: n_requests + 1].tolist()
        firsts = batch.num_computed_tokens_cpu[:n_requests].tolist()
        spans: dict[str, list[Span]] = {}
        for request, first, start, end in zip(batch.req_ids, firsts, ends[:-1], ends[1:], strict=True):
            key, _, rest = request.partition("/")
            if key in self._persona_runs and end > start:
                reply, n_prompt = rest.split("/")[:2]
                own = request[: request.rindex("/") + 1]
                spans.setdefault(key, []).append(Span(own, first, range(start, end), int(reply), int(n_prompt)))
        device = self.model_runner.device
        self._persona_passes = [_pass(self._persona_runs[key], s, ends[-1], device) for key, s in spans.items()]

    def _persona_hook(self, index: int) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            if self._persona_probed is not None and index + 1 == len(self._persona_blocks):
                self._persona_probed["forms"] = _forms(output)
            passes = [p for p in self._persona_passes if index in p.run.slots or index in p.run.changes]
            if not passes:
                return None
            added, *rest = output if isinstance(output, tuple) else (output,)
            stream = added + rest[0] if self._persona_sums else added
            flat = stream.reshape(
                -1, stream.shape[-1]
            )  # [rows, d_model]; transformers' own modules have a batch of one
            changed = False
            for part in passes:
                states = flat[: part.n] if part.rows is None else flat[part.rows]  # [tokens, d_model]
                for change in part.run.changes.get(index, ()):
                    states = change.apply(states[:, None], part.reply_index, part.replies)[:, 0]
                if index in part.run.changes:
                    if not changed:
                        flat, changed = flat.clone(), True
                    flat[slice(part.n) if part.rows is None else part.rows] = states
                slot = part.run.slots.get(index)
                if slot is not None:
                    states = states.float()
                    torch.mm(states, part.run.directions[index], out=part.raw[:, slot])
                    torch.linalg.vector_norm(states, dim=-1, out=part.norms[:, slot])
            if not changed:
                return None
            stream = flat.view_as(stream)
            if not isinstance(output, tuple):
                return stream
            return (stream, torch.zeros_like(rest[0]), *rest[1:]) if self._persona_sums else (stream, *rest)

        return hook


def _pass(run: _Run, spans: list[Span], n: int, device: torch.device) -> _Pass:
    """A run's part of a forward of `n` rows. Its readings are kept in the run, and filled by the hooks."""
    rows = [row for span in spans for row in span.rows]
    index = [span.first + i - span.n_prompt for span in spans for i in range(len(span.rows))]
    replies = [span.reply for span in spans for _ in span.rows]
    shape = len(rows), len(run.slots)
    n_traits = next((v.shape[1] for v in run.directions.values()), 0)
    raw = torch.full((*shape, n_traits), torch.nan, device=device)
    norms = torch.full(shape, torch.nan, device=device)
    if run.slots:
        run.read.append((spans, raw, norms))
    return _Pass(
        run,
        None if len(rows) == n else torch.tensor(rows, device=device),
        n,
        torch.tensor(index, device=device)[:, None],
        torch.tensor(replies, device=device),
        raw,
        norms,
    )


def _forms(output: Any) -> dict[str, torch.Tensor]:
    """The stream in a block's output, in each form that it may have; the sum first, since its parts are tensors too."""
    if not isinstance(output, tuple):
        return {"one": output.clone()}
    first, *rest = output
    sums = bool(rest) and isinstance(rest[0], torch.Tensor) and rest[0].shape == first.shape
    return {**({"sum": first + rest[0]} if sums else {}), "one": first.clone()}


def _blocks_of(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The longest list of blocks, with its name; vision towers and draft heads are shorter or named otherwise."""
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in BLOCK_LISTS and isinstance(module, nn.ModuleList) and "vision" not in name
    ]
    if not lists:
        raise LookupError(f"{type(model).__name__} has no list of blocks named {', '.join(BLOCK_LISTS)}")
    return max(lists, key=lambda one: len(one[1]))
