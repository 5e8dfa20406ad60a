"""Which part of its reply a model is writing: a thought, its answer, or the marks around them.

Decided token by token, from what was written before, so that pooling and limits do not depend on what comes later. A
mark that is written in several tokens is known when it is complete; until then its tokens count as neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from persona_core.models.detokenize import TextSplitter, text_of

if TYPE_CHECKING:
    from persona_core.inference.sampling import Sampling
    from persona_core.models.chat import ChatFormat
    from persona_core.models.language_model import LanguageModel

THOUGHT, NEITHER = -2, -1
"""In place of a position in the answer: a token of the thought, and one of the template's marks or the turn's end."""
PROMPT_TAIL = 32  # tokens at a prompt's end that show whether it ends inside a thought: an opening mark has under 10


class SectionReader:
    """Follows one reply.

    Args:
        chat: the format it is written in.
        in_thought: whether the prompt ended inside a thought.

    Attributes:
        n_answer, n_thought: tokens so far.
        stopped: whether the model has written a stop string.
    """

    def __init__(self, chat: ChatFormat, in_thought: bool) -> None:
        self._marks, self._header, self._stops = chat.thought_marks, chat.answer_header.strip(), chat.stop_strings
        self._splitter = TextSplitter(chat.tokenizer)
        self._text = ""  # since the section began, or what may become a mark
        self._state = "thought" if in_thought else "start"
        self.n_answer = self.n_thought = 0
        self.stopped = False

    @property
    def in_thought(self) -> bool:
        return self._state == "thought"

    def push(self, token_id: int) -> int:
        """The position of the reply's next token in the answer; `THOUGHT` or `NEITHER` if it is no part of it."""
        self._text += self._splitter.push(token_id)
        if self._state == "start":
            self._start()
        elif self._state == "thought":
            return self._thought()
        if self._state == "after mark" and self._text.strip():
            self._state = "answer"
        if self._state != "answer":
            return NEITHER
        if any(stop in self._text for stop in self._stops):
            self.stopped = True
            return NEITHER
        # What is held back is never counted, even if no stop string comes of it. So only a name that lacks its colon is
        # held back, and not the line break before it, which every list has: a mean may include the one before a name.
        if self._text.endswith(tuple(stop[:-1] for stop in self._stops)):
            return NEITHER
        self._text = self._text[-PROMPT_TAIL:]
        self.n_answer += 1
        return self.n_answer - 1

    def _start(self) -> None:
        text = self._text.lstrip()
        if self._marks is not None and text.startswith(self._marks.opening):
            self._state, self._text = "thought", ""
            return
        if self._header and text.startswith(self._header):
            self._state, self._text = "after mark", text[len(self._header) :]
            return
        marks = [self._header, self._marks.opening if self._marks else ""]
        if not any(mark.startswith(text) for mark in marks if mark):
            self._state = "answer"

    def _thought(self) -> int:
        if self._marks is None:
            raise RuntimeError("A thought without marks.")
        before, closed, after = self._text.partition(self._marks.closing)
        if closed:
            self._state, self._text = "after mark", after
            return NEITHER
        if not before.strip() or _ends_inside(self._text, (self._marks.closing,)):
            return NEITHER
        self.n_thought += 1
        return THOUGHT


def _ends_inside(text: str, marks: Sequence[str]) -> bool:
    """Whether a text ends with the beginning of a mark."""
    return any(text.endswith(mark[:n]) for mark in marks for n in range(1, len(mark)))


class ReplyFollower:
    """Follows the replies of one run.

    Args:
        lm: the model.
        prompts: token ids of each prompt.
        sampling: with the limits of thought and answer.
    """

    def __init__(self, lm: LanguageModel, prompts: Sequence[Sequence[int]], sampling: Sampling) -> None:
        self._lm, self._sampling = lm, sampling
        self._in_thought = [opens_thought(lm, ids) for ids in prompts]
        self._readers: dict[int, SectionReader] = {}
        self._newest: dict[int, int] = {}

    def begin(self, row: int, kept: Sequence[int]) -> None:
        """Start a reply, or start it over, after the tokens that are kept of an earlier one."""
        self._readers[row] = SectionReader(self._lm.chat, self._in_thought[row])
        for token_id in kept:
            self._readers[row].push(token_id)

    def push(self, row: int, token_id: int) -> tuple[int, str | None]:
        """The new token's position in the answer, `THOUGHT` or `NEITHER`; and why the reply ends with it, or None."""
        reader = self._readers[row]
        is_end = token_id in self._lm.eos_ids
        position = self._newest[row] = NEITHER if is_end else reader.push(token_id)
        if is_end or reader.stopped:
            return position, "eos"
        if reader.n_answer >= self._sampling.max_new_tokens:
            return position, "length"
        if reader.in_thought and reader.n_thought >= self._sampling.thought_limit:
            return position, "thought"
        return position, None

    def newest(self, row: int) -> int:
        """As `push` returned for the reply's newest token."""
        return self._newest[row]


def opens_thought(lm: LanguageModel, prompt: Sequence[int]) -> bool:
    """Whether a prompt ends inside a thought."""
    return lm.chat.opens_thought(text_of(lm.tokenizer, prompt[-PROMPT_TAIL:]))


def answer_positions(lm: LanguageModel, prompt: Sequence[int], reply: Sequence[int]) -> list[int]:
    """For each token of a reply its position in the answer, `THOUGHT` or `NEITHER`; as while it is written."""
    if lm.chat.reply_is_plain:
        return [NEITHER if i in lm.eos_ids else t for t, i in enumerate(reply)]
    reader = SectionReader(lm.chat, opens_thought(lm, prompt))
    return [NEITHER if i in lm.eos_ids else reader.push(i) for i in reply]
