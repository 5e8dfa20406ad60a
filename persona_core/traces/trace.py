"""A trace: one conversation as read by one model. Arrays and text only; independent of the model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from persona_core.errors import CorruptFile, NotCalibrated, NotFound, SettingError, UnknownBlock, UnknownTrait
from persona_core.traces.provenance import Provenance
from persona_core.traces.records import fields_of_record, fields_of_row, record_of, row_of
from persona_core.traces.sinks import is_sink
from persona_core.traces.specific import LogOdds, specific_score
from persona_core.utils.checks import known_block
from persona_core.utils.files import read_json

if TYPE_CHECKING:
    import plotly.graph_objects as go

Kind = Literal["specific", "z", "raw", "cosine"]
Alignment = Literal["at", "before"]
UNITS = {
    "specific": "standard deviations: more like this trait than like neutral text or any other trait",
    "z": "standard deviations above neutral",
    "raw": "residual-stream units",
    "cosine": "cosine",
}


@dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """One conversation with a projection for every token, trait and block.

    `raw[..., t]` is the state *at* token t, after the model has read it: the last token is read too. (Only imported
    files of other tools may have the state before token t; `alignment` records it, and `scores` accounts for it.)

    Attributes:
        token_ids: `[n_tokens]`, prompt and reply.
        tokens: display pieces; they join to the exact decoded text.
        roles: "system", "user", "assistant", "thinking" (what the assistant thought before its answer) or "template"
            for each token.
        n_prompt: tokens before the reply.
        traits: names, in the order of `raw`'s first axis.
        blocks: block numbers, in the order of `raw`'s second axis.
        raw: (h·v)/‖v‖, float32 `[n_traits, n_blocks, n_tokens]`, residual-stream units.
        norms: ‖h‖, float32 `[n_blocks, n_tokens]`.
        best_block: trait -> the block at which it is read by default.
        null_mean, null_std: of the raw projection over neutral replies, float32 `[n_traits, n_blocks]`; NaN without
            a null.
        special: whether each token is a special token of the tokenizer.
        finish: "eos", "length", "context", "thought" (too long, so there is no answer), "guard" (stopped by it),
            "stopped" (by the caller) or "read" (nothing was generated).
        provenance: writer, reader and settings.
        alignment: of `raw` and `norms`; "at" for every trace that this library reads.
        max_norm: ‖h‖ above which a token is a sink token, float32 `[n_blocks]`; infinite where no limit is known. A
            single number holds for all blocks.
        log_odds: what turns projections into specific scores; None: there are no specific scores.
    """

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    roles: tuple[str, ...]
    n_prompt: int
    traits: tuple[str, ...]
    blocks: tuple[int, ...]
    raw: np.ndarray
    norms: np.ndarray
    best_block: Mapping[str, int]
    null_mean: np.ndarray
    null_std: np.ndarray
    special: tuple[bool, ...]
    finish: str
    provenance: Provenance = field(default_factory=Provenance)
    alignment: Alignment = "at"
    max_norm: np.ndarray = field(default_factory=lambda: np.array(np.inf, np.float32))
    log_odds: LogOdds | None = None

    def __post_init__(self) -> None:
        n = len(self.token_ids)
        if not self.max_norm.ndim:  # one limit for all blocks: infinity, where none is known
            object.__setattr__(self, "max_norm", np.full(len(self.blocks), self.max_norm, np.float32))
        shape = (len(self.traits), len(self.blocks), n)
        nulls = {self.null_mean.shape, self.null_std.shape}
        if nulls != {shape[:2]}:
            raise CorruptFile(f"A trace of shape {shape} needs a null of {shape[:2]}; got {sorted(nulls)}.")
        if self.log_odds is not None and self.log_odds.shape != shape[:2]:
            raise CorruptFile(f"A trace of shape {shape} needs log odds of {shape[:2]}; got {self.log_odds.shape}.")
        if self.max_norm.shape != shape[1:2]:
            raise CorruptFile(f"A trace of {shape[1]} blocks needs as many norm limits; got {self.max_norm.shape}.")
        if not 0 <= self.n_prompt <= n:
            raise CorruptFile(f"n_prompt is {self.n_prompt}; a trace of {n} tokens has 0 to {n} before the reply.")
        if self.alignment not in ("at", "before"):
            raise CorruptFile(f"alignment is {self.alignment!r}; expected 'at' or 'before'.")
        lengths = {len(self.tokens), len(self.roles), len(self.special)}
        if lengths != {n} or self.raw.shape != shape or self.norms.shape != shape[1:]:
            raise CorruptFile(
                f"A trace of {n} token ids needs {shape} projections and {shape[1:]} norms; got {self.raw.shape}, "
                f"{self.norms.shape} and texts or roles of length {sorted(lengths)}."
            )

    def __repr__(self) -> str:
        tokens = f"{self.n_prompt} + {self.n_reply} tokens"
        traits = f"{len(self.traits)} trait{'' if len(self.traits) == 1 else 's'}"
        reader = self.provenance.reading_model or "unknown"
        return f"Trace({tokens}, {traits} at {list_blocks(self.blocks)}, read by {reader})"

    @property
    def n_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def n_reply(self) -> int:
        """Tokens of the reply, including its end-of-turn token."""
        return self.n_tokens - self.n_prompt

    @property
    def reply_positions(self) -> list[int]:
        """Positions of the tokens that the assistant said: the reply without a thought and end-of-turn tokens."""
        return [t for t in range(self.n_prompt, self.n_tokens) if self.roles[t] == "assistant"]

    @property
    def reply_text(self) -> str:
        """What the assistant said, without a thought and end-of-turn tokens."""
        return "".join(self.tokens[t] for t in self.reply_positions)

    @property
    def thinking_positions(self) -> list[int]:
        """Positions of the tokens that the assistant thought before it answered."""
        return [t for t in range(self.n_prompt, self.n_tokens) if self.roles[t] == "thinking"]

    @property
    def thinking_text(self) -> str:
        """What the assistant thought before it answered; "" if nothing."""
        return "".join(self.tokens[t] for t in self.thinking_positions)

    @property
    def text(self) -> str:
        """The whole conversation as decoded, including special tokens."""
        return "".join(self.tokens)

    @property
    def sinks(self) -> np.ndarray:
        """Which tokens are sink tokens at which block, bool `[n_blocks, n_tokens]`.

        A sink token's state has a norm far outside the block's own range. It is shown and kept in `raw`, but no mean,
        null or comparison counts it.
        """
        return is_sink(self.norms, self.max_norm)

    def scores(
        self, trait: str, kind: Kind | None = None, block: int | None = None, alignment: Alignment = "at"
    ) -> np.ndarray:
        """One trait's score at every token, float32 `[n_tokens]`.

        Args:
            trait: which trait.
            kind: "specific": what the other traits do not share (`persona_core.traces.specific`), in standard
                deviations over neutral tokens; "z": (raw - mean) / sd over the tokens of neutral replies of the same
                model, at this trait and block (at prompt and template tokens the unit is the same, but the spread is
                not 1); "raw": residual-stream units; "cosine": between state and vector. Zero is neutral for the first
                two only. None takes "specific" where the vectors allow it, else "z".
            block: which block; None takes the trait's best block.
            alignment: "at": the state after reading token t. "before": the state at t - 1, which chose token t; NaN
                at token 0, which no state chose.

        Raises:
            UnknownTrait, UnknownBlock: the trace does not have it.
            NotCalibrated: kind="z" or "specific" without what it needs.
        """
        row, column = self._trait(trait), self._block(trait, block)
        kind = kind or ("specific" if self.has_specific else "z")
        values = self.raw[row, column].astype(np.float32)  # [n_tokens]
        if kind == "z":
            mean, std = self.null_mean[row, column], self.null_std[row, column]
            if not np.isfinite(mean) or not std > 0:
                raise NotCalibrated(
                    f"No null for {trait!r} at block {self.blocks[column]}: z scores need calibrated vectors. "
                    "Use kind='raw' or kind='cosine'."
                )
            values = (values - mean) / std
        elif kind == "specific":
            values = self._specific(row, column)
        elif kind == "cosine":
            norms = self.norms[column]
            values = np.divide(values, norms, out=np.zeros_like(values), where=norms != 0)
        elif kind != "raw":
            raise SettingError(f"kind={kind!r}; expected 'specific', 'z', 'raw' or 'cosine'.")
        if alignment not in ("at", "before"):
            raise SettingError(f"alignment={alignment!r}; expected 'at' or 'before'.")
        return self._aligned(values, alignment, np.float32(np.nan)).astype(np.float32)

    def _specific(self, row: int, column: int) -> np.ndarray:
        known = None if self.log_odds is None else self.log_odds.at(column)
        if known is None or not np.isfinite(known.mean[row]) or not known.std[row] > 0:
            raise NotCalibrated(
                f"No specific score for {self.traits[row]!r} at block {self.blocks[column]}: it needs vectors of "
                "several traits that were extracted and calibrated together. Use kind='z'."
            )
        return specific_score(self.raw[:, column], known, row)

    def _aligned(self, values: np.ndarray, alignment: Alignment, unknown: Any) -> np.ndarray:
        """Values at every token, moved where they are aligned otherwise, `[n_tokens]`."""
        missing = np.full(min(1, len(values)), unknown, values.dtype)
        if (self.alignment, alignment) == ("at", "before"):
            return np.concatenate([missing, values[:-1]])
        if (self.alignment, alignment) == ("before", "at"):  # the last token was never read
            return np.concatenate([values[1:], missing])
        return values

    def reply_scores(self, trait: str, kind: Kind | None = None, block: int | None = None) -> np.ndarray:
        """One trait's score at the tokens that the assistant said, float32 `[n_reply_positions]`; NaN at sink tokens.

        Statistics are made of these. NaN means that the token gives no evidence; positions stay as they are.

        Args:
            trait, kind, block: as for `scores`.
        """
        return self.scores_without_sinks(trait, kind, block)[self.reply_positions]

    def scores_without_sinks(
        self, trait: str, kind: Kind | None = None, block: int | None = None, alignment: Alignment = "at"
    ) -> np.ndarray:
        """One trait's score at every token, float32 `[n_tokens]`; NaN where the state is a sink token's.

        Args:
            trait, kind, block, alignment: as for `scores`.
        """
        values = self.scores(trait, kind, block, alignment)
        sink = self._aligned(self.sinks[self._block(trait, block)], alignment, False)
        return np.where(sink, np.float32(np.nan), values)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Limitations of an imported trace; empty for a trace that this library has read."""
        if self.provenance.imported is None:
            return ()
        found = [f"Imported from {self.provenance.imported}: vectors and null are unknown."]
        if self.alignment == "before":
            found.append("The file has the state before each token, so the last token was never read.")
        if any(i < 0 for i in self.token_ids):
            found.append("The token ids are unknown, so it cannot be replayed by its ids.")
        if any(b < 0 for b in self.blocks):
            found.append("The block is unknown.")
        return tuple(found)

    @property
    def calibrated(self) -> bool:
        """Whether every trait has a null, so that z scores exist."""
        return bool(len(self.traits)) and bool(np.isfinite(self.null_mean).all() and (self.null_std > 0).all())

    @cached_property
    def has_specific(self) -> bool:
        """Whether every trait has specific scores."""
        return self.log_odds is not None and bool((self.log_odds.std > 0).all())

    @property
    def default_kind(self) -> Kind:
        """What scores are by default: specific, or z with a null only, else the cosine, or raw without norms."""
        if self.calibrated and self.has_specific:
            return "specific"
        return "z" if self.calibrated else "cosine" if np.isfinite(self.norms).any() else "raw"

    def figure(self, kind: Kind | None = None) -> go.Figure:
        """A Plotly figure: one line per trait over the tokens of the conversation. None takes `default_kind`."""
        from persona_core import traces

        return traces.trace_figure(self, kind=kind or self.default_kind)

    def to_html(self, path: str | Path | None = None, kind: Kind | None = None) -> str:
        """The interactive token view as one HTML page that works offline; written to `path` if given."""
        from persona_core import traces

        page = traces.standalone_html(self, kind=kind or self.default_kind)
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(page, encoding="utf-8")
        return page

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record; `from_dict` restores it bit for bit (float32 survives JSON exactly)."""
        return record_of(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Trace:
        """The inverse of `to_dict`.

        Raises:
            CorruptFile: another format version, a missing field, lengths that do not fit.
        """
        return cls(**fields_of_record(record))

    def to_row(
        self, id: str, messages: Sequence[Mapping[str, str]], set: str = "", category: str = ""
    ) -> dict[str, Any]:
        """A row of a results dataset; `from_row` restores the trace bit for bit.

        Args:
            id: of the prompt.
            messages: the conversation before the reply.
            set, category: of the prompt.
        """
        return row_of(self, id, messages, set, category)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Trace:
        """The trace of a row of a results dataset, bit for bit.

        Raises:
            CorruptFile: a column is missing, or lengths do not fit.

        >>> from datasets import load_dataset
        >>> rows = load_dataset("artifacts/persona-monitoring-persona-tiny", split="train")
        >>> Trace.from_row(rows[0]).traits[0]
        'paternalism'
        """
        return cls(**fields_of_row(row))

    def save(self, path: str | Path) -> Path:
        """Write the trace as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), ensure_ascii=False), encoding="utf-8")
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a trace that `save` wrote.

        Raises:
            NotFound, CorruptFile.
        """
        if not Path(path).is_file():
            raise NotFound(f"No trace file {str(path)!r}.")
        return cls.from_dict(read_json(path))

    def replace(self, **changes: Any) -> Trace:
        """The same trace with some fields changed."""
        return replace(self, **changes)

    def _trait(self, trait: str) -> int:
        if trait not in self.traits:
            raise UnknownTrait(trait, self.traits)
        return self.traits.index(trait)

    def _block(self, trait: str, block: int | None) -> int:
        if block is None:
            block = self.best_block.get(trait)
            if block is None:
                raise UnknownBlock(f"{trait!r} has no best block; pass block=... (one of {list(self.blocks)}).")
        return self.blocks.index(known_block(block, self.blocks, "The trace holds"))


def list_blocks(blocks: Sequence[int]) -> str:
    """Block numbers as text, or how many there are if more than four.

    >>> list_blocks([3]), list_blocks([2, 4]), list_blocks(range(30))
    ('block 3', 'blocks 2, 4', '30 blocks')
    """
    if len(blocks) > 4:
        return f"{len(blocks)} blocks"
    return f"block{'' if len(blocks) == 1 else 's'} {', '.join(map(str, blocks))}"
