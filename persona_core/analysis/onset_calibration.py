"""Calibrate onset detectors on neutral replies: one threshold for all traits watched, the errors of the onsets, and
the smallest step that is found."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from persona_core.analysis.cusum import adjust, cusums
from persona_core.analysis.detection_power import with_rise
from persona_core.analysis.null_peaks import NullPeaks, running_peaks, stretches, supported_length
from persona_core.analysis.onset import OnsetDetector, OnsetErrors
from persona_core.analysis.series import checked, refuse_smoothed
from persona_core.errors import SettingError
from persona_core.traces.trace import Kind
from persona_core.utils.numbering import numbered

MIN_PROMPTS = 60
"""Neutral *prompts* needed: several replies to one prompt count once. With 60 and a nominal 5 %, the rate of the one
threshold that comes out lies between 1 and 11 % (95 % confidence); with 300 between 3 and 8 %."""

SUPPORT = 1 / 3
"""A length is supported if the replies to this share of the prompts (and to `MIN_PROMPTS`) reach it."""

DRIFTS = (0.75, 1.5)
"""Half the shifts of interest, 1.5 and 3 standard deviations. At 5 % over eight traits of the demo world, an alarm
comes within two tokens of a cue in 34 % of texts with 0.75 alone, 55 % with 1.5 alone and 50 % with both; uncued onsets
are missed in 1.0, 0.8 and 0.7 % (docs/experiments.md). Small lasting shifts are found by 0.75 alone more often."""

POSITIONS = 32
"""Positions whose mean and spread are estimated separately; later ones share the last estimate."""

FOLDS = 5
"""Parts of the prompts. A reply that contributed to its own mean and scale exceeds a threshold less often than a new
one, so each part's peaks are measured with what was fitted on the others."""

N_PLANTED = 4000
"""Neutral replies, drawn with replacement, in which a step is planted to measure the errors of the onsets."""

PLANTED = (0.75, 9.0)
"""Sizes of planted steps, in standard deviations. Smaller ones are hardly ever found, larger ones at once."""

CLASSES = 8
"""Classes of apparent size, equally many planted rises in each, whose errors are measured apart."""

SIZES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0)
"""Steps, in standard deviations, among which the smallest that is found is looked for."""

FOUND = 0.8
"""Share of the replies in which a step must raise an alarm to count as found."""


def calibrate_onset(
    nulls: Sequence[np.ndarray],
    rate: float = 0.05,
    drifts: Sequence[float] = DRIFTS,
    seed: int = 0,
    prompts: Sequence[Hashable] | None = None,
    kind: Kind = "z",
) -> OnsetDetector:
    """A detector for one trait that is watched alone.

    Args:
        nulls: scores of the tokens of each neutral reply, `[n_tokens]` each, NaN without evidence; from the same model,
            decoding and kind of text as the replies to be tested.
        rate: share of neutral replies that may raise an alarm.
        drifts: subtracted at every token, in standard deviations: half the shifts of interest, one sum for each.
        seed: for the folds and the planted steps.
        prompts: which prompt each reply answers; replies to one prompt count once. None: each its own.
        kind: of the scores, "specific" or "z".

    Raises:
        SettingError: fewer than `MIN_PROMPTS` prompts or too few for the rate, or an infinite or smoothed series.
    """
    return calibrate_onsets({"": nulls}, rate, drifts, seed, prompts, kind)[0][""]


