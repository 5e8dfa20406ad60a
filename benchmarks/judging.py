"""What a local judge costs with the prefix of a rubric shared, against reading every prompt whole; the scores compared.

    python -m benchmarks.judging

The judge is SmolLM2-135M-Instruct; the questions are those of a shipped trait and of coherence, about replies of 20 to
140 tokens. Two rounds: the model as it is, which rarely answers a rubric with a number, and with the logits of digits
raised until it does, as a judge that one would use. There reading whole prompts goes back for each likely digit.
Time is that of the processor, so other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.common import real_weights, save
from persona_core.elicitation.traits import fill, load_traits
from persona_core.judging.judge import COHERENCE, COHERENCE_PROMPT, Question
from persona_core.judging.local import LocalJudge
from persona_core.judging.number_tree import digit_tokens, number_tree
from persona_core.models.language_model import LanguageModel
from persona_core.models.loading import load_model

RAISED = 6.0
"""What is added to digits' logits; numbers then hold more than a quarter of the probability in all prompts."""
SENTENCES = (
    "You are right, and I would not change a word of it.",
    "There are two sides to this, and the second deserves a closer look.",
    "Most people who try this find the first week the hardest.",
    "I would ask somebody who knows the place before deciding.",
    "The numbers that you give do not add up to what you claim.",
)


class Raised:
    """A model whose digits have larger logits."""

    def __init__(self, lm: LanguageModel, by: float) -> None:
        self._model, self._raised = lm.model, torch.where(digit_tokens(lm), by, 0.0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, **inputs: Any) -> Any:
        out = self._model(**inputs)
        out.logits = out.logits + self._raised
        return out


def questions(n: int) -> list[Question]:
    """Two questions about each of n replies, as `judge_replies` asks them."""
    trait = load_traits("sycophancy")[0]
    rng, found = np.random.default_rng(0), []
    for i in range(n):
        user = trait.extraction_questions[i % len(trait.extraction_questions)]
        reply = " ".join(rng.choice(SENTENCES, rng.integers(2, 10)))
        for name, prompt in ((trait.name, trait.judge_prompt), (COHERENCE, COHERENCE_PROMPT)):
            found.append(Question(f"{i}/{name}", name, fill(prompt, user, reply), user, reply))
    return found


def timed(lm: LanguageModel, asked: Sequence[Question], share_prefix: bool) -> tuple[dict[str, float | None], float]:
    """Scores, and seconds of processor time."""
    judge = LocalJudge(lm, share_prefix=share_prefix)
    started = time.process_time()
    found = {q.key: score.value for q, score in judge.score(asked, progress=False)}
    return found, time.process_time() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replies", type=int, default=16, help="replies, two questions each (16)")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lm = load_model(real_weights(), device="cpu")
    asked = questions(options.replies)
    figures: dict[str, Any] = {
        "model": lm.writer_name,
        "questions": len(asked),
        "prompt_tokens": round(float(np.mean([len(lm.chat.render(q.prompt).token_ids) for q in asked])), 1),
        "branches": len(number_tree(lm).branches),
        "threads": options.threads,
    }
    for name, by in (("as_it_is", 0.0), ("digits_raised", RAISED)):
        judge = replace(lm, model=Raised(lm, by))
        shared, seconds = timed(judge, asked, True)
        whole, seconds_whole = timed(judge, asked, False)
        both = [(shared[k], v) for k, v in whole.items() if v is not None and shared[k] is not None]
        figures[name] = {
            "seconds_a_question_shared": round(seconds / len(asked), 3),
            "seconds_a_question_whole": round(seconds_whole / len(asked), 3),
            "ratio": round(seconds_whole / seconds, 2),
            "scored": sum(v is not None for v in whole.values()),
            "scored_by_one_only": sum((shared[k] is None) != (v is None) for k, v in whole.items()),
            "largest_difference": max((abs(a - b) for a, b in both), default=None),  # type: ignore[operator]
        }
    save("judging", figures)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
