"""Split the decoded text of a token sequence into one piece per token, for display."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"  # how a decoder shows bytes that are not (yet) a character
WINDOW = 8  # tokens to wait for undecodable bytes to complete; a character has at most 4 bytes


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The exact text of `ids`, special tokens included."""
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


class TextSplitter:
    """Split text token by token, in one pass, as the tokens arrive.

    A character that spans several tokens belongs to the token that completes it; the tokens before it show "".

    >>> splitter = TextSplitter(tokenizer)  # doctest: +SKIP
    >>> [splitter.push(i) for i in tokenizer.encode("a snail")]  # doctest: +SKIP
    ['a', ' sn', 'ail']
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []  # tokens already shown, on which the next piece's spacing depends
        self._open: list[int] = []  # tokens whose text is incomplete

    def push(self, token_id: int) -> str:
        """Add one token and return the text that it completes."""
        self._open.append(token_id)
        shown = text_of(self._tokenizer, self._context)
        text = text_of(self._tokenizer, self._context + self._open)
        incomplete = not text.startswith(shown) or text.endswith(REPLACEMENT)
        if incomplete and len(self._open) < WINDOW:
            return ""
        self._context, self._open = self._open, []
        # Undecodable bytes may change the text before them (byte-fallback decoders).
        return text[common_length(shown, text) :]

    def pending(self) -> str:
        """The text of tokens that have not completed a character; "" if there are none."""
        if not self._open:
            return ""
        shown = text_of(self._tokenizer, self._context)
        text = text_of(self._tokenizer, self._context + self._open)
        return text[common_length(shown, text) :]


def common_length(a: str, b: str) -> int:
    """Length of the common prefix of two texts.

    >>> common_length("then", "than")
    2
    """
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def split_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """One piece of text per token; the pieces join to `text_of(tokenizer, ids)` exactly.

    Args:
        tokenizer: the tokenizer whose ids these are.
        ids: token ids, `[n_tokens]`.

    Returns:
        `[n_tokens]` strings. A character that spans several tokens belongs to the last of them.
    """
    splitter = TextSplitter(tokenizer)
    pieces = [splitter.push(token_id) for token_id in ids]
    if pieces:
        pieces[-1] += splitter.pending()
    whole = text_of(tokenizer, ids)
    if "".join(pieces) != whole:
        pieces = _split_by_prefixes(tokenizer, ids, whole)
    return pieces


def _split_by_prefixes(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], whole: str) -> list[str]:
    """Exact for any decoder, at the cost of one decode of the whole prefix per token: the fallback if windows disagree.

    A token's end is the longest prefix of the whole text that its prefix decodes to.
    """
    pieces, done = [], 0
    for index in range(len(ids)):
        prefix = text_of(tokenizer, ids[: index + 1]).rstrip(REPLACEMENT)
        end = len(prefix) if whole.startswith(prefix) else done
        if index == len(ids) - 1:
            end = len(whole)
        end = max(end, done)
        pieces.append(whole[done:end])
        done = end
    return pieces


def is_well_formed(text: str) -> bool:
    """Whether a text contains no unpaired surrogate."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def well_formed(text: str) -> str:
    """Replace unpaired surrogates, which a token can decode to but UTF-8 and JSON cannot hold.

    >>> well_formed("a\\ud800b")
    'a\ufffdb'
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