def calibrate_onsets(
    nulls: Mapping[str, Sequence[np.ndarray]],
    rate: float = 0.05,
    drifts: Sequence[float] = DRIFTS,
    seed: int = 0,
    prompts: Sequence[Hashable] | None = None,
    kind: Kind = "z",
    timed: bool = True,
) -> tuple[dict[str, OnsetDetector], NullPeaks]:
    """Detectors of several traits which together raise an alarm in at most `rate` of the neutral replies.

    Each trait's sums are measured in units of their own tail in neutral replies, so that one threshold gives all traits
    about the same share of the alarms.

    Args:
        nulls: trait -> scores of each neutral reply, as in `calibrate_onset`, in the same order for all.
        rate: over all the traits.
        drifts, seed, prompts, kind: as in `calibrate_onset`.
        timed: measure the errors of onsets and the smallest step too, which takes most of the time; without, only
            alarms are of use.

    Returns:
        Trait -> detector, and the peaks, from which the threshold of fewer traits or of another rate is computed.
    """
    every = {t: [checked(z, f"Neutral reply {i}", gaps=True) for i, z in enumerate(own)] for t, own in nulls.items()}
    series = {t: [z for z in own if len(z)] for t, own in every.items()}
    cluster = _clusters(every, prompts)
    for own in series.values():
        refuse_smoothed(own)
    steps = np.sort(np.asarray(drifts, float))
    if not len(steps) or not (steps > 0).all():
        raise SettingError(f"drifts={tuple(drifts)!r}; expected positive numbers.")
    n_prompts = len(np.unique(cluster))
    if n_prompts < MIN_PROMPTS:
        raise SettingError(
            f"{len(cluster)} neutral replies to {n_prompts} different prompts; at least {MIN_PROMPTS} prompts are "
            "needed for the stated false-alarm rate to hold. Several replies to one prompt count once."
        )
    lengths = np.array([len(z) for z in next(iter(series.values()))])
    supported = supported_length(lengths, cluster, max(MIN_PROMPTS, SUPPORT * n_prompts))
    ends = stretches(supported)
    fold = np.random.default_rng(seed).permutation(n_prompts)[cluster] % FOLDS  # [n_replies]
    peaks = np.empty((len(cluster), len(series), len(ends)))
    nothing = OnsetErrors(np.empty(0), np.zeros(1), np.zeros(1))
    fitted: dict[str, OnsetDetector] = {}
    for k, (trait, own) in enumerate(series.items()):
        padded = _padded(own)  # [n_replies, n_tokens]
        for part in range(FOLDS):
            inside = fold == part
            scale = _scale(padded[~inside], lengths[~inside], steps, supported)
            peaks[inside, k] = running_peaks(_statistic(padded[inside], *scale, steps), lengths[inside], ends)
        mean, spread, location, width = _scale(padded, lengths, steps, supported)
        fitted[trait] = OnsetDetector(
            mean, spread, steps, location, width, 0.0, rate, n_prompts, len(lengths), supported, nothing, None, kind
        )
    known = NullPeaks(tuple(series), cluster, lengths, ends, peaks)
    threshold = known.threshold(rate)
    found = {}
    for trait, plain in fitted.items():
        detector = replace(plain, threshold=threshold, rate=known.rate(threshold, [trait]).value)
        if not timed:
            found[trait] = detector
            continue
        errors = _errors(detector, series[trait], np.random.default_rng(seed))
        found[trait] = replace(detector, errors=errors, smallest=_smallest(detector, series[trait]))
    return found, known


def _clusters(series: Mapping[str, Sequence[np.ndarray]], prompts: Sequence[Hashable] | None) -> np.ndarray:
    """The number of each reply's prompt, without those of empty replies, `[n_replies]`."""
    shapes = {tuple(map(len, own)) for own in series.values()}
    if len(shapes) != 1:
        raise SettingError("The traits' neutral replies differ in number or length; give the same replies for each.")
    lengths = next(iter(shapes))
    keys = range(len(lengths)) if prompts is None else prompts
    if len(keys) != len(lengths):
        raise SettingError(f"{len(keys)} prompts for {len(lengths)} neutral replies; give one for each reply.")
    return numbered(key for key, n in zip(keys, lengths, strict=True) if n)


def _padded(series: Sequence[np.ndarray]) -> np.ndarray:
    """`[n_replies, n_tokens]`, NaN after each reply."""
    found = np.full((len(series), max(map(len, series))), np.nan)
    for row, z in zip(found, series, strict=True):
        row[: len(z)] = z
    return found


Scale = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Mean and spread by position, `[n_positions]`; location and width of the sums' largest values, `[n_sums]`."""


def _scale(padded: np.ndarray, lengths: np.ndarray, drifts: np.ndarray, supported: int) -> Scale:
    mean, spread = _by_position(padded)
    inside = np.arange(padded.shape[1]) < np.minimum(lengths, supported)[:, None]
    largest = np.where(inside, cusums(adjust(padded, mean, spread), drifts), 0.0).max(-1)  # [n_sums, n_replies]
    # Of an exponential tail, by its median: the mean is that of the few neutral replies that do show a trait.
    location, half = np.quantile(largest, (0.75, 0.875), axis=1)  # [n_sums] each
    width = (half - location) / np.log(2)
    return mean, spread, location, np.where(width > 0, width, 1.0)


def _statistic(
    padded: np.ndarray,
    mean: np.ndarray,
    spread: np.ndarray,
    location: np.ndarray,
    width: np.ndarray,
    drifts: np.ndarray,
) -> np.ndarray:
    """`[n_replies, n_tokens]`."""
    sums = cusums(adjust(padded, mean, spread), drifts)
    return ((sums - location[:, None, None]) / width[:, None, None]).max(0)


