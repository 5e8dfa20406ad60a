"""The token view in a page of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import view_page


@pytest.fixture
def show(open_page: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Shows a payload in a bare page with nothing but a token view."""
    return view_page.shower(open_page, tmp_path)
