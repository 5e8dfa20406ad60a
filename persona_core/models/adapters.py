"""Load a PEFT adapter onto a model, and refuse one that does not fit it.

PEFT only warns of weights that find no place: the model would then be the baseline under the adapter's name, and every
difference between the two zero.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import regex

from persona_core.errors import CorruptFile, NotFound, PersonaWarning, SettingError
from persona_core.models.checkpoint import explained, tensor_shapes
from persona_core.utils.files import read_json
from persona_core.utils.hub import at_revision, commit_of, fetch, resolve_source

if TYPE_CHECKING:
    from peft import PeftConfig

PATTERN_SECONDS = 1.0
"""For one pattern over the names of all modules: those of real adapters take a few milliseconds."""

PATTERNS = ("target_modules", "exclude_modules", "feedforward_modules")
"""A string is a regular expression, a list holds the ends of names."""
PLAIN = ("modules_to_save", "layers_pattern")
"""PEFT puts them into regular expressions of its own; real ones are names such as "lm_head" and "layers"."""
N_TRIED = 16
"""Tokens of the text on which an adapted model is compared with its base."""


def with_adapter(model: Any, adapter: str | Path, revision: str | None = None) -> tuple[Any, str | None]:
    """The model with an adapter on top, in eval mode, and the adapter's commit on the Hub; a folder has none.

    Where the adapter was trained with added tokens, the model's embeddings are resized to those that it holds.

    Args:
        model: a transformers model, which is changed: load it anew for another adapter.
        adapter: Hub id or folder.
        revision: commit, tag or branch on the Hub.

    Raises:
        NotFound: no such adapter, or its weights are not safetensors.
        CorruptFile: weights that do not all fit the model, or that are missing, or a broken or hostile config.
        SettingError: an adapter that adds virtual tokens.
    """
    from peft import PeftConfig, get_peft_model

    source = resolve_source(adapter, revision)
    what = f"the adapter {source!r}{at_revision(revision)}"
    config_file = fetch(source, "adapter_config.json", revision)
    read_json(config_file)  # refuses what is no JSON object, in words
    weights = fetch(source, "adapter_model.safetensors", revision)  # otherwise PEFT would open a pickle
    commit = commit_of(source, "adapter_config.json", revision)
    with explained(what), warnings.catch_warnings():
        # PEFT 0.21 reads a property of transformers 5.23 by its old name; users cannot change that.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        # The base has the name that the user gave it, which is seldom the one of the training.
        warnings.filterwarnings("ignore", ".*base_model_name_or_path")
        config = PeftConfig.from_pretrained(str(config_file.parent))
        shapes = tensor_shapes(weights)
        _check_config(config, shapes, model, what)
        _resize_embeddings(model, shapes)
        config.inference_mode = True
        adapted = get_peft_model(model, config)
        # Load on the CPU: PEFT would take the first GPU, wherever the model is, and on ZeroGPU there is none yet.
        result = adapted.load_adapter(str(weights.parent), "default", torch_device="cpu")
    _check_result(result.missing_keys, result.unexpected_keys, len(shapes), what)
    return adapted.eval(), commit


def shared_copy(model: Any) -> Any:
    """A copy of a model's modules around the same weights."""
    held = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, held)


def warn_if_like_base(model: Any, adapter: str | Path) -> None:
    """Warn where an adapter changes nothing: its weights multiply to zero, or `lora_alpha` is 0.

    Compared are the logits of both for one text of tokens from the whole vocabulary, which a PEFT of any kind has.

    Args:
        model: with the adapter on top.
        adapter: Hub id or folder, for the message.

    Raises:
        CorruptFile: the forward fails, because of what the adapter's config asks for.
    """
    import torch

    weight = model.get_input_embeddings().weight
    ids = torch.linspace(0, weight.shape[0] - 1, N_TRIED, device=weight.device).long()[None]  # [1, N_TRIED]
    with explained(f"the adapter {str(adapter)!r}"), torch.no_grad():
        own = model(ids).logits
        with model.disable_adapter():
            same = torch.equal(own, model(ids).logits)
    if same:
        warnings.warn(
            f"The adapter {str(adapter)!r} has no effect: the model with it equals its base. Its weights are zero, or "
            "its lora_alpha is.",
            PersonaWarning,
            stacklevel=3,
        )