def _by_position(padded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Middle and spread of the scores at the first positions, and of all later ones together, each `[n_positions]`.

    Both are of the middle 68 % of the tokens (mean and standard deviation of a normal distribution): a few neutral
    replies do show a trait, at many times the usual score, and would set the standard deviation by themselves.
    """
    known = padded[~np.isnan(padded)]
    overall, pooled = _middle(known) if len(known) else (0.0, 0.0)
    if not pooled > 0:
        raise SettingError("The neutral replies do not vary, so there is no null to compare with.")
    n = max(1, min(POSITIONS, padded.shape[1]))
    groups = [column[~np.isnan(column)] for column in (*padded[:, : n - 1].T, padded[:, n - 1 :].ravel())]
    few = [len(g) < 30 for g in groups]  # too few replies are that long: use the pooled values
    found = [(overall, pooled) if bad else _middle(g) for g, bad in zip(groups, few, strict=True)]
    mean, spread = np.array(found, float).T
    return mean, np.where(spread > 0, spread, pooled)


def _middle(scores: np.ndarray) -> tuple[float, float]:
    """Median and half the width of the middle 68.27 %."""
    low, middle, high = np.quantile(scores, (0.158655, 0.5, 0.841345))
    return float(middle), float(high - low) / 2


def _errors(detector: OnsetDetector, series: Sequence[np.ndarray], rng: np.random.Generator) -> OnsetErrors:
    """Plant rises of all sizes at all positions of neutral replies, and measure the errors of the estimates.

    They are classed by *apparent* size: a rise that is found by luck looks larger than it is.
    """
    drawn = rng.integers(len(series), size=N_PLANTED)
    positions = [int(rng.integers(1, max(2, len(series[i])))) for i in drawn]
    planted = [
        with_rise(detector.adjusted(series[i]), at, size, rng)
        for i, at, size in zip(drawn, positions, rng.uniform(*PLANTED, N_PLANTED), strict=True)
    ]
    sums = cusums(_padded(planted), detector.drifts)  # [n_sums, n_planted, n_tokens]
    sizes, errors = [], []
    for k, (x, at) in enumerate(zip(planted, positions, strict=True)):
        found = detector.find_adjusted(x, sums[:, k, : len(x)])
        if found.onset is not None and found.size is not None:
            sizes.append(found.size)
            errors.append(at - found.onset)
    if len(errors) < N_PLANTED / 10:
        longest = max(map(len, series))
        raise SettingError(
            f"The neutral replies are too short (longest: {longest} tokens) to detect steps: of {N_PLANTED} planted "
            f"ones, {len(errors)} were timed."
        )
    by_size = np.argsort(sizes)
    groups = np.array_split(np.array(errors, float)[by_size], CLASSES)
    ends = [np.array(sizes)[by_size][end - 1] for end in np.cumsum([len(g) for g in groups])[:-1]]
    # Whole tokens: the quantiles are observed errors, rounded outwards.
    low = [np.quantile(g, 0.025, method="lower") for g in groups]
    high = [np.quantile(g, 0.975, method="higher") for g in groups]
    return OnsetErrors(np.array(ends), np.array(low), np.array(high))


def _smallest(detector: OnsetDetector, series: Sequence[np.ndarray]) -> float | None:
    """The smallest of `SIZES` that is found in `FOUND` of the replies when it is planted half-way."""
    adjusted = _padded([detector.adjusted(z) for z in series])
    raised = _padded(
        [np.where(np.arange(len(z)) >= len(z) // 2, 1.0, 0.0) / _spread_at(detector, len(z)) for z in series]
    )
    half = np.array([len(z) // 2 for z in series])
    inside = ~np.isnan(raised)

    def found(size: float) -> bool:
        sums = cusums(adjusted + size * raised, detector.drifts)
        statistic = ((sums - detector.location[:, None, None]) / detector.scale[:, None, None]).max(0)
        over = (statistic > detector.threshold) & inside
        alarm = np.where(over.any(1), over.argmax(1), -1)
        return bool((alarm >= half).sum() >= FOUND * len(series))

    first = bisect_left(SIZES, True, key=found)  # monotonic: larger steps are found at least as often
    return SIZES[first] if first < len(SIZES) else None


def _spread_at(detector: OnsetDetector, n: int) -> np.ndarray:
    return detector.spread[np.minimum(np.arange(n), len(detector.spread) - 1)]
