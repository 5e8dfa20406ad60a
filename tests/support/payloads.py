"""What a payload must hold for the token view to show it, written down apart from the code that makes one."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np

from persona_core.errors import CorruptFile
from persona_core.traces.view.payload import ARRAYS, VERSION, Payload

PER_TOKEN = ("tokens", "ids", "roles", "special")
OF_SIDE = ("name", *PER_TOKEN, "n_prompt", "blocks", "alignment", *ARRAYS, "done")
REQUIRED = ("title", "traits", "best", "sides")


def check_payload(payload: Any) -> Payload:
    """Return `payload` if the view can show it.

    Raises:
        CorruptFile: a key is missing, a list or an array has another length than the tokens, the version is unknown.
    """
    if not isinstance(payload, dict):
        raise CorruptFile(f"A payload is a JSON object, not {type(payload).__name__}.")
    if payload.get("version") != VERSION:
        raise CorruptFile(f"Unknown payload version {payload.get('version')!r}; this code reads version {VERSION}.")
    if missing := [key for key in REQUIRED if key not in payload]:
        raise CorruptFile(f"The payload lacks {', '.join(missing)}.")
    if len(payload["sides"]) not in (1, 2):
        raise CorruptFile(f"The payload has {len(payload['sides'])} sides; expected one or two.")
    for side in payload["sides"]:
        if missing := [key for key in OF_SIDE if key not in side]:
            raise CorruptFile(f"The payload's side lacks {', '.join(missing)}.")
        n_tokens, n_blocks, n_traits = len(side["tokens"]), len(side["blocks"]), len(payload["traits"])
        sizes = {"raw": n_traits * n_blocks * n_tokens, "norms": n_blocks * n_tokens, "max_norm": n_blocks}
        expected = dict.fromkeys(PER_TOKEN, n_tokens) | dict.fromkeys(ARRAYS, n_traits * n_blocks) | sizes
        found = {key: len(side[key]) if key in PER_TOKEN else len(unpacked(side[key])) for key in expected}
        if side.get("log_odds"):
            expected["log_odds"], found["log_odds"] = 4 * n_traits * n_blocks, len(unpacked(side["log_odds"]))
        if wrong := {key: size for key, size in found.items() if size != expected[key]}:
            raise CorruptFile(f"The payload has {n_tokens} tokens, but other lengths in {wrong}.")
    return payload


def unpacked(text: str) -> np.ndarray:
    """The numbers of an array of a payload, float32, flat.

    Raises:
        CorruptFile: not base64 of float32.
    """
    try:
        return np.frombuffer(base64.b64decode(text, validate=True), "<f4")
    except (TypeError, ValueError, binascii.Error) as error:
        raise CorruptFile(f"An array of the payload is not base64 of float32: {error}") from error
