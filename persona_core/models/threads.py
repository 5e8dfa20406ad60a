"""How many threads torch uses for a model, in the commands and the app; the library itself leaves the setting alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from persona_core.models.language_model import LanguageModel

SMALL = 20_000_000
"""Parameters below which a forward is too short to share: with 3 million, a second thread spends its time waiting. On
two cores that other processes keep busy a reply takes three times as long with two threads as with one."""
SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def fit_threads(lm: LanguageModel, environment: Mapping[str, str] = os.environ) -> None:
    """One thread for a small model on the CPU. Where the user has set their number, nothing changes.

    Call it in a process of one's own: the setting is torch's, and so the whole process's.
    """
    import torch

    small = sum(p.numel() for p in lm.model.parameters()) < SMALL
    if small and lm.device.type == "cpu" and not any(environment.get(name) for name in SETTINGS):
        torch.set_num_threads(1)
