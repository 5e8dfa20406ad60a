"""A model of the app with its vectors and published runs: it has a page of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from persona_core.app.pooled_model import PooledModel
from persona_core.errors import PersonaError, SettingError
from persona_core.models.gguf import find_gguf
from persona_core.report.results_folder import BASELINE, CONTAMINATED
from persona_core.utils.hub import resolve_source, split_revision
from persona_core.vectors.vectors import PersonaVectors

if TYPE_CHECKING:
    from persona_core.app.settings import AppSettings


@dataclass(frozen=True)
class ServedSet:
    """What one page shows.

    Attributes:
        name: in the menu and in the page's address; empty where there is one set.
        settings: its folders or repositories, and the limits.
        models: "baseline", and "contaminated" if there is an adapter -> the model, loaded on first use.
    """

    name: str
    settings: AppSettings
    models: Mapping[str, PooledModel]


def served_sets(settings: Mapping[str, AppSettings]) -> tuple[ServedSet, ...]:
    """The sets of some settings, each checked: a mistyped folder is found now, not by the first visitor.

    Where one set's weights cannot be had, the last set's model writes on its page, and says so.

    Raises:
        SettingError: the message names the setting.
    """
    last = list(settings.values())[-1]
    found = []
    for name, one in settings.items():
        _check(one, name)
        instead = last if one is not last and one.model is None else None
        models = {BASELINE: PooledModel.from_settings(one, instead=instead)}
        if one.adapter is not None:
            models[CONTAMINATED] = PooledModel.contaminated(models[BASELINE], one, instead)
        found.append(ServedSet(name, one, models))
    return tuple(found)


def _check(settings: AppSettings, name: str) -> None:
    of_set = f" of the set {name!r}" if name else ""
    for key in ("model", "adapter", "results"):
        if source := getattr(settings, key):
            try:
                if not (key == "model" and find_gguf(*split_revision(source))):
                    resolve_source(*split_revision(source))
            except PersonaError as error:
                raise SettingError(f"PERSONA_{key.upper()}{of_set}: {error}") from error
    try:
        PersonaVectors.from_pretrained(*split_revision(settings.vectors))
    except PersonaError as error:
        raise SettingError(f"No vectors to show (PERSONA_VECTORS{of_set}): {error}") from error
