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
from persona_core.traces.specific import LogOdds, specific_scores
from persona_core.utils.checks import known_block
from persona_core.utils.files import read_json

if TYPE_CHECKING:
    import plotly.graph_objects as go

Kind = Literal["specific", "z", "raw", "cosine"]
Alignment = Literal["at", "before"]
FORMAT_VERSION = 1
JSON_FIELDS = ("sampling", "steering", "written", "versions")
"""Fields of a provenance that a row stores as JSON texts, because their shape varies."""
UNITS = {
    "specific": "standard deviations above neutral, beyond what the other traits share",
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
        max_norm: ‖h‖ above which a token is a sink token, float32 `[n_blocks]`; infinite where no limit is known.
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
    max_norm: np.ndarray | None = None
    log_odds: LogOdds | None = None

    def __post_init__(self) -> None:
        n = len(self.token_ids)
        if self.max_norm is None:
            object.__setattr__(self, "max_norm", np.full(len(self.blocks), np.inf, np.float32))
        shape = (len(self.traits), len(self.blocks), n)
        nulls = {self.null_mean.shape, self.null_std.shape}
        if nulls != {shape[:2]}:
            raise CorruptFile(f"A trace of shape {shape} needs a null of {shape[:2]}; got {sorted(nulls)}.")
        if self.log_odds is not None and self.log_odds.shape != shape[:2]:
            raise CorruptFile(f"A trace of shape {shape} needs log odds of {shape[:2]}; got {self.log_odds.shape}.")
        if self._max_norm.shape != shape[1:2]:
            raise CorruptFile(f"A trace of {shape[1]} blocks needs as many norm limits; got {self._max_norm.shape}.")
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
    def _max_norm(self) -> np.ndarray:
        assert self.max_norm is not None  # set by __post_init__
        return self.max_norm

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

    @property
    def sinks(self) -> np.ndarray:
        """Which tokens are sink tokens at which block, bool `[n_blocks, n_tokens]`.

        A sink token's state has a norm far outside the block's own range. It is shown and kept in `raw`, but no mean,
        null or comparison counts it.
        """
        with np.errstate(invalid="ignore"):
            return self.norms > self._max_norm[:, None]

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
                two only. None takes `default_kind`.
            block: which block; None takes the trait's best block.
            alignment: "at": the state after reading token t. "before": the state at t - 1, which chose token t; NaN
                at token 0, which no state chose.

        Raises:
            UnknownTrait, UnknownBlock: the trace does not have it.
            NotCalibrated: kind="z" or "specific" without what it needs.
        """
        row, column = self._trait(trait), self._block(trait, block)
        kind = kind or self.default_kind
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
        return specific_scores(self.raw[:, column], known)[row]

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
        values = self.scores(trait, kind, block)
        sink = self._aligned(self.sinks[self._block(trait, block)], "at", False)
        return np.where(sink, np.float32(np.nan), values)[self.reply_positions]

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
        """What scores are by default: specific, or z with a null only, else the cosine, or raw without norms."""
        if self.calibrated and self.log_odds is not None and bool((self.log_odds.std > 0).all()):
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
        record = {f.name: getattr(self, f.name) for f in fields(self)}
        record |= {name: _nested(record[name]) for name in ("raw", "norms", "null_mean", "null_std")}
        record["max_norm"] = _finite(self._max_norm)
        record["log_odds"] = self.log_odds and {k: _nested(v) for k, v in vars(self.log_odds).items()}
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
                max_norm=_limits(record.get("max_norm")),
                log_odds=_log_odds(record.get("log_odds"), (n_traits, n_blocks)),
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
        z, specific = ({t: _stored(self, t, kind) for t in self.traits} for kind in ("z", "specific"))
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
            "specific": {t: None if v is None else v.tolist() for t, v in specific.items()},
            "summary": {t: _summary(self, t) for t in self.traits},
            "traits": list(self.traits),
            "blocks": list(self.blocks),
            "best_block": {t: self.best_block.get(t) for t in self.traits},
            "raw": {t: self.raw[i].tolist() for i, t in enumerate(self.traits)},
            "norms": self.norms.tolist(),
            "null_mean": {t: self.null_mean[i].tolist() for i, t in enumerate(self.traits)},
            "null_std": {t: self.null_std[i].tolist() for i, t in enumerate(self.traits)},
            "max_norm": _finite(self._max_norm),
            "log_odds": None
            if self.log_odds is None
            else {t: [part[i].tolist() for part in vars(self.log_odds).values()] for i, t in enumerate(self.traits)},
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
                max_norm=_limits(row.get("max_norm")),
                log_odds=_log_odds_of_row(row.get("log_odds"), traits, shape),
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


def _finite(limits: np.ndarray) -> list[float | None]:
    """Norm limits with None where there is none."""
    return [float(limit) if np.isfinite(limit) else None for limit in limits]


def _limits(values: Sequence[float | None] | None) -> np.ndarray | None:
    return None if values is None else np.array([np.inf if v is None else v for v in values], np.float32)


def _log_odds(record: Mapping[str, Any] | None, shape: tuple[int, int]) -> LogOdds | None:
    return None if record is None else LogOdds(**{k: _array(v, shape) for k, v in record.items()})


def _log_odds_of_row(row: Mapping[str, Any] | None, traits: Sequence[str], shape: tuple[int, int]) -> LogOdds | None:
    if row is None or any(row.get(t) is None for t in traits):
        return None
    parts = np.array([row[t] for t in traits], np.float32).reshape(shape[0], 4, shape[1])
    return LogOdds(*(parts[:, i] for i in range(4)))


def _stored(trace: Trace, trait: str, kind: Kind) -> np.ndarray | None:
    """A score at the trait's best block, float32 `[n_tokens]`; None without what it needs."""
    try:
        return trace.scores(trait, kind, alignment=trace.alignment)
    except (NotCalibrated, UnknownBlock):
        return None


def _summary(trace: Trace, trait: str) -> dict[str, Any]:
    """Mean and maximum of the default score over the reply's tokens, sinks left out, and where the maximum is."""
    nothing = {"mean": None, "max": None, "at": None}
    if _stored(trace, trait, "z") is None:
        return nothing
    values = trace.reply_scores(trait)
    if not np.isfinite(values).any():
        return nothing
    top = int(np.nanargmax(values))
    return {
        "mean": float(np.nanmean(values)),
        "max": float(values[top]),
        "at": trace.reply_positions[top] - trace.n_prompt,
    }
