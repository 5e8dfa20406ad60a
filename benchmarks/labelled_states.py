"""States of a model that reads labelled texts of the demo grammar, and how well a score tells its traits apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch

from demo_world.grammar import Sentence, World
from demo_world.split import WorldText
from demo_world.truth import token_sentences
from persona_core.analysis.statistics import Estimate, over_clusters, rank_auroc
from persona_core.inference.prefill import each_batch
from persona_core.models.blocks import block_output, unwrap
from persona_core.models.language_model import LanguageModel
from persona_core.monitor.transcripts import Transcript, as_transcript

NEUTRAL, CUE = -1, -2
"""Labels of tokens that show no trait: of a neutral sentence, and of one that announces a trait or is unknown."""
N_RESAMPLES = 200


@dataclass(frozen=True, eq=False)
class LabelledStates:
    """States at the reply tokens of some texts.

    Attributes:
        blocks: in the order of `states`.
        states: float16 `[n_blocks, n_tokens, d_model]`.
        label: index of the trait that a token's sentence shows, NEUTRAL or CUE, `[n_tokens]`.
        requested: index of the trait that its reply was written for, or NEUTRAL, `[n_tokens]`.
        sentence: number of its sentence, `[n_tokens]`.
        reply: number of its text, `[n_tokens]`.
    """

    blocks: tuple[int, ...]
    states: np.ndarray
    label: np.ndarray
    requested: np.ndarray
    sentence: np.ndarray
    reply: np.ndarray

    def at(self, block: int) -> np.ndarray:
        """float32 `[n_tokens, d_model]`."""
        return self.states[self.blocks.index(block)].astype(np.float32)

    def take(self, tokens: np.ndarray) -> LabelledStates:
        """Some of the tokens; bool `[n_tokens]`."""
        rest = (self.label, self.requested, self.sentence, self.reply)
        return LabelledStates(self.blocks, self.states[:, tokens], *(part[tokens] for part in rest))


class _Enough(Exception):
    """Leaves a forward from inside."""


def labels_of(sentences: Sequence[Sentence | None], traits: Sequence[str]) -> np.ndarray:
    """The label of each token, `[n_tokens]`."""

    def label(sentence: Sentence | None) -> int:
        if sentence is None or sentence.kind == "cue":
            return CUE
        return traits.index(sentence.trait) if sentence.kind == "trait" and sentence.trait else NEUTRAL

    return np.array([label(s) for s in sentences], int)


def read_states(lm: LanguageModel, texts: Sequence[WorldText], world: World, blocks: Sequence[int]) -> LabelledStates:
    """Read texts, and keep the states at their reply tokens."""
    traits = list(world.traits)
    read = [as_transcript(lm, text.messages, None) for text in texts]
    states = reply_states(lm, read, blocks)
    sentences = [_sentences(text, world) for text in read]
    numbers: dict[str, int] = {}
    lengths = [len(s) for s in sentences]
    return LabelledStates(
        tuple(blocks),
        np.concatenate(states, axis=1),
        np.concatenate([labels_of(s, traits) for s in sentences]),
        np.repeat([NEUTRAL if t.trait is None else traits.index(t.trait) for t in texts], lengths),
        np.array([numbers.setdefault(s.text if s else "", len(numbers)) for reply in sentences for s in reply]),
        np.repeat(np.arange(len(read)), lengths),
    )


@torch.inference_mode()
def reply_states(lm: LanguageModel, read: Sequence[Transcript], blocks: Sequence[int]) -> list[np.ndarray]:
    """The states at each text's reply tokens, float16 `[n_blocks, n_tokens, d_model]`."""
    found: dict[int, np.ndarray] = {}
    decoder = unwrap(lm.model).get_decoder()
    caught: dict[int, torch.Tensor] = {}
    handles = [
        lm.blocks.modules[b].register_forward_hook(lambda _m, _a, out, b=b: caught.update({b: block_output(out)}))
        for b in blocks
    ]

    def leave(*_: object) -> None:
        raise _Enough

    if max(blocks) + 1 < len(lm.blocks):  # the blocks after the last one that is kept need not run
        handles.append(lm.blocks.modules[max(blocks) + 1].register_forward_pre_hook(leave))

    def keep(batch: list[int], ids: torch.Tensor, _: torch.Tensor) -> None:
        with suppress(_Enough):
            decoder(input_ids=ids, use_cache=False)
        for row, i in enumerate(batch):
            reply = slice(read[i].n_prompt, len(read[i].ids))
            found[i] = torch.stack([caught[b][row, reply] for b in blocks]).half().cpu().numpy()

    try:
        each_batch(lm, [t.ids for t in read], [t.n_prompt for t in read], keep)
    finally:
        for handle in handles:
            handle.remove()
    return [found[i] for i in range(len(read))]


def _sentences(text: Transcript, world: World) -> list[Sentence | None]:
    return token_sentences(text.pieces[text.n_prompt :], world)


def separation(score: np.ndarray, states: LabelledStates, trait: int, against: str) -> Estimate:
    """AUROC of a trait's tokens against other tokens, with a 95 % interval over sentences.

    Args:
        score: `[n_tokens]`.
        trait: its index.
        against: "neutral": tokens of neutral sentences; "else": those and the tokens of every other trait.
    """
    own = states.label == trait
    others = states.label == NEUTRAL if against == "neutral" else (states.label >= NEUTRAL) & ~own
    used = own | others
    found = over_clusters(rank_auroc(score[used], own[used]), states.sentence[used], N_RESAMPLES)
    if found is None:
        raise ValueError(f"Trait {trait} has no token, or nothing to be told from.")
    return found


def table_row(scores: Callable[[int], np.ndarray], states: LabelledStates, n_traits: int) -> dict[str, object]:
    """Mean and worst AUROC over traits, against neutral text and against everything else.

    Args:
        scores: trait -> `[n_tokens]`.
    """
    row: dict[str, object] = {}
    for against in ("neutral", "else"):
        found = [separation(scores(k), states, k, against) for k in range(n_traits)]
        worst = min(found, key=lambda e: e.value)
        row[against] = {
            "mean": round(float(np.mean([e.value for e in found])), 4),
            "worst": worst.to_dict(),
            "by_trait": [e.to_dict() for e in found],
        }
    return row
