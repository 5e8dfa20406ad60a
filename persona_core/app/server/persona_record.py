"""The field `persona` of completions and chunks: what was read while a reply was written."""

from __future__ import annotations

import math
from typing import Any

from persona_core.app.server.writer import Reply, Token
from persona_core.models.detokenize import well_formed
from persona_core.traces.provenance import short_name
from persona_core.traces.trace import UNITS, Kind, Trace
from persona_core.vectors.vectors import PersonaVectors

Record = dict[str, Any]


def kind_of(vectors: PersonaVectors) -> Kind:
    """The kind of the scores: the default of the vectors' traces."""
    return "specific" if vectors.has_specific else "z" if vectors.null else "cosine"


def head(reply: Reply) -> Record:
    """Said once, before the first token: what the numbers mean, and the rate of the detectors."""
    vectors = reply.writer.monitor.vectors
    kind = kind_of(vectors)
    return {
        "kind": kind,
        "unit": UNITS[kind],
        "traits": list(reply.traits),
        "blocks": {trait: int(vectors.best_block[trait]) for trait in reply.traits},
        "vectors": vectors.fingerprint,
        "rate": reply.watch.rate,
        "seed": reply.live.seed,
    }


def of_token(reply: Reply, token: Token) -> Record:
    """A token's scores, null where its state says nothing; and the events at it."""
    live = token.live
    scores = {trait: live.scores[trait] for trait in reply.traits}
    record = {
        "token": live.step.index,
        "id": live.step.token_id,
        "text": well_formed(live.step.text),
        "role": live.role,
        "scores": {trait: round(value, 4) if math.isfinite(value) else None for trait, value in scores.items()},
    }
    return record | ({"events": list(token.events)} if token.events else {})


def tail(reply: Reply, trace: Trace | None, found: Record) -> Record:
    """After the last token: the final onsets, and what else is to be known of the reply."""
    record = {**found, "notice": reply.notice, "finish": reply.finish or "stopped"}
    if trace is None:
        return record
    known = trace.provenance
    return {
        **record,
        "steering": [dict(one) for one in known.steering],
        "sampling": None if known.sampling is None else dict(known.sampling),
        "reader": known.reading_model and short_name(known.reading_model),
        "writer": known.writer and short_name(known.writer),
    }
