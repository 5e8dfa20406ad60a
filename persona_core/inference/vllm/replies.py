"""The texts of one run on vLLM: what vLLM's steps give, put together into the steps of the decode loop.

A step of vLLM reads the token that it chose for a reply in the step before, and chooses the next one. A `DecodeStep`
holds a token and the reading at it: it is complete one step of vLLM after the token was chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from persona_core.errors import NumericalError, UnsupportedModel
from persona_core.inference.batch import DecodeStep
from persona_core.inference.hooks import Reading

if TYPE_CHECKING:
    from persona_core.inference.engine import Readout
    from persona_core.inference.readings import Arrays
    from persona_core.inference.sampling import Sampling
    from persona_core.inference.sections import ReplyFollower
    from persona_core.inference.vllm.worker import Chunk
    from persona_core.models.language_model import LanguageModel

Event = tuple[list[Any], "list[Chunk]"]
"""What a step of vLLM gave one run: vLLM's outputs, and readings."""


@dataclass
class Text:
    """A text that vLLM reads, given to it or written by it.

    Attributes:
        row: of the run.
        n_given: tokens given to vLLM.
        n_reply: reply tokens among those that were read and handed on.
        limit: longest reply.
        chosen: the token that vLLM has chosen and not yet read.
        raw, norms: what was read and not yet handed on.
        n_read: tokens read so far.
    """

    row: int
    n_given: int
    n_reply: int = 0
    limit: int = 0
    chosen: int | None = None
    raw: list[np.ndarray] = field(default_factory=list)
    norms: list[np.ndarray] = field(default_factory=list)
    n_read: int = 0

    def keep(self, first: int, raw: np.ndarray, norms: np.ndarray) -> None:
        """Add what was read. vLLM reads tokens again where it had no memory to keep their keys and values.

        Raises:
            UnsupportedModel: tokens before them have not been read.
        """
        if first > self.n_read:
            raise UnsupportedModel(
                f"vLLM read token {first} of text {self.row} without token {self.n_read} before it: a prefix from a "
                "cache has no states. Its prefix cache must be off."
            )
        new = slice(self.n_read - first, None)
        self.raw.append(raw[new])
        self.norms.append(norms[new])
        self.n_read = max(self.n_read, first + len(raw))

    def take(self, n: int) -> Arrays:
        """The next `n` tokens, all that was kept: raw `[n, n_blocks, n_traits]`, norms `[n, n_blocks]`."""
        raw = np.concatenate(self.raw) if self.raw else np.empty(0)
        if len(raw) != n:
            raise UnsupportedModel(f"vLLM read {len(raw)} tokens of text {self.row} where {n} were expected.")
        norms = np.concatenate(self.norms)
        self.raw, self.norms = [], []
        return raw, norms


class Texts:
    """The unfinished texts of one run, by the id of their request."""

    def __init__(self, lm: LanguageModel, readout: Readout) -> None:
        self.lm, self.readout = lm, readout
        self.active: dict[str, Text] = {}

    def keep(self, chunks: Sequence[Chunk]) -> None:
        """Add readings to their texts; those of texts that have ended are discarded.

        Raises:
            NumericalError: a state that is NaN or infinite.
        """
        for name, first, raw, norms in chunks:
            if name not in self.active:
                continue
            text = self.active[name]
            finite = np.isfinite(norms).all(0)  # [n_blocks]
            if not finite.all():
                block = sorted(self.readout.directions)[int(np.argmin(finite))]
                raise NumericalError(
                    f"Text {text.row}: its states are not finite from block {block} on. {self.lm.why_not_finite}"
                )
            text.keep(first, raw, norms)

    def reading(self, texts: Sequence[Text], n: int) -> Reading | None:
        """The next `n` tokens of each of some texts; None where nothing is read."""
        if not self.readout.directions:
            return None
        taken = [text.take(n) for text in texts]
        raw, norms = (torch.from_numpy(np.stack([one[i] for one in taken])) for i in (0, 1))
        return Reading(raw, norms)


class Replies(Texts):
    """The unfinished replies of one run."""

    def __init__(self, lm: LanguageModel, readout: Readout, sampling: Sampling, follower: ReplyFollower | None) -> None:
        super().__init__(lm, readout)
        self._sampling, self._follower = sampling, follower
        self.ended: list[str] = []

    def begin(self, name: str, row: int, ids: Sequence[int], n_kept: int, limit: int) -> None:
        """A reply has been given to vLLM."""
        self.active[name] = Text(row, len(ids), n_kept, limit)
        if self._follower is not None:
            self._follower.begin(row, ids[len(ids) - n_kept :])

    def steps(self, event: Event) -> Iterator[DecodeStep]:
        """What a step of vLLM completes: some prefills, a token of other replies. `ended` lists those that end."""
        outputs, chunks = event
        self.keep(chunks)
        first: list[tuple[Text, int]] = []
        further: list[tuple[str, Text, int]] = []
        for output in outputs:
            text = self.active.get(output.request_id)
            for token_id in output.outputs[0].token_ids if text else ():
                assert text is not None
                if text.chosen is None:
                    first.append((text, token_id))
                else:
                    further.append((output.request_id, text, token_id))
        for text, token_id in first:
            text.chosen = token_id
            yield DecodeStep((text.row,), None, self.reading([text], text.n_given), (None,))
        if further:
            yield self._step(further)

    def _step(self, further: Sequence[tuple[str, Text, int]]) -> DecodeStep:
        ids, reasons = [], []
        for name, text, token_id in further:
            assert text.chosen is not None
            ids.append(text.chosen)
            reasons.append(self._reason(text, text.chosen))
            text.chosen = token_id
            if reasons[-1] is not None:
                self.ended.append(name)
        texts = [text for _, text, _ in further]
        reading = self.reading(texts, 1)
        for name in self.ended:
            self.active.pop(name, None)
        return DecodeStep(tuple(text.row for text in texts), tuple(ids), reading, tuple(reasons))

    def _reason(self, text: Text, token_id: int) -> str | None:
        """Why a reply ends with a token, if it does."""
        text.n_reply += 1
        if self._follower is not None:
            _, reason = self._follower.push(text.row, token_id)
        else:
            reason = "eos" if token_id in self.lm.eos_ids else None
        if reason is None and text.n_reply >= text.limit:
            longest = self._sampling.longest_reply(self.lm.chat.thought_marks is not None)
            reason = "length" if text.limit == longest else "context"
        return reason
