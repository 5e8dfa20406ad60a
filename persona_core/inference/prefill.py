"""Teacher-forced reading: one forward over each text, without generation and without the language-model head."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from tqdm import tqdm

from persona_core.errors import NumericalError
from persona_core.inference.hooks import ResidualTap
from persona_core.inference.memory import free_memory, out_of_memory
from persona_core.inference.pooled_states import PooledStates
from persona_core.inference.pooling import Pool
from persona_core.inference.sections import NEITHER, answer_positions
from persona_core.inference.steering import PAD_INDEX, Intervention
from persona_core.models.blocks import unwrap
from persona_core.models.language_model import LanguageModel
from persona_core.utils.checks import check_integer

logger = logging.getLogger(__name__)

# Tokens in one forward, padding included. Time on two cores relative to one text at a time: 512 tokens 0.67,
# 1,024 0.65, 2,048 0.67, 4,096 0.73. A GPU is saturated by a few thousand; states take 0.3 GB at width 4,096.
BATCH_TOKENS = {"cpu": 1024, "cuda": 16384}

Work = Callable[[list[int], torch.Tensor, torch.Tensor], object]


@torch.inference_mode()
def read_rows(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    n_prompts: Sequence[int],
    directions: dict[int, torch.Tensor],
    interventions: Sequence[Intervention] = (),
    batch_tokens: int | None = None,
    progress: bool = False,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Project every token of every row. A forward ends with the last block that is needed.

    Args:
        lm: the reader.
        rows: token ids of each text.
        n_prompts: tokens before each reply; steering counts from there.
        directions: block -> unit directions, float32 `[d_model, n_traits]`.
        interventions: changes that act while reading.
        batch_tokens: as in `each_batch`.
        progress: show a bar.

    Returns:
        For each row, in the order given, raw `[n_traits, n_blocks, n_tokens]` and norms `[n_blocks, n_tokens]`, both
        float32 on the host.

    Raises:
        NumericalError: a state that is NaN or infinite.
        SettingError: a model in training mode.
    """
    decoder = unwrap(lm.model).get_decoder()
    results: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    with (
        ResidualTap(lm.blocks, directions, interventions, stop=not lm.dispatched) as tap,
        tqdm(total=len(rows), desc="reading", unit="text", disable=not progress) as bar,
    ):

        def read(batch: list[int], ids: torch.Tensor, reply_index: torch.Tensor) -> None:
            with tap.forward(reply_index):
                decoder(input_ids=ids, use_cache=False)
            reading = tap.reading()
            raw, norms = reading.raw.cpu().numpy(), reading.norms.cpu().numpy()
            for row, i in enumerate(batch):
                n = len(rows[i])
                # By block, not by token: attention spreads NaN over the tokens.
                finite = np.isfinite(norms[row, :n]).all(0)  # [n_blocks]
                if not finite.all():
                    first = tap.read_blocks[int(np.argmin(finite))]
                    raise NumericalError(
                        f"Text {i}: its states are not finite from block {first} on. {lm.why_not_finite}"
                    )
                results[i] = raw[row, :n].transpose(2, 1, 0).copy(), norms[row, :n].T.copy()
            bar.update(len(batch))

        each_batch(lm, rows, n_prompts, read, batch_tokens)
    return [results[i] for i in range(len(rows))]


@torch.inference_mode()
def read_pooled(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    n_prompts: Sequence[int],
    pools: Sequence[Pool],
    batch_tokens: int | None = None,
    max_norm: np.ndarray | None = None,
    n_sampled: int = 0,
    answers: Sequence[Sequence[int]] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sampled states of given texts in all blocks, as generation gives them; one forward over each text.

    Args:
        lm: the reader.
        rows: token ids of each text, prompt and reply.
        n_prompts: tokens before each reply.
        pools: positions; see `persona_core.inference.pooling`.
        batch_tokens: as in `each_batch`.
        max_norm, n_sampled: as in `PooledStates`.
        answers: the position of each reply token among those that count as its answer, and `NEITHER` or `THOUGHT` for
            others; None: `answer_positions`.

    Returns:
        Means, float32 `[rows, n_pools, n_blocks, d_model]`, NaN where a position has no token; and samples, float16
        `[rows, n_sampled, n_blocks, d_model]`.
    """
    decoder = unwrap(lm.model).get_decoder()
    shape = len(lm.blocks), lm.blocks.d_model
    means = np.empty((len(rows), len(pools), *shape), np.float32)
    samples = np.empty((len(rows), n_sampled, *shape), np.float16)
    if answers is None:
        answers = [answer_positions(lm, row[:n], row[n:]) for row, n in zip(rows, n_prompts, strict=True)]

    def read(batch: list[int], ids: torch.Tensor, reply_index: torch.Tensor) -> None:
        answer_index = torch.full(ids.shape, NEITHER)
        for i, row in enumerate(batch):
            answer_index[i, n_prompts[row] : len(rows[row])] = torch.tensor(answers[row], dtype=torch.long)
        answer_index = answer_index.to(lm.device)
        pooled = PooledStates(pools, len(lm.blocks), max_norm=max_norm, n_sampled=n_sampled)
        with ResidualTap(lm.blocks, pooled=pooled) as tap, tap.forward(reply_index, answer_index):
            decoder(input_ids=ids, use_cache=False)
        means[batch] = pooled.means()
        if n_sampled:
            samples[batch] = pooled.samples()

    each_batch(lm, rows, n_prompts, read, batch_tokens)
    return means, samples


def each_batch(
    lm: LanguageModel,
    rows: Sequence[Sequence[int]],
    n_prompts: Sequence[int],
    work: Work,
    batch_tokens: int | None = None,
) -> None:
    """Call `work` on all rows, in batches of similar length.

    Rows are padded on the right: a causal decoder's state at a token does not depend on what comes after it, so
    neither mask nor positions are needed. The longest come first, so that memory runs out at once or never; if it
    does, the batch size is halved.

    Args:
        lm: the reader.
        rows: token ids of each text.
        n_prompts: tokens before each reply.
        work: called with the indices of a batch, its ids and its reply indices, both `[rows, longest]` on the device.
        batch_tokens: tokens of a batch, padding included; a longer text is a batch alone. None: 1,024 on a CPU,
            16,384 on a GPU.
    """
    lm.refuse_training()
    budget = BATCH_TOKENS.get(lm.device.type, 4096) if batch_tokens is None else batch_tokens
    check_integer("batch_tokens", budget)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    start = 0
    while start < len(order):
        longest = len(rows[order[start]])
        batch = order[start : start + max(1, budget // longest)]
        try:
            ids, reply_index = _pad_right([rows[i] for i in batch], [n_prompts[i] for i in batch])
            work(batch, ids.to(lm.device), reply_index.to(lm.device))
        except RuntimeError as error:
            if not out_of_memory(error) or len(batch) == 1:
                raise
            budget = longest * (len(batch) // 2)
        else:
            start += len(batch)
            continue
        logger.warning("Out of memory while reading; continuing with %d tokens per forward.", budget)
        free_memory()


def _pad_right(rows: Sequence[Sequence[int]], n_prompts: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and reply indices, both `[rows, longest]`."""
    longest = max(map(len, rows))
    # Padded with each row's last token: transformers warns of unmasked padding ids, which are harmless here.
    ids = torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in rows])
    position = torch.arange(longest)
    reply_index = torch.stack(
        [
            torch.where(position < len(row), position - n_prompt, PAD_INDEX)
            for row, n_prompt in zip(rows, n_prompts, strict=True)
        ]
    )
    return ids, reply_index
