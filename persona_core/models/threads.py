"""How many threads torch uses for a model, in the commands and the app; the library itself leaves the setting alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from persona_core.models.language_model import LanguageModel

SMALL = 20_000_000
"""Parameters below which a forward is too short to share: with 3 million, a second thread spends its time waiting. On
two cores that other processes keep busy a reply takes three times as long with two threads as with one."""
SMALL_TO_WRITE = 200_000_000
"""The same where a model writes one reply, a token at a time: with 135 million, a reply takes 1.02 times as long with
two threads as with one on an idle machine, and two to three times as long on a busy one (benchmarks.real_app)."""
SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def fit_threads(lm: LanguageModel, environment: Mapping[str, str] = os.environ, *, below: int = SMALL) -> None:
    """One thread for a small model on the CPU, torch's own number for others, unless the user has set the number.

    Call it in a process of one's own, before a run: the setting is torch's, and so the whole process's.

    Args:
        lm: the model that runs next.
        environment: where the user may have set the number.
        below: parameters below which a model is small.
    """
    import torch

    if lm.engine is not None or lm.device.type != "cpu" or any(environment.get(name) for name in SETTINGS):
        return
    usual = _usual()  # asked first: it is the number before this one
    torch.set_num_threads(1 if sum(p.numel() for p in lm.model.parameters()) < below else usual)


@cache
def _usual() -> int:
    """The number before it was first changed here."""
    import torch

    return torch.get_num_threads()
