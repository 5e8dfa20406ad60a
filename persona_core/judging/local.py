"""A local judge: any transformers model, read by the probabilities that it gives to numbers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from tqdm import tqdm

from persona_core.inference.memory import free_memory, out_of_memory, pad_left
from persona_core.judging.answers import MIN_MASS
from persona_core.judging.judge import Question, Score
from persona_core.judging.number_tree import (
    Prefix,
    common_prefix,
    digit_tokens,
    number_tree,
    read_prefix,
    read_tree,
    takes_a_tree,
)
from persona_core.models.language_model import LanguageModel

logger = logging.getLogger(__name__)

BATCHES_SORTED = 4
"""Prompts are sorted by rubric and length within this many batches: little padding, and little lost if stopped."""

MIN_BRANCH = 0.01
"""A first digit with less probability than this is not followed: it cannot move the mean by more than one."""

MAX_DIFFERENCE = 0.05
"""Share of probability by which the two ways to read a prompt may differ; bfloat16 alone makes up to .02."""

UNLIKELY = "unlikely numbers"
"""How a score was read where the numbers hold less than `MIN_MASS` together."""

Row = Sequence[int]
Expected = tuple[float, float]
"""The expected number, and how much probability the numbers hold together."""
Found = TypeVar("Found")


class LocalJudge:
    """Scores by the expectation over the numbers 0 to 100 as the model's tokenizer writes them.

    Where a number is one token, the probabilities after the prompt give all of them. Where it is several ("8", "5"),
    the likely first digits are followed: P(85) = P(8) P(5 | 8), and P(8) counts only as far as no digit follows it. No
    score where the numbers together hold less than a quarter of the probability. A model that thinks first is given an
    empty thought.

    What the prompts of one rubric begin with is read once, and one forward reads each prompt and all numbers after it;
    see `persona_core.judging.number_tree`. A model that does not read one prompt so as it reads it alone (a sliding
    window, a recurrent state) reads every prompt whole, once for each digit.

    Args:
        lm: the model that judges.
        batch_size: prompts per forward pass; halved where memory runs out.
        share_prefix: False reads every prompt whole.
        min_mass: share of the probability that the numbers must hold together; with 0 every reply has a score, and
            `UNLIKELY` says where the model would rather have answered something else.
    """

    def __init__(
        self, lm: LanguageModel, batch_size: int = 16, share_prefix: bool = True, min_mass: float = MIN_MASS
    ) -> None:
        self._lm, self._batch_size, self._min_mass = lm, batch_size, min_mass
        self._tree = number_tree(lm)
        self._digits = digit_tokens(lm)  # bool [vocab]
        self._header = answer_header(lm)
        self._prefixes: dict[str, Prefix] = {}  # by trait
        self._shares = share_prefix and takes_a_tree(lm)
        self._tried = 0  # tokens of the longest prompt that was read both ways

    @property
    def name(self) -> str:
        found = f"local:{self._lm.writer_name}" + (f"@{self._lm.revision}" if self._lm.revision else "")
        return found if self._min_mass == MIN_MASS else f"{found}, numbers from {self._min_mass:g} of the probability"

    def score(self, questions: Sequence[Question], progress: bool = True) -> Iterator[tuple[Question, Score]]:
        """One score for each question.

        Sorted within a few batches only: both questions about a reply are answered close together, so a stopped run
        has complete replies to keep.
        """
        prompts = [(*self._lm.chat.render(q.prompt).token_ids, *self._header) for q in questions]
        limit, rubrics = self._lm.context_length, dict[str, list[Row]]()  # the prompts of each trait
        fits = [limit is None or len(prompt) + 3 <= limit for prompt in prompts]
        for question, prompt, whole in zip(questions, prompts, fits, strict=True):
            if whole:
                rubrics.setdefault(question.trait, []).append(prompt)
        self._try(rubrics)
        with tqdm(total=len(questions), desc="judging", unit="answer", disable=not progress) as bar:
            for batch in self._batches(questions, prompts):
                inside = [i for i in batch if fits[i]]
                trait = questions[batch[0]].trait
                values = self._expectations(trait, rubrics.get(trait, ()), [prompts[i] for i in inside])
                found = dict(zip(inside, values, strict=True))
                for i in batch:
                    yield questions[i], self._score(*found[i]) if i in found else Score(None, "too long")
                bar.update(len(batch))

    def _score(self, value: float, mass: float) -> Score:
        if not mass > 0 or mass < self._min_mass:  # NaN included
            return Score(None, "unreadable")
        return Score(value, "logprobs" if mass >= MIN_MASS else UNLIKELY)

    def _batches(self, questions: Sequence[Question], prompts: Sequence[Row]) -> Iterator[list[int]]:
        """Indices of the questions, each batch of one trait and of similar lengths."""
        window = BATCHES_SORTED * self._batch_size
        for start in range(0, len(questions), window):
            groups: dict[str, list[int]] = {}
            for i in range(start, min(start + window, len(questions))):
                groups.setdefault(questions[i].trait, []).append(i)
            for group in groups.values():
                group.sort(key=lambda i: -len(prompts[i]))
                for first in range(0, len(group), self._batch_size):
                    yield group[first : first + self._batch_size]

    # ---- reading ----

    def _expectations(self, trait: str, rubric: Sequence[Row], rows: Sequence[Row]) -> list[Expected]:
        """What is expected after each row.

        Args:
            rubric: all prompts of this trait.
            rows: some of them.
        """
        if not rows:
            return []
        return self._shared(trait, rubric, rows) if self._shares else self._whole(rows)

    def _shared(self, trait: str, rubric: Sequence[Row], rows: Sequence[Row]) -> list[Expected]:
        """With the prefix of the rubric read once, and one forward for the prompts and all numbers."""
        prefix = self._prefixes.get(trait)
        if prefix is None or not prefix.of_all(rows):
            ids = common_prefix(rubric) if len(rubric) > 1 else ()
            prefix = self._prefixes[trait] = read_prefix(self._lm, ids)

        def read(part: Sequence[Row]) -> list[Expected]:
            logits = read_tree(self._lm, self._tree, prefix, part)
            return [self._expectation(row.float().softmax(-1).cpu()) for row in logits]

        return [value for values in _in_parts(read, rows) for value in values]

    def _try(self, rubrics: Mapping[str, Sequence[Row]]) -> None:
        """Share the prefix only where the longest prompt so far can be read so: there a sliding window shows."""
        if not self._shares or not rubrics:
            return
        rubric = max(rubrics.values(), key=lambda rows: max(map(len, rows)))
        row = max(rubric, key=len)
        if len(row) > self._tried:
            self._tried, self._shares = len(row), self._agrees(rubric, row)

    def _agrees(self, rubric: Sequence[Row], row: Row) -> bool:
        """Whether the model, given our mask, reads a prompt, beside the shortest, as it reads it alone."""
        rows = [row, min(rubric, key=len)]
        first = [k for k, index in enumerate(self._tree.branches, 1) if self._tree.nodes[index].depth == 1]
        try:
            prefix = read_prefix(self._lm, common_prefix(rows))
            shared = read_tree(self._lm, self._tree, prefix, rows)[0].float().softmax(-1).cpu()
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            if isinstance(error, RuntimeError) and out_of_memory(error):
                raise
            far = 1.0  # an architecture may refuse the mask or the cache in any way
        else:
            pairs = [(shared[0], self._next([row])[0])]
            if first:
                token_of = {k: self._tree.nodes[self._tree.branches[k - 1]].token for k in first}
                likely = max(first, key=lambda k: float(shared[0, token_of[k]]))
                pairs.append((shared[likely], self._next([(*row, token_of[likely])])[0]))
            far = max(float((one - other).abs().sum()) / 2 for one, other in pairs)
        if not far <= MAX_DIFFERENCE:
            logger.info("%s does not read prompts that share their beginning; reading each whole.", self.name)
        return far <= MAX_DIFFERENCE

    def _whole(self, rows: Sequence[Row]) -> list[Expected]:
        """Every prompt whole, and again behind each likely digit."""
        branches = {index: k for k, index in enumerate(self._tree.branches, 1)}
        found = torch.zeros(len(rows), 1 + len(branches), self._lm.vocabulary_size)
        level: list[tuple[int, int, tuple[int, ...], float]] = [
            (row, 0, (), 1.0) for row in range(len(rows))
        ]  # row, node, tokens so far, P
        while level:
            texts = [(*rows[row], *tokens) for row, _, tokens, _ in level]
            parts = [texts[i : i + self._batch_size] for i in range(0, len(texts), self._batch_size)]
            read = torch.cat([p for part in parts for p in _in_parts(self._next, part)])  # [texts, vocab]
            deeper = []
            for p_next, (row, at, tokens, reached) in zip(read, level, strict=True):
                found[row, branches.get(at, 0)] = p_next
                for index, node in enumerate(self._tree.nodes):
                    p = reached * float(p_next[node.token])
                    if node.parent == at and index and node.open and p >= MIN_BRANCH:
                        deeper.append((row, index, (*tokens, node.token), p))
            level = deeper
        return [self._expectation(one) for one in found]

    @torch.inference_mode()
    def _next(self, rows: Sequence[Row]) -> torch.Tensor:
        """Probabilities of the token after each row, float32 `[rows, vocab]` on the host."""
        lm = self._lm
        ids, mask = pad_left(rows, lm.device)
        inputs = {"input_ids": ids, "attention_mask": mask}
        if "position_ids" in lm.forward_arguments:
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
        return lm.model(**inputs, **lm.last_logits(1), use_cache=False).logits[:, -1].float().softmax(-1).cpu()

    def _expectation(self, probabilities: torch.Tensor) -> Expected:
        """The expected number and its mass.

        Args:
            probabilities: of the token after the prompt and after each branch, `[1 + n_branches, vocab]`.
        """
        nodes, branches = self._tree.nodes, {index: k for k, index in enumerate(self._tree.branches, 1)}
        digits = probabilities[:, self._digits].sum(-1).tolist()
        reached, total, mean = {0: 1.0}, 0.0, 0.0
        for index, node in enumerate(nodes):
            if not index or node.parent not in reached:
                continue
            p = reached[node.parent] * float(probabilities[branches.get(node.parent, 0), node.token])
            if node.open and p >= MIN_BRANCH:
                reached[index] = p
                p *= 1.0 - digits[branches[index]]  # complete only where no digit follows
            if node.number is not None:
                total, mean = total + p, mean + p * node.number
        return mean / total if total else 0.0, total


def answer_header(lm: LanguageModel) -> tuple[int, ...]:
    """What stands between the prompt and an answer: an empty thought where the model would think, a channel's name."""
    prompt = lm.tokenizer.decode(lm.chat.render("?").token_ids)
    marks = lm.chat.thought_marks
    header = f"\n{marks.closing}\n\n" if marks and lm.chat.opens_thought(prompt) else lm.chat.answer_header
    return tuple(lm.tokenizer(header, add_special_tokens=False).input_ids) if header.strip() else ()


def _in_parts(work: Callable[[Sequence[Row]], Found], rows: Sequence[Row]) -> list[Found]:
    """Work on all rows at once, or where memory runs out on halves."""
    try:
        return [work(rows)]
    except RuntimeError as error:
        if not out_of_memory(error) or len(rows) == 1:
            raise
    logger.warning("%d prompts do not fit into memory; trying again in halves.", len(rows))
    free_memory()
    half = len(rows) // 2
    return [*_in_parts(work, rows[:half]), *_in_parts(work, rows[half:])]
