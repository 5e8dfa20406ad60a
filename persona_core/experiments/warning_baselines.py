"""Baselines for early warning: position, n-grams, next-token entropy, the last prompt token, random directions.

Each baseline gives series of the same shape as a trait's: one number for each reply token, `[n_reply_tokens]`, known
once that token has been read; those that come from states have NaN at sink tokens.
`persona_core.analysis.early_warning` accepts them. A warning that one of these gives as well says nothing about the
residual stream: n-grams often match probes within a distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from persona_core.analysis.series import reply_scores, shared_kind
from persona_core.errors import SettingError
from persona_core.inference.prefill import each_batch
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.monitor.transcripts import as_transcript
from persona_core.utils.checks import check_integer
from persona_core.utils.numbering import numbered
from persona_core.vectors.random_directions import random_tensors
from persona_core.vectors.vectors import PersonaVectors

if TYPE_CHECKING:
    from persona_core.models.language_model import LanguageModel
    from persona_core.traces.trace import Kind, Trace

Series = list[np.ndarray]
NEEDS_SKLEARN = "The n-gram baseline needs scikit-learn: pip install scikit-learn."


def position_scores(traces: Sequence[Trace]) -> Series:
    """The position of each token in its reply, from 0."""
    return [np.arange(len(trace.reply_positions), dtype=float) for trace in traces]


def last_prompt_scores(traces: Sequence[Trace], trait: str, kind: Kind | None = None) -> Series:
    """The score before the reply begins, at the last prompt token that is no sink token: constant over the reply.

    Args:
        traces: of one reader.
        trait: which.
        kind: of score; None: "specific" where all traces have it, else "z".

    Raises:
        SettingError: a trace without such a token, or traces of different readers, vectors or blocks.
        UnknownTrait, NotCalibrated: as `Trace.scores`.
    """
    kind = kind or shared_kind(traces)
    own = reply_scores(traces, trait, kind)
    found = []
    for z, trace in zip(own, traces, strict=True):
        before = np.flatnonzero(~_sinks(trace, trace.best_block[trait])[: trace.n_prompt])
        if not len(before):
            raise SettingError("A trace has no prompt token with a score; leave it out.")
        found.append(np.full(len(z), float(trace.scores(trait, kind)[before[-1]])))
    return found


def _sinks(trace: Trace, block: int) -> np.ndarray:
    """Sink tokens at a block, bool `[n_tokens]`; none where the trace lacks the block."""
    return trace.sinks[trace.blocks.index(block)] if block in trace.blocks else np.zeros(trace.n_tokens, bool)


@torch.inference_mode()
def entropy_scores(
    lm: LanguageModel, traces: Sequence[Trace], batch_tokens: int = 1024, progress: bool = False
) -> Series:
    """Entropy of the next token, in nats: at position t, after token t has been read.

    One teacher-forced forward over each text, with the language-model head; the entropy of the softmax at temperature
    1, in float32. A batch holds the logits of all its tokens at once: half a gigabyte for 1,024 tokens over 128,000
    ids.

    Args:
        lm: the reader.
        traces: read by their ids.
        batch_tokens: tokens per forward, padding included.
        progress: show a bar.

    Raises:
        SettingError: `batch_tokens` below 1.
        VectorsMismatch: the reader's tokenizer decodes a trace's ids differently.
    """
    found: dict[int, np.ndarray] = {}
    rows = [as_transcript(lm, t, None).ids for t in traces]
    with tqdm(total=len(rows), desc="entropy", unit="text", disable=not progress) as bar:

        def read(batch: list[int], ids: torch.Tensor, _: torch.Tensor) -> None:
            logits = lm.model(input_ids=ids, use_cache=False).logits  # [rows, longest, vocab]
            for row, i in enumerate(batch):
                own = torch.tensor(traces[i].reply_positions, dtype=torch.long, device=logits.device)
                logs = logits[row, own].float().log_softmax(-1)  # [n_own, vocab]
                # A token of probability 0 contributes 0, but 0 times minus infinity is NaN.
                entropy = -(logs.exp() * logs.clamp_min(torch.finfo(logs.dtype).min)).sum(-1)  # [n_own]
                found[i] = entropy.double().cpu().numpy()
            bar.update(len(batch))

        each_batch(lm, rows, [t.n_prompt for t in traces], read, batch_tokens)
    return [found[i] for i in range(len(rows))]


def random_direction_scores(
    lm: LanguageModel,
    block: int,
    traces: Sequence[Trace],
    neutral: Sequence[Trace],
    n_draws: int = 5,
    seed: int = 0,
    progress: bool = False,
    null_reader: LanguageModel | None = None,
) -> list[Series]:
    """z along isotropic random directions at one block, read like a trait's vector: a list of series for each draw.

    Each direction is standardised over the tokens of the neutral replies. Sink tokens of the given traces count in no
    mean and have no score. A random direction has no sign: choose it on other texts.

    Args:
        lm: the reader.
        block: at which the trait is read.
        traces: to be scored; read again by their ids.
        neutral: replies of the null; read again as well.
        n_draws: number of directions.
        seed: for the directions.
        progress: show a bar.
        null_reader: the model that reads the neutral replies, if different: z of a changed model also uses the
            baseline's null.

    Raises:
        SettingError: no neutral reply, or fewer than one draw.
        UnknownBlock: the model lacks the block.
    """
    check_integer("n_draws", n_draws)
    if not neutral:
        raise SettingError("No neutral replies; a random direction needs them for its mean and spread.")
    number, names = lm.blocks.check(block), [f"random {k}" for k in range(1, n_draws + 1)]
    tensors = random_tensors(n_draws, len(lm.blocks), lm.blocks.d_model, seed)
    drawn = PersonaVectors.from_tensors(dict(zip(names, tensors, strict=True)), dict.fromkeys(names, number))
    monitor = PersonaMonitor(lm, drawn)
    if null_reader is None:
        once = {id(trace): trace for trace in (*neutral, *traces)}  # neutral replies are often among the traces
        readings = monitor.read_batch(list(once.values()), progress=progress)
        by_id = dict(zip(once, readings, strict=True))
        null, read = ([by_id[id(trace)] for trace in those] for those in (neutral, traces))
    else:
        read = monitor.read_batch(traces, progress=progress)
        null = PersonaMonitor(null_reader, drawn).read_batch(neutral, progress=progress)
    found = []
    for name in names:
        null_values = np.concatenate(_raw(null, neutral, name, number))
        mean, std = np.nanmean(null_values), np.nanstd(null_values, ddof=1)
        found.append([(z - mean) / std for z in _raw(read, traces, name, number)])
    return found


def _raw(readings: Sequence[Trace], traces: Sequence[Trace], name: str, block: int) -> Series:
    """The readings' projections at the reply tokens; NaN at the sink tokens of the traces, of the same ids."""
    return [
        np.where(_sinks(trace, block), np.nan, reading.scores(name, kind="raw").astype(float))[reading.reply_positions]
        for reading, trace in zip(readings, traces, strict=True)
    ]


