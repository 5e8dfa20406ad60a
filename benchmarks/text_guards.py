"""Guards that see the text alone, at the rate of the guard that sees the states: what both are held against.

N-grams on the stream get the same detector as the states, on the evidence that each token adds; so only what they see
differs. A judge on the finished reply, words and pairs of words in a linear classifier, tells once the reply is there.
Both learn from the texts that a maker of vectors has, never from replies that are measured.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from persona_core.analysis.onset import OnsetDetector
from persona_core.analysis.onset_calibration import calibrate_onsets
from persona_core.experiments.warning_baselines import fit_ngrams
from persona_core.models.language_model import LanguageModel
from persona_core.traces.trace import Trace


@dataclass(frozen=True)
class Lesson:
    """A labelled reply to learn from."""

    text: str
    shows: bool


class NgramGuard:
    """N-grams of token ids, one token at a time."""

    def __init__(self, lm: LanguageModel, lessons: Sequence[Lesson]) -> None:
        ids = [lm.tokenizer(one.text, add_special_tokens=False).input_ids for one in lessons]
        self._evidence = fit_ngrams(ids, np.array([one.shows for one in lessons]))

    def series(self, trace: Trace) -> np.ndarray:
        """What each token of a reply adds, `[n_reply]`."""
        return self._evidence([trace.token_ids[t] for t in trace.reply_positions])

    def calibrated(self, null: Sequence[Trace], rate: float, prompts: Sequence[Hashable]) -> OnsetDetector:
        """The detector that the states have too, on neutral replies."""
        by_trait, _ = calibrate_onsets({"": [self.series(trace) for trace in null]}, rate, prompts=prompts, timed=False)
        return by_trait[""]

    def alarm(self, detector: OnsetDetector, trace: Trace) -> int | None:
        """The token of the alarm in a reply."""
        series = detector.statistic(self.series(trace))
        over = np.flatnonzero(series > detector.threshold)
        return int(over[0]) if len(over) else None


def judge_of(lessons: Sequence[Lesson]) -> Callable[[Sequence[str]], np.ndarray]:
    """How much each finished reply looks like one with the trait, `[n_replies]`."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    texts = [one.text for one in lessons]
    features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(texts)
    model = LogisticRegression(class_weight="balanced", max_iter=1000)
    model.fit(features.transform(texts), [one.shows for one in lessons])
    return lambda replies: model.decision_function(features.transform(replies))


def threshold(neutral: np.ndarray, rate: float) -> float:
    """Above which new replies lie with at most this expected rate, as for the detectors: (n F + 1) / (n + 1) <= rate.

    >>> threshold(np.arange(399.0), 0.01)
    395.0
    """
    above = int(np.floor(rate * (len(neutral) + 1) + 1e-9)) - 1
    if above < 0:
        raise ValueError(f"{len(neutral)} neutral replies are too few for rate={rate:g}.")
    return float(np.sort(neutral)[-1 - above])
