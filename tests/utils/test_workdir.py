"""Work folders: one process at a time, and always the same plan."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from persona_core.errors import SettingError
from persona_core.utils.workdir import check_plan, lock

HOLD = (
    "import sys, time; from persona_core.utils.workdir import lock; held = lock(sys.argv[1]); print(); time.sleep(60)"
)


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    try:
        holder.stdout.readline()
        with pytest.raises(SettingError, match=r"Another process is using .*use another folder"):
            lock(tmp_path)
    finally:
        holder.kill()
        holder.communicate()
    lock(tmp_path).release()


def test_a_lock_can_be_taken_again_once_released(tmp_path: Path) -> None:
    held = lock(tmp_path)
    with pytest.raises(SettingError):
        lock(tmp_path)
    held.release()
    lock(tmp_path).release()


def test_another_plan_is_refused_by_its_first_difference(tmp_path: Path) -> None:
    plan = {"traits": ["evil"], "sampling": {"temperature": 0.7, "top_p": 1.0}}
    with pytest.raises(SettingError, match="no run was started there"):
        check_plan(tmp_path, plan, create=False)
    check_plan(tmp_path, plan)
    check_plan(tmp_path, plan)
    check_plan(tmp_path, {"traits": ["evil"]}, create=False)
    with pytest.raises(SettingError, match=r"started with sampling\.temperature = 0\.7; now it is 1\.0"):
        check_plan(tmp_path, {**plan, "sampling": {"temperature": 1.0, "top_p": 1.0}})
