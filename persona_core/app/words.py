"""Errors as visitors are told them."""

from __future__ import annotations

import re

# A path on the server is cut to its last name; where a file lies there is nobody's business.
_PATH = re.compile(r"(?<![\w:/.~-])~?/(?:[^\s'\":,;/]+/)+(?=[^\s'\":,;/]*)")


def in_words(error: Exception) -> str:
    """What an error says, without paths of the server.

    >>> in_words(ValueError("No folder '/srv/models/tiny'."))
    "No folder 'tiny'."
    """
    return _PATH.sub("", str(error))


def failed(what: str, error: Exception) -> str:
    """Of an error that nobody expected no more than its kind.

    >>> failed("The reply", OSError("disk full"))
    "The reply failed (OSError). The server's log says more; please try again."
    """
    return f"{what} failed ({type(error).__name__}). The server's log says more; please try again."
