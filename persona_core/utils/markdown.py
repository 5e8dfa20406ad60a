"""Markdown for cards and pages: figures with their intervals, tables, and untrusted text."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol


class HasInterval(Protocol):
    """An estimate with the ends of its interval."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def interval(
    figure: Mapping[str, Any] | HasInterval | None,
    digits: int | None = None,
    *,
    percent: bool = False,
    missing: str = "not measured",
) -> str:
    """An estimate with its interval, as plain text.

    Args:
        figure: with "value", "low" and "high"; None: there is none.
        digits: after the decimal point; None: 4, or 1 of a percentage.
        percent: whether the figure is a share, to be written as a percentage.
        missing: what to write for None.

    >>> interval({"value": 0.5, "low": 0.4, "high": 0.6}, percent=True)
    '50.0 % [40.0, 60.0]'
    """
    if figure is None:
        return missing
    ends = [figure[k] if isinstance(figure, Mapping) else getattr(figure, k) for k in ("value", "low", "high")]
    n = (1 if percent else 4) if digits is None else digits
    value, low, high = (f"{100 * end if percent else end:.{n}f}" for end in ends)
    return f"{value}{' %' if percent else ''} [{low}, {high}]"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table. Cells are Markdown; pass untrusted text through `escape`.

    >>> print(table(["trait", "share"], [["evil", "1 %"]]))
    | trait | share |
    |---|---|
    | evil | 1 % |
    """
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def escape(value: object) -> str:
    """Untrusted text, made safe for a line or a table cell.

    >>> escape("a|b <script>")
    'a\\\\|b &lt;script&gt;'
    """
    one_line = " ".join(str(value).split())
    return html.escape(one_line, quote=False).replace("\\", "\\\\").replace("|", "\\|").replace("`", "\\`")
