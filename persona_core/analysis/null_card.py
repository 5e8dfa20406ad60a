"""What a false-alarm rate rests on, and for which replies it may be stated.

A rate is measured on neutral replies to some kinds of prompts, of some lengths, sampled in one way. `NullCard.outside`
says how a trace differs from them; where it says anything, an alarm is still raised, but no rate is known for it.

The novelty of a prompt is its Mahalanobis distance from the neutral prompts, in what every trace has: the scores of all
traits at the last prompt token and their mean over the prompt, the norms of the states there, and the prompt's length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from persona_core.errors import CorruptFile, SettingError
from persona_core.traces.provenance import Provenance
from persona_core.traces.trace import Trace

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
MAX_QUANTILE = 0.95
"""Prompts more novel than this share of the neutral ones are of another kind."""
FOLDS = 5


class Reason(NamedTuple):
    """Why no rate is known: for what, and in which way it differs from the null."""

    what: str
    detail: str


@dataclass(frozen=True, eq=False)
class Novelty:
    """How far a prompt lies from the neutral ones.

    Attributes:
        blocks: at which the states are taken.
        center: mean of the features, `[n_features]`.
        whitening: the distance is the norm of (features - center) @ whitening over the square root of n_features,
            `[n_features, n_features]`.
        quantiles: probability -> distance of neutral prompts, each measured by what was fitted on others.
    """

    blocks: tuple[int, ...]
    center: np.ndarray
    whitening: np.ndarray
    quantiles: Mapping[float, float]

    @property
    def limit(self) -> float:
        return self.quantiles[MAX_QUANTILE]

    def of(self, trace: Trace) -> float:
        """The novelty of a trace's prompt; NaN where its states are unknown."""
        return _distance(prompt_features(trace, self.blocks), self.center, self.whitening)


