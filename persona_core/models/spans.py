"""Which characters of a rendered conversation come from which message.

Nothing is searched for. The conversation is rendered again with each character of its messages replaced by a code point
of its own, one to which Unicode gives no character: each stands where the template put the character. With the
characters put back, the text must be the same; otherwise the template looked at the messages (it cuts at `</think>`, or
takes a switch out), and what it may look for stays in place in the next try.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from persona_core.errors import PromptError

Render = Callable[[Sequence[str]], str]
"""Renders the conversation with these texts in place of its messages'."""

# Planes 4 to 13 hold no character: 655,360 code points.
FIRST_CODE, N_CODES = 0x40000, 0xA0000
NOBODY = -1
MAX_RUNS = 200  # runs of white space that are tried; texts with more are programs or tables, where it is kept


@dataclass(frozen=True)
class TextSpan:
    """Characters `start` to `end` of a rendered text, which come from part number `part` of the conversation."""

    part: int
    start: int
    end: int


def locate(parts: Sequence[str], text: str, render: Render, literals: Callable[[], Sequence[str]]) -> list[TextSpan]:
    """The characters that come from each part, in the order of the text; a part that was dropped has no span.

    Args:
        parts: texts of the messages.
        text: the rendered conversation.
        render: renders it with other texts.
        literals: strings that the template may look for in a message, longest first.

    Raises:
        PromptError: the template changes the texts in a way that does not show what comes from where.
    """
    every = range(len(parts))
    owners = _marked_owners(parts, every, text, render, literals)
    if owners is not None:
        return _runs(owners)
    # One message at a time: the one that is rewritten does not hide where the others stand.
    owners, lost = [NOBODY] * len(text), []
    for number in every:
        found = _marked_owners(parts, [number], text, render, literals)
        if found is None:
            lost.append(number)
        else:
            owners = [old if new == NOBODY else new for old, new in zip(owners, found, strict=True)]
    return _runs(_with_searched(parts, text, lost, owners, render))


def _marked_owners(
    parts: Sequence[str], numbers: Sequence[int], text: str, render: Render, literals: Callable[[], Sequence[str]]
) -> list[int] | None:
    """For each character of the text the part that it comes from, of these parts; None where marks change the text."""
    for masks in _tries(parts, literals):
        masks = [mask if i in numbers else [False] * len(mask) for i, mask in enumerate(masks)]
        marked, origin = _mark(parts, masks)
        try:
            out = render(marked)
        except PromptError:
            continue
        if "".join([parts[origin[c][0]][origin[c][1]] if c in origin else c for c in out]) != text:
            continue
        owners = _owners(out, _without_stripped(marked, origin, out, render), origin)
        return _with_searched(
            parts, text, [i for i in numbers if parts[i].strip() and not any(masks[i])], owners, render
        )
    return None


def _tries(parts: Sequence[str], literals: Callable[[], Sequence[str]]) -> Iterator[list[list[bool]]]:
    """Which characters of each part to mark: from all to few."""
    every = [[not c.isspace() for c in part] for part in parts]
    yield every
    found = [text for text in literals() if any(text in part for part in parts)]
    yield _without(parts, every, [text for text in found if not text.strip().isalnum()])
    careful = _without(parts, every, found)
    yield careful
    yield [
        [m and c.isalnum() for m, c in zip(mask, part, strict=True)] for mask, part in zip(careful, parts, strict=True)
    ]


def _without(parts: Sequence[str], masks: list[list[bool]], literals: Sequence[str]) -> list[list[bool]]:
    """The masks, false at every occurrence of a literal."""
    masks = [list(mask) for mask in masks]
    for part, mask in zip(parts, masks, strict=True):
        for literal in literals:
            for match in re.finditer(f"(?={re.escape(literal)})", part):
                mask[match.start() : match.start() + len(literal)] = [False] * len(literal)
    return masks


