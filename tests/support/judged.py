"""Judged replies whose states are known: a trait, and what can be mistaken for it, each along an axis of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from persona_core.traces.trace import Trace
from persona_core.vectors.controls import ExtractionReplies, TokenTables
from persona_core.vectors.extraction import Sides
from persona_core.vectors.held_out import HeldOut
from persona_core.vectors.states import ArrayStates

D_MODEL, N_BLOCKS, BEST = 24, 3, 1
N_PAIRS = 4  # question q is asked under instruction pair q modulo this
STRENGTHS = (0.3, 2.0, 1.0)  # of the trait, by block
TRAIT, LENGTH, REFUSAL = 0, 1, 2  # axes of the residual stream
WORDS = ("bread", "river", "lamp", "stone", "cloud", "paper", "garden", "winter")
REFUSES = "I'm sorry, but I can't help with that."


@dataclass
class JudgedReplies:
    """Replies to `n_questions`, `per_side` of each side to every one; a test changes them as it likes."""

    states: np.ndarray  # [n, N_BLOCKS, D_MODEL]
    positive: np.ndarray
    question: np.ndarray
    score: np.ndarray
    n_tokens: np.ndarray
    texts: list[str]
    token_ids: list[tuple[int, ...]]


def judged(
    seed: int = 0,
    n_questions: int = 20,
    per_side: int = 4,
    trait: float = 1.0,
    longer: float = 0.0,
    sees_length: float = 0.0,
    declining: str | None = None,
    sees_refusal: float = 0.0,
    noise: float = 0.5,
    telling: str | None = None,
) -> JudgedReplies:
    """Replies that follow their instruction, to a degree that the judge's score gives.

    Args:
        trait: how much of the degree is in the states.
        longer: by how many tokens positive replies are longer, on average.
        sees_length: how much of the length is in the states.
        declining: the side whose replies refuse, "positive" or "negative".
        sees_refusal: how much of that is in the states.
        noise: of every state; half as much again belongs to the question.
        telling: a word that only positive replies say.
    """
    rng = np.random.default_rng(seed)
    question = np.repeat(np.arange(n_questions), 2 * per_side)
    is_positive = np.tile(np.repeat([True, False], per_side), n_questions)
    n = len(is_positive)
    degree = np.where(is_positive, rng.uniform(0.2, 2, n), rng.uniform(-2, -0.2, n))
    n_tokens = np.round(60 + np.where(is_positive, longer / 2, -longer / 2) + rng.uniform(-15, 15, n)).astype(int)
    declines = np.array([(declining == "positive") == side if declining else False for side in is_positive])
    states = rng.normal(0, noise, (n, N_BLOCKS, D_MODEL))
    states += rng.normal(0, noise / 2, (n_questions, N_BLOCKS, D_MODEL))[question]
    states[:, :, TRAIT] += trait * degree[:, None] * np.array(STRENGTHS)
    states[:, :, LENGTH] += sees_length * (n_tokens[:, None] - 60) / 10
    states[:, :, REFUSAL] += sees_refusal * declines[:, None]
    texts = [" ".join(rng.choice(WORDS, 12)[: 8 + i % 5]) for i in range(n)]
    texts = [f"{REFUSES} {t}" if no else t for t, no in zip(texts, declines, strict=True)]
    texts = [f"{t} {telling}" if telling and yes else t for t, yes in zip(texts, is_positive, strict=True)]
    ids = [tuple(int(i) for i in rng.integers(0, 30, length)) for length in n_tokens]
    return JudgedReplies(states, is_positive, question, 50 + 25 * degree, n_tokens, texts, ids)


def held_out(j: JudgedReplies) -> HeldOut:
    return HeldOut(
        ArrayStates(j.states),
        tuple(j.texts),
        j.n_tokens,
        tuple(j.token_ids),
        j.positive,
        j.question,
        j.score,
        j.question % N_PAIRS,
    )


def extracted(j: JudgedReplies) -> ExtractionReplies:
    positive, negative = np.flatnonzero(j.positive), np.flatnonzero(~j.positive)
    return ExtractionReplies(
        sides=Sides(*(ArrayStates(j.states[rows]) for rows in (positive, negative, positive[:0]))),
        positive_questions=j.question[positive],
        negative_questions=j.question[negative],
        positive_texts=tuple(j.texts[i] for i in positive),
        negative_texts=tuple(j.texts[i] for i in negative),
        positive_pairs=j.question[positive] % N_PAIRS,
        negative_pairs=j.question[negative] % N_PAIRS,
    )


def tables(**changed: Any) -> TokenTables:
    """What a vector shows that neither position nor token has to do with."""
    known: dict[str, Any] = {
        "position_r2": 0.02,
        "token_r2": 0.1,
        "mean": 0.0,
        "edges": np.array([]),
        "by_position": np.array([0.0]),
        "by_token": {},
    }
    return TokenTables(**{**known, **changed})


def neutral_trace(values: np.ndarray, token_ids: np.ndarray, trait: str = "candour", n_prompt: int = 3) -> Trace:
    """A neutral reply whose tokens project as `values`; the prompt and the end-of-turn token project far away."""
    n = n_prompt + len(values) + 1
    raw = np.full((1, 1, n), 1e3, np.float32)
    raw[0, 0, n_prompt:-1] = values
    return Trace(
        token_ids=(*[0] * n_prompt, *(int(i) for i in token_ids), 1),
        tokens=("x",) * n,
        roles=("user",) * n_prompt + ("assistant",) * len(values) + ("template",),
        n_prompt=n_prompt,
        traits=(trait,),
        blocks=(BEST,),
        raw=raw,
        norms=np.ones((1, n), np.float32),
        best_block={trait: BEST},
        null_mean=np.zeros((1, 1), np.float32),
        null_std=np.ones((1, 1), np.float32),
        special=(False,) * n,
        finish="eos",
    )
