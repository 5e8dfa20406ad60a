"""What a warning from persona vectors is held against: position, words, the model's doubt, the prompt, random directions.

Each baseline gives series of the shape of a trait's: one number for each of a reply's own tokens, `[n_own]`, known
once that token has been read. `persona_core.analysis.early_warning` takes them as they are. A warning that one of
these gives as well says nothing about the residual stream: n-grams often match probes within a distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from persona_core.analysis.series import reply_scores
from persona_core.errors import SettingError
from persona_core.inference.prefill import each_batch
from persona_core.monitor.monitor import PersonaMonitor
from persona_core.monitor.transcripts import as_transcript
from persona_core.utils.checks import check_integer
from persona_core.vectors.vectors import PersonaVectors

if TYPE_CHECKING:
    from persona_core.models.language_model import LanguageModel
    from persona_core.traces.trace import Trace

Series = list[np.ndarray]


def position_scores(traces: Sequence[Trace]) -> Series:
    """The position of each token in its reply, from 0."""
    return [np.arange(len(trace.reply_positions), dtype=float) for trace in traces]


def last_prompt_scores(traces: Sequence[Trace], trait: str) -> Series:
    """z at the last token of the prompt, before anything has been written: the same at every token of a reply.

    Raises:
        SettingError: a conversation without a prompt, or traces of different readers, vectors or blocks.
        UnknownTrait, NotCalibrated: as `Trace.scores`.
    """
    if any(not trace.n_prompt for trace in traces):
        raise SettingError("A trace has no prompt, so no last prompt token; leave it out.")
    own = reply_scores(traces, trait)
    return [np.full(len(z), float(t.scores(trait)[t.n_prompt - 1])) for z, t in zip(own, traces, strict=True)]


@torch.inference_mode()
def entropy_scores(
    lm: LanguageModel, traces: Sequence[Trace], batch_tokens: int = 1024, progress: bool = False
) -> Series:
    """How undecided the model is about the next token, in nats: at position t, after token t has been read.

    One teacher-forced forward over each text, with the language-model head; the entropy of the softmax at temperature
    1, in float32. A batch holds the logits of all its tokens at once: of 1,024 tokens over 128,000 ids half a gigabyte.

    Args:
        lm: the reader.
        traces: read by their ids.
        batch_tokens: tokens a forward, padding included.
        progress: show a bar.

    Raises:
        SettingError: `batch_tokens` below 1.
        VectorsMismatch: a trace whose ids the reader's tokenizer spells otherwise.
    """
    found: dict[int, np.ndarray] = {}
    rows = [as_transcript(lm, t, None).ids for t in traces]
    with tqdm(total=len(rows), desc="entropy", unit="text", disable=not progress) as bar:

        def read(batch: list[int], ids: torch.Tensor, _: torch.Tensor) -> None:
            logits = lm.model(input_ids=ids, use_cache=False).logits  # [rows, longest, vocab]
            for row, i in enumerate(batch):
                own = torch.tensor(traces[i].reply_positions, dtype=torch.long, device=logits.device)
                logs = logits[row, own].float().log_softmax(-1)  # [n_own, vocab]
                # A token of probability 0 adds nothing: 0 times minus infinity is not a number.
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
    """z along isotropic random directions at one block, read as a trait's vector is: a list of series for each draw.

    Each direction has a mean and a spread of its own, over the tokens of the neutral replies. A random direction has
    no sign: whoever uses one must choose it on other texts.

    Args:
        lm: the reader.
        block: at which the trait is read.
        traces: to be scored, read again by their ids.
        neutral: replies of the null, read again as well.
        n_draws: directions.
        seed: of the directions.
        progress: show a bar.
        null_reader: the model that reads the neutral replies where it is another: z of a changed model's replies is
            held against the baseline's null too.

    Raises:
        SettingError: no neutral reply, or fewer than one draw.
        UnknownBlock: the model lacks the block.
    """
    check_integer("n_draws", n_draws)
    if not neutral:
        raise SettingError("No neutral reply, so no mean and spread for a random direction.")
    generator = torch.Generator().manual_seed(seed)
    number, shape = lm.blocks.check(block), (len(lm.blocks), lm.blocks.d_model)
    names = [f"random-{i}" for i in range(n_draws)]
    drawn = PersonaVectors.from_tensors(
        {name: torch.randn(shape, generator=generator) for name in names}, dict.fromkeys(names, number)
    )
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
        values = np.concatenate([t.scores(name, kind="raw")[t.reply_positions].astype(float) for t in null])
        mean, std = values.mean(), values.std(ddof=1)
        found.append([(t.scores(name, kind="raw")[t.reply_positions].astype(float) - mean) / std for t in read])
    return found


def ngram_scores(
    trait: Sequence[Trace],
    neutral: Sequence[Trace],
    groups: tuple[Sequence[object], Sequence[object]],
    longest: int = 3,
    n_folds: int = 5,
) -> tuple[Series, Series]:
    """How much the text so far looks like that of replies with the trait, by its n-grams of token ids alone: log-odds.

    Naive Bayes (multinomial, add-one) over the n-grams of whole replies. At position t: the sum over all n-grams that
    end at t or before. The prior is left out. A reply is scored by a classifier that has seen none of its group, and
    an n-gram that this classifier has not met counts nothing.

    Args:
        trait, neutral: replies of the two kinds.
        groups: of the trait replies and of the neutral ones: the prompt (or topic) of each.
        longest: n of the longest n-gram.
        n_folds: of the cross-fitting; fewer where there are fewer groups.

    Returns:
        Series of the trait replies and of the neutral ones.

    Raises:
        SettingError: scikit-learn is missing, not as many groups as replies, fewer than two groups or folds, or a fold
            whose rest is of one kind.
    """
    try:
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.model_selection import GroupKFold
        from sklearn.naive_bayes import MultinomialNB
    except ImportError as error:
        raise SettingError("The n-gram baseline needs scikit-learn: pip install scikit-learn.") from error

    check_integer("longest", longest)
    if (len(groups[0]), len(groups[1])) != (len(trait), len(neutral)):
        raise SettingError("Give a group for each reply; a classifier must not score what it was fitted to.")
    ids = [[t.token_ids[position] for position in t.reply_positions] for t in (*trait, *neutral)]
    labels = np.arange(len(ids)) < len(trait)
    numbers: dict[object, int] = {}
    of = np.array([numbers.setdefault(g, len(numbers)) for g in (*groups[0], *groups[1])])
    folds = min(n_folds, len(numbers))
    if folds < 2:
        raise SettingError(f"{len(numbers)} group of replies, {n_folds} folds; at least two of each are needed.")
    found: dict[int, np.ndarray] = {}
    for fitted, scored in GroupKFold(folds).split(ids, groups=of):
        if len(set(labels[fitted].tolist())) < 2:
            raise SettingError(
                "Without one fold's groups only one kind of replies is left; mix them or use more folds."
            )
        counts = CountVectorizer(analyzer=lambda reply: [g for ending in _ngrams(reply, longest) for g in ending])
        bayes = MultinomialNB().fit(counts.fit_transform([ids[i] for i in fitted]), labels[fitted])
        log_odds = dict(zip(counts.get_feature_names_out(), np.diff(bayes.feature_log_prob_, axis=0)[0], strict=True))
        for i in scored:
            steps = [sum(log_odds.get(g, 0.0) for g in ending) for ending in _ngrams(ids[i], longest)]
            found[int(i)] = np.cumsum(np.array(steps, float))
    series = [found[i] for i in range(len(ids))]
    return series[: len(trait)], series[len(trait) :]


def _ngrams(reply: Sequence[int], longest: int) -> list[list[str]]:
    """The n-grams that end at each token, as texts.

    >>> _ngrams([7, 8, 7], 2)
    [['7'], ['8', '7 8'], ['7', '8 7']]
    """
    words = [str(i) for i in reply]
    return [[" ".join(words[t + 1 - n : t + 1]) for n in range(1, min(longest, t + 1) + 1)] for t in range(len(words))]
