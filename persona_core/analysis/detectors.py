"""The onset detectors of a model, one per trait, with what they were calibrated on; a small JSON file.

A detector is valid for the model, vectors and sampling of its neutral replies. Replies of another model can be compared
with it if the vectors are the same ("how does the changed model differ from this one?"), and `caveats` says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_core.analysis.onset import Onset, OnsetDetector
from persona_core.analysis.onset_calibration import calibrate_onset
from persona_core.analysis.series import reply_scores
from persona_core.errors import CorruptFile, NotFound, SettingError, UnknownTrait
from persona_core.traces.trace import Trace
from persona_core.utils.files import read_json, write_atomically
from persona_core.utils.hub import fetch

DETECTORS_FILE = "onset.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, eq=False)
class Detectors:
    """A detector for each of several traits.

    Attributes:
        by_trait: trait -> detector.
        best_block: trait -> the block whose z it uses.
        rests_on: reader, vectors, template and sampling of the neutral replies, and whether they had a system prompt.
    """

    by_trait: Mapping[str, OnsetDetector]
    best_block: Mapping[str, int]
    rests_on: Mapping[str, Any]

    @property
    def traits(self) -> tuple[str, ...]:
        return tuple(self.by_trait)

    @property
    def vectors(self) -> str | None:
        """Fingerprint of the vectors that z was made with."""
        return self.rests_on.get("vectors")

    def of(self, trait: str) -> OnsetDetector:
        """The detector of one trait.

        Raises:
            UnknownTrait.
        """
        if trait not in self.by_trait:
            raise UnknownTrait(trait, self.by_trait)
        return self.by_trait[trait]

    def find(self, trace: Trace, trait: str) -> Onset:
        """The onset of a trait in one reply.

        Raises:
            SettingError: the trace has other vectors or another block, so its scores cannot be compared.
        """
        detector = self.of(trait)
        if trace.provenance.vectors != self.vectors or trace.best_block.get(trait) != self.best_block.get(trait):
            raise SettingError(
                f"The trace has {trait!r} from vectors {_short(trace.provenance.vectors)} at block "
                f"{trace.best_block.get(trait)}, the detector of {_short(self.vectors)} at block "
                f"{self.best_block.get(trait)}. Calibrate on neutral replies that were read with the same vectors."
            )
        return detector.find(trace.scores(trait)[trace.reply_positions])

    def caveats(self, trace: Trace) -> tuple[str, ...]:
        """How the trace differs from the neutral replies; empty if the stated rate holds for it."""
        known, found = trace.provenance, []
        if known.reading_model != self.rests_on.get("reader"):
            found.append(
                f"read by {known.reading_model}; the detectors know how {self.rests_on.get('reader')} talks, so an "
                "alarm says that it differs from that"
            )
        if known.template != self.rests_on.get("template"):
            found.append("rendered with a different chat template than the neutral replies")
        sampled, sampling = known.sampling, self.rests_on.get("sampling")
        if sampled is not None and sampling is not None and _without_length(sampled) != _without_length(sampling):
            found.append(f"sampled with {dict(sampled)}, the neutral replies with {dict(sampling)}")
        if known.steering:
            found.append("steered: an alarm may be due to the steering")
        if "system" in trace.roles and not self.rests_on.get("system_prompt"):
            found.append("with a system prompt, unlike the neutral replies")
        longest = min((d.tested for d in self.by_trait.values()), default=0)
        if len(trace.reply_positions) > longest:
            found.append(f"{len(trace.reply_positions)} tokens; the rate was tested on replies of up to {longest}")
        return tuple(found)

    def save(self, folder: str | Path) -> Path:
        """Write `onset.json` into a folder."""
        record = {
            "format_version": FORMAT_VERSION,
            "rests_on": dict(self.rests_on),
            "best_block": dict(self.best_block),
            "traits": {trait: detector.to_dict() for trait, detector in self.by_trait.items()},
        }
        path = Path(folder) / DETECTORS_FILE
        write_atomically(path, json.dumps(record) + "\n")
        return path

    @classmethod
    def from_pretrained(cls, source: str | Path, revision: str | None = None) -> Detectors:
        """The detectors of a folder or Hub model repository, next to the vectors.

        Raises:
            NotFound: there are none.
            CorruptFile: not a file of detectors, or another format.
        """
        path = fetch(source, DETECTORS_FILE, revision)
        if not path.is_file():
            raise NotFound(f"No {DETECTORS_FILE} in {str(source)!r}; persona analyse --vectors writes it.")
        record = read_json(path)
        if record.get("format_version") != FORMAT_VERSION:
            raise CorruptFile(
                f"{path}: format_version is {record.get('format_version')!r}; this library reads {FORMAT_VERSION}."
            )
        try:
            if lacking := sorted(set(record["traits"]) - set(record["best_block"])):
                raise CorruptFile(f"{path}: no best block for {lacking[0]!r}.")
            return cls(
                {str(trait): OnsetDetector.from_dict(one) for trait, one in record["traits"].items()},
                {str(trait): int(block) for trait, block in record["best_block"].items()},
                dict(record["rests_on"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptFile(f"{path}: not a file of detectors: {type(error).__name__}: {error}") from error


def calibrate_detectors(
    neutral: Sequence[Trace], traits: Iterable[str] | None = None, rate: float = 0.05, seed: int = 0
) -> Detectors:
    """Detectors from neutral replies of one model.

    Args:
        neutral: at least 300 replies without instructions, to the same kind of prompts as the replies to be tested.
        traits: which; None: all of the traces.
        rate: share of neutral replies that may raise an alarm, for each trait separately.
        seed: for the calibration.

    Raises:
        SettingError: too few replies, traces of different models, or steered ones.
    """
    if not neutral:
        raise SettingError("No neutral replies; at least 300 are needed.")
    steered = [i for i, t in enumerate(neutral) if t.provenance.steering]
    if steered:
        raise SettingError(f"Neutral reply {steered[0]} was steered; a null needs unsteered replies.")
    names = tuple(neutral[0].traits if traits is None else traits)
    first = neutral[0].provenance
    samplings = {json.dumps(_plain(t.provenance.sampling), sort_keys=True) for t in neutral}
    if len(samplings) > 1:
        raise SettingError(
            f"The neutral replies were sampled in {len(samplings)} different ways; calibrate them separately."
        )
    by_trait = {t: calibrate_onset(reply_scores(neutral, t), rate, seed=seed) for t in names}
    return Detectors(
        by_trait,
        {t: int(neutral[0].best_block[t]) for t in names},
        {
            "reader": first.reading_model,
            "reader_revision": first.reader_revision,
            "vectors": first.vectors,
            "template": first.template,
            "sampling": _plain(first.sampling),
            "system_prompt": any("system" in t.roles for t in neutral),
            "n_replies": len(neutral),
        },
    )


def _plain(sampling: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if sampling is None else dict(sampling)


def _without_length(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide which tokens are likely."""
    return {k: v for k, v in sampling.items() if k != "max_new_tokens"}


def _short(fingerprint: str | None) -> str:
    return "unknown" if fingerprint is None else fingerprint[:12]
