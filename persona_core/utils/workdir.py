"""A folder that a long command works in: one process at a time, and never with two plans."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from persona_core.errors import SettingError
from persona_core.utils.files import read_json, write_whole

PLAN_FILE = "plan.json"


def check_plan(folder: Path, plan: Mapping[str, Any], begin: bool = True) -> None:
    """Write the plan down, or compare it with the one that the folder rests on.

    Args:
        folder: what was written there so far rests on the plan.
        plan: JSON values.
        begin: the folder may be new, and all of the plan is given. Otherwise only what is given is compared.

    Raises:
        SettingError: they differ; the message names the first setting that does. Or there is no plan to compare with.
    """
    path = folder / PLAN_FILE
    wanted = json.loads(json.dumps(plan))
    if not path.is_file():
        if not begin:
            raise SettingError(f"Nothing has been begun in {str(folder)!r}.")
        write_whole(path, json.dumps(wanted, indent=2, ensure_ascii=False) + "\n")
        return
    before = read_json(path)
    found = _difference(before if begin else {k: before.get(k) for k in wanted}, wanted)
    if found:
        where, old, new = found
        raise SettingError(
            f"The folder {str(folder)!r} was begun with {where} = {_short(old)}; now it is {_short(new)}. Use the same "
            "setting to go on, or another folder to begin anew."
        )


def lock(folder: Path) -> int | None:
    """An open, locked file; the system unlocks it when it is closed or the process ends, also after a kill.

    Raises:
        SettingError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise SettingError(f"Another process works in {str(folder)!r}. Wait for it, or use another folder.") from error
    return handle


def unlock(handle: int | None) -> None:
    """Give back what `lock` returned."""
    if handle is not None:
        os.close(handle)


def _difference(before: Any, now: Any, where: str = "") -> tuple[str, Any, Any] | None:
    """The first place at which two JSON values differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(k for k in now if k not in before)]:
            found = _difference(before.get(key), now.get(key), f"{where}.{key}" if where else key)
            if found:
                return found
        return None
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for place, (one, other) in enumerate(zip(before, now, strict=True)):
            found = _difference(one, other, f"{where}[{place}]")
            if found:
                return found
        return None
    return None if before == now else (where or "plan", before, now)


def _short(value: Any, longest: int = 120) -> str:
    text = str(value)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
