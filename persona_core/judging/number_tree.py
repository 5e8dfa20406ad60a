"""The token sequences that write 0 to 100, and one forward over all of them after many prompts.

Prompts of one rubric begin alike: the keys and values of that prefix are computed once and shared. Behind each prompt
come the tokens of all unfinished numbers (on SmolLM2, which writes digits, 11) under a mask that shows each only the
prompt and the digits before it. So one forward gives P(8), P(5 | 8) and all others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

import torch
from transformers import DynamicCache

from persona_core.models.blocks import unwrap
from persona_core.models.language_model import LanguageModel

MASKED_BY_US = ("sdpa", "eager")
"""Attention implementations that take a mask as it is."""


@dataclass(frozen=True)
class Node:
    """A token in the tree of the sequences that write numbers.

    Attributes:
        token: its id; -1 for the root.
        parent: index of the node before it.
        depth: tokens from the root.
        number: the number that is complete here, if any.
        open: whether more tokens may follow.
    """

    token: int
    parent: int
    depth: int
    number: int | None
    open: bool


@dataclass(frozen=True)
class NumberTree:
    """The nodes, parents before children; the first is the root."""

    nodes: tuple[Node, ...]

    @cached_property
    def branches(self) -> tuple[int, ...]:
        """Indices of the nodes that more tokens may follow, without the root: what a forward has to read."""
        return tuple(i for i, node in enumerate(self.nodes) if node.open and i)

    @cached_property
    def sees(self) -> torch.Tensor:
        """Which branches each branch may attend to: itself and those before it; bool `[n, n]`."""
        found = torch.eye(len(self.branches), dtype=torch.bool)
        for row, index in enumerate(self.branches):
            parent = self.nodes[index].parent
            if parent:
                found[row] |= found[self.branches.index(parent)]
        return found


def number_tree(lm: LanguageModel) -> NumberTree:
    """The token sequences that write 0 to 100, with and without a space before them."""
    numbers: dict[tuple[int, ...], int | None] = {(): None}
    for number in range(101):
        for text in (str(number), f" {number}"):
            tokens = tuple(lm.tokenizer.encode(text, add_special_tokens=False))
            for n in range(1, len(tokens)):
                numbers.setdefault(tokens[:n], None)
            if tokens:
                numbers[tokens] = number
    order = sorted(numbers, key=len)
    index = {tokens: i for i, tokens in enumerate(order)}
    opened = {tokens[:-1] for tokens in order if tokens}
    return NumberTree(
        tuple(
            Node(tokens[-1] if tokens else -1, index[tokens[:-1]], len(tokens), numbers[tokens], tokens in opened)
            for tokens in order
        )
    )


def digit_tokens(lm: LanguageModel) -> torch.Tensor:
    """Which tokens begin with a digit, bool `[vocab]`."""
    found = torch.zeros(lm.vocabulary_size, dtype=torch.bool)
    pieces = lm.tokenizer.batch_decode([[i] for i in range(min(len(lm.tokenizer), lm.vocabulary_size))])
    for token, piece in enumerate(pieces):
        found[token] = bool(re.match(r"\d", piece))
    return found


def common_prefix(rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The tokens that all rows begin with, without the last token of the shortest: that one is read for each row.

    >>> common_prefix([[1, 2, 3, 4], [1, 2, 5]]), common_prefix([[1, 2], [1, 2]])
    ((1, 2), (1,))
    """
    alike = takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))
    return tuple(column[0] for column in alike)[: min(map(len, rows)) - 1]


@dataclass(frozen=True, eq=False)
class Prefix:
    """Tokens that many prompts begin with, and their keys and values."""

    ids: tuple[int, ...]
    cache: Any

    def of_all(self, rows: Sequence[Sequence[int]]) -> bool:
        """Whether all rows begin with it and go on."""
        return all(len(row) > len(self.ids) and tuple(row[: len(self.ids)]) == self.ids for row in rows)

    def repeated(self, n: int) -> DynamicCache:
        """A cache of n rows; the prefix is not copied."""
        cache = DynamicCache()
        for index, layer in enumerate(self.cache.layers if self.ids else ()):
            cache.update(*(states.expand(n, -1, -1, -1) for states in (layer.keys, layer.values)), index)
        return cache


@torch.inference_mode()
def read_prefix(lm: LanguageModel, ids: tuple[int, ...]) -> Prefix:
    """Keys and values of a prefix."""
    cache = DynamicCache()
    if ids:
        lm.model(
            input_ids=torch.tensor([ids], device=lm.device), past_key_values=cache, use_cache=True, **lm.last_logits(1)
        )
    return Prefix(ids, cache)


@torch.inference_mode()
def read_tree(lm: LanguageModel, tree: NumberTree, prefix: Prefix, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Logits after each row and after each branch behind it, `[rows, 1 + n_branches, vocab]`.

    Args:
        prefix: what all rows begin with.
        rows: whole prompts.
    """
    n, n_branches = len(prefix.ids), len(tree.branches)
    rests = [row[n:] for row in rows]
    longest = max(map(len, rests))
    branches = [tree.nodes[i] for i in tree.branches]
    tokens = [node.token for node in branches]
    ids = torch.tensor([[*[rest[0]] * (longest - len(rest)), *rest, *tokens] for rest in rests])
    first = torch.tensor([longest - len(rest) for rest in rests])[:, None]  # columns of padding, [rows, 1]
    column = torch.arange(longest)
    depth = torch.tensor([node.depth for node in branches], dtype=torch.long)
    positions = torch.cat([n + (column - first).clamp_min(0), n + longest - first - 1 + depth], 1)

    sees = torch.zeros(len(rows), longest + n_branches, n + longest + n_branches, dtype=torch.bool)
    sees[:, :, :n] = True
    real = column >= first  # [rows, longest]
    sees[:, :longest, n : n + longest] = (real[:, None] & (column[:, None] >= column)) | torch.eye(longest).bool()
    sees[:, longest:, n : n + longest] = real[:, None]
    sees[:, longest:, n + longest :] = tree.sees
    dtype = lm.dtype if lm.dtype.is_floating_point else torch.float32
    mask = torch.zeros(sees.shape, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)[:, None]
    logits = lm.model(
        input_ids=ids.to(lm.device),
        attention_mask=mask.to(lm.device),
        position_ids=positions.to(lm.device),
        past_key_values=prefix.repeated(len(rows)),
        use_cache=True,
        **lm.last_logits(1 + n_branches),
    ).logits
    return logits[:, -1 - n_branches :]


def takes_a_tree(lm: LanguageModel) -> bool:
    """Whether a model may be given a mask and positions of its own; whether it reads them right is seen by trying."""
    config = unwrap(lm.model).config
    return "position_ids" in lm.forward_arguments and getattr(config, "_attn_implementation", "") in MASKED_BY_US
