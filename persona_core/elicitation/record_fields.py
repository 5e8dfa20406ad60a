"""What the fields of stored requests, replies and scores may hold."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from persona_core.utils.checks import is_integer
from persona_core.utils.fields import COUNT, COUNT_OR_NULL, SCORE, TEXT, TEXT_OR_NULL, Field, is_count, is_text

FORMER_SIDES = {"high": "positive", "low": "negative"}
"""What older folders call the sides; they also name the file of cross-trait scores across.jsonl. Both are read."""


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(m, dict) and is_text(m.get("role")) and is_text(m.get("content")) for m in value
    )


SPLITS = ("extraction", "evaluation", "neutral")
SIDES = ("positive", "negative", "neutral", *FORMER_SIDES)
REQUEST_FIELDS = {
    "index": COUNT,
    "split": Field(lambda value: value in SPLITS, f"one of {', '.join(SPLITS)}"),
    "trait": TEXT_OR_NULL,
    "side": Field(lambda value: value in SIDES, f"one of {', '.join(SIDES)}"),
    "pair": COUNT_OR_NULL,
    "question": COUNT,
    "rollout": COUNT,
    "system": TEXT_OR_NULL,
    "user": TEXT,
    "conversation": Field(
        lambda value: value is None or _is_conversation(value), "a list of messages, or null", needed=False
    ),
}
REPLY_FIELDS = {
    "request": Field(lambda value: isinstance(value, dict), "a request"),
    "text": TEXT,
    # Sets of types and extremes: ten times as fast as a check of each id, of which a folder holds millions.
    "token_ids": Field(
        lambda value: (
            isinstance(value, list)
            and set(map(type, value)) <= {int}
            and all(map(is_count, (min(value, default=0), max(value, default=0))))
        ),
        "a list of token ids",
    ),
    "n_tokens": COUNT,
    "finish": TEXT,
    "seed": Field(is_integer, "an integer"),
    "writer": TEXT,
    # The name of a file, so nothing that leads to another folder.
    "batch": Field(
        lambda value: is_text(value) and re.fullmatch(r"[\w.-]{0,200}", value, re.ASCII) is not None,
        "the name of a file in states",
        needed=False,
    ),
    "row": replace(COUNT, needed=False),
    "answer_start": replace(COUNT, needed=False),
}
SCORE_FIELDS = {"index": COUNT, "trait": SCORE, "coherence": SCORE, "how": TEXT, "of": replace(TEXT, needed=False)}
CROSS_TRAIT_FIELDS = {"index": COUNT, "trait": TEXT, "value": SCORE, "of": replace(TEXT, needed=False)}
IDS_OR_NULL = Field(
    lambda value: value is None or (isinstance(value, list) and all(is_count(i) for i in value)),
    "a list of token ids, or null",
    needed=False,
)
SERVED_FIELDS = {
    "index": COUNT,
    "text": TEXT,
    "finish": TEXT,
    "thought": replace(TEXT_OR_NULL, needed=False),
    "token_ids": IDS_OR_NULL,
}