def ngram_scores(
    trait: Sequence[Trace],
    neutral: Sequence[Trace],
    groups: tuple[Sequence[object], Sequence[object]],
    longest: int = 3,
    n_folds: int = 5,
) -> tuple[Series, Series]:
    """How much the text so far resembles replies with the trait, by n-grams of token ids alone: log-odds.

    Naive Bayes (multinomial, add-one) over the n-grams of whole replies. At position t: the sum over all n-grams that
    end at t or before. The prior is left out. A reply is scored by a classifier fitted without its group; unknown
    n-grams count 0.

    Args:
        trait, neutral: replies of the two kinds.
        groups: prompt (or topic) of each trait reply and of each neutral one.
        longest: n of the longest n-gram.
        n_folds: for cross-fitting; fewer if there are fewer groups.

    Returns:
        Series of the trait replies and of the neutral ones.

    Raises:
        SettingError: scikit-learn is missing, a reply without a group, fewer than two groups or folds, or a fold whose
            complement has only one kind of reply.
    """
    try:
        from sklearn.model_selection import GroupKFold
    except ImportError as error:
        raise SettingError(NEEDS_SKLEARN) from error

    check_integer("longest", longest)
    if (len(groups[0]), len(groups[1])) != (len(trait), len(neutral)):
        raise SettingError("Give a group for each reply: a classifier must not score replies that it was fitted to.")
    ids = [[t.token_ids[position] for position in t.reply_positions] for t in (*trait, *neutral)]
    labels = np.arange(len(ids)) < len(trait)
    of = numbered((*groups[0], *groups[1]))
    n_groups = len(set(of))
    folds = min(n_folds, n_groups)
    if folds < 2:
        raise SettingError(f"{n_groups} group of replies and {n_folds} folds; at least two of each are needed.")
    found: dict[int, np.ndarray] = {}
    for fitted, scored in GroupKFold(folds).split(ids, groups=of):
        if len(set(labels[fitted].tolist())) < 2:
            raise SettingError(
                "Without the groups of one fold only one kind of reply is left; mix the kinds or use more folds."
            )
        evidence = fit_ngrams([ids[i] for i in fitted], labels[fitted], longest)
        for i in scored:
            found[int(i)] = np.cumsum(evidence(ids[i]))
    series = [found[i] for i in range(len(ids))]
    return series[: len(trait)], series[len(trait) :]


def fit_ngrams(
    replies: Sequence[Sequence[int]], labels: np.ndarray, longest: int = 3
) -> Callable[[Sequence[int]], np.ndarray]:
    """The evidence that each token of a text adds by the n-grams that end at it: log-odds, `[n_tokens]`.

    Naive Bayes (multinomial, add-one) over the n-grams of whole replies; unknown ones count 0.

    Args:
        replies: token ids of each.
        labels: whether each shows the trait, bool `[n_replies]`; both kinds occur.
        longest: n of the longest n-gram.

    Raises:
        SettingError: scikit-learn is missing.

    >>> fit_ngrams([[1, 2], [3, 4]], np.array([True, False]))([1, 3]).round(2).tolist()
    [0.69, -0.69]
    """
    try:
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.naive_bayes import MultinomialNB
    except ImportError as error:
        raise SettingError(NEEDS_SKLEARN) from error

    counts = CountVectorizer(analyzer=lambda reply: [g for ending in _ngrams(reply, longest) for g in ending])
    bayes = MultinomialNB().fit(counts.fit_transform(replies), labels)
    log_odds = dict(zip(counts.get_feature_names_out(), np.diff(bayes.feature_log_prob_, axis=0)[0], strict=True))

    def evidence(ids: Sequence[int]) -> np.ndarray:
        return np.array([sum(log_odds.get(g, 0.0) for g in ending) for ending in _ngrams(ids, longest)], float)

    return evidence


def _ngrams(reply: Sequence[int], longest: int) -> list[list[str]]:
    """The n-grams that end at each token, as strings.

    >>> _ngrams([7, 8, 7], 2)
    [['7'], ['8', '7 8'], ['7', '8 7']]
    """
    words = [str(i) for i in reply]
    return [[" ".join(words[t + 1 - n : t + 1]) for n in range(1, min(longest, t + 1) + 1)] for t in range(len(words))]
