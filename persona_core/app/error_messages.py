"""Error messages as visitors see them."""

from __future__ import annotations

import re

# Paths are cut to their last part: the server's folders are not for visitors.
_PATH = re.compile(r"(?<![\w:/.~-])~?/(?:[^\s'\":,;/]+/)+(?=[^\s'\":,;/]*)")


def public_message(error: Exception) -> str:
    """The error's message without paths on the server.

    >>> public_message(ValueError("No folder '/srv/models/tiny'."))
    "No folder 'tiny'."
    """
    return _PATH.sub("", str(error))


def unexpected_message(what: str, error: Exception) -> str:
    """The message for an unexpected error: only its type is shown.

    >>> unexpected_message("The reply", OSError("disk full"))
    "The reply failed (OSError). Please try again; details are in the server's log."
    """
    return f"{what} failed ({type(error).__name__}). Please try again; details are in the server's log."
