"""Read given token ids: one forward over each text, no generation, no language-model head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from tqdm import tqdm

from persona_core.blocks import unwrap
from persona_core.generation import means
from persona_core.hooks import ResidualTap
from persona_core.models import LanguageModel
from persona_core.pooling import Pool
from persona_core.steering import PAD_INDEX, Intervention


@torch.inference_mode()
def read_rows(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    n_prompts: Sequence[int],
    directions: dict[int, torch.Tensor],
    interventions: Sequence[Intervention] = (),
    batch_size: int = 16,
    progress: bool = False,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Project every token of every row.

    Rows are sorted by length, so that a batch holds little padding, and padded on the right: a causal decoder's state
    at a token does not depend on what comes after it, so neither mask nor positions are needed.

    Args:
        lm: the reader.
        rows: token ids of each text.
        n_prompts: tokens before each reply; steering counts from there.
        directions: block -> unit directions, float32 `[d_model, n_traits]`.
        interventions: changes that act while reading.
        batch_size: rows a forward.
        progress: show a bar.

    Returns:
        For each row, in the order given, raw `[n_traits, n_blocks, n_tokens]` and norms `[n_blocks, n_tokens]`, both
        float32 on the host.
    """
    decoder = unwrap(lm.model).get_decoder()
    results: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    with (
        ResidualTap(lm.blocks, directions, interventions) as tap,
        tqdm(total=len(rows), desc="reading", unit="text", disable=not progress) as bar,
    ):
        for batch, ids, reply_index in batches_by_length(lm, rows, n_prompts, batch_size):
            with tap.forward(reply_index):
                decoder(input_ids=ids, use_cache=False)
            reading = tap.reading()
            raw, norms = reading.raw.cpu().numpy(), reading.norms.cpu().numpy()
            for row, i in enumerate(batch):
                n = len(rows[i])
                results[i] = raw[row, :n].transpose(2, 1, 0).copy(), norms[row, :n].T.copy()
            bar.update(len(batch))
    return [results[i] for i in range(len(rows))]


@torch.inference_mode()
def read_pooled(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    n_prompts: Sequence[int],
    pools: Sequence[Pool],
    batch_size: int = 16,
) -> np.ndarray:
    """Mean states of given texts, all blocks: what pooling while generating gives, by one forward over each text.

    Args:
        lm: the reader.
        rows: token ids of each text, prompt and reply.
        n_prompts: tokens before each reply.
        pools: positions; see `persona_core.pooling`.
        batch_size: rows a forward.

    Returns:
        float32 `[rows, n_pools, n_blocks, d_model]`; NaN where a position has no token.
    """
    decoder = unwrap(lm.model).get_decoder()
    found = np.empty((len(rows), len(pools), len(lm.blocks), lm.blocks.d_model), np.float32)
    eos = torch.tensor(sorted(lm.eos_ids), device=lm.device)
    for batch, ids, reply_index in batches_by_length(lm, rows, n_prompts, batch_size):
        own = (reply_index >= 0) & ~torch.isin(ids, eos)
        with ResidualTap(lm.blocks, pools=pools) as tap:
            with tap.forward(reply_index, own):
                decoder(input_ids=ids, use_cache=False)
            found[batch] = means(tap)
    return found


def batches_by_length(
    lm: LanguageModel, rows: Sequence[Sequence[int]], n_prompts: Sequence[int], batch_size: int
) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """Places of like length, with their padded ids and reply indices, both `[rows, longest]` on the model's device."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))  # the longest first: memory runs out at once or never
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        ids, reply_index = _pad_right([rows[i] for i in batch], [n_prompts[i] for i in batch])
        yield batch, ids.to(lm.device), reply_index.to(lm.device)


def _pad_right(rows: Sequence[Sequence[int]], n_prompts: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and reply indices, both `[rows, longest]`."""
    longest = max(map(len, rows))
    # Filled with each row's last token: transformers warns of unmasked padding ids, which here do no harm.
    ids = torch.tensor([[row[-1]] * longest for row in rows])
    reply_index = torch.full((len(rows), longest), PAD_INDEX)
    for row, (row_ids, n_prompt) in enumerate(zip(rows, n_prompts, strict=True)):
        ids[row, : len(row_ids)] = torch.tensor(row_ids)
        reply_index[row, : len(row_ids)] = torch.arange(len(row_ids)) - n_prompt
    return ids, reply_index
