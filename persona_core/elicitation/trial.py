"""A short trial of a plan: how fast this machine writes its replies, and how long they are."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from persona_core.elicitation.elicit import ElicitationPlan
from persona_core.elicitation.store import ElicitationRequest
from persona_core.inference.generation import GenerationRun
from persona_core.inference.pooled_states import PooledStates
from persona_core.inference.pooling import parse_positions
from persona_core.inference.prefix import ReplyPrefix
from persona_core.models.language_model import LanguageModel

TRIAL_SECONDS = 10.0
MIN_STEPS = 4
"""Steps after the first token that are timed in any case: on a slow machine the prompts alone may take the seconds."""


@dataclass(frozen=True)
class Trial:
    """What was measured.

    Attributes:
        n_replies: replies that were begun.
        seconds_before: for each reply, until its first token.
        seconds_a_token: for each token, with a whole batch being written.
        reply_tokens: expected length of a reply.
        prompt_tokens: mean length of a prompt.
        characters_a_token: of the replies.

    >>> trial = Trial(4, 0.5, 0.01, 100.0, 40.0, 4.5)
    >>> trial.seconds_for(1000), trial.tokens_for(1000)
    (1500.0, 100000)
    """

    n_replies: int
    seconds_before: float
    seconds_a_token: float
    reply_tokens: float
    prompt_tokens: float
    characters_a_token: float

    @property
    def tokens_a_second(self) -> float:
        """Of all replies of a batch together."""
        return 1 / self.seconds_a_token if self.seconds_a_token else 0.0

    def seconds_for(self, n: int) -> float:
        """Seconds in which n replies are written."""
        return n * (self.seconds_before + self.seconds_a_token * self.reply_tokens)

    def tokens_for(self, n: int) -> int:
        """Tokens that n replies have."""
        return round(n * self.reply_tokens)


def try_plan(
    lm: LanguageModel, plan: ElicitationPlan, requests: Sequence[ElicitationRequest], seconds: float = TRIAL_SECONDS
) -> Trial:
    """Write one batch of these requests for a few seconds, and keep nothing of it.

    The length of a reply is that of a process which ends at any token with the rate seen here, up to the limit.

    Args:
        requests: at least one; those that are tried are spread over them.
        seconds: after which the trial ends; the prompts are read and a few tokens of each are written in any case.
    """
    chosen = requests[:: math.ceil(len(requests) / plan.batch_size)]
    starts = [ReplyPrefix(lm.chat.render(r.messages)) for r in chosen]
    seeds = [plan.seed + r.index for r in chosen]
    pooled = PooledStates(parse_positions(plan.positions), len(lm.blocks), len(starts), None, plan.tokens_per_reply)
    run = GenerationRun(lm, {}, starts, plan.sampling, seeds, pooled=pooled, batch_size=plan.batch_size)
    begun = time.monotonic()
    first = last = begun
    n_tokens = n_first = n_steps = 0
    with closing(run.steps()) as steps:
        for step in steps:
            last = time.monotonic()
            if step.token_ids is None:
                continue
            if not n_tokens:
                first, n_first = last, len(step.token_ids)
            n_tokens += len(step.token_ids)
            n_steps += 1
            if last - begun >= seconds and n_steps > MIN_STEPS:
                break
    ended = sum(reason == "eos" for reason in run.finished)
    rate, limit = ended / max(1, n_tokens), plan.sampling.max_new_tokens
    written = [run.reply_text(row) for row in range(len(starts))]
    return Trial(
        n_replies=len(starts),
        seconds_before=(first - begun) / len(starts),
        seconds_a_token=(last - first) / max(1, n_tokens - n_first),
        reply_tokens=(1 - (1 - rate) ** limit) / rate if rate else float(limit),
        prompt_tokens=sum(len(s.ids) for s in starts) / len(starts),
        characters_a_token=max(1.0, sum(map(len, written)) / max(1, n_tokens)),
    )
