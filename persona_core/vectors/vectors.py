"""Persona vectors: for each trait two directions per block, their nulls, its best block, and its provenance.

`tensor(trait)` is the mean difference, along which a model is steered; `reading(trait)` is whitened, and scores are
taken along it. Neither is used for the other. Older folders have no reading directions and are read along the mean
difference.

A row of either, `[n_blocks, d_model]`, belongs to the output of the block of that number: no embeddings row,
no final-norm row. Files in the `hidden_states` convention (`[n_blocks + 1, d_model]`) are converted on import.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import torch

from persona_core.errors import CorruptFile, PersonaWarning, UnknownTrait, VectorsMismatch
from persona_core.traces.specific import LogOdds
from persona_core.utils.checks import known_block
from persona_core.utils.files import replacing
from persona_core.utils.hub import check_kind, fetch
from persona_core.vectors.direction_checks import check_directions, check_null, check_shape
from persona_core.vectors.files import (
    CONFIG_FILE,
    FIRST_VERSION,
    FORMAT_VERSION,
    TENSORS_FILE,
    arrays_of,
    fields_of,
    read_config,
    read_reference,
    read_tensors,
)
from persona_core.vectors.null import Null

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from persona_core.inference.steering import Steer, SteeringOptions
    from persona_core.models.language_model import LanguageModel

logger = logging.getLogger(__name__)

CONVENTION = "row b is the output of block b; blocks are numbered from 0 in running order"


@dataclass(frozen=True, repr=False)
class PersonaVectors:
    """The persona vectors of one model.

    Attributes:
        tensors: trait -> steering direction, float32 `[n_blocks, d_model]`. Rows of absent blocks are NaN.
        best_block: trait -> the block at which the trait is read by default.
        null: trait -> `Null` along the reading direction; empty for uncalibrated vectors, which have no z scores.
        absent_blocks: blocks without a direction.
        config: the rest of `config.json`: base model, extraction settings, validation figures.
        readings: trait -> reading direction, as `tensors`; empty: the steering direction.
        steering_null: trait -> `Null` along the steering direction; empty: `null`, if both directions are the same.
        log_odds: trait -> slope and offset of the log odds against neutral, float32 `[n_blocks, 2]`.
        specific_null: trait -> mean and standard deviation of the specific score's odds over neutral tokens, float32
            `[n_blocks, 2]`; empty: no specific scores.
        max_norm: ‖h‖ above which a token is a sink token, float32 `[n_blocks]`; None: no limit is known.

    >>> vectors = PersonaVectors.from_tensors({"candour": torch.eye(3)}, best_block={"candour": 1})
    >>> vectors.traits, vectors.n_blocks, vectors.d_model
    (('candour',), 3, 3)
    >>> vectors
    PersonaVectors(candour; 3 blocks × 3, not calibrated)
    """

    tensors: Mapping[str, torch.Tensor]
    best_block: Mapping[str, int]
    null: Mapping[str, Null] = field(default_factory=dict)
    absent_blocks: tuple[int, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    readings: Mapping[str, torch.Tensor] = field(default_factory=dict)
    steering_null: Mapping[str, Null] = field(default_factory=dict)
    log_odds: Mapping[str, np.ndarray] = field(default_factory=dict)
    specific_null: Mapping[str, np.ndarray] = field(default_factory=dict)
    max_norm: np.ndarray | None = None

    def __repr__(self) -> str:
        known = self.config.get("base_model", {}).get("name")
        return (
            f"PersonaVectors({', '.join(self.tensors)}; {self.n_blocks} blocks × {self.d_model}"
            f"{f', of {known}' if known else ''}{'' if self.null else ', not calibrated'}"
            f"{', read along the mean difference' if self.null and not self.readings else ''})"
        )

    def __post_init__(self) -> None:
        check_directions(self.tensors, self.readings, self.absent_blocks)
        for name in ("tensors", "readings"):
            kept = {t: v.detach().to("cpu", torch.float32).contiguous() for t, v in getattr(self, name).items()}
            object.__setattr__(self, name, MappingProxyType(kept))
        for name in ("null", "config", "steering_null", "log_odds", "specific_null"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        best = {trait: self._check(trait, block) for trait, block in self.best_block.items()}
        object.__setattr__(self, "best_block", MappingProxyType(best))
        for name in ("null", "steering_null", "log_odds", "specific_null"):
            for trait in getattr(self, name):
                self._known(trait)
        for trait, null in [*self.null.items(), *self.steering_null.items()]:
            check_null(trait, null, self.n_blocks)
        for trait, pairs in [*self.log_odds.items(), *self.specific_null.items()]:
            check_shape(f"log odds of {trait!r} have", pairs, (self.n_blocks, 2))
        if self.max_norm is not None:
            check_shape("norm limits have", self.max_norm, (self.n_blocks,))

    @property
    def traits(self) -> tuple[str, ...]:
        return tuple(self.tensors)

    @property
    def n_blocks(self) -> int:
        return int(next(iter(self.tensors.values())).shape[0])

    @property
    def d_model(self) -> int:
        return int(next(iter(self.tensors.values())).shape[1])

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks with a direction."""
        return tuple(b for b in range(self.n_blocks) if b not in self.absent_blocks)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of a hash over every number that a score depends on."""
        digest = hashlib.sha256()
        for trait in self.traits:
            digest.update(trait.encode() + b"\0" + self.tensors[trait].numpy().tobytes())
            if trait in self.null:
                digest.update(self.null[trait].mean.tobytes() + self.null[trait].std.tobytes())
            digest.update(str(self.best_block.get(trait)).encode())
            if trait in self.readings:  # what older folders lack leaves their fingerprint as it is
                digest.update(self.readings[trait].numpy().tobytes())
            for pairs in (self.log_odds, self.specific_null):
                if trait in pairs:
                    digest.update(pairs[trait].tobytes())
        if self.max_norm is not None:
            digest.update(self.max_norm.tobytes())
        return digest.hexdigest()[:16]

    def tensor(self, trait: str) -> torch.Tensor:
        """The steering directions of one trait, float32 `[n_blocks, d_model]`, not normalised."""
        self._known(trait)
        return self.tensors[trait]

    def reading(self, trait: str) -> torch.Tensor:
        """The reading directions of one trait, float32 `[n_blocks, d_model]`: what scores are taken along."""
        return self.readings.get(trait, self.tensor(trait))

    def direction(self, trait: str, block: int) -> torch.Tensor:
        """The unit steering direction of one trait at one block, float32 `[d_model]`."""
        vector = self.tensor(trait)[self._check(trait, block)]
        return vector / vector.norm()

    def reading_direction(self, trait: str, block: int) -> torch.Tensor:
        """The unit reading direction of one trait at one block, float32 `[d_model]`."""
        vector = self.reading(trait)[self._check(trait, block)]
        return vector / vector.norm()

    def null_of_steering(self, trait: str) -> Null | None:
        """The null along the steering direction; None where it was not measured."""
        return self.steering_null.get(trait, None if self.readings else self.null.get(trait))

    def along_steering(self) -> PersonaVectors:
        """The same vectors, read along their steering directions: projections, and z with their own null."""
        null = {t: n for t in self.traits if (n := self.null_of_steering(t)) is not None}
        return PersonaVectors(
            self.tensors, self.best_block, null, self.absent_blocks, self.config, max_norm=self.max_norm
        )

    @property
    def has_specific(self) -> bool:
        """Whether specific scores exist."""
        return bool(self.specific_null)

    def odds_at(self, blocks: Sequence[int]) -> LogOdds | None:
        """What a trace at these blocks needs for specific scores; None without them."""
        if not self.has_specific:
            return None
        parts = [[self.log_odds[t], self.specific_null[t]] for t in self.traits]
        array = np.array(parts, np.float32)[:, :, list(blocks)]  # [n_traits, 2, n_blocks, 2]
        return LogOdds(array[:, 0, :, 0], array[:, 0, :, 1], array[:, 1, :, 0], array[:, 1, :, 1])

    def limits_at(self, blocks: Sequence[int]) -> np.ndarray:
        """The norm limits at these blocks, float32 `[n_blocks]`; infinity where none is known."""
        limits = np.full(self.n_blocks, np.inf, np.float32) if self.max_norm is None else self.max_norm
        return limits[list(blocks)]

    def select(self, traits: Sequence[str]) -> PersonaVectors:
        """The same vectors with only these traits.

        A specific score says what a trait does not share with the others, so it is lost where some of them are left
        out; `persona_core.vectors.calibration.calibrate` measures it again for those that stay.
        """
        for trait in traits:
            self._known(trait)

        def some(of: Mapping[str, Any]) -> dict[str, Any]:
            return {t: of[t] for t in traits if t in of}

        return replace(
            self,
            tensors=some(self.tensors),
            best_block=some(self.best_block),
            null=some(self.null),
            readings=some(self.readings),
            steering_null=some(self.steering_null),
            log_odds=some(self.log_odds),
            specific_null=some(self.specific_null) if set(traits) == set(self.traits) else {},
        )

    def check_fits(self, lm: LanguageModel) -> None:
        """Refuse a model of another width or depth; warn if the base model or the chat template differs.

        Raises:
            VectorsMismatch: width or number of blocks differs.
        """
        self.check_blocks(len(lm.blocks), lm.blocks.d_model, f"the model {lm.name!r}")
        base = self.config.get("base_model", {})
        made_with, template = base.get("name"), base.get("template_fingerprint")
        if made_with and not self._made_on(lm):
            warnings.warn(
                f"The vectors were extracted from {made_with!r}, but the model is {lm.name!r}: scores may mean little.",
                PersonaWarning,
                stacklevel=3,
            )
        if template and template != lm.chat.fingerprint:
            warnings.warn(
                f"The chat template differs from the vectors' ({template} there, {lm.chat.fingerprint} here): "
                "the null may not hold.",
                PersonaWarning,
                stacklevel=3,
            )

    def check_blocks(self, n_blocks: int, d_model: int, model: str) -> None:
        """Refuse a model of another width or depth.

        Raises:
            VectorsMismatch.
        """
        if (self.n_blocks, self.d_model) != (n_blocks, d_model):
            raise VectorsMismatch(
                f"The vectors are for {self.n_blocks} blocks of width {self.d_model}; {model} has {n_blocks} blocks of "
                f"width {d_model}. Extract vectors from this model."
            )

    def _made_on(self, lm: LanguageModel) -> bool:
        """Whether a model bears a name of the one that the vectors were made on, or the weights of its GGUF file."""
        base, origin = self.config.get("base_model", {}), lm.gguf or lm.converted_from or {}
        names = {Path(str(base[k])).name for k in ("name", "published") if base.get(k)}
        file = base.get("gguf") or base.get("converted_from") or {}
        return Path(lm.name).name in names or (
            isinstance(file, Mapping) and file.get("sha256") is not None and file.get("sha256") == origin.get("sha256")
        )

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], best_block: Mapping[str, int]) -> PersonaVectors:
        """Vectors from tensors, trait -> `[n_blocks, d_model]`. They are uncalibrated: raw and cosine scores only."""
        return cls(tensors, best_block)

    @classmethod
    def from_pretrained(cls, source: str | Path, revision: str | None = None) -> PersonaVectors:
        """Load vectors from a folder or a Hub repository.

        Raises:
            NotFound: no such folder, repository, revision or file.
            CorruptFile: a truncated file, or one that does not match its config.

        >>> vectors = PersonaVectors.from_pretrained("artifacts/persona-vectors-persona-tiny")
        >>> vectors.tensor("deception").shape
        torch.Size([6, 192])
        """
        check_kind(source, "vectors", revision)
        config = read_config(fetch(source, CONFIG_FILE, revision))
        path = fetch(source, TENSORS_FILE, revision)
        vectors = cls(**fields_of(config, read_tensors(path), path))
        if config.get("fingerprint") not in (None, vectors.fingerprint):
            raise CorruptFile(
                f"{path}: the tensors do not match the fingerprint in {CONFIG_FILE}; the two files do not belong "
                "together."
            )
        if not vectors.readings:
            logger.info("%s has no reading directions: scores are read along the mean difference.", source)
        return vectors

    @classmethod
    def from_reference(
        cls,
        files: Mapping[str, str | Path],
        convention: str = "hidden_states",
        best_block: Mapping[str, int] | None = None,
    ) -> PersonaVectors:
        """Import `.pt` files of the persona_vectors family: one `[n_blocks + 1, d_model]` tensor per trait.

        In the `hidden_states` convention row b + 1 is the output of block b. Row 0, the embeddings, is dropped. The
        last row is taken after the final norm, so the last block is marked as absent.

        The files are opened with `weights_only=True`: code in a file is refused and never runs.

        Raises:
            NotFound, CorruptFile, VectorsMismatch.
        """
        tensors = read_reference(files, convention)
        last = next(iter(tensors.values())).shape[0] - 1
        return cls(tensors, best_block or {}, absent_blocks=(last,), config={"imported_from": "hidden_states rows"})

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write `vectors.safetensors` and `config.json`, in the layout of a Hub repository."""
        from safetensors.torch import save_file

        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        with replacing(path / TENSORS_FILE) as beside:
            save_file({k: v.contiguous() for k, v in arrays_of(self).items()}, str(beside), {"format": "pt"})
        config = {
            **self.config,
            "format_version": FORMAT_VERSION if self.readings else FIRST_VERSION,
            "block_convention": CONVENTION,
            "traits": list(self.traits),
            "n_blocks": self.n_blocks,
            "d_model": self.d_model,
            "absent_blocks": list(self.absent_blocks),
            "best_block": dict(self.best_block),
            "null_probabilities": list(next(iter(self.null.values())).probabilities) if self.null else [],
            "fingerprint": self.fingerprint,
        }
        (path / CONFIG_FILE).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return path

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, tag: str | None = None, token: str | None = None
    ) -> str:
        """Push the vectors with their card to a Hub repository; `from_pretrained(repo_id)` loads them again.

        Args:
            repo_id: "namespace/name"; created if it does not exist. Its contents are replaced.
            private: whether a new repository is private.
            tag: a tag for the commit.
            token: None takes HF_TOKEN or the token saved by `hf auth login`.

        Returns:
            The hash of the commit; of the last one where nothing has changed.

        Raises:
            ServerError, SettingError: the Hub cannot be reached or refuses, or the id is invalid.
        """
        from persona_core import vectors

        return str(vectors.push_vectors(self, repo_id, private=private, tag=tag, token=token))

    def steer(
        self, model: Any, what: str | Steer | Sequence[Steer], **how: Unpack[SteeringOptions]
    ) -> AbstractContextManager[None]:
        """Steer a transformers model while anybody's code runs it.

        Hooks act in every forward of that model inside the `with`, in whichever thread, and are gone afterwards. They
        come before other hooks on a block; of several `steer`s the innermost acts first. Runs of a `PersonaMonitor`
        take `steer=` of their own.

        Args:
            model: a transformers model, a PEFT wrapper around one, or a `LanguageModel`. A bare model is verified
                with three forwards of a few tokens each time.
            what: a trait; or one or several `Steer`s, which have their own settings.
            **how: for a trait. `strength`, or `mode="ablate"`, or `mode="cap"` with `threshold`; `block`, by default
                the trait's best; `unit`, by default "sd", standard deviations over neutral tokens, or "residual";
                `start`, by default None: every token, the prompt included. `start=k` acts from the choice of reply
                token k on, where forwards show the reply's beginning: the whole prompt first, then a token each.

        Raises:
            UnknownTrait, UnknownBlock, SettingError, UnsupportedModel, VectorsMismatch.
            NotCalibrated: `unit="sd"` without a null.
            SettingError: in the forward: assisted decoding, continuous batching, generate with a compiled cache; with
                `start=k` also a cache from before, `inputs_embeds`, and a prompt in parts.

        >>> from persona_core import load_model
        >>> lm = load_model("artifacts/persona-tiny")
        >>> vectors = PersonaVectors.from_pretrained("artifacts/persona-vectors-persona-tiny")
        >>> ids = torch.tensor([lm.chat.render("Is my plan good?").token_ids])
        >>> with vectors.steer(lm, "sycophancy", strength=4):
        ...     steered = lm.model.generate(ids, max_new_tokens=32, do_sample=False)
        >>> steered.tolist() == lm.model.generate(ids, max_new_tokens=32, do_sample=False).tolist()
        False
        """
        steer: Any = import_module("persona_core.monitor").steer  # a room above, which knows this one
        return steer(self, model, what, **how)

    def watch(
        self, model: Any, tokenizer: PreTrainedTokenizerBase | None = None, blocks: str | Sequence[int] = "best"
    ) -> AbstractContextManager[Any]:
        """Read what a transformers model reads while anybody's code runs it.

        `seen.traces` has a `Trace` for each text, a row of a batch each; `seen.trace` is the only one. A forward with
        an empty cache begins texts; one token more is the next of the reply. Padding is left out, and so is what
        `generate` feeds to a reply that has ended. The last token that `generate` writes is never read by the model, so
        it is not in the trace. The roles of a prompt are not known from ids: all but special tokens count as the
        user's. What steers the model is read as it leaves the block.

        Args:
            model: as in `steer`, in eval mode.
            tokenizer: the model's; not needed for a `LanguageModel`.
            blocks: as in `PersonaMonitor`.

        Raises:
            UnknownBlock, SettingError, UnsupportedModel, VectorsMismatch.
            SettingError: in the forward: assisted decoding, continuous batching, beam and contrastive search,
                `guidance_scale`, generate with a compiled cache, a cache from before, `inputs_embeds`, packed texts.

        >>> from persona_core import load_model
        >>> lm = load_model("artifacts/persona-tiny")
        >>> vectors = PersonaVectors.from_pretrained("artifacts/persona-vectors-persona-tiny")
        >>> ids = torch.tensor([lm.chat.render("Is my plan good?").token_ids])
        >>> with vectors.watch(lm) as seen:
        ...     written = lm.model.generate(ids, max_new_tokens=8, do_sample=False)
        >>> seen.trace.token_ids == tuple(written[0, :-1].tolist())
        True
        """
        watch: Any = import_module("persona_core.monitor").watch  # a room above, which knows this one
        return watch(self, model, tokenizer, blocks)

    def _known(self, trait: str) -> None:
        if trait not in self.tensors:
            raise UnknownTrait(trait, self.traits)

    def _check(self, trait: str, block: object) -> int:
        self._known(trait)
        whose = f"{trait!r} has directions for"
        return known_block(block, self.blocks, whose, self.absent_blocks)