@dataclass(frozen=True, eq=False)
class NullCard:
    """What the neutral replies behind a false-alarm rate were.

    Attributes:
        n_prompts, n_replies: a prompt counts once, however many replies it has.
        kinds: kind of prompt -> prompts; empty if unknown.
        lengths: probability -> tokens of a neutral reply.
        supported: longest reply, in tokens, for which the rate holds.
        sampling: of the neutral replies, without the token limit.
        system_prompt: whether any had one.
        reader, template: model that read them, and fingerprint of the chat template.
        novelty: of prompts; None where it could not be measured.
        held_out: "prompts" or "kinds" -> the share of alarms on neutral replies to prompts, or kinds of prompts, that
            had no part in the calibration, as plain figures.
        published_as: Hub id of the reader, where it was published under another name.
    """

    n_prompts: int
    n_replies: int
    kinds: Mapping[str, int]
    lengths: Mapping[float, float]
    supported: int
    sampling: Mapping[str, Any] | None
    system_prompt: bool
    reader: str | None
    template: str | None
    novelty: Novelty | None = None
    held_out: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    published_as: str | None = None

    def outside(self, trace: Trace, alarm: int | None = None) -> tuple[Reason, ...]:
        """In what a reply differs from the neutral ones, so that no rate is known for it; empty if in nothing.

        A prompt's novelty is measured only where the reader is the null's: another model's states lie elsewhere.

        Args:
            trace: the reply, with its prompt.
            alarm: position in the reply of the alarm in question: the rate of alarms up to token `supported` is known
                for longer replies too. None: any in the whole reply.
        """
        known, found = trace.provenance, []
        read = len(trace.reply_positions) if alarm is None else alarm + 1
        if read > self.supported:
            found.append(
                Reason(
                    "a reply of this length",
                    f"{read} tokens; the rate is that of alarms up to token {self.supported}, which enough neutral "
                    "replies reach",
                )
            )
        if not self._is_reader(known.reading_model):
            found.append(
                Reason(
                    "another model's replies",
                    f"read by {known.reading_model}; the detectors know how {self.reader} talks, so an alarm says that "
                    "it differs from that",
                )
            )
        elif self._is_of_another(known):
            found.append(
                Reason(
                    "text that another wrote",
                    f"written by {known.writer or 'an unknown writer'}; the rate is that of replies by {self.reader}",
                )
            )
        if known.steering or (known.written or {}).get("steering"):
            found.append(Reason("steered replies", "steered: an alarm may be due to the steering"))
        sampled = (known.written or {}).get("sampling") or known.sampling
        if sampled is not None and self.sampling is not None and settings(sampled) != settings(self.sampling):
            found.append(
                Reason("this sampling", f"sampled with {settings(sampled)}, the null with {settings(self.sampling)}")
            )
        if "system" in trace.roles and not self.system_prompt:
            found.append(Reason("a system prompt", "with a system prompt, unlike the neutral replies"))
        if known.template != self.template:
            found.append(
                Reason("this chat template", "rendered with a different chat template than the neutral replies")
            )
        if self.novelty is not None and self._is_reader(known.reading_model):
            distance = self.novelty.of(trace)
            if not distance <= self.novelty.limit:
                found.append(
                    Reason(
                        "this kind of prompt",
                        f"the prompt's novelty is {distance:.2f}; that of {MAX_QUANTILE:.0%} of neutral prompts is at "
                        f"most {self.novelty.limit:.2f}",
                    )
                )
        return tuple(found)

    def _is_of_another(self, known: Provenance) -> bool:
        """Whether another model wrote the reply, or nobody knows who did: a text that was only read."""
        if known.writer is None:
            return self.sampling is not None and known.sampling is None and known.written is None
        return not self._is_reader(known.writer)

    def _is_reader(self, model: str | None) -> bool:
        return model == self.reader or (model is not None and model == self.published_as)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record; `from_dict` restores it exactly."""
        record = {**vars(self), "lengths": _pairs(self.lengths), "novelty": None}
        if self.novelty is not None:
            record["novelty"] = {
                "blocks": list(self.novelty.blocks),
                "center": self.novelty.center.tolist(),
                "whitening": self.novelty.whitening.tolist(),
                "quantiles": _pairs(self.novelty.quantiles),
            }
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> NullCard:
        """The inverse of `to_dict`.

        Raises:
            CorruptFile.
        """
        try:
            novelty = record["novelty"]
            if novelty is not None:
                center, whitening = (np.array(novelty[k], float) for k in ("center", "whitening"))
                if whitening.shape != (len(center), len(center)) or not np.isfinite(whitening).all():
                    raise ValueError(f"a whitening of shape {whitening.shape} for {len(center)} features")
                quantiles = dict(map(tuple, novelty["quantiles"]))
                novelty = Novelty(tuple(map(int, novelty["blocks"])), center, whitening, quantiles)
                _ = novelty.limit
            return cls(**{**record, "novelty": novelty, "lengths": dict(map(tuple, record["lengths"]))})
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFile(f"Not a null card: {type(error).__name__}: {error}") from error


def null_card(
    neutral: Sequence[Trace],
    blocks: Sequence[int],
    supported: int,
    prompts: Sequence[Hashable],
    kinds: Sequence[str] | None = None,
    seed: int = 0,
) -> NullCard:
    """The card of some neutral replies.

    Args:
        neutral: read by one model, sampled in one way.
        blocks: at which the novelty of prompts is measured; every trace holds them.
        supported: longest reply for which the rate holds, in tokens.
        prompts: which prompt each reply answers.
        kinds: the kind of each reply's prompt.
        seed: for the folds of the novelty.

    Raises:
        SettingError: replies to fewer than three prompts.
    """
    first: dict[Hashable, int] = {}
    for i, prompt in enumerate(prompts):
        first.setdefault(prompt, i)
    if len(first) < 3:
        raise SettingError(
            f"Neutral replies to {len(first)} prompts; a card needs three: what is new about a prompt is "
            "measured against others."
        )
    of_prompts = [neutral[i] for i in first.values()]
    known = neutral[0].provenance
    lengths = [len(t.reply_positions) for t in neutral]
    return NullCard(
        n_prompts=len(first),
        n_replies=len(neutral),
        kinds={} if kinds is None else dict(Counter(kinds[i] for i in first.values())),
        lengths=dict(zip(QUANTILES, map(float, np.quantile(lengths, QUANTILES)), strict=True)),
        supported=supported,
        sampling=None if known.sampling is None else settings(known.sampling),
        system_prompt=any("system" in t.roles for t in neutral),
        reader=known.reading_model,
        template=known.template,
        novelty=fit_novelty(of_prompts, blocks, seed),
    )


def fit_novelty(traces: Sequence[Trace], blocks: Sequence[int], seed: int = 0) -> Novelty | None:
    """The novelty of prompts against those of some traces, one for each prompt; None if their states are unknown."""
    features = np.array([prompt_features(t, blocks) for t in traces])  # [n_prompts, n_features]
    if not np.isfinite(features).all():
        return None
    fold = np.random.default_rng(seed).permutation(len(features)) % FOLDS
    distances = np.empty(len(features))
    for part in range(FOLDS):
        center, whitening = _fit(features[fold != part])
        distances[fold == part] = [_distance(x, center, whitening) for x in features[fold == part]]
    quantiles = dict(zip(QUANTILES, map(float, np.quantile(distances, QUANTILES)), strict=True))
    return Novelty(tuple(blocks), *_fit(features), quantiles)


def prompt_features(trace: Trace, blocks: Sequence[int]) -> np.ndarray:
    """What a trace knows about its prompt's states, `[n_features]`; NaN where it does not.

    Scores of all traits at the last prompt token and their mean over the prompt without sink tokens, the logarithms of
    the norm at the last prompt token, at each block; and the logarithm of the number of prompt tokens.
    """
    columns = [trace.blocks.index(b) for b in blocks]
    n = trace.n_prompt
    if n < 2 or trace.alignment != "at":
        return np.full(len(columns) * (2 * len(trace.traits) + 1) + 1, np.nan)
    mean, std = (part[:, columns, None] for part in (trace.null_mean, trace.null_std))
    z = (trace.raw[:, columns, :n] - mean) / std  # [n_traits, n_blocks, n_prompt]
    counted = ~trace.sinks[columns, :n]  # [n_blocks, n_prompt]
    counted[:, 0] = False  # where no limit is known: the first token is a sink in most models
    over = (z * counted).sum(-1) / np.maximum(counted.sum(-1), 1)
    with np.errstate(divide="ignore"):
        norms = np.log(trace.norms[columns, n - 1])
    return np.concatenate([z[..., -1].ravel(), over.ravel(), norms, [np.log(n)]]).astype(float)


def settings(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling settings that decide which tokens are likely: all but the token limit."""
    return {k: v for k, v in sampling.items() if k != "max_new_tokens"}


def _fit(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Center, and whitening by the shrunk covariance (Ledoit and Wolf 2004) of the standardised features."""
    from sklearn.covariance import ledoit_wolf  # here: importing it takes half a second

    center, spread = features.mean(0), features.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    covariance = ledoit_wolf((features - center) / spread)[0]
    values, vectors = np.linalg.eigh(covariance)
    return center, vectors / np.sqrt(np.maximum(values, 1e-9)) / spread[:, None]


def _distance(features: np.ndarray, center: np.ndarray, whitening: np.ndarray) -> float:
    return float(np.linalg.norm((features - center) @ whitening) / np.sqrt(len(center)))


def _pairs(quantiles: Mapping[float, float]) -> list[list[float]]:
    return [[p, q] for p, q in quantiles.items()]
