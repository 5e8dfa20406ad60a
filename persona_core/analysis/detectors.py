"""The onset detectors of a model, with what they were calibrated on; a small JSON file.

All traits watched share one false-alarm rate: `rate_any` is that of a reply in which any of them alarms, the rate of
each trait follows from it (`Detectors.rate`). It holds for replies that the null card covers; for others an alarm says
that no rate is known. Replies of another model can be compared with the detectors if the vectors are the same ("how
does the changed model differ from this one?"); no rate is known for them.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from persona_core.analysis.held_out_alarms import held_out_rates
from persona_core.analysis.null_card import NullCard, null_card, settings
from persona_core.analysis.null_peaks import NullPeaks, Rate
from persona_core.analysis.onset import Onset, OnsetDetector
from persona_core.analysis.onset_calibration import calibrate_onsets
from persona_core.analysis.series import checked_replies, finite_scores, shared_kind
from persona_core.errors import CorruptFile, NotFound, SettingError, UnknownTrait
from persona_core.traces.trace import Kind, Trace
from persona_core.utils.files import read_json, write_atomically
from persona_core.utils.hub import fetch

DETECTORS_FILE = "onset.json"
FORMAT_VERSION = 2
PER_TRAIT = (
    "the rate is that of each trait by itself, on replies to the prompts of the calibration: over several traits or on "
    "other prompts none is known; calibrate again for one"
)
"""Of files of format 1."""


@dataclass(frozen=True, eq=False)
class Detectors:
    """A detector for each of several traits.

    Attributes:
        by_trait: trait -> detector.
        best_block: trait -> the block whose scores it uses.
        rests_on: reader, vectors, template and sampling of the neutral replies, and whether they had a system prompt.
        rate_any: nominal share of neutral replies in which any of the traits alarms; None in files of format 1, whose
            rate is that of each trait by itself.
        peaks: of the neutral replies, from which thresholds of fewer traits are computed.
        card: which replies the rate holds for.
    """

    by_trait: Mapping[str, OnsetDetector]
    best_block: Mapping[str, int]
    rests_on: Mapping[str, Any]
    rate_any: float | None = None
    peaks: NullPeaks | None = None
    card: NullCard | None = None

    @property
    def traits(self) -> tuple[str, ...]:
        return tuple(self.by_trait)

    @property
    def vectors(self) -> str | None:
        """Fingerprint of the vectors that the scores were made with."""
        return self.rests_on.get("vectors")

    def of(self, trait: str) -> OnsetDetector:
        """The detector of one trait.

        Raises:
            UnknownTrait.
        """
        if trait not in self.by_trait:
            raise UnknownTrait(trait, self.by_trait)
        return self.by_trait[trait]

    def select(self, traits: Iterable[str], rate: float | None = None) -> Detectors:
        """Detectors of fewer traits at one rate over all of them: with the same rate, each one's threshold is lower.

        Files of format 1 keep their thresholds. The intervals of onsets stay those of the calibrated threshold.

        Args:
            traits: which.
            rate: share of neutral replies in which any of them may raise an alarm; None: that of the calibration.

        Raises:
            UnknownTrait.
            SettingError: another rate than that of the calibration, and too few neutral prompts for it, or a file of
                format 1.
        """
        chosen = {trait: self.of(trait) for trait in traits}
        blocks = {trait: self.best_block[trait] for trait in chosen}
        if self.peaks is None or self.rate_any is None:
            if rate is not None:
                raise SettingError(
                    f"rate={rate:g}: these detectors have the thresholds of their calibration and no other; calibrate "
                    "again (persona analyse --vectors)."
                )
            return replace(self, by_trait=chosen, best_block=blocks)
        rate = self.rate_any if rate is None else rate
        peaks = self.peaks.select(tuple(chosen))
        threshold = peaks.threshold(rate)
        by_trait = {
            trait: replace(one, threshold=threshold, rate=peaks.rate(threshold, [trait]).value)
            for trait, one in chosen.items()
        }
        return replace(self, by_trait=by_trait, best_block=blocks, rate_any=rate, peaks=peaks)

    def rate(self, trait: str | None = None) -> Rate | None:
        """The false-alarm rate per reply of one trait, or of all together; None for files of format 1.

        Its interval is the one in which the rate of these thresholds lies for new prompts of the card's kinds.

        Raises:
            UnknownTrait.
        """
        if self.peaks is None:
            return None
        threshold = self.of(self.traits[0] if trait is None else trait).threshold
        return self.peaks.rate(threshold, self.traits if trait is None else [trait])

    def find(self, trace: Trace, trait: str, in_thought: bool = False) -> Onset:
        """The onset of a trait in one reply. An alarm in a reply that the card does not cover says so.

        A thought before the answer is no part of the reply: tokens are counted from the answer's first.

        Args:
            trace: of the reply.
            trait: which.
            in_thought: look in the thought instead; its tokens are counted from its own first. No rate is known there:
                the detector knows neutral answers.

        Raises:
            SettingError: the trace has other vectors or another block, so its scores cannot be compared; or a score
                that is not finite at a token that is no sink token.
            NotCalibrated: the detectors use specific scores, and the trace has none.
        """
        detector = self.of(trait)
        if trace.provenance.vectors != self.vectors or trace.best_block.get(trait) != self.best_block.get(trait):
            raise SettingError(
                f"The trace has {trait!r} from vectors {_short(trace.provenance.vectors)} at block "
                f"{trace.best_block.get(trait)}, the detector of {_short(self.vectors)} at block "
                f"{self.best_block.get(trait)}. Calibrate on neutral replies that were read with the same vectors."
            )
        if in_thought:
            scores = finite_scores(trace, trait, detector.kind, trace.thinking_positions, "the thought")
            found = replace(detector.find(scores), section="thought")
            return found if found.alarm is None else replace(found, no_rate=("thoughts",))
        found = detector.find(finite_scores(trace, trait, detector.kind))
        if trace.thinking_positions:
            found = replace(found, section="answer")
        if found.alarm is None or self.card is None:
            return found
        return replace(found, no_rate=tuple(reason.what for reason in self.card.outside(trace, found.alarm)))

    def find_all(self, trace: Trace) -> dict[str, Onset]:
        """The onset of each trait that both know: in the answer, or else in the thought before it.

        Raises:
            SettingError, NotCalibrated: as `find`.
        """
        found = {}
        for trait in (t for t in trace.traits if t in self.by_trait):
            onset = self.find(trace, trait)
            if onset.answer == "none" and trace.thinking_positions:
                thought = self.find(trace, trait, in_thought=True)
                onset = onset if thought.answer == "none" else thought
            found[trait] = onset
        return found

    def caveats(self, trace: Trace) -> tuple[str, ...]:
        """Why the stated rate need not hold for a trace; empty if it does."""
        card = self._old_card() if self.card is None else self.card
        details = tuple(reason.detail for reason in card.outside(trace))
        return (*details, PER_TRAIT) if self.rate_any is None else details

    def _old_card(self) -> NullCard:
        """What files of format 1 say about their neutral replies."""
        n = max((d.n_nulls for d in self.by_trait.values()), default=0)
        sampling = self.rests_on.get("sampling")
        return NullCard(
            n, n, {}, {}, min((d.supported for d in self.by_trait.values()), default=0),
            None if sampling is None else settings(sampling), bool(self.rests_on.get("system_prompt")),
            self.rests_on.get("reader"), self.rests_on.get("template"),
            published_as=self.rests_on.get("published_as"),
        )  # fmt: skip

    def save(self, folder: str | Path) -> Path:
        """Write `onset.json` into a folder."""
        record = {
            "format_version": FORMAT_VERSION,
            "rests_on": dict(self.rests_on),
            "best_block": dict(self.best_block),
            "rate_any": self.rate_any,
            "traits": {trait: detector.to_dict() for trait, detector in self.by_trait.items()},
            "card": None if self.card is None else self.card.to_dict(),
            "peaks": None if self.peaks is None else self.peaks.to_dict(),
        }
        path = Path(folder) / DETECTORS_FILE
        write_atomically(path, json.dumps(record, separators=(",", ":")) + "\n")
        return path

    @classmethod
    def from_pretrained(cls, source: str | Path, revision: str | None = None) -> Detectors:
        """The detectors of a folder or Hub model repository, next to the vectors.

        Files of format 1 load as they are: `caveats` says that their rate is one trait's.

        Raises:
            NotFound: there are none.
            CorruptFile: not a file of detectors, or another format.
        """
        path = fetch(source, DETECTORS_FILE, revision)
        if not path.is_file():
            raise NotFound(f"No {DETECTORS_FILE} in {str(source)!r}; persona analyse --vectors writes it.")
        record = read_json(path)
        if record.get("format_version") not in (1, FORMAT_VERSION):
            raise CorruptFile(
                f"{path}: format_version is {record.get('format_version')!r}; this library reads 1 and "
                f"{FORMAT_VERSION}."
            )
        try:
            if lacking := sorted(set(record["traits"]) - set(record["best_block"])):
                raise CorruptFile(f"{path}: no best block for {lacking[0]!r}.")
            peaks, card = record.get("peaks"), record.get("card")
            return cls(
                {str(trait): OnsetDetector.from_dict(one) for trait, one in record["traits"].items()},
                {str(trait): int(block) for trait, block in record["best_block"].items()},
                dict(record["rests_on"]),
                None if record.get("rate_any") is None else float(record["rate_any"]),
                None if peaks is None else NullPeaks.from_dict(peaks),
                None if card is None else NullCard.from_dict(card),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise CorruptFile(f"{path}: not a file of detectors: {type(error).__name__}: {error}") from error


def calibrate_detectors(
    neutral: Sequence[Trace],
    traits: Iterable[str] | None = None,
    rate: float = 0.05,
    seed: int = 0,
    prompts: Sequence[Hashable] | None = None,
    kinds: Sequence[str] | None = None,
    kind: Kind | None = None,
    measured: bool = False,
) -> Detectors:
    """Detectors from neutral replies of one model, at one rate over all traits.

    Args:
        neutral: replies without instructions to many different prompts, best 300 or more of many kinds: the rate is
            known for such prompts only.
        traits: which are watched; None: all of the traces.
        rate: share of neutral replies in which any of the traits may raise an alarm.
        seed: for the calibration.
        prompts: which prompt each reply answers; replies to one prompt count once. None: those with the same prompt
            tokens answer the same prompt.
        kinds: the kind of each reply's prompt (its category), for the card.
        kind: of the scores: "specific" or "z". None: specific where the traces have it.
        measured: also measure the rate on held-out prompts and, with `kinds`, on held-out kinds, for the card; it takes
            as long again.

    Raises:
        SettingError: too few prompts, traces of different models, steered ones, or a score that is not finite.
    """
    if not neutral:
        raise SettingError("No neutral replies; give replies to 300 prompts or more.")
    steered = [i for i, t in enumerate(neutral) if t.provenance.steering]
    if steered:
        raise SettingError(f"Neutral reply {steered[0]} was steered; a null needs unsteered replies.")
    for name, of_replies in (("prompts", prompts), ("kinds", kinds)):
        if of_replies is not None and len(of_replies) != len(neutral):
            raise SettingError(f"{len(of_replies)} {name} for {len(neutral)} neutral replies; give one for each reply.")
    names = tuple(neutral[0].traits if traits is None else traits)
    _check_sampling(neutral)
    first = neutral[0].provenance
    kind = kind or shared_kind(neutral)
    answered = prompt_keys(neutral) if prompts is None else list(prompts)
    scores = {t: checked_replies(neutral, t, kind) for t in names}
    by_trait, peaks = calibrate_onsets(scores, rate, seed=seed, prompts=answered, kind=kind)
    best_block = {t: int(neutral[0].best_block[t]) for t in names}
    supported = min(d.supported for d in by_trait.values())
    card = null_card(neutral, sorted(set(best_block.values())), supported, answered, kinds, seed)
    if measured:
        card = replace(card, held_out=held_out_rates(neutral, names, rate, seed, answered, kinds, kind))
    rests_on = {
        "reader": first.reading_model,
        "reader_revision": first.reader_revision,
        "vectors": first.vectors,
        "template": first.template,
        "sampling": None if first.sampling is None else dict(first.sampling),
        "system_prompt": card.system_prompt,
        "n_replies": len(neutral),
        "n_prompts": peaks.n_prompts,
    }
    return Detectors(by_trait, best_block, rests_on, rate, peaks, card)


def prompt_keys(traces: Sequence[Trace]) -> list[Hashable]:
    """Equal for replies to the same prompt: the token ids before the reply, `[n_traces]`."""
    return [t.token_ids[: t.n_prompt] for t in traces]


def _check_sampling(neutral: Sequence[Trace]) -> None:
    samplings = {json.dumps(_plain(t.provenance.sampling), sort_keys=True) for t in neutral}
    if len(samplings) > 1:
        raise SettingError(
            f"The neutral replies were sampled in {len(samplings)} different ways; calibrate them separately."
        )


def _plain(sampling: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if sampling is None else settings(sampling)


def _short(fingerprint: str | None) -> str:
    return "unknown" if fingerprint is None else fingerprint[:12]
