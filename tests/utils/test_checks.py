"""Checks of numbers: NumPy's count as Python's do, booleans never."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from persona_core.errors import SettingError, UnknownBlock
from persona_core.utils.checks import check_integer, is_integer, is_number, known_block


@pytest.mark.parametrize("value", [0, 7, np.int64(7), np.uint8(0)])
def test_integers(value: Any) -> None:
    assert is_integer(value) and is_integer(value, minimum=0) and is_number(value)
    assert not is_integer(value, minimum=8)


@pytest.mark.parametrize("value", [True, np.True_, 1.0, np.float64(1), "1", None, [1], float("nan")])
def test_not_integers(value: Any) -> None:
    assert not is_integer(value)
    with pytest.raises(SettingError, match=r"rows=.*expected an integer of at least 1, or None for all"):
        check_integer("rows", value, otherwise="None for all")


@pytest.mark.parametrize("value", [float("inf"), float("nan"), np.nan, True, "1", None, 1j, 10**400])
def test_not_finite_numbers(value: Any) -> None:
    assert not is_number(value)


@pytest.mark.parametrize("value", [-1, 3, True, 1.0, "1", None])
def test_a_block_that_is_not_there_is_named(value: Any) -> None:
    with pytest.raises(UnknownBlock, match="The model has blocks 0 to 2"):
        known_block(value, range(3), "The model has")


def test_an_integer_beyond_64_bits_is_refused_in_words() -> None:
    check_integer("start", 2**62, 0)
    with pytest.raises(SettingError, match=r"start=1000000000000000000000000000000; expected .* at most 2\^62"):
        check_integer("start", 10**30, 0)
