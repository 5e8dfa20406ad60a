"""The app's settings, read from environment variables."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from persona_core.errors import SettingError
from persona_core.models.detokenize import is_well_formed
from persona_core.utils.artifact_sets import DEMO, SET_KEYS, ArtifactSet, artifact_sets

ARTIFACTS = Path(__file__).resolve().parents[2] / "artifacts"

NOTHING_TO_SHOW = (
    "No artifacts/ here to show. Set PERSONA_MODEL (Hub id or folder) and PERSONA_VECTORS (`persona extract` makes "
    "them), and PERSONA_RESULTS if there are runs to show; or PERSONA_SETS for several models."
)


@dataclass(frozen=True)
class AppSettings:
    """What the app serves and where.

    Attributes:
        model: the baseline (PERSONA_MODEL). This and the next three are Hub ids, optionally with "@" and a revision, or
            folders; the demo's are the default. None: the model that the vectors were made on.
        adapter: PEFT adapter that makes it the contaminated model (PERSONA_ADAPTER); None, or "none": only the
            baseline.
        vectors: persona vectors of the baseline (PERSONA_VECTORS).
        results: dataset with the first view (PERSONA_RESULTS); None, or "none": the app opens empty.
        blocks: "all", or "best" to read each trait at its best block only, which takes less memory and bandwidth
            (PERSONA_BLOCKS); "best" is the default if PERSONA_MODEL is set.
        static_cache: generate with a static key-value cache, on a GPU as one CUDA graph (PERSONA_STATIC_CACHE=1).
        max_new_tokens: the longest reply that visitors can request (PERSONA_MAX_NEW_TOKENS).
        max_prompt_chars: the longest prompt or system prompt, in characters (PERSONA_MAX_PROMPT_CHARS).
        max_read_chars: the longest text that visitors can paste, in characters (PERSONA_MAX_READ_CHARS).
        max_seconds: how long one run may use the model (PERSONA_MAX_SECONDS); it then ends with what it has.
        max_queue: runs that may wait for the model (PERSONA_MAX_QUEUE), half of them from one address; further ones are
            rejected.
        open_models: whether visitors may name a public Hub model (PERSONA_OPEN_MODELS=1).
        max_model_gb: the largest weights of such a model, in GB (PERSONA_MAX_MODEL_GB).
        open_model_gb: memory that its process may take, in GB (PERSONA_OPEN_MODEL_GB).
        open_model_seconds: how long it may take to load, its download included (PERSONA_OPEN_MODEL_SECONDS).
        saved: folder in which replies that visitors save are kept, for links to them (PERSONA_SAVED); None: they cannot
            be saved.
        host, port: address to serve on (PERSONA_HOST, PERSONA_PORT); None leaves them to Gradio's variables.
    """

    model: str | None = str(ARTIFACTS / DEMO)
    adapter: str | None = str(ARTIFACTS / f"{DEMO}-contaminated")
    vectors: str = str(ARTIFACTS / f"persona-vectors-{DEMO}")
    results: str | None = str(ARTIFACTS / f"persona-monitoring-{DEMO}")
    blocks: str = "all"
    static_cache: bool = False
    max_new_tokens: int = 256
    max_prompt_chars: int = 4000
    max_read_chars: int = 20000
    max_seconds: int = 120
    max_queue: int = 20
    open_models: bool = False
    max_model_gb: int = 8
    open_model_gb: int = 12
    open_model_seconds: int = 300
    saved: str | None = None
    host: str | None = None
    port: int | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> AppSettings:
        """Read the settings; a variable that is unset or empty keeps the default.

        Raises:
            SettingError: not an integer of at least 1, not a port, or a switch that is neither on nor off.

        >>> AppSettings.from_environment({"PERSONA_MAX_NEW_TOKENS": "64"}).max_new_tokens
        64
        """
        found: dict[str, str | int | bool | None] = {}
        for name, kind in cls.__annotations__.items():
            text = environment.get(f"PERSONA_{name.upper()}", "").strip()
            if not text:
                continue
            if kind.startswith("int"):
                found[name] = _whole_number(f"PERSONA_{name.upper()}", text)
            elif kind == "bool":
                found[name] = _switch(f"PERSONA_{name.upper()}", text)
            else:
                found[name] = None if text == "none" and name in ("adapter", "results") else text
        port = found.get("port")
        if isinstance(port, int) and port > 65535:
            raise SettingError(f"PERSONA_PORT={port}; expected a port, 1 to 65535.")
        if "model" in found:  # the shipped artifacts belong to the shipped model
            if "vectors" not in found:
                raise SettingError(
                    f"PERSONA_MODEL={found['model']!r} needs vectors of that model: set PERSONA_VECTORS to a Hub "
                    "id or a folder (`persona extract` makes them)."
                )
            found = {"adapter": None, "results": None, "blocks": "best", **found}
        if found.get("blocks", "all") not in ("all", "best"):
            raise SettingError(f"PERSONA_BLOCKS={found['blocks']!r}; expected 'all' or 'best'.")
        return cls(**found)  # type: ignore[arg-type]


def sets_from_environment(environment: Mapping[str, str] = os.environ) -> dict[str, AppSettings]:
    """Settings for each model that the app serves, by name; the first is what the app opens on.

    One that PERSONA_MODEL, PERSONA_VECTORS, PERSONA_ADAPTER or PERSONA_RESULTS describe; else those of PERSONA_SETS,
    a JSON list of objects with the keys of `SET_KEYS`; else those whose folders are in `artifacts/`.

    Raises:
        SettingError: an invalid setting, both kinds, or none of all these.

    >>> sets = '[{"name": "mine", "model": "me/model", "vectors": "me/vectors", "results": "me/runs"}]'
    >>> found = sets_from_environment({"PERSONA_SETS": sets, "PERSONA_MAX_QUEUE": "5"})
    >>> found["mine"].vectors, found["mine"].adapter, found["mine"].max_queue
    ('me/vectors', None, 5)
    """
    known = AppSettings.from_environment(environment)
    text = environment.get("PERSONA_SETS", "").strip()
    single = [f"PERSONA_{key.upper()}" for key in SET_KEYS if environment.get(f"PERSONA_{key.upper()}", "").strip()]
    if single and text:
        raise SettingError(f"PERSONA_SETS and {single[0]} are both set; name the models in one of them.")
    if single:
        return {"": known}
    if text:
        return {name: replace(known, **of_set) for name, of_set in _sets(text).items()}
    found = artifact_sets(ARTIFACTS) if ARTIFACTS.is_dir() else ()
    if not found:
        raise SettingError(NOTHING_TO_SHOW)
    return {one.name: replace(known, **_folders(one)) for one in found}


def _folders(one: ArtifactSet) -> dict[str, Any]:
    found = {key: getattr(one, key) for key in SET_KEYS if key != "name"}
    return {key: None if path is None else str(path) for key, path in found.items()}


def _sets(text: str) -> dict[str, dict[str, Any]]:
    """The sets of PERSONA_SETS: name -> model, adapter, vectors and results."""
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingError(f"PERSONA_SETS is not JSON: {error}") from error
    if not isinstance(listed, list) or not listed:
        raise SettingError(f"PERSONA_SETS: expected a list of objects with the keys {', '.join(SET_KEYS)}.")
    found: dict[str, dict[str, Any]] = {}
    for one in listed:
        if not isinstance(one, dict) or set(one) - set(SET_KEYS):
            raise SettingError(f"PERSONA_SETS: {str(one)[:80]}; expected an object with keys of {', '.join(SET_KEYS)}.")
        if invalid := [k for k, v in one.items() if v is not None and not _is_text(v)]:
            raise SettingError(f"PERSONA_SETS: {invalid[0]!r} is {one[invalid[0]]!r}; expected text.")
        if not one.get("name") or not one.get("vectors"):
            raise SettingError(f"PERSONA_SETS: {str(one)[:80]} needs a name and vectors.")
        if one["name"] in found:
            raise SettingError(f"PERSONA_SETS: the name {one['name']!r} is there twice.")
        found[one["name"]] = {key: one.get(key) for key in SET_KEYS if key != "name"}
    return found


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and is_well_formed(value)


def _whole_number(variable: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise SettingError(f"{variable}={text!r}; expected an integer of at least 1.")
    return int(text)


def _switch(variable: str, text: str) -> bool:
    if text.lower() not in ("1", "true", "0", "false"):
        raise SettingError(f"{variable}={text!r}; expected 1 or 0.")
    return text.lower() in ("1", "true")
