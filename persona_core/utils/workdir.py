"""The work folder of a long command: one process at a time, and one plan."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from persona_core.errors import SettingError
from persona_core.utils.files import read_json, write_atomically

PLAN_FILE = "plan.json"


def check_plan(folder: Path, plan: Mapping[str, Any], create: bool = True) -> None:
    """Store the plan, or compare it with the one that the folder's run was started with.

    Args:
        folder: the work folder.
        plan: JSON values.
        create: True: `plan` is complete, and the folder may be new. False: only the settings in `plan` are compared.

    Raises:
        SettingError: the plans differ (the message names the first setting that does), or none is stored yet.
    """
    path = folder / PLAN_FILE
    wanted = json.loads(json.dumps(plan))
    if not path.is_file():
        if not create:
            raise SettingError(
                f"No {PLAN_FILE} in {str(folder)!r}: no run was started there. Pass the folder of an earlier run."
            )
        write_atomically(path, json.dumps(wanted, indent=2, ensure_ascii=False) + "\n")
        return
    before = read_json(path)
    found = _difference(before if create else {k: before.get(k) for k in wanted}, wanted)
    if found:
        where, old, new = found
        raise SettingError(
            f"The run in {str(folder)!r} was started with {where} = {_short(old)}; now it is {_short(new)}. Use the "
            "same setting to resume, or another folder to start over."
        )


def lock(folder: str | Path) -> BaseFileLock:
    """The folder's lock, acquired; `release()` frees it. The system frees it when the process ends, also after a kill.

    Raises:
        SettingError: another process holds it.
    """
    held = FileLock(Path(folder) / ".lock", thread_local=False)
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        raise SettingError(
            f"Another process is using {str(folder)!r}. Wait for it to finish, or use another folder."
        ) from error
    return held


def _difference(before: Any, now: Any, where: str = "") -> tuple[str, Any, Any] | None:
    """Where two JSON values first differ, and the two values there."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(k for k in now if k not in before)]:
            found = _difference(before.get(key), now.get(key), f"{where}.{key}" if where else key)
            if found:
                return found
        return None
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (one, other) in enumerate(zip(before, now, strict=True)):
            found = _difference(one, other, f"{where}[{index}]")
            if found:
                return found
        return None
    return None if before == now else (where or "plan", before, now)


def _short(value: Any, longest: int = 120) -> str:
    text = str(value)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
