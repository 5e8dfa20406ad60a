"""A trace: one conversation as read by one model. Arrays and text only; independent of the model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from persona_core.errors import CorruptFile, NotCalibrated, NotFound, SettingError, UnknownBlock, UnknownTrait
from persona_core.models.detokenize import well_formed
from persona_core.traces.provenance import Provenance
from persona_core.utils.checks import known_block
from persona_core.utils.files import read_json

if TYPE_CHECKING:
    import plotly.graph_objects as go

Kind = Literal["z", "raw", "cosine"]
Alignment = Literal["at", "before"]
FORMAT_VERSION = 1
JSON_FIELDS = ("sampling", "steering", "written", "versions")
"""Fields of a provenance that a row stores as JSON texts, because their shape varies."""
UNITS = {"z": "standard deviations above neutral", "raw": "residual-stream units", "cosine": "cosine"}


@dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """One conversation with a projection for every token, trait and block.

    `raw[..., t]` is the state *at* token t, after the model has read it: the last token is read too. (Only imported
    files of other tools may have the state before token t; `alignment` records it, and `scores` accounts for it.)

    Attributes:
        token_ids: `[n_tokens]`, prompt and reply.
        tokens: display pieces; they join to the exact decoded text.
        roles: "system", "user", "assistant" or "template" for each token.
        n_prompt: tokens before the reply.
        traits: names, in the order of `raw`'s first axis.
        blocks: block numbers, in the order of `raw`'s second axis.
        raw: (h·v)/‖v‖, float32 `[n_traits, n_blocks, n_tokens]`, residual-stream units.
        norms: ‖h‖, float32 `[n_blocks, n_tokens]`.
        best_block: trait -> the block at which it is read by default.
        null_mean, null_std: of the raw projection over neutral replies, float32 `[n_traits, n_blocks]`; NaN without
            a null.
        special: whether each token is a special token of the tokenizer.
        finish: "eos", "length", "context", "stopped" (by the caller) or "read" (nothing was generated).
        provenance: writer, reader and settings.
        alignment: of `raw` and `norms`; "at" for every trace that this library reads.
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

    def __post_init__(self) -> None:
        n = len(self.token_ids)
        shape = (len(self.traits), len(self.blocks), n)
        nulls = {self.null_mean.shape, self.null_std.shape}
        if nulls != {shape[:2]}:
            raise CorruptFile(f"A trace of shape {shape} needs a null of {shape[:2]}; got {sorted(nulls)}.")
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
        """Positions of the tokens that the assistant said: the reply without end-of-turn tokens."""
        return [t for t in range(self.n_prompt, self.n_tokens) if self.roles[t] == "assistant"]

    @property
    def reply_text(self) -> str:
        """What the assistant said, without end-of-turn tokens."""
        return "".join(self.tokens[t] for t in self.reply_positions)

    @property
    def text(self) -> str:
        """The whole conversation as decoded, including special tokens."""
        return "".join(self.tokens)

    def scores(self, trait: str, kind: Kind = "z", block: int | None = None, alignment: Alignment = "at") -> np.ndarray:
        """One trait's score at every token, float32 `[n_tokens]`.

        Args:
            trait: which trait.
            kind: "z": (raw - mean) / sd over the tokens of neutral replies of the same model, at this trait and block
                (at prompt and template tokens the unit is the same, but the spread is not 1); "raw": residual-stream
                units; "cosine": between state and vector. Only for z is zero neutral.
            block: which block; None takes the trait's best block.
            alignment: "at": the state after reading token t. "before": the state at t - 1, which chose token t; NaN
                at token 0, which no state chose.

        Raises:
            UnknownTrait, UnknownBlock: the trace does not have it.
            NotCalibrated: kind="z" without a null.
        """
        row, column = self._trait(trait), self._block(trait, block)
        values = self.raw[row, column].astype(np.float32)  # [n_tokens]
        if kind == "z":
            mean, std = self.null_mean[row, column], self.null_std[row, column]
            if not np.isfinite(mean) or not std > 0:
                raise NotCalibrated(
                    f"No null for {trait!r} at block {self.blocks[column]}: z scores need calibrated vectors. "
                    "Use kind='raw' or kind='cosine'."
                )
            values = (values - mean) / std
        elif kind == "cosine":
            norms = self.norms[column]
            values = np.divide(values, norms, out=np.zeros_like(values), where=norms != 0)
        elif kind != "raw":
            raise SettingError(f"kind={kind!r}; expected 'z', 'raw' or 'cosine'.")
        if alignment not in ("at", "before"):
            raise SettingError(f"alignment={alignment!r}; expected 'at' or 'before'.")
        unknown = np.full(min(1, len(values)), np.nan, np.float32)
        if (self.alignment, alignment) == ("at", "before"):
            values = np.concatenate([unknown, values[:-1]])
        elif (self.alignment, alignment) == ("before", "at"):  # the last token was never read
            values = np.concatenate([values[1:], unknown])
        return values.astype(np.float32)

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

    @property
    def default_kind(self) -> Kind:
        """The default for display: z with a null, else the cosine, or raw without norms."""
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
        record = {f.name: getattr(self, f.name) for f in fields(self)}
        record |= {name: _nested(record[name]) for name in ("raw", "norms", "null_mean", "null_std")}
        record |= {"best_block": dict(self.best_block), "provenance": asdict(self.provenance)}
        return {"format_version": FORMAT_VERSION, **record}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Trace:
        """The inverse of `to_dict`.

        Raises:
            CorruptFile: another format version, a missing field, lengths that do not fit.
        """
        version = record.get("format_version") if isinstance(record, Mapping) else None
        if version != FORMAT_VERSION:
            raise CorruptFile(f"Trace format_version is {version!r}; this library reads {FORMAT_VERSION}.")
        try:
            n_traits, n_blocks, n = (len(record[k]) for k in ("traits", "blocks", "token_ids"))
            provenance = dict(record["provenance"])
            provenance["steering"] = tuple(provenance.get("steering", ()))
            return cls(
                **{k: tuple(record[k]) for k in ("token_ids", "tokens", "roles", "traits", "blocks", "special")},
                n_prompt=int(record["n_prompt"]),
                raw=_array(record["raw"], (n_traits, n_blocks, n)),
                norms=_array(record["norms"], (n_blocks, n)),
                best_block=dict(record["best_block"]),
                null_mean=_array(record["null_mean"], (n_traits, n_blocks)),
                null_std=_array(record["null_std"], (n_traits, n_blocks)),
                finish=str(record["finish"]),
                provenance=Provenance(**provenance),
                alignment=record["alignment"],
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CorruptFile(f"Not a trace: {type(error).__name__}: {error}") from error

    def to_row(
        self, id: str, messages: Sequence[Mapping[str, str]], set: str = "", category: str = ""
    ) -> dict[str, Any]:
        """A row of a results dataset; `from_row` restores the trace bit for bit.

        Args:
            id: of the prompt.
            messages: the conversation before the reply.
            set, category: of the prompt.
        """
        known = asdict(self.provenance)
        z = {t: _z(self, t) for t in self.traits}
        return {
            "id": id,
            "set": set,
            "category": category,
            "messages": [{k: well_formed(v) for k, v in m.items()} for m in messages],
            "prompt": well_formed(messages[-1]["content"]) if messages else "",
            "response": well_formed(self.reply_text),
            "reader": self.provenance.reading_model,
            "writer": self.provenance.writer,
            "n_prompt": self.n_prompt,
            "n_reply": len(self.reply_positions),
            "finish": self.finish,
            "tokens": [well_formed(t) for t in self.tokens],
            "roles": list(self.roles),
            "token_ids": list(self.token_ids),
            "special": list(self.special),
            "projections": {t: None if v is None else v.tolist() for t, v in z.items()},
            "summary": {t: _summary(self, v) for t, v in z.items()},
            "traits": list(self.traits),
            "blocks": list(self.blocks),
            "best_block": {t: self.best_block.get(t) for t in self.traits},
            "raw": {t: self.raw[i].tolist() for i, t in enumerate(self.traits)},
            "norms": self.norms.tolist(),
            "null_mean": {t: self.null_mean[i].tolist() for i, t in enumerate(self.traits)},
            "null_std": {t: self.null_std[i].tolist() for i, t in enumerate(self.traits)},
            "alignment": self.alignment,
            "provenance": {k: json.dumps(v, sort_keys=True) if k in JSON_FIELDS else v for k, v in known.items()},
        }

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
        try:
            known = {
                k: json.loads(v) if k in JSON_FIELDS and v is not None else v for k, v in row["provenance"].items()
            }
            known["steering"] = tuple(known.get("steering") or ())
            known["versions"] = known.get("versions") or {}
            traits, blocks, n = tuple(row["traits"]), tuple(row["blocks"]), len(row["tokens"])
            shape = (len(traits), len(blocks))

            def null(name: str) -> np.ndarray:
                return np.array([row[name][t] for t in traits], np.float32).reshape(shape)

            return cls(
                token_ids=tuple(row["token_ids"]),
                tokens=tuple(row["tokens"]),
                roles=tuple(row["roles"]),
                n_prompt=int(row["n_prompt"]),
                traits=traits,
                blocks=blocks,
                raw=np.array([row["raw"][t] for t in traits], np.float32).reshape(*shape, n),
                norms=np.array(row["norms"], np.float32).reshape(len(blocks), n),
                best_block={t: b for t, b in row["best_block"].items() if b is not None},
                null_mean=null("null_mean"),
                null_std=null("null_std"),
                special=tuple(row["special"]),
                finish=row["finish"],
                provenance=Provenance(**known),
                alignment=row["alignment"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptFile(f"Not a row of a results dataset: {type(error).__name__}: {error}") from error

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


def _nested(array: np.ndarray) -> Any:
    """Nested lists with None for NaN, which JSON lacks."""
    nested = array.astype(object)
    nested[np.isnan(array)] = None
    return nested.tolist()


def _array(nested: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(nested, dtype=np.float32)
    if 0 in shape:  # nested lists lose the length behind an empty axis
        array = array.reshape(shape)
    if array.shape != shape:
        raise ValueError(f"expected numbers of shape {shape}, got {array.shape}")
    return array


def _z(trace: Trace, trait: str) -> np.ndarray | None:
    """z at the trait's best block, float32 `[n_tokens]`; None without a null, or if the block was not read."""
    block = trace.best_block.get(trait)
    if block not in trace.blocks or not trace.calibrated:
        return None
    return trace.scores(trait, alignment=trace.alignment)


def _summary(trace: Trace, z: np.ndarray | None) -> dict[str, Any]:
    """Mean and maximum of z over the reply tokens, and the index of the maximum in the reply."""
    reply = trace.reply_positions
    if z is None or not reply:
        return {"mean": None, "max": None, "at": None}
    values = z[reply]
    if not np.isfinite(values).any():
        return {"mean": None, "max": None, "at": None}
    top = int(np.nanargmax(values))
    return {"mean": float(np.nanmean(values)), "max": float(values[top]), "at": reply[top] - trace.n_prompt}
