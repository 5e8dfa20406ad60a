"""A local judge: any transformers model, read by the probabilities that it gives to numbers."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from tqdm import tqdm

from persona_core.inference.memory import out_of_memory, pad_left
from persona_core.judging.answers import MIN_MASS
from persona_core.judging.judge import Question, Score
from persona_core.models.language_model import LanguageModel

logger = logging.getLogger(__name__)

BATCHES_SORTED = 4
"""Prompts are sorted by length within this many batches: little padding, and little lost if stopped."""

MIN_BRANCH = 0.01
"""A first digit with less probability than this is not followed: it cannot move the mean by more than one."""


@dataclass
class _Node:
    """A node in the tree of the token sequences that write numbers."""

    number: int | None = None  # the number that is complete here
    children: dict[int, _Node] = field(default_factory=dict)


class LocalJudge:
    """Scores by the expectation over the numbers 0 to 100 as the model's tokenizer writes them.

    Where a number is one token, one forward pass gives all of them. Where it is several ("8", "5"), the likely first
    digits are followed: P(85) = P(8) P(5 | 8), and P(8) counts only as far as no digit follows it. No score where the
    numbers together hold less than a quarter of the probability.

    Args:
        lm: the model that judges.
        batch_size: prompts per forward pass; halved where memory runs out.
    """

    def __init__(self, lm: LanguageModel, batch_size: int = 16) -> None:
        self._lm, self._batch_size = lm, batch_size
        self._numbers = number_tree(lm)
        self._digits = digit_tokens(lm)  # bool [vocab]

    @property
    def name(self) -> str:
        return f"local:{self._lm.writer_name}" + (f"@{self._lm.revision}" if self._lm.revision else "")

    def score(self, questions: Sequence[Question], progress: bool = True) -> Iterator[tuple[Question, Score]]:
        """One score for each question.

        Sorted by length within a few batches only: both questions about a reply are answered close together, so a
        stopped run has complete replies to keep.
        """
        prompts = [self._lm.chat.render(q.prompt).token_ids for q in questions]
        window = BATCHES_SORTED * self._batch_size
        order = sorted(range(len(questions)), key=lambda i: (i // window, -len(prompts[i])))
        longest = self._lm.context_length
        with tqdm(total=len(questions), desc="judging", unit="answer", disable=not progress) as bar:
            for start in range(0, len(order), self._batch_size):
                batch = order[start : start + self._batch_size]
                fitting = [i for i in batch if longest is None or len(prompts[i]) + 3 <= longest]
                scores = dict(zip(fitting, self._expectations([prompts[i] for i in fitting]), strict=True))
                for i in batch:
                    value = scores.get(i)
                    how = "logprobs" if value is not None else "unreadable" if i in scores else "too long"
                    yield questions[i], Score(value, how)
                bar.update(len(batch))

    def _expectations(self, prompts: Sequence[Sequence[int]]) -> list[float | None]:
        """The expected number after each prompt; None where numbers are unlikely."""
        mass = [dict.fromkeys(range(101), 0.0) for _ in prompts]
        level: list[tuple[int, tuple[int, ...], _Node, float]] = [
            (row, (), self._numbers, 1.0) for row in range(len(prompts))
        ]  # prompt, tokens so far, node, P
        while level:
            following = self._next([(*prompts[row], *tokens) for row, tokens, _, _ in level])  # [n, vocab]
            deeper = []
            for probabilities, (row, tokens, node, reached) in zip(following, level, strict=True):
                if node.number is not None:
                    mass[row][node.number] += reached * (1.0 - float(probabilities[self._digits].sum()))
                for token, child in node.children.items():
                    p = reached * float(probabilities[token])
                    if child.children and p >= MIN_BRANCH:
                        deeper.append((row, (*tokens, token), child, p))
                    elif child.number is not None:
                        mass[row][child.number] += p
            level = deeper
        totals = [sum(m.values()) for m in mass]
        return [
            sum(number * p for number, p in m.items()) / total if total >= MIN_MASS else None
            for m, total in zip(mass, totals, strict=True)
        ]

    def _next(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Probabilities of the token after each row, float32 `[rows, vocab]` on the host."""
        parts = [rows[i : i + self._batch_size] for i in range(0, len(rows), self._batch_size)]
        return torch.cat([self._forward(part) for part in parts])

    @torch.inference_mode()
    def _forward(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        lm = self._lm
        ids, mask = pad_left(rows, lm.device)
        inputs = {"input_ids": ids, "attention_mask": mask}
        if "position_ids" in lm.forward_arguments:
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
        keep = {"logits_to_keep": 1} if "logits_to_keep" in lm.forward_arguments else {}
        try:
            logits = lm.model(**inputs, **keep, use_cache=False).logits[:, -1]  # [rows, vocab]
        except RuntimeError as error:
            if not out_of_memory(error) or len(rows) == 1:
                raise
            logger.warning("%d prompts do not fit into memory; trying again in halves.", len(rows))
            half = len(rows) // 2
            return torch.cat([self._forward(rows[:half]), self._forward(rows[half:])])
        return logits.float().softmax(-1).cpu()


def number_tree(lm: LanguageModel) -> _Node:
    """The token sequences that write 0 to 100, with and without a space before them."""
    root = _Node()
    for number in range(101):
        for text in (str(number), f" {number}"):
            node = root
            for token in lm.tokenizer.encode(text, add_special_tokens=False):
                node = node.children.setdefault(token, _Node())
            if node is not root:
                node.number = number
    return root


def digit_tokens(lm: LanguageModel) -> torch.Tensor:
    """Which tokens begin with a digit, bool `[vocab]`."""
    found = torch.zeros(lm.vocabulary_size, dtype=torch.bool)
    pieces = lm.tokenizer.batch_decode([[i] for i in range(min(len(lm.tokenizer), lm.vocabulary_size))])
    for token, piece in enumerate(pieces):
        found[token] = bool(re.match(r"\d", piece))
    return found
