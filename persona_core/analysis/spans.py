"""Where a trait is strongest: the windows or sentences of replies with the highest mean score.

The scores are specific to the trait where the traces have it, else z. Sink tokens are passed over: a span does not end
at one, and its mean leaves it out.

A search over many windows always finds high ones, so each span can be compared with neutral replies that were searched
in the same way: `unusual` is the share of stretches of neutral text, with as many windows as the reply has, whose
*highest* window is as high. In a neutral reply it is uniform between 0 and 1; the lowest of m such replies is expected
at 1 / (m + 1).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from persona_core.analysis.comparison import token_differences
from persona_core.analysis.paired_rows import null_of
from persona_core.analysis.series import checked_replies, refuse_smoothed, shared_kind
from persona_core.errors import SettingError
from persona_core.traces.trace import Kind, Trace

MAX_WIDTH = 100

_END = re.compile(r"[.!?…]+[\"'”’)\]*_]*(?=\s)|[。！？]+[”’」』）]*|\n")
Cut = list[tuple[int, int]]  # first and last + 1, counted over the reply tokens


@dataclass(frozen=True)
class Span:
    """A stretch of a reply.

    Attributes:
        id: of the reply.
        trait: which.
        start, end: positions in the trace; `end` is the position after the last token.
        text: what it says.
        value: mean over its tokens that are not sink tokens, in standard deviations.
        unusual: see the module; None without neutral replies, or with too few for one such stretch.
    """

    id: str
    trait: str
    start: int
    end: int
    text: str
    value: float
    unusual: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return {k: round(v, 5) if isinstance(v, float) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class TopSpans:
    """The result of a search.

    Attributes:
        spans: highest first; no two overlap.
        n_replies: replies searched.
        n_candidates: windows or sentences in them, except those of nothing but sink tokens.
        too_short: replies shorter than the window, or with nothing but sink tokens.
    """

    spans: tuple[Span, ...]
    n_replies: int
    n_candidates: int
    too_short: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "spans": [s.to_dict() for s in self.spans], "too_short": list(self.too_short)}


@dataclass(frozen=True, eq=False)
class ReplySeries:
    """A reply with one number for each reply token.

    Attributes:
        id: of the reply.
        trait: which.
        trace: the reply as read.
        values: `[n_reply_tokens]`, unsmoothed; NaN at sink tokens.
        kind: of the score, and its vectors, block and null, and whether the numbers are differences. Different kinds
            are not compared.
    """

    id: str
    trait: str
    trace: Trace
    values: np.ndarray
    kind: tuple[Any, ...]


def score_series(traces: Mapping[str, Trace], trait: str, kind: Kind | None = None) -> list[ReplySeries]:
    """Scores of each reply's tokens at the trait's best block.

    Args:
        traces: by the id of the prompt, all of one reader.
        trait: which.
        kind: of score; None: "specific" where all traces have it, else "z". Neutral replies need the same kind.

    Raises:
        SettingError: traces of different readers, vectors or blocks; a score that is not finite; smoothed scores.
    """
    kind = kind or shared_kind(traces.values())
    scores = checked_replies(list(traces.values()), trait, kind, list(traces))
    refuse_smoothed(scores)
    return [
        ReplySeries(id, trait, trace, values, ("scores", *_kind(trace, trait, kind)))
        for (id, trace), values in zip(traces.items(), scores, strict=True)
    ]


def difference_series(traces_a: Mapping[str, Trace], traces_b: Mapping[str, Trace], trait: str) -> list[ReplySeries]:
    """b's score minus a's, at the tokens of replies that both have read; NaN where one of them has a sink token.

    Args:
        traces_a, traces_b: by the id of the prompt; the two traces of an id have the same token ids.

    Raises:
        SettingError: no id in common, or two readings that cannot be compared.
    """
    shared = [i for i in traces_a if i in traces_b]
    if not shared:
        raise SettingError("The two readings share no prompt.")
    return [
        ReplySeries(
            i,
            trait,
            traces_b[i],
            token_differences(traces_a[i], traces_b[i], trait)[traces_b[i].reply_positions],
            ("differences", *_kind(traces_b[i], trait, shared_kind((traces_a[i], traces_b[i])))),
        )
        for i in shared
    ]


def top_windows(
    series: Sequence[ReplySeries], width: int, n: int = 10, neutral: Sequence[ReplySeries] = ()
) -> TopSpans:
    """The `n` highest windows of `width` tokens. Windows that overlap a higher one of the same reply are left out.

    Args:
        series: of one reply or of many; see `score_series` and `difference_series`.
        width: tokens of a window, 1 to 100. Shorter replies are listed in the result.
        n: at most this many.
        neutral: the same of neutral replies.

    Raises:
        SettingError: a width or number out of range, or neutral series of another kind.
    """
    if not 1 <= width <= MAX_WIDTH:
        raise SettingError(f"width={width}; expected 1 to {MAX_WIDTH} tokens.")
    return _top(series, lambda s: [(k, k + width) for k in range(len(s.values) - width + 1)], n, neutral)


def top_sentences(series: Sequence[ReplySeries], n: int = 10, neutral: Sequence[ReplySeries] = ()) -> TopSpans:
    """The `n` highest sentences.

    Args:
        series, n, neutral: as for `top_windows`.

    Raises:
        SettingError: as `top_windows`.
    """
    return _top(series, lambda s: sentence_tokens([s.trace.tokens[t] for t in s.trace.reply_positions]), n, neutral)


# ---- sentences ----


def sentences(text: str) -> list[tuple[int, int]]:
    """Characters `start` to `end` of each sentence; together they are the whole text.

    A sentence ends after . ! ? or … before white space, after 。！？, or at the end of a line. White space between
    sentences belongs to the one after it, at the end of the text to the last. A piece without a letter
    ("1.", "- ", "...") joins the sentence after it. The rule is simple: "Dr. No" is cut in two.

    >>> text = "Yes. It is 3.5 m!  Really?\\n1. No"
    >>> [text[a:b] for a, b in sentences(text)]
    ['Yes.', ' It is 3.5 m!', '  Really?', '\\n1. No']
    """
    ends = [found.start() if found[0] == "\n" else found.end() for found in _END.finditer(text)]
    cut: list[tuple[int, int]] = []
    start = 0
    for end in [*ends, len(text)]:
        if any(c.isalpha() for c in text[start:end]):
            cut.append((start, end))
            start = end
    if start < len(text):  # only digits, punctuation and white space are left
        cut = [*cut[:-1], (cut[-1][0], len(text))] if cut else [(0, len(text))]
    return cut


def piece_ends(pieces: Sequence[str]) -> np.ndarray:
    """The character that decides where each display piece belongs: its last, `[n_pieces]`.

    A piece that straddles two sentences (". " and a letter) belongs to the one with its last character. An empty piece
    is part of a character that a later token completes, and belongs there.

    >>> piece_ends(["a.", " B", "", "c"]).tolist()
    [1, 3, 4, 4]
    """
    ends = np.cumsum([len(p) for p in pieces], dtype=int)
    empty = np.array([not p for p in pieces], bool)
    return np.minimum(np.where(empty, ends, ends - 1), max(int(ends[-1]) - 1, 0) if len(ends) else 0)


def sentence_tokens(pieces: Sequence[str]) -> Cut:
    """The sentences of a reply in tokens: first and last + 1, in order, covering every token.

    Args:
        pieces: display pieces of the reply tokens; they join to its text.
    """
    spans = sentences("".join(pieces))
    which = np.searchsorted([start for start, _ in spans], piece_ends(pieces), side="right") - 1  # [n_pieces]
    edges = [0, *(np.flatnonzero(np.diff(which)) + 1).tolist(), len(pieces)]
    return [(a, b) for a, b in pairwise(edges) if b > a]


# ---- the search ----


def _top(
    series: Sequence[ReplySeries], cut: Callable[[ReplySeries], Cut], n: int, neutral: Sequence[ReplySeries]
) -> TopSpans:
    if n < 1:
        raise SettingError(f"n={n}; it must be at least 1.")
    kinds = {(s.trait, s.kind) for s in (*series, *neutral)}
    if len(kinds) > 1:
        raise SettingError(
            "The series have different traits, kinds of score, vectors, blocks or nulls; search them separately."
        )
    cuts = [_with_evidence(s.values, cut(s)) for s in series]
    values = [_means(s.values, own) for s, own in zip(series, cuts, strict=True)]  # each [n_windows]
    reply = np.repeat(np.arange(len(series)), [len(v) for v in values])
    index = np.concatenate([np.arange(len(v)) for v in values]) if values else np.zeros(0, int)
    flat = np.concatenate(values) if values else np.zeros(0)
    null = [_means(s.values, _with_evidence(s.values, cut(s))) for s in neutral]
    flat_null = np.concatenate(null) if null else np.zeros(0)

    taken: dict[int, Cut] = {}
    spans: list[Span] = []
    for k in np.argsort(-flat, kind="stable"):  # stable: of equal ones the first stays first
        if len(spans) == n:
            break
        r = int(reply[k])
        first, end = cuts[r][index[k]]
        if any(first < b and a < end for a, b in taken.get(r, [])):
            continue
        taken.setdefault(r, []).append((first, end))
        s, own = series[r], series[r].trace.reply_positions
        text = "".join(s.trace.tokens[t] for t in own[first:end])
        value = float(flat[k])
        unusual = _share_as_high(value, flat_null, len(values[r]))
        spans.append(Span(s.id, s.trait, own[first], own[end - 1] + 1, text, value, unusual))
    short = tuple(s.id for s, own in zip(series, cuts, strict=True) if not own)
    return TopSpans(tuple(spans), len(series), len(flat), short)


def _with_evidence(values: np.ndarray, cut: Cut) -> Cut:
    """The stretches with at least one token that is not a sink token."""
    known = np.concatenate([[0], np.cumsum(np.isfinite(values))])
    return [(first, end) for first, end in cut if known[end] > known[first]]


def _means(values: np.ndarray, cut: Cut) -> np.ndarray:
    """Mean over each stretch without its sink tokens, `[n_stretches]`."""
    # By cumulative sums: a loop over windows of 100 tokens takes 50 times as long; float64 keeps 12 digits.
    sums = np.concatenate([[0.0], np.cumsum(np.nan_to_num(values))])
    known = np.concatenate([[0], np.cumsum(np.isfinite(values))])
    first, end = (np.array([c[i] for c in cut], int) for i in (0, 1))
    return (sums[end] - sums[first]) / (known[end] - known[first])


def _share_as_high(value: float, null: np.ndarray, n: int) -> float | None:
    """Share of stretches of `n` neutral windows whose highest is as high, counting the reply itself as one.

    Neutral replies are concatenated and cut into stretches of `n` windows, because a longer reply has a higher maximum
    by its length alone.
    """
    k = len(null) // n if n else 0
    if not k:
        return None
    highest = null[: k * n].reshape(k, n).max(1)  # [k]
    return float((1 + (highest >= value).sum()) / (1 + k))


def _kind(trace: Trace, trait: str, kind: Kind) -> tuple[Any, ...]:
    return kind, trace.provenance.vectors, trace.best_block[trait], null_of(trace, trait, kind)
