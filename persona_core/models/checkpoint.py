"""Read a checkpoint through transformers: one load at a time, and only if every weight is there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from persona_core.errors import CorruptFile, NotFound, PersonaError
from persona_core.utils.files import read_json
from persona_core.utils.hub import fetch

# transformers 5.23 ties weights under process-wide switches: of two threads that load at once, one reports
# "lm_head.weight" as missing (8 of 8 times with the demo model).
_load_lock = threading.Lock()

MAX_REASON = 300
"""Characters of a library's own message that are shown."""
CONFIGS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")


def read_checkpoint(source: str, what: str, options: dict[str, Any], **model_options: Any) -> tuple[Any, Any]:
    """The model and the tokenizer of a checkpoint. Code that comes with it is never run.

    Args:
        source: an existing folder, or a Hub id.
        what: for messages: "the model 'org/name'".
        options: for both `from_pretrained`: the revision, a GGUF file.
        **model_options: for the model's alone.

    Raises:
        NotFound: no such repository or revision, or a file is missing.
        CorruptFile: a file that cannot be read, or weights are missing.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if "gguf_file" not in options:
        check_configs(source, options.get("revision"))
    with explained(what):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
        with _load_lock:
            model, loading = AutoModelForCausalLM.from_pretrained(
                source, trust_remote_code=False, output_loading_info=True, **options, **model_options
            )
    missing = sorted(loading["missing_keys"])
    if missing:  # transformers initialises them randomly and continues
        kind = type(model).__name__
        raise CorruptFile(f"Could not load {what}: it lacks {len(missing)} weights of a {kind}, e.g. {missing[0]!r}.")
    return model, tokenizer


def check_configs(source: str, revision: str | None = None) -> None:
    """Refuse a checkpoint whose small JSON files cannot be read: transformers passes over some of them in silence.

    A truncated `generation_config.json` would leave a model that does not know how its replies end.

    Raises:
        CorruptFile: one that is not a JSON object.
    """
    for name in CONFIGS:
        try:
            path = fetch(source, name, revision)
        except NotFound:
            continue
        read_json(path)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Name what could not be loaded, and distinguish missing from corrupt."""
    try:
        yield
    except (PersonaError, MemoryError):
        raise
    except OSError as error:
        raise NotFound(f"Could not load {what}: {error}") from error
    except Exception as error:  # tokenizers raises plain exceptions
        why = " ".join(str(error).split())  # torch names every matrix that does not fit, on a line each
        raise CorruptFile(f"Could not load {what}: {type(error).__name__}: {why[:MAX_REASON]}") from error