def _mark(parts: Sequence[str], masks: list[list[bool]]) -> tuple[list[str], dict[str, tuple[int, int]]]:
    """The parts with a code point for each marked character, and the part and position that each stands for."""
    total = sum(sum(mask) for mask in masks)
    stride = -(-total // N_CODES) or 1  # a longer conversation has a mark at every second character, or every third
    origin: dict[str, tuple[int, int]] = {}
    marked, count = [], itertools.count()
    for number, (part, mask) in enumerate(zip(parts, masks, strict=True)):
        characters = list(part)
        for at, wanted in enumerate(mask):
            if wanted and not (n := next(count)) % stride:
                characters[at] = chr(FIRST_CODE + n // stride)
                origin[characters[at]] = number, at
        marked.append("".join(characters))
    return marked, origin


def _without_stripped(marked: Sequence[str], origin: dict[str, tuple[int, int]], out: str, render: Render) -> list[str]:
    """The marked parts with NUL for white space that the template strips: twice as much of it changes nothing."""
    runs = []  # part, start, end, the mark beside it, and on which side of the mark it is
    for number, part in enumerate(marked):
        for run in re.finditer(r"\s+", part):
            start, end = run.span()
            left, right = part[start - 1 : start] if start else "", part[end : end + 1]
            if (left in origin) != (right in origin):
                runs.append((number, start, end, right if right in origin else left, right in origin))
    kept = list(marked)
    if not runs or len(runs) > MAX_RUNS:
        return kept
    longer = list(marked)
    for number, start, end, _, _ in reversed(runs):
        longer[number] = longer[number][:end] + longer[number][start:]
    try:
        other = render(longer)
    except PromptError:
        return kept
    for number, start, end, mark, is_before in runs:
        if _space_beside(out, mark, is_before) == _space_beside(other, mark, is_before):
            kept[number] = kept[number][:start] + "\0" * (end - start) + kept[number][end:]
    return kept


def _space_beside(text: str, mark: str, is_before: bool) -> int:
    before, _, after = text.partition(mark)
    return len(before) - len(before.rstrip()) if is_before else len(after) - len(after.lstrip())


def _owners(out: str, marked: Sequence[str], origin: dict[str, tuple[int, int]]) -> list[int]:
    """The part that each character of the marked rendering comes from.

    What stands beside a mark and is what stands beside it in its message belongs to the message too.
    """
    owners = [NOBODY] * len(out)
    at = [i for i, c in enumerate(out) if c in origin]
    for i in at:
        owners[i] = origin[out[i]][0]
    for left, right in zip([-1, *at], [*at, len(out)], strict=True):
        done = left + 1
        if left >= 0:
            part, position = origin[out[left]]
            own = marked[part]
            while done < right and position + done - left < len(own) and out[done] == own[position + done - left]:
                owners[done] = part
                done += 1
        if right < len(out):
            part, position = origin[out[right]]
            before = right - 1
            while before >= done and position - (right - before) >= 0:
                if out[before] != marked[part][position - (right - before)]:
                    break
                owners[before] = part
                before -= 1
    return owners


def _runs(owners: Sequence[int]) -> list[TextSpan]:
    spans, at = [], 0
    for part, run in itertools.groupby(owners):
        n = len(list(run))
        if part != NOBODY:
            spans.append(TextSpan(part, at, at + n))
        at += n
    return spans


def _with_searched(
    parts: Sequence[str], text: str, numbers: Sequence[int], owners: list[int], render: Render
) -> list[int]:
    """The last resort: a part's text where it occurs exactly once in what no other part owns, if it is the part's."""
    owners = list(owners)
    for number in sorted(numbers, key=lambda i: -len(parts[i])):
        wanted = parts[number].strip()
        if not wanted:
            continue
        starts = [m.start() for m in re.finditer(f"(?={re.escape(wanted)})", text)]
        free = [s for s in starts if all(owner == NOBODY for owner in owners[s : s + len(wanted)])]
        if not free:
            continue
        other = _replaced(parts, number, render)
        if other == text:  # the part is dropped, and its words are the template's too
            continue
        if len(free) > 1 or other is None or not _differs(text, other, free[0], free[0] + len(wanted)):
            times = f"occurs {len(free)} times" if len(free) > 1 else "stands where the template may have written it"
            raise PromptError(
                f"The chat template rewrites the messages, and {wanted[:60]!r} {times} in the prompt: which tokens "
                "come from which message cannot be told. Reword the message."
            )
        owners[free[0] : free[0] + len(wanted)] = [number] * len(wanted)
    return owners


def _replaced(parts: Sequence[str], number: int, render: Render) -> str | None:
    """The conversation with another text, of the same length, for one part; None if the template rejects it."""
    texts = list(parts)
    texts[number] = "".join(c if c.isspace() else "q" if c == "x" else "x" for c in parts[number])
    try:
        return render(texts)
    except PromptError:
        return None


def _differs(text: str, other: str, start: int, end: int) -> bool:
    """Whether another rendering has something else at these characters, counted from its start and from its end."""
    longer = len(other) - len(text)
    return text[start:end] not in (other[start:end], other[max(start + longer, 0) : max(end + longer, 0)])
