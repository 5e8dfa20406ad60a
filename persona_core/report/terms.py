"""The technical words of the report, each explained where the mouse rests on it."""

from __future__ import annotations

import html
import re

TERMS = {
    "AUROC": "probability that a reply with the trait scores above one without it; 0.5 is chance",
    "CUSUM": "sum of how far the score has been above neutral so far; too large a sum raises an alarm",
    "Fisher's z": "a correlation, stretched so that differences between correlations can be compared",
    "log-rank test": "test of whether onsets come earlier in one group of replies than in the other",
    "lag-1 autocorrelation": "correlation of each token's score with that of the token before it",
    "sink tokens": "tokens with an unusually large state, such as the first one; their scores say nothing",
    "specific score": "how much more a token looks like this trait than like neutral text or any other trait",
    "SD": "standard deviation",
    "null": "neutral replies, which show what scores look like when nothing is going on",
    "neutral replies": "replies of the baseline to prompts that ask for no trait",
    "alarm": "the score has stayed above what neutral replies reach",
    "onset": "the token at which the score rises for good, estimated once an alarm is raised",
    "median": "half of the values are below it",
    "coherence": "a judge's points, 0 to 100, for how much sense a reply makes",
    "threshold": "the score that few neutral replies reach",
    "projection": "how far a token's state lies along the trait's direction",
}
_FORMS = {form for term in TERMS for form in (term, html.escape(term))}
_WORD = re.compile("|".join(rf"(?<![\w-]){re.escape(form)}(?![\w-])" for form in sorted(_FORMS, key=len, reverse=True)))
_TAG = re.compile(r"(<[^>]*>)")
_STARTS = re.compile(r"<(section|details|div data-trait)\b")
_LEFT = re.compile(r"<(/?)(q|h2|h3|button|nav|summary|abbr)\b")
"""What holds names, texts of a model or what is pressed."""


def explained(markup: str) -> str:
    """Markup in which each term has its explanation as a title, the first time in a section, a fold or a trait's part.

    Args:
        markup: whose texts are escaped.

    >>> explained("<p>The AUROC, <q>AUROC</q>.</p>").count("AUROC</abbr>")
    1
    """
    said: set[str] = set()
    depth = 0

    def of(found: re.Match[str]) -> str:
        term = html.unescape(found[0])
        if term in said:
            return found[0]
        said.add(term)
        return f'<abbr title="{html.escape(TERMS[term])}">{found[0]}</abbr>'

    parts = _TAG.split(markup)
    for k, part in enumerate(parts):
        if k % 2 == 0:
            parts[k] = part if depth else _WORD.sub(of, part)
            continue
        if _STARTS.match(part):
            said.clear()
        if left := _LEFT.match(part):
            depth += -1 if left[1] else 1
    return "".join(parts)