def own_tokenizer(model: Any, base: Any, adapter: str | Path, revision: str | None = None) -> Any:
    """The tokenizer of an adapted model: the adapter's where it has other tokens or another template, else the base's.

    Args:
        model: with the adapter on top.
        base: tokenizer of the model below.
        adapter, revision: as in `with_adapter`.

    Raises:
        CorruptFile: a tokenizer that cannot be read, or has tokens that the model does not embed.
    """
    from transformers import AutoTokenizer

    source = resolve_source(adapter, revision)
    try:
        fetch(source, "tokenizer_config.json", revision)
    except NotFound:
        return base
    what = f"the tokenizer of the adapter {source!r}{at_revision(revision)}"
    with explained(what):
        own = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    template = own.chat_template or base.chat_template
    if own.get_vocab() == base.get_vocab() and template == base.chat_template:
        return base
    rows = model.get_input_embeddings().weight.shape[0]
    if len(own) > rows:
        raise CorruptFile(
            f"Could not load {what}: it has {len(own)} tokens, and the model embeds {rows}. The adapter was saved "
            "without the embeddings of its added tokens: save it again with save_embedding_layers=True, or merge it."
        )
    own.chat_template = template
    return own


def _check_config(config: PeftConfig, shapes: Mapping[str, tuple[int, ...]], model: Any, what: str) -> None:
    """Refuse a config that would take unbounded time or memory; resolve its patterns to names of modules."""
    if config.is_prompt_learning:
        raise SettingError(
            f"{what} adds virtual tokens ({config.peft_type.value}), which have no ids to read. Use an adapter that "
            "changes weights, such as LoRA."
        )
    if not shapes:
        raise CorruptFile(f"Could not load {what}: it holds no weights. Download it again.")
    largest = max((size for shape in shapes.values() for size in shape), default=0)
    ranks = {"r": getattr(config, "r", None), **(getattr(config, "rank_pattern", None) or {})}
    for name, rank in ranks.items():
        if isinstance(rank, int) and not isinstance(rank, bool) and rank > largest:
            raise CorruptFile(
                f"Could not load {what}: its config asks for rank {rank} ({name}), and its largest weight has "
                f"{largest} rows or columns. Download it again."
            )
    if getattr(config, "layer_replication", None):
        raise CorruptFile(
            f"Could not load {what}: it repeats layers of its base (layer_replication), so it is another model than "
            "the baseline. Merge the two, and load the result."
        )
    names = [name for name, _ in model.named_modules() if name]
    for field in PATTERNS:
        pattern = getattr(config, field, None)
        # "all-linear" is PEFT's word for every linear layer, not a pattern
        if isinstance(pattern, str) and pattern != "all-linear":
            found = set(_matching(pattern, names, field, what))
            if not found and field == "target_modules":
                raise CorruptFile(
                    f"Could not load {what}: the regular expression {pattern[:80]!r} in its {field} matches no module "
                    "of the model. It was made for another one."
                )
            setattr(config, field, found)
    for field, by_pattern in vars(config).items():
        if field.endswith("_pattern") and isinstance(by_pattern, dict):  # such as rank_pattern
            resolved = {
                regex.escape(name): value
                for pattern, value in by_pattern.items()
                for name in _matching(rf"(.*\.)?({pattern})", names, field, what)
            }
            setattr(config, field, resolved)
    for field in PLAIN:
        given = getattr(config, field, None) or ()
        for name in [given] if isinstance(given, str) else given:
            if not regex.fullmatch(r"[\w.]+", str(name)):
                raise CorruptFile(f"Could not load {what}: {field} holds {name!r}; expected names of modules.")


def _matching(pattern: str, names: Iterable[str], field: str, what: str) -> list[str]:
    """The names that a regular expression matches as a whole; all of them within `PATTERN_SECONDS`."""
    try:
        compiled, end = regex.compile(pattern), time.monotonic() + PATTERN_SECONDS
        return [name for name in names if compiled.fullmatch(name, timeout=max(end - time.monotonic(), 1e-6))]
    except (regex.error, TimeoutError) as error:
        why = "takes too long to match" if isinstance(error, TimeoutError) else f"is not one ({error})"
        raise CorruptFile(
            f"Could not load {what}: the regular expression {pattern[:80]!r} in its {field} {why}. List the modules."
        ) from error


def _resize_embeddings(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give the embeddings as many rows as those that the adapter holds, if it holds any."""
    own = dict(model.named_parameters())
    vocabularies = (model.get_input_embeddings(), model.get_output_embeddings())
    rows = {id(module.weight): module.weight.shape[0] for module in vocabularies if module is not None}
    for name, shape in shapes.items():
        weight = own.get(name.removeprefix("base_model.model."))
        if weight is not None and id(weight) in rows and shape[0] != rows[id(weight)]:
            model.resize_token_embeddings(shape[0], mean_resizing=False)
            return


def _check_result(missing: Collection[str], unexpected: Collection[str], n: int, what: str) -> None:
    if missing or unexpected:
        parts = []
        if unexpected:
            parts.append(f"{len(unexpected)} of its {n} weights have no place in the model, e.g. {min(unexpected)!r}")
        if missing:
            parts.append(f"{len(missing)} that it should have are missing, e.g. {min(missing)!r}")
        raise CorruptFile(f"Could not load {what}: {'; '.join(parts)}. It was made for another model or another PEFT.")
